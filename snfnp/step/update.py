"""Updates in a step: of parameters, by Adam (Kingma & Ba 2014), and of training states, which are
values beside the parameters, such as λ of Eq. 3.

The optimiser ascends: gradients are of the objective that the paper maximises (Eq. 3).
Derivation: derivations/16-adam.md and 21-lambda-controllers.md.
"""

import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from snfnp.ops import Array, Ops
from snfnp.ops.step.definition import Row

SCHEDULES = ("constant", "cosine", "linear")


class Optimiser(Protocol):
    """A rule that moves parameters in a step; see `Adam.update`."""

    def update(
        self,
        ops: Ops,
        gradient: Array,
        lr: Any,
        step: Any,
        clip_norm: float | None = None,
        failed: Any = 0.0,
        *,
        out: tuple[Array, Array, Array],
    ) -> Any:
        """Ascend once on out = (p, m, v); returns Σ g² before clipping."""


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
        settings = (self.beta1, self.beta2, self.eps)
        limit = math.inf if clip_norm is None else clip_norm
        return ops.step.adam(gradient, lr, *settings, step, limit, failed, out=out)


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


class TrainingState:
    """An array that every step of a run updates, and what is computed from it.

    key: its name in checkpoints, or None if there is no array; values: the array on the device, in
    double precision; terms: how many numbers `collect` puts into `sums`, float64 (terms,), which
    the trainer sets and the slices of a batch add up in each step.
    """

    key: str | None = None
    terms = 0
    values: Any = None
    sums: Any = None

    def renew(self, trainer, batches) -> None:
        """Re-estimate what depends on activations, before a step (see `Trainer.training_step`)."""

    def collect(self, measured: dict, share: float) -> None:
        """Put this slice's terms into `sums`. measured: {layer: `Measured`}, {} in a step that
        failed; share: the slice's part of the batch, the weight of its averages."""

    def update(self, figures: tuple, samples: int, squares, failed) -> tuple:
        """Update `values` after the parameters, from the `sums` of all slices; not if `failed` is
        not 0 or Σ g² (`squares`) not finite. figures: the terms of the step's Σ_k of Eq. 3, and
        λ, as they would be logged; those that are returned are logged instead."""
        return figures

    def figures(self) -> dict[str, float]:
        """Averages since the last call, for a line of metrics. Waits for the device."""
        return {}


class Multipliers(TrainingState):
    """A fixed λ. layers: the names of those that learn their inverse, in the flow's order; initial:
    the λ of the first step, here of all."""

    def __init__(self, flow, lam: float):
        self.layers, self.initial = tuple(flow.learned_inverses()), lam

    @property
    def lam(self) -> dict[str, float]:
        """{layer: λ of the next step}. Waits for the device."""
        return dict.fromkeys(self.layers, float(self.initial))

    def error_factor(self, samples: int) -> float:
        """−2λ/N, the factor of the gradients of a reconstruction error; samples: N."""
        return self.initial * (-2 / samples)

    def error_factors(self, samples: int) -> dict:
        """{layer: −2λ/N} of the layers with a λ of their own; samples: N."""
        return {}

    def figures(self) -> dict[str, float]:
        return {"lam": self.initial}


class ControlledMultipliers(Multipliers):
    """The λ of every layer that learns its inverse, and its control."""

    key = "control.rows"

    def __init__(self, ops, flow, config):
        super().__init__(flow, config.lam)
        self.ops, self.controller = ops, config.controller
        self.values = ops.asarray(self.controller.new_state(len(self.layers), config.lam))
        self.terms = 2 * len(self.layers)  # of each layer E, and Σ ‖h‖² if it is needed

    @property
    def lam(self) -> dict[str, float]:
        return dict(zip(self.layers, self.ops.to_host(self.values)[Row.LAM].tolist(), strict=True))

    def error_factors(self, samples) -> dict:
        """With the λ that the step before left."""
        factors = self.values[Row.LAM] * (-2 / samples)
        each = (factors[k, ...] for k in range(len(factors)))  # arrays of a device
        values = each if self.ops.asynchronous else factors.tolist()
        return dict(zip(self.layers, values, strict=True))

    def collect(self, measured, share) -> None:
        sums = self.sums.reshape(-1, 2)
        for k, layer in enumerate(self.layers if measured else ()):
            error, h = measured[layer].error, measured[layer].input
            sums[k, 0] = error if share == 1 else error * share
            if self.controller.relative:
                sums[k, 1] = self.ops.linalg.sum_squares(h)

    def update(self, figures, samples, squares, failed) -> tuple:
        """λ for the next step; returns Σ E of this one, and the error-weighted mean of its λ."""
        given = (self.sums.reshape(-1, 2), samples, self.controller, squares, failed)
        error, lam = self.ops.step.control(*given, out=self.values)
        return [error], lam

    def figures(self) -> dict[str, float]:
        """λ over the layers as it is now, and C averaged over the steps."""
        rows = self.ops.to_host(self.values).copy()
        self.values[Row.CONSTRAINT_SUM : Row.COUNTED + 1] = 0
        means = rows[Row.CONSTRAINT_SUM] / np.maximum(rows[Row.COUNTED], 1)
        return {
            f"{name}{suffix}": float(of(values))
            for name, values in (("lam", rows[Row.LAM]), ("constraint", means))
            for suffix, of in (("", np.mean), ("_min", np.min), ("_max", np.max))
        }


def multipliers_of(ops, flow, config) -> Multipliers:
    """The λ of every layer of a run, fixed or controlled."""
    if config.controller:
        return ControlledMultipliers(ops, flow, config)
    return Multipliers(flow, config.lam)


def controlled_lambda(checkpoint, flow) -> dict[str, float]:
    """{layer: λ} of a checkpoint of a run whose λ is controlled."""
    rows = checkpoint.state[ControlledMultipliers.key]
    return dict(zip(flow.learned_inverses(), rows[Row.LAM].tolist(), strict=True))
