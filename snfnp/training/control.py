"""The options of controllers of λ.

Derivation: derivations/20-lambda-controllers.md.
"""

from __future__ import annotations

from dataclasses import dataclass

from snfnp.errors import UsageError
from snfnp.ops.step.control import CONTROLLERS, Controller
from snfnp.training.options import FREE_LAMBDA, NOT_NEGATIVE, POSITIVE, option

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
