"""Controllers of λ: their options, their state during a run, and the figures that they report.

Derivation: derivations/20-lambda-controllers.md.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from snfnp.context import Collected
from snfnp.errors import UsageError
from snfnp.ops.step.control import CONTROLLERS, ROWS, Controller, Row
from snfnp.training.options import FREE_LAMBDA, NOT_NEGATIVE, POSITIVE, option

STATE = "control"  # what the controllers' state is called among what layers keep
_FRACTION = (lambda value: 0 <= value < 1, "from 0 up to, but not, 1")
_TOLERANCE = 1e-3
_DAMPING = 100.0  # steps over which C has to stay above κ for λ to rise by what damping adds
_USUAL_INPUT = 1e4  # ‖h‖² of images of 784 pixels as they come to their first layers


def _with(*kinds: str) -> tuple:
    """The effect of an option that belongs to some of the controllers."""
    words = f"--lambda-control {' or '.join(kinds)}"
    return (lambda config: config.lambda_control in kinds, words)


_CONTROLLED = (lambda config: config.lambda_control != "fixed", _with(*CONTROLLERS)[1])


def _where_controlled(value, *kinds: str):
    """What fills an option: a number where a controller (of these kinds) is at work."""
    return lambda config: value if config.lambda_control in (kinds or CONTROLLERS) else None


def _usual_rate(config) -> float | None:
    """η with which ln λ starts to move by about C − κ a step, of the relative C."""
    if config.lambda_control == "fixed":
        return None
    scale = 1.0 if config.constraint == "relative" else 1 / _USUAL_INPUT
    return scale if config.lambda_control == "geco" else scale * (config.chosen("lam") or 1.0)


def _usual_damping(config) -> float | None:
    if config.lambda_control != "mdmm":
        return None
    return _DAMPING * config.chosen("lambda_rate")


@dataclass(frozen=True)
class ControlOptions:
    """The part of a configuration (`TrainConfig`) that says what becomes of λ."""

    lambda_control: str = option(
        "fixed",
        "what λ of Eq. 3 follows: nothing (fixed), or the constraint that the reconstruction error "
        "stays below --tolerance: geco (Rezende & Viola 2018, the paper's A.5) or mdmm (Platt & "
        "Barr 1988); --lambda is then where it starts",
        choices=("fixed", *CONTROLLERS),
        effect=FREE_LAMBDA,
    )
    lambda_sharing: str = option(
        "layer",
        "controllers only: every layer has a λ of its own, or one is for the whole flow",
        choices=("layer", "flow"),
        effect=(_CONTROLLED,),
    )
    constraint: str = option(
        "relative",
        "controllers only: what is compared with --tolerance, a layer's reconstruction error as a "
        "part of its input, E/‖h‖² (relative), or E itself (absolute)",
        choices=("relative", "absolute"),
        effect=(_CONTROLLED,),
    )
    tolerance: float | None = option(
        None,
        "controllers only: κ, the reconstruction error that is allowed; 0, geco only: λ never "
        f"falls, as in the paper's A.5 (default: {_TOLERANCE:g}; none for --constraint absolute)",
        must=NOT_NEGATIVE,
        fill=lambda config: (
            _TOLERANCE if _CONTROLLED[0](config) and config.constraint == "relative" else None
        ),
        effect=(_CONTROLLED,),
    )
    lambda_rate: float | None = option(
        None,
        "controllers only: η, how fast λ moves (default: 1 for geco, --lambda for mdmm; "
        f"{1 / _USUAL_INPUT:g} times that for --constraint absolute)",
        must=POSITIVE,
        fill=_usual_rate,
        effect=(_CONTROLLED,),
    )
    lambda_smoothing: float | None = option(
        None,
        "geco only: α, what is kept of the constraint's average from step to step (default: 0.99)",
        must=_FRACTION,
        fill=_where_controlled(0.99, "geco"),
        effect=(_with("geco"),),
    )
    lambda_damping: float | None = option(
        None,
        "mdmm only: c; λ + c (C − κ) takes the place of λ "
        f"(default: {_DAMPING:g} times --lambda-rate)",
        must=NOT_NEGATIVE,
        fill=_usual_damping,
        effect=(_with("mdmm"),),
    )
    lambda_min: float | None = option(
        None,
        "controllers only: λ never falls below (default: --lambda; for the mixture a λ that is too "
        "small breaks a run whose error is small)",
        must=NOT_NEGATIVE,
        fill=lambda config: config.chosen("lam") if _CONTROLLED[0](config) else None,
        effect=(_CONTROLLED,),
    )
    lambda_max: float | None = option(
        None,
        "controllers only: λ never rises above (default: 10000)",
        must=POSITIVE,
        fill=_where_controlled(1e4),
        effect=(_CONTROLLED,),
    )

    def check_control(self) -> None:
        """Raises UsageError where options of a controller do not go together."""
        kind = self.lambda_control
        if kind == "fixed":
            return
        if self.tolerance is None:
            raise UsageError(
                "--constraint absolute needs --tolerance: give the error per image that is allowed"
            )
        if self.tolerance == 0 and kind != "geco":
            raise UsageError(
                f"--tolerance is 0: --lambda-control {kind} needs a positive one (no error is ever "
                "below 0)"
            )
        if self.lambda_min == 0 and kind == "geco":
            raise UsageError("--lambda-min is 0: geco multiplies λ, and needs a positive one")
        if not self.lambda_min <= self.lam <= self.lambda_max:
            raise UsageError(
                f"--lambda is {self.lam:g}, where it starts: it must be between --lambda-min "
                f"({self.lambda_min:g}) and --lambda-max ({self.lambda_max:g})"
            )

    @property
    def controller(self) -> Controller | None:
        """The settings as `Step.control` takes them; None: λ is fixed."""
        if self.lambda_control == "fixed":
            return None
        return Controller(
            self.lambda_control,
            self.constraint == "relative",
            self.tolerance,
            self.lambda_rate,
            self.lambda_smoothing or 0.0,
            self.lambda_damping or 0.0,
            self.lambda_min,
            self.lambda_max,
        )


class Multipliers:
    """The λ of every layer that learns its inverse, and their control, on the device.

    layers: the names of these layers, in the flow's order; state_shapes: of the state, among what
    layers keep from step to step; `attach` gives it its place.
    """

    def __init__(self, ops, flow, config):
        self.ops, self.controller, self._start = ops, config.controller, config.lam
        self.layers = learning(flow)
        count = 1 if config.lambda_sharing == "flow" else len(self.layers)
        self.state_shapes = {STATE: {"rows": (ROWS, count)}}
        self._found = ops.xp.zeros((len(self.layers), 2))
        rows = {layer: self._found[k] for k, layer in enumerate(self.layers)}
        self.collected = Collected(rows, self.controller.relative)

    def attach(self, states: dict) -> None:
        """Keep the state in the trainer's buffer from here on, as it is before the first step."""
        self._rows = states[STATE]["rows"]
        self._rows[...] = self.ops.asarray(
            self.controller.new_state(self._rows.shape[1], self._start)
        )
        self._lam = by_layer(self.layers, self._rows[Row.LAM])

    @property
    def lam(self) -> dict:
        """{layer: λ} for this step, as a `BackwardContext` takes it."""
        if self.ops.asynchronous:
            return self._lam
        return {layer: float(lam) for layer, lam in self._lam.items()}

    def collect(self, found) -> None:
        """Take the rows (L, 2) of all layers from where slices added theirs up."""
        self._found[...] = found

    def update(self, samples: int, squares, failed):
        """λ for the next step; Σ E of this one, and the mean of its λ, weighted by errors."""
        return self.ops.step.control(
            self._found, samples, self.controller, squares, failed, out=self._rows
        )

    def figures(self) -> dict[str, float]:
        """λ and C over the layers, for a line of metrics: λ as it is now, C averaged over the steps
        since this was last asked. Waits for the device."""
        rows = self.ops.to_host(self._rows).copy()
        self._rows[Row.CONSTRAINT_SUM : Row.COUNTED + 1] = 0
        means = rows[Row.CONSTRAINT_SUM] / np.maximum(rows[Row.COUNTED], 1)
        return {
            f"{name}{suffix}": float(of(values))
            for name, values in (("lam", rows[Row.LAM]), ("constraint", means))
            for suffix, of in (("", np.mean), ("_min", np.min), ("_max", np.max))
        }

    def current(self) -> tuple[float, float]:
        """The smallest and the largest λ now. Waits for the device."""
        lam = self.ops.to_host(self._rows)[Row.LAM]
        return float(lam.min()), float(lam.max())


def learning(flow) -> tuple[str, ...]:
    """The names of the layers that learn their inverse."""
    return tuple(name for name, layer in flow.layers if layer.learns_inverse)


def by_layer(layers: tuple[str, ...], lam) -> dict:
    """{layer: its entry, of shape ()} of λ (K,): one for each layer, or one for all of them."""
    return {layer: lam[k if len(lam) == len(layers) else 0, ...] for k, layer in enumerate(layers)}


def lam_at(checkpoint, flow) -> float | dict[str, float]:
    """The λ of a checkpoint: a number, or under a controller {layer: number}."""
    states = checkpoint.state_layout.views(checkpoint.state)
    if STATE not in states:
        return checkpoint.lam
    found = by_layer(learning(flow), states[STATE]["rows"][Row.LAM])
    return {layer: float(lam) for layer, lam in found.items()}
