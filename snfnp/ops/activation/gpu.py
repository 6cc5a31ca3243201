"""The smooth leaky ReLU on the GPU: one launch; see derivations/06-smooth-leaky-relu.md."""

import math

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

    def smooth_leaky_relu_backward(self, sigma, dy, dldj, alpha):
        device = self.device
        dx = device.empty(sigma.shape, sigma.dtype)
        arrays = {"sigma": sigma, "dy": dy, "dldj": dldj, "dx": dx}
        numbers = {"alpha": alpha, "dimension": math.prod(sigma.shape[1:])}
        device.launch("smooth_leaky_relu_backward", sigma.dtype, len(sigma), **arrays, **numbers)
        return dx
