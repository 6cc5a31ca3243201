"""Updates in a step: of parameters, by Adam (Kingma & Ba 2014), and of training states, which are
values beside the parameters, such as λ of Eq. 3.

The optimiser ascends: gradients are of the objective that the paper maximises (Eq. 3).
Derivation: derivations/16-adam.md and 21-lambda-controllers.md.
"""

import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from snfnp.context import Measured
from snfnp.flow import Flow
from snfnp.ops import Array, Ops
from snfnp.ops.step.definition import Buffers, Controller, ControllerRow
from snfnp.step.batches import BatchSource
from snfnp.step.settings import Settings

SCHEDULES = ("constant", "cosine", "linear")


class Optimiser(Protocol):
    """A rule that moves parameters in a step; see `Adam.update`."""

    def update(
        self,
        ops: Ops,
        gradient: Array,
        lr: Any,
        step: Any,
        clip_norm: float | None,
        failed: Any,
        *,
        out: Buffers,
    ) -> Any:
        """Ascend once on out = (p, m, v); returns Σ g² before clipping."""


@dataclass(frozen=True)
class Adam(Optimiser):
    """p ← p + lr · m̂/(√v̂ + ε), ε outside the root. State: m and v, flat like p."""

    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8

    def update(self, ops, gradient, lr, step, clip_norm=None, failed=0.0, *, out):
        """One ascent step on flat buffers, with the types of `Optimiser.update`. O(P).

        Args:
            gradient: of a norm above `clip_norm` it is scaled down to it first.
            lr, step, failed: numbers, or arrays of shape () on the device. step: 1, 2, …; failed:
                if it is not 0, nothing is updated (see `ops.step.adam`).
            out: (p, m, v).

        Returns:
            Σ g² before clipping.
        """
        limit = math.inf if clip_norm is None else clip_norm
        return ops.step.adam(
            gradient, lr, self.beta1, self.beta2, self.eps, step, limit, failed, out=out
        )


def warmed_up(
    lr: float, step: int, steps_per_epoch: int, warmup_epochs: float
) -> float:
    """The learning rate of step 0, 1, …: linear up to `lr` over the first epochs (A.3)."""
    warmup_steps = warmup_epochs * steps_per_epoch
    return lr if step + 1 >= warmup_steps else lr * (step + 1) / warmup_steps


def learning_rate(config: Settings, step: int, steps_per_epoch: int) -> float:
    """The learning rate of step 0, 1, …: warm-up, then `lr_schedule`.

    "linear" falls on a straight line, "cosine" on a cosine (Loshchilov & Hutter 2017), from the end
    of the warm-up to the last step, which has `final_lr_fraction` of `lr`. The first step never
    decays: a run of one step would have lr = 0.
    """
    rate = warmed_up(config.lr, step, steps_per_epoch, config.warmup_epochs)
    warmup_steps = config.warmup_epochs * steps_per_epoch
    if config.lr_schedule == "constant" or step + 1 <= max(warmup_steps, 1):
        return rate
    steps = config.epochs * steps_per_epoch
    progress = min((step + 1 - warmup_steps) / (steps - warmup_steps), 1.0)
    remaining = 1 - progress
    if config.lr_schedule == "cosine":
        remaining = (1 + math.cos(math.pi * progress)) / 2
    return rate * (
        config.final_lr_fraction + (1 - config.final_lr_fraction) * remaining
    )


# The summands of Σ_k ‖g_k(f_k(h_k)) − h_k‖² of Eq. 3 in a step, and λ, as they are logged.
Figures = tuple[list[Array], Array]


class TrainingState:
    """State beside the parameters, updated in every step.

    key: its name in checkpoints, or None if there is no array; values: the array on the device, in
    double precision.
    """

    key: str | None = None
    values: Any = None

    def renew(self, trainer: Any, batches: BatchSource) -> None:
        """Re-estimate what depends on activations, before a step (see `Trainer.training_step`)."""

    def update(
        self,
        figures: Figures,
        measured: dict[str, Measured],
        samples: int,
        squares: Array,
        failed: Array,
    ) -> Figures:
        """Update `values` after the parameters; not if `failed` is not 0 or Σ g² (`squares`) not
        finite. measured: {layer: `Measured`}, {} in a step that failed. Returns the figures to log
        instead."""
        return figures

    def figures(self) -> dict[str, float]:
        """Averages since the last call, for a line of metrics. Waits for the device."""
        return {}


class Multipliers(TrainingState):
    """A fixed λ. layers: the names of those that learn their inverse, in the flow's order; initial:
    the λ of the first step, here of all."""

    def __init__(self, flow: Flow, lam: float):
        self.layers = tuple(flow.learned_inverses())
        self.initial = lam

    @property
    def lam(self) -> dict[str, float]:
        """{layer: λ of the next step}. Waits for the device."""
        return dict.fromkeys(self.layers, float(self.initial))

    def error_factors(self, samples: int) -> dict[str, Any]:
        """{layer: −2λ/N}, the factors of the gradients of reconstruction errors; samples: N."""
        return dict.fromkeys(self.layers, self.initial * (-2 / samples))

    def figures(self) -> dict[str, float]:
        return {"lam": self.initial}


class ControlledMultipliers(Multipliers):
    """The λ of every layer that learns its inverse, and its control."""

    key = "control.rows"

    def __init__(self, ops: Ops, flow: Flow, lam: float, controller: Controller):
        super().__init__(flow, lam)
        self.ops = ops
        self.controller = controller
        self.values = ops.asarray(controller.new_state(len(self.layers), lam))
        # of each layer E, and Σ ‖h‖² if it is needed
        self._sums = ops.xp.zeros((len(self.layers), 2))

    @property
    def lam(self) -> dict[str, float]:
        rows = self.ops.to_host(self.values)
        return dict(zip(self.layers, rows[ControllerRow.LAM].tolist(), strict=True))

    def error_factors(self, samples: int) -> dict[str, Any]:
        """With the λ that the step before left."""
        factors = self.values[ControllerRow.LAM] * (-2 / samples)
        if not self.ops.asynchronous:
            return dict(zip(self.layers, factors.tolist(), strict=True))
        # on the device
        return {layer: factors[k, ...] for k, layer in enumerate(self.layers)}

    def update(self, figures, measured, samples, squares, failed):
        """λ for the next step; returns Σ E of this one, and the error-weighted mean of its λ."""
        for k, layer in enumerate(self.layers if measured else ()):
            self._sums[k, 0] = measured[layer].error
            if self.controller.relative:
                self._sums[k, 1] = self.ops.linalg.sum_squares(measured[layer].input)
        error, lam = self.ops.step.control(
            self._sums, samples, self.controller, squares, failed, out=self.values
        )
        return [error], lam

    def figures(self) -> dict[str, float]:
        """λ over the layers as it is now, and C averaged over the steps."""
        rows = self.ops.to_host(self.values).copy()
        self.values[ControllerRow.CONSTRAINT_SUM : ControllerRow.COUNTED + 1] = 0
        means = rows[ControllerRow.CONSTRAINT_SUM] / np.maximum(
            rows[ControllerRow.COUNTED], 1
        )
        figures = {}
        for name, values in (("lam", rows[ControllerRow.LAM]), ("constraint", means)):
            figures[name] = float(values.mean())
            figures[f"{name}_min"] = float(values.min())
            figures[f"{name}_max"] = float(values.max())
        return figures


def saved_lambda(state: dict[str, np.ndarray], flow: Flow) -> dict[str, float]:
    """{layer: λ} of the saved states of a training whose λ is controlled."""
    rows = state["control.rows"]
    return dict(
        zip(flow.learned_inverses(), rows[ControllerRow.LAM].tolist(), strict=True)
    )
