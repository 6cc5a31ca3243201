"""Log-densities on the GPU: one launch each.

Derivation: derivations/01-notation.md.
"""

from __future__ import annotations

import math

from snfnp.ops.density.definition import Density

_AT_ONCE = 8  # arrays that a launch adds to the first


class GpuDensity(Density):
    def gaussian_log_density(self, z):
        device, dimension = self.device, math.prod(z.shape[1:])
        density = device.empty(len(z), z.dtype)
        constant = 0.5 * dimension * math.log(2 * math.pi)
        arguments = (device.contiguous(z), constant, density, dimension)
        device.launch("gaussian_log_density", z.dtype, len(z), *arguments)
        return density

    def total(self, terms):
        if len(terms) == 1 or len({(each.shape, each.dtype) for each in terms}) > 1:
            return super().total(terms)
        device, (total, *rest) = self.device, map(self.device.contiguous, terms)
        while rest:
            some, rest = rest[:_AT_ONCE], rest[_AT_ONCE:]
            longer = device.empty(total.shape, total.dtype)
            arguments = (total, *some, *(None,) * (_AT_ONCE - len(some)), longer, total.size)
            device.each("total", total.dtype, total.size, *arguments)
            total = longer
        return total
