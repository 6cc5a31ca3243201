"""Adam by hand (Kingma & Ba 2014), linear warm-up, and clipping by the global norm.

The optimiser climbs: gradients are of the objective that the paper maximises (Eq. 3).
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Adam:
    """p ← p + lr · m̂/(√v̂ + ε), ε outside the root. State: m and v, flat like p."""

    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8

    def update(self, ops, p, g, m, v, lr: float, step: int, clip_norm: float | None) -> float:
        """One ascent step, in place on the flat buffers p, m, v. step = 1, 2, … O(P).

        Where `clip_norm` is set, a gradient of larger global norm is scaled down to it first.
        Returns the norm of the gradient before clipping.
        """
        scale = 1.0
        if clip_norm is not None:
            scale = clip_scale(math.sqrt(ops.sum_squares(g)), clip_norm)
        squares = ops.adam(p, g, m, v, lr, self.beta1, self.beta2, self.eps, step, scale)
        return math.sqrt(squares)


def clip_scale(norm: float, clip_norm: float) -> float:
    """The factor that brings a gradient of this global norm within `clip_norm` (at most 1)."""
    return min(1.0, clip_norm / (norm + 1e-6))


def warmed_up(lr: float, step: int, steps_per_epoch: int, warmup_epochs: float) -> float:
    """The learning rate of step 0, 1, …: linear up to `lr` over the first epochs (A.3)."""
    warmup_steps = warmup_epochs * steps_per_epoch
    return lr if step + 1 >= warmup_steps else lr * (step + 1) / warmup_steps
