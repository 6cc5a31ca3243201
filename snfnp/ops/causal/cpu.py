"""Causal 2×2 convolutions on the CPU, in both directions without turning an image: what is padded
moves to the other two sides. See derivations/11-emerging.md.
"""

import numpy as np

from snfnp.ops.causal.definition import Causal
from snfnp.ops.conv.cpu import direct

# Rows of padding on top and columns on the left: where the neighbours are that a pixel sees. The
# opposite direction has them below and on the right.
_BEFORE = {False: (1, 1), True: (0, 0)}


class CpuCausal(Causal):
    """The direct kernels of `snfnp.ops.conv`, where it has some."""

    def correlate(self, x, k, b=None, reverse=False):
        kernels = direct(k.shape, x.shape[2])
        if kernels is None:
            return super().correlate(x, k, b, reverse)
        return _convolve(kernels, x, self._masked(k), b, reverse)

    def adjoint(self, dz, k, reverse=False):
        kernels = direct(k.shape, dz.shape[2])
        if kernels is None:
            return super().adjoint(dz, k, reverse)
        return _convolve(kernels, dz, self._masked(k).swapaxes(2, 3), None, not reverse)

    def weight_grad(self, delta, x, k, volume, out, reverse=False):
        kernels = direct(k.shape, x.shape[2], most=16)
        if kernels is None:
            return super().weight_grad(delta, x, k, volume, out, reverse)
        gradient = np.empty(out.shape, out.dtype)
        kernels.weight_grad(delta, x, False, gradient, _BEFORE[reverse])
        out[...] = self._masked(gradient[::-1, ::-1] if reverse else gradient)
        diagonal = np.einsum("cc->c", out[1, 1])  # a view
        diagonal += float(volume) / k[1, 1].diagonal().astype(np.float64)
        return out


def _convolve(kernels, x, taps, b, turn):
    z = np.empty(x.shape, x.dtype)
    kernels.correlate(x, taps[::-1, ::-1] if turn else taps, z, _BEFORE[turn], b)
    return z
