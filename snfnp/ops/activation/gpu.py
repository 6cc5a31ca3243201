"""The smooth leaky ReLU on the GPU: one launch each; see derivations/05-smooth-leaky-relu.md."""

import math

import numpy as np

from snfnp.ops.activation.definition import Activation


class GpuActivation(Activation):
    """Arrays may be strided, all of a call have one dtype."""

    def smooth_leaky_relu(self, x, alpha):
        device = self.device
        y, sigma = device.empty(x.shape, x.dtype), device.empty(x.shape, x.dtype)
        ldj = device.empty(len(x), x.dtype)
        results = {"y": y, "ldj": ldj, "sigma": sigma, "dimension": math.prod(x.shape[1:])}
        device.launch("smooth_leaky_relu", x.dtype, len(x), x=x, alpha=alpha, **results)
        return y, ldj, sigma

    def smooth_leaky_relu_inverse(self, y, alpha):
        device = self.device
        x = device.empty(y.shape, y.dtype)
        gap, eps = (1 - alpha) * math.log(2), np.finfo(y.dtype).eps
        numbers = {"alpha": alpha, "gap": gap, "eps": eps, "n": y.size}
        device.each("smooth_leaky_relu_inverse", y.dtype, y.size, y=y, x=x, **numbers)
        return x

    def smooth_leaky_relu_backward(self, sigma, dy, dldj, alpha):
        device = self.device
        dx = device.empty(sigma.shape, sigma.dtype)
        arrays = {"sigma": sigma, "dy": dy, "dldj": dldj, "dx": dx}
        numbers = {"alpha": alpha, "dimension": math.prod(sigma.shape[1:])}
        device.launch("smooth_leaky_relu_backward", sigma.dtype, len(sigma), **arrays, **numbers)
        return dx
