"""The rules between options: what each needs, what fills it in, and what does not go together.

`TrainConfig.resolve` checks them and fills in from them what was left out; `--help` prints them.
Derivation: derivations/20-lambda-controllers.md.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from snfnp.data import DATA_SETS
from snfnp.data.user_data import HELD_OUT
from snfnp.models import GRADIENTS, GlowSize, VectorSize
from snfnp.training.adam import SCHEDULES
from snfnp.training.options.parts import by_preset, presets_with

_AUGMENTED = ("cifar-10",)  # the data sets that the paper augments (A.3)
_TOLERANCE = 1e-3
_USUAL_INPUT = 1e4  # a typical ‖h‖² at the first layers, for images of 784 pixels


class Need(NamedTuple):
    """A condition on a whole configuration, and words for it: the options that make it true."""

    holds: Callable[[Any], object]
    words: str


class Rule(NamedTuple):
    """One option's rule. needs: it has an effect only if all of them hold; fill(config): its value
    if nobody gave one; words: that value, for --help."""

    needs: tuple[Need, ...] = ()
    fill: Callable[[Any], Any] = lambda config: None
    words: str = ""


def _is(name: str, *values: str) -> Need:
    words = f"--{name.replace('_', '-')} {' or '.join(values)}"
    return Need(lambda c: getattr(c, name) in values, words)


def _preset_needs(has: Callable) -> Need:
    return Need(lambda c: has(c.preset), f"--model {presets_with(has)}")


LEARNS = Need(lambda c: c.rule.learns_inverse, "--gradient self-normalizing")
FREE_LAMBDA = (LEARNS, _is("objective", "mixture", "forward"))  # else σ decides λ
_VARIATIONAL = _is("objective", "variational")
_CONTROLLED = _is("lambda_control", "geco")
_OWN_DATA = Need(lambda c: c.data not in DATA_SETS, "--data PATH")
_GPU = _is("backend", "cupy")
_SIZED = _preset_needs(lambda preset: preset.size)
_GLOW = _preset_needs(lambda preset: isinstance(preset.size, GlowSize))
_VECTOR = _preset_needs(lambda preset: isinstance(preset.size, VectorSize))
_BIAS_INIT = _preset_needs(lambda preset: preset.has_bias_init)
# the relative gradient has the same direction in all coordinates
_NOT_RELATIVE = _is("gradient", *(name for name in GRADIENTS if name != "relative"))
_LARGE_INVERSE = _preset_needs(lambda preset: preset.has_inverse_kernel)
_OTHER_INIT = Need(
    lambda c: c.init != "authors" or c.model == "fc" or c.chosen("kernel") not in (None, 1),
    "--model fc or a --kernel above 1, where authors is not the same as paper",
)


def _only(need: Need, fill: Callable, words: str) -> Rule:
    """The rule of an option that is None unless `need` holds."""
    return Rule((need,), lambda c: fill(c) if need.holds(c) else None, words)


def _recipe(name: str, usual: Any = None, needs: tuple[Need, ...] = ()) -> Rule:
    """The rule of an option that the recipe sets, one of several at once; usual: its value where it
    does not, if that is not a setting of the preset's."""

    def fill(c):
        sets = c.preset.white if c.recipe == "white" else {}
        return sets.get(name, getattr(c.preset, name, usual))

    white = by_preset(lambda preset: preset.white.get(name, getattr(preset, name, usual)))
    return Rule(needs, fill, f"{usual or by_preset(name)}; with --recipe white {white}")


def _warmup(c) -> float:
    """The preset's or the recipe's, whose rate has to fall behind it: at most half of a run."""
    usual = _WARMUP.fill(c)
    falls = c.recipe == "white" or c.preset.lr_schedule != "constant"
    return min(usual, c.epochs / 2) if falls and c.epochs else usual


_WARMUP = _recipe("warmup_epochs")


def _lam(config: Any) -> float:
    """The preset's λ for the objective, or the λ that σ decides; 0 if the rule has none."""
    preset, rule = config.preset, config.rule
    if not rule.learns_inverse:
        return 0.0
    if _VARIATIONAL.holds(config):
        return rule.lam
    usual = preset.lam_forward if rule.objective == "forward" else None
    return preset.lam if usual is None else usual


def _clip_norm(c) -> float | None:
    return c.preset.clip_norm if c.preset.clip_exact or c.rule.learns_inverse else None


def _rate(config) -> float:
    """η, such that ln λ moves at first by about C − κ per step, for the relative C."""
    return 1.0 if config.constraint == "relative" else 1 / _USUAL_INPUT


_EPOCHS = f"the fewest that come to this many steps: {by_preset('steps')}; the paper ran "
_EPOCHS += by_preset("paper_epochs", none="")
_LAM = f"{by_preset('lam')}; with --objective forward {by_preset('lam_forward', none='')}"
_RATE = f"1; {1 / _USUAL_INPUT:g} for --constraint absolute"
_GRADIENT = "self-normalizing; exact for "
_GRADIENT += presets_with(lambda preset: preset.gradients[0] == "exact").replace(" or ", " and ")
_DATA = "$SNFNP_DATA_DIR, else the user's cache, else a download, else a small sample"

_RULES = {
    **{
        name: Rule((need,), lambda c, name=name: getattr(c.preset.size, name, None))
        for name, need in dict(depth=_SIZED, levels=_GLOW, width=_GLOW, kernel=_GLOW).items()
    },
    "activation": _only(_VECTOR, lambda c: "spline", "spline"),
    "inverse_kernel": Rule((_LARGE_INVERSE, LEARNS), words="the forward kernel's, 3"),
    "model": Rule((), lambda c: "fc", "fc; vector for rows of numbers"),
    "init": Rule((_OTHER_INIT,)),
    "bias_init": _recipe("bias_init", "zero", (_BIAS_INIT,)),
    "gradient": Rule((), lambda c: c.preset.gradients[0], _GRADIENT),
    "objective": _recipe("objective", "mixture", (LEARNS,)),
    "sigma": _only(
        _VARIATIONAL, lambda c: 1 / math.sqrt(2 * c.preset.lam), "the σ whose λ is the preset's"
    ),
    "noise_vectors": _only(_VARIATIONAL, lambda c: 8, "8"),
    "relative_bias": Rule((_is("gradient", "relative"),)),
    "recipe": Rule((_NOT_RELATIVE,)),
    "jvp_weight": Rule(FREE_LAMBDA),
    "jvp_probes": Rule((Need(lambda c: c.jvp_weight > 0, "a positive --jvp-weight"),)),
    "lam": Rule(FREE_LAMBDA, _lam, _LAM),
    "lambda_control": Rule(FREE_LAMBDA),
    "constraint": Rule((_CONTROLLED,)),
    "tolerance": _only(
        _CONTROLLED,
        lambda c: _TOLERANCE if c.constraint == "relative" else None,
        f"{_TOLERANCE:g}; none for --constraint absolute",
    ),
    "lambda_rate": _only(_CONTROLLED, _rate, _RATE),
    "lambda_smoothing": _only(_CONTROLLED, lambda c: 0.99, "0.99"),
    "lambda_min": _only(_CONTROLLED, lambda c: c.chosen("lam"), "--lambda"),
    "lambda_max": _only(_CONTROLLED, lambda c: 1e4, "10000"),
    "lr": _recipe("lr"),
    "warmup_epochs": _WARMUP._replace(fill=_warmup),
    "coordinates": _recipe("coordinates", "plain", (_NOT_RELATIVE,)),
    "lr_schedule": _recipe("lr_schedule"),
    "batch_size": Rule((), lambda c: c.preset.batch_size, by_preset("batch_size")),
    "final_lr_fraction": _only(_is("lr_schedule", *SCHEDULES[1:]), lambda c: 0.0, "0"),
    "clip_norm": Rule((), _clip_norm, by_preset("clip_norm")),
    **dict.fromkeys(("validation", "test"), Rule((_OWN_DATA,), words=f"{HELD_OUT}, or the file's")),
    "preprocess": Rule(words="logit for images, standardise for rows"),
    "data_dir": Rule(words=_DATA),
    "augment": Rule((), lambda c: c.data in _AUGMENTED, f"for {', '.join(_AUGMENTED)} only"),
    "epochs": Rule(words=_EPOCHS),
    "track_angle": Rule((LEARNS,)),
    "out": Rule(words="runs/<data>-<model>-<gradient>-<time>"),
    "recompute": Rule((_preset_needs(lambda preset: preset.has_recomputable_layers),)),
    "graph": Rule((_GPU,)),
    "tf32": Rule((_GPU, _is("dtype", "float32"))),
    "overlap": Rule((_GPU, LEARNS)),
}
RULES: dict[str, Rule] = defaultdict(Rule, _RULES)  # an option without one needs nothing


def conflicts(c) -> Iterator[str]:
    """One line for each way in which options of a whole configuration contradict each other."""
    if c.gradient not in c.preset.gradients:
        choices, given = " or ".join(c.preset.gradients), f"--gradient {c.gradient}"
        yield f"--model {c.model_name} cannot be trained with {given}: choose {choices}"
    for name, default in (("objective", "mixture"), ("jvp_weight", 0.0), ("init", "paper")):
        if not c.preset.takes_choices and getattr(c, name) != default:
            flag = f"--{name.replace('_', '-')} {getattr(c, name)}"
            yield f"{flag} is nothing that {c.model_name} asks for (choices): leave it out"
    if c.tf32 and c.eval_dtype == "float32":
        yield "--tf32 would round the products of --eval-dtype float32: leave one of them out"
    if not c.controller:
        return
    if c.tolerance is None:
        yield "--constraint absolute needs --tolerance: give the error per image that is allowed"
    if c.lambda_min == 0:
        yield "--lambda-min is 0: geco multiplies λ, and needs a positive one"
    if not c.lambda_min <= c.lam <= c.lambda_max:
        bounds = f"--lambda-min ({c.lambda_min:g}) and --lambda-max ({c.lambda_max:g})"
        yield f"--lambda is {c.lam:g}, where it starts: it must be between {bounds}"


# Options of earlier versions that a config.json may still have, with the values at which they had
# no effect; and values that options no longer take.
RETIRED = {
    **{"track_log_det": False, "lambda_integral": None, "lambda_proportional": None},
    **{"lambda_damping": None, "inverse_update": "gradient", "inverse_depth": 1, "probes": 1},
    **{"whiten": "none", "lambda_sharing": "layer"},
}
RETIRED_VALUES = {"lambda_control": ("nu-pi", "mdmm"), "gradient": ("probe",)}
RETIRED_VALUES |= {"recipe": ("least-squares",), "data": ("patches",)}
