"""Log-densities in array terms.

Derivation: derivations/01-notation.md.
"""

from __future__ import annotations

import math

from snfnp.ops.room import Room, rows


class Density(Room):
    def gaussian_log_density(self, z):
        """log N(z; 0, I) per sample: z (N, ...) -> (N,), in nats. O(N D)."""
        z = rows(z)
        constant = 0.5 * z.shape[1] * math.log(2 * math.pi)
        return -0.5 * self.xp.einsum("nd,nd->n", z, z) - constant

    def total(self, terms):
        """The sum of one or more arrays (N,), in their order: the log-densities of a chain."""
        first, *rest = terms
        return sum(rest, start=first)
