"""Log-densities on the GPU: one launch.

Derivation: derivations/01-notation.md.
"""

from __future__ import annotations

import math

from snfnp.ops.density.definition import Density


class GpuDensity(Density):
    def gaussian_log_density(self, z):
        device, dimension = self.device, math.prod(z.shape[1:])
        density = device.empty(len(z), z.dtype)
        constant = 0.5 * dimension * math.log(2 * math.pi)
        arguments = (device.contiguous(z), constant, density, dimension)
        device.launch("gaussian_log_density", z.dtype, len(z), *arguments)
        return density
