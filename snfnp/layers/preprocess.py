"""From integer images to unbounded reals: dequantise, scale, logit (Dinh et al. 2016; A.3).

All three steps count in the likelihood. On MNIST their log-Jacobians sum to about 272.7 nats (A.3),
with α = 1e-6 as in the authors' code.
Derivation: derivations/02-change-of-variables.md.
"""

import math
from dataclasses import dataclass

from snfnp.errors import UsageError


@dataclass(frozen=True)
class Preprocess:
    """v = (image + u)/levels, u ~ U[0, 1);  s = α + (1-2α) v;  x = logit(s). O(N D).

    Images (N, ...) hold values in [0, levels). The noise u is a function of `key`
    (`snfnp.ops.RandomKey`), so the same key gives the same x.
    """

    alpha: float = 1e-6
    levels: int = 256

    def __post_init__(self):
        if not 0 < self.alpha < 0.5:
            raise UsageError(f"alpha of the logit is {self.alpha}: it must be in (0, 0.5)")

    def forward(self, ops, images, key, dtype):
        """images (N, ...) -> x (N, ...) of `dtype`, ldj (N,) of the three steps together."""
        return ops.images.preprocess(images, key, self.alpha, self.levels, dtype)

    def inverse(self, ops, x):
        """x -> images, uint8: levels · (σ(x) - α)/(1-2α), and the floor takes the noise away."""
        x = x.astype(ops.xp.float64)
        e = ops.xp.exp(-abs(x))
        s = ops.xp.where(x >= 0, 1, e) / (1 + e)
        noisy = self.levels * (s - self.alpha) / (1 - 2 * self.alpha)
        return ops.xp.clip(ops.xp.floor(noisy), 0, self.levels - 1).astype(ops.xp.uint8)

    def terms(self, ldj, dimension: int) -> dict:
        """The ledger's rows: what each step contributes to ldj (a mean over samples), in nats.

        Adding noise changes no volume; the scale is a constant; the logit is what remains.
        """
        scale = dimension * (math.log1p(-2 * self.alpha) - math.log(self.levels))
        return {"dequantisation": 0.0, "scale": scale, "logit": ldj - scale}
