"""The smooth leaky ReLU on the GPU: one launch each.

Derivation: derivations/05-smooth-leaky-relu.md.
"""

from __future__ import annotations

import math

import numpy as np

from snfnp.ops.activation.definition import Activation


class GpuActivation(Activation):
    """Arrays may be strided, all of a call have one dtype."""

    def smooth_leaky_relu(self, x, alpha):
        device = self.device
        y, sigma = device.empty(x.shape, x.dtype), device.empty(x.shape, x.dtype)
        ldj = device.empty(len(x), x.dtype)
        arguments = (device.contiguous(x), alpha, y, ldj, sigma, math.prod(x.shape[1:]))
        device.launch("smooth_leaky_relu", x.dtype, len(x), *arguments)
        return y, ldj, sigma

    def smooth_leaky_relu_inverse(self, y, alpha):
        device = self.device
        x = device.empty(y.shape, y.dtype)
        numbers = (alpha, (1 - alpha) * math.log(2), np.finfo(y.dtype).eps)
        arguments = (device.contiguous(y), *numbers, x, y.size)
        device.each("smooth_leaky_relu_inverse", y.dtype, y.size, *arguments)
        return x

    def smooth_leaky_relu_backward(self, sigma, dy, dldj, alpha):
        device = self.device
        dx = device.empty(sigma.shape, sigma.dtype)
        arrays = (device.contiguous(array) for array in (sigma, dy, dldj))
        arguments = (*arrays, alpha, dx, math.prod(sigma.shape[1:]))
        device.launch("smooth_leaky_relu_backward", sigma.dtype, len(sigma), *arguments)
        return dx
