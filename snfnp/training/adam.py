"""Adam by hand (Kingma & Ba 2014), its learning rate, and clipping by the global norm.

The optimiser ascends: gradients are of the objective that the paper maximises (Eq. 3).
Derivation: derivations/06-adam.md.
"""

import math
from dataclasses import dataclass

SCHEDULES = ("constant", "cosine", "linear")


@dataclass(frozen=True)
class Adam:
    """p ← p + lr · m̂/(√v̂ + ε), ε outside the root. State: m and v, flat like p."""

    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8

    def update(self, ops, gradient, lr, step, clip_norm: float | None = None, failed=0.0, *, out):
        """One ascent step on the flat buffers out = (p, m, v); returns Σ g² before clipping. O(P).

        A gradient of a norm above `clip_norm` is scaled down to it first. lr, step (1, 2, …) and
        failed are numbers, or arrays of shape () on the device; if `failed` is not 0, nothing is
        updated (see `ops.step.adam`).
        """
        scale = 1.0
        if clip_norm is not None:
            scale = clip_scale(ops, ops.linalg.sum_squares(gradient), clip_norm)
        settings = (self.beta1, self.beta2, self.eps)
        return ops.step.adam(gradient, lr, *settings, step, scale, failed, out=out)


def clip_scale(ops, squares, clip_norm: float):
    """The factor (at most 1) that brings a gradient of Σ g² = `squares` within `clip_norm`."""
    xp = ops.xp
    return xp.minimum(1.0, clip_norm / (xp.sqrt(squares) + 1e-6))


def warmed_up(lr: float, step: int, steps_per_epoch: int, warmup_epochs: float) -> float:
    """The learning rate of step 0, 1, …: linear up to `lr` over the first epochs (A.3)."""
    warmup_steps = warmup_epochs * steps_per_epoch
    return lr if step + 1 >= warmup_steps else lr * (step + 1) / warmup_steps


def learning_rate(config, step: int, steps_per_epoch: int) -> float:
    """The learning rate of step 0, 1, …: warm-up, and then what `lr_schedule` makes of `lr`.

    "linear" falls on a straight line, "cosine" on a cosine (Loshchilov & Hutter 2017), from the end
    of the warm-up to the last step, which has `final_lr_fraction` of `lr`. A run's first step is
    never in the fall: if it is the only one, it would have no rate at all.
    """
    rate = warmed_up(config.lr, step, steps_per_epoch, config.warmup_epochs)
    warmup_steps = config.warmup_epochs * steps_per_epoch
    if config.lr_schedule == "constant" or step + 1 <= max(warmup_steps, 1):
        return rate
    steps = config.epochs * steps_per_epoch
    progress = min((step + 1 - warmup_steps) / (steps - warmup_steps), 1.0)
    cosine = config.lr_schedule == "cosine"
    left = (1 + math.cos(math.pi * progress)) / 2 if cosine else 1 - progress
    return rate * (config.final_lr_fraction + (1 - config.final_lr_fraction) * left)
