"""The rules between options: what each needs, what fills it in, and what does not go together.

The configuration checks them (`TrainConfig.resolve`), fills in from them what a run folder or a
person left out, and `--help` prints them.
Derivation: derivations/21-learning-the-inverse.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from snfnp.ops.step.control import CONTROLLERS
from snfnp.training.options.option import by_preset, presets_with

_AUGMENTED = ("cifar-10",)  # the data sets that the paper augments (A.3)
_TOLERANCE = 1e-3
_DAMPING = 100.0  # steps over which C has to stay above κ for λ to rise by what damping adds
_USUAL_INPUT = 1e4  # ‖h‖² of images of 784 pixels as they come to their first layers


class Need(NamedTuple):
    """A condition on a whole configuration, and words for it: the options that make it true."""

    holds: Callable
    words: str


class Rule(NamedTuple):
    """needs: an option has an effect only if all of them hold; fill(config): its value if nobody
    gave one, and words for that."""

    needs: tuple[Need, ...] = ()
    fill: Callable = lambda config: None
    words: str = ""


def _preset_needs(has: Callable) -> Need:
    return Need(lambda config: has(config.preset), f"--model {presets_with(has)}")


def _by_preset(setting: str) -> dict:
    return {"fill": lambda config: getattr(config.preset, setting), "words": by_preset(setting)}


def _control_needs(*kinds: str) -> tuple[Need, ...]:
    words = f"--lambda-control {' or '.join(kinds)}"
    return (Need(lambda config: config.lambda_control in kinds, words),)


LEARNS = Need(lambda config: config.rule.learns_inverse, "--gradient self-normalizing")
SELF_NORMALIZING = Need(
    lambda config: config.gradient == "self-normalizing", "--gradient self-normalizing"
)
HAS_LAMBDA = (LEARNS, Need(lambda config: config.rule.has_lambda, "--inverse-update gradient"))
FREE_LAMBDA = (
    *HAS_LAMBDA,
    Need(
        lambda config: config.objective != "variational",
        "--objective mixture or forward (in the variational one σ decides λ)",
    ),
)
_VARIATIONAL = Need(lambda config: config.objective == "variational", "--objective variational")
_CONTROLLED = _control_needs(*CONTROLLERS)
_ON_GPU = Need(lambda config: config.backend == "cupy", "--backend cupy")
_GLOW = _preset_needs(lambda preset: preset.size)
_LARGE_INVERSE = _preset_needs(lambda preset: preset.has_inverse_kernel)
_OTHER_INIT = Need(
    lambda config: (
        config.init != "authors" or config.model == "fc" or config.chosen("kernel") not in (None, 1)
    ),
    "--model fc or a --kernel above 1, where authors is not the same as paper",
)


def _if(need: Need, fill: Callable) -> Callable:
    return lambda config: fill(config) if need.holds(config) else None


def _size(setting: str) -> Rule:
    return Rule((_GLOW,), lambda config: getattr(config.preset.size, setting, None))


def _recipe(name: str, otherwise=None) -> Callable:
    """The setting of a recipe, whose name stands for those of several options."""
    return lambda config: (
        otherwise if config.recipe == "paper" else config.preset.recipe.get(name, otherwise)
    )


def _lam(config) -> float:
    """The preset's λ, for the objective that has it, or σ's; 0 if the rule has none."""
    preset, rule = config.preset, config.rule
    if not rule.has_lambda:
        return 0.0
    if _VARIATIONAL.holds(config):
        return rule.lam
    forward = rule.objective == "forward" and preset.lam_forward is not None
    return preset.lam_forward if forward else preset.lam


def _clip_norm(config) -> float | None:
    preset = config.preset
    return preset.clip_norm if preset.clip_exact or config.rule.learns_inverse else None


def _rate(config) -> float:
    """η with which ln λ starts to move by about C − κ a step, of the relative C."""
    scale = 1.0 if config.constraint == "relative" else 1 / _USUAL_INPUT
    return scale if config.lambda_control == "geco" else scale * (config.chosen("lam") or 1.0)


RULES: dict[str, Rule] = {
    # the model
    "levels": _size("levels"),
    "depth": _size("depth"),
    "width": _size("width"),
    "kernel": _size("kernel"),
    "inverse_kernel": Rule(
        (_LARGE_INVERSE, LEARNS),
        _recipe("inverse_kernel"),
        "the forward kernel's, 3; 5 with --recipe least-squares",
    ),
    "inverse_depth": Rule((_LARGE_INVERSE, SELF_NORMALIZING, *HAS_LAMBDA)),
    "init": Rule((_OTHER_INIT,)),
    "bias_init": Rule(
        (_preset_needs(lambda preset: preset.has_bias_init),),
        _recipe("bias_init", "zero"),
        "zero; data with --recipe least-squares",
    ),
    # its gradient
    "gradient": Rule(
        (),
        lambda config: config.preset.gradients[0],
        "self-normalizing; exact for "
        + presets_with(lambda preset: preset.gradients[0] == "exact").replace(" or ", " and "),
    ),
    "objective": Rule(HAS_LAMBDA),
    "sigma": Rule(
        (_VARIATIONAL,),
        _if(_VARIATIONAL, lambda config: 1 / math.sqrt(2 * config.preset.lam)),
        "the σ whose λ is the preset's",
    ),
    "noise_vectors": Rule((_VARIATIONAL,), _if(_VARIATIONAL, lambda config: 8), "8"),
    "relative_bias": Rule(
        (Need(lambda config: config.gradient == "relative", "--gradient relative"),)
    ),
    "recipe": Rule((SELF_NORMALIZING,)),
    "inverse_update": Rule(
        (SELF_NORMALIZING,), _recipe("inverse_update", "gradient"), "the recipe's"
    ),
    "jvp_weight": Rule(
        (
            SELF_NORMALIZING,
            *HAS_LAMBDA,
            Need(
                lambda config: config.objective != "variational", "--objective mixture or forward"
            ),
        )
    ),
    "jvp_probes": Rule((Need(lambda config: config.jvp_weight > 0, "a positive --jvp-weight"),)),
    "probes": Rule((Need(lambda config: config.gradient == "probe", "--gradient probe"),)),
    # λ
    "lam": Rule(
        FREE_LAMBDA,
        _lam,
        f"{by_preset('lam')}; with --objective forward {by_preset('lam_forward', none='')}",
    ),
    "lambda_control": Rule(FREE_LAMBDA),
    "lambda_sharing": Rule(_CONTROLLED),
    "constraint": Rule(_CONTROLLED),
    "tolerance": Rule(
        _CONTROLLED,
        _if(
            _CONTROLLED[0],
            lambda config: _TOLERANCE if config.constraint == "relative" else None,
        ),
        f"{_TOLERANCE:g}; none for --constraint absolute",
    ),
    "lambda_rate": Rule(
        _CONTROLLED,
        _if(_CONTROLLED[0], _rate),
        "1 for geco, --lambda for the others; "
        f"{1 / _USUAL_INPUT:g} times that for --constraint absolute",
    ),
    "lambda_smoothing": Rule(
        _control_needs("geco"), _if(_control_needs("geco")[0], lambda config: 0.99), "0.99"
    ),
    "lambda_damping": Rule(
        _control_needs("mdmm"),
        _if(_control_needs("mdmm")[0], lambda config: _DAMPING * config.chosen("lambda_rate")),
        f"{_DAMPING:g} times --lambda-rate",
    ),
    "lambda_min": Rule(
        _CONTROLLED, _if(_CONTROLLED[0], lambda config: config.chosen("lam")), "--lambda"
    ),
    "lambda_max": Rule(_CONTROLLED, _if(_CONTROLLED[0], lambda config: 1e4), "10000"),
    # the optimiser
    "epochs": Rule(
        words=f"the fewest that come to this many steps: {by_preset('steps')}; the paper ran "
        + by_preset("paper_epochs", none="")
    ),
    "batch_size": Rule(**_by_preset("batch_size")),
    "lr": Rule(**_by_preset("lr")),
    "warmup_epochs": Rule(**_by_preset("warmup_epochs")),
    "clip_norm": Rule((), _clip_norm, by_preset("clip_norm")),
    # the run
    "data_dir": Rule(
        words="$SNFNP_DATA_DIR, else the user's cache, else a download, else a small sample that "
        "ships with the package"
    ),
    "augment": Rule(
        (),
        lambda config: config.data in _AUGMENTED,
        f"for {', '.join(_AUGMENTED)} only, as in the paper",
    ),
    "track_angle": Rule((LEARNS,)),
    "out": Rule(words="runs/<data>-<model>-<gradient>-<time>"),
    # what computes
    "recompute": Rule((_preset_needs(lambda preset: preset.has_recomputable_layers),)),
    "graph": Rule((_ON_GPU,)),
    "tf32": Rule((_ON_GPU, Need(lambda config: config.dtype == "float32", "--dtype float32"))),
    "overlap": Rule((_ON_GPU, *HAS_LAMBDA)),
}

# What a whole configuration must not be, and the line that says so.
CONFLICTS: tuple[tuple[Callable, Callable], ...] = (
    (
        lambda c: c.gradient not in c.preset.gradients,
        lambda c: (
            f"--model {c.model} cannot be trained with --gradient {c.gradient}: choose "
            f"{' or '.join(c.preset.gradients)}"
        ),
    ),
    (
        lambda c: c.inverse_update not in ("gradient", *c.preset.inverse_updates),
        lambda c: (
            f"--model {c.model} cannot be trained with --inverse-update {c.inverse_update}: "
            f"choose {' or '.join(c.preset.inverse_updates)}"
        ),
    ),
    (
        lambda c: c.controller and c.tolerance is None,
        lambda c: (
            "--constraint absolute needs --tolerance: give the error per image that is allowed"
        ),
    ),
    (
        lambda c: c.controller and c.tolerance == 0 and c.lambda_control != "geco",
        lambda c: (
            f"--tolerance is 0: --lambda-control {c.lambda_control} needs a positive one (no "
            "error is ever below 0)"
        ),
    ),
    (
        lambda c: c.lambda_control == "geco" and c.lambda_min == 0,
        lambda c: "--lambda-min is 0: geco multiplies λ, and needs a positive one",
    ),
    (
        lambda c: c.controller and not c.lambda_min <= c.lam <= c.lambda_max,
        lambda c: (
            f"--lambda is {c.lam:g}, where it starts: it must be between --lambda-min "
            f"({c.lambda_min:g}) and --lambda-max ({c.lambda_max:g})"
        ),
    ),
)

# Options of earlier versions, and the value with which they did nothing: what a config.json may
# still say. And values that options no longer have.
RETIRED = {"track_log_det": False, "lambda_integral": None, "lambda_proportional": None}
RETIRED_VALUES = {"lambda_control": "nu-pi", "inverse_update": "newton"}
