"""The relations between options: what each needs, its default, and what excludes each other.

`TrainConfig.resolve` checks them and fills in defaults from them; `--help` prints them.
Derivation: derivations/21-lambda-controllers.md.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from snfnp.data import DATA_SETS, HELD_OUT, PUBLISHED
from snfnp.data.table import is_table
from snfnp.models import PRESETS
from snfnp.ops import BACKENDS
from snfnp.step.update import SCHEDULES
from snfnp.training.options.groups import by_preset, presets_with, shown

GREATEST_LAMBDA = 1e4  # of geco; the presets start at most at a tenth of it
# of `recipe=white`: the steps of its warm-up, and the limit of gradients in short runs
_RISE = 500
_CLIP_OF_SHORT = 1000.0
_AUGMENTED = "cifar-10"  # the data set that the paper augments (A.3)


class Need(NamedTuple):
    """A condition on a whole configuration, and the options that fulfil it in words."""

    holds: Callable[[Any], object]
    words: str


class Relation(NamedTuple):
    """The dependence of an option on others.

    needs: the option has an effect only if all of them hold; fill(config): the value of an option
    that is None; words: that value, for --help.
    """

    needs: tuple[Need, ...] = ()
    fill: Callable[[Any], Any] = lambda config: None
    words: str = ""


def _is(name: str, *values: str) -> Need:
    return Need(lambda c: getattr(c, name) in values, f"`{name}={' or '.join(values)}`")


def _preset_needs(has: Callable) -> Need:
    return Need(lambda c: has(c.preset), f"`model={presets_with(has)}`")


LEARNS = Need(
    lambda c: c.effective("gradient") == "self-normalizing",
    "`gradient=self-normalizing`",
)
# else the noise depends on it
FREE_LAMBDA = (LEARNS, _is("objective", "mixture", "forward"))
_GECO = _is("lambda_control", "geco")
_TABLE = Need(lambda c: is_table(c.data), "`data=PATH` of a table (.csv)")
_ON_GPU = [name for name, device in BACKENDS.items() if device == "GPU"]
_GPU = _is("backend", *_ON_GPU)
_COORDINATES = _preset_needs(lambda preset: preset.has_coordinates)
# the relative gradient has the same direction in all coordinates
_NOT_RELATIVE = Need(
    lambda c: c.gradient != "relative", "a `gradient` other than relative"
)
# without coordinates and a learned inverse nothing of it is left but what the preset has anyway
_RECIPE = Need(
    lambda c: c.preset.has_coordinates or LEARNS.holds(c),
    f"either {_COORDINATES.words}, or {LEARNS.words}",
)


def _size(name: str, *others: Need) -> Relation:
    """The relation of an option of the preset's size, with other needs."""
    need = _preset_needs(lambda preset: name in preset.size)
    return Relation((need, *others), lambda c: c.preset.size.get(name))


def _only(need: Need, value: Any, words: str = "") -> Relation:
    """The relation of an option that is None unless `need` holds, and then `value`, or value(c)."""
    fill = value if callable(value) else lambda c: value
    return Relation(
        (need,), lambda c: fill(c) if need.holds(c) else None, words or shown(value)
    )


def _constraint(relative: Any, absolute: Any) -> Relation:
    """The relation of an option of geco whose value depends on `constraint`."""
    return _only(
        _GECO,
        lambda c: relative if c.constraint == "relative" else absolute,
        f"{relative:g}; {absolute or 'none'} for `constraint=absolute`",
    )


def _preset(name: str, otherwise: Any = None, needs: tuple[Need, ...] = ()) -> Relation:
    """The relation of an option that the preset sets, or `recipe=white`; otherwise: its value if
    neither has a setting of this name."""

    def paper(preset):
        return getattr(preset, name, otherwise)

    def white(preset):
        return preset.white.get(name, paper(preset))

    words = by_preset(paper)
    other = by_preset(white)
    words += f"; with `recipe=white` {other}" if other != words else ""
    words += (
        "; for vector an eighth of the rows, 16 to 500" if name == "batch_size" else ""
    )
    return Relation(
        needs, lambda c: (white if c.recipe == "white" else paper)(c.preset), words
    )


def _warmup(c: Any) -> float:
    """The preset's or the recipe's; at most a quarter of the run, or half where the learning rate
    falls after it."""
    epochs = _WARMUP.fill(c)
    falls = c.recipe == "white" or c.preset.lr_schedule != "constant"
    return min(epochs, c.epochs / (2 if falls else 4)) if c.epochs else epochs


def paced(c: Any, steps_per_epoch: int, colours: bool) -> dict[str, Any]:
    """The rate, warm-up and clipping of `recipe=white` for a run of so many steps: those of
    thousands of steps on MNIST make short runs, and runs on images with colours, explode.
    Derivation: derivations/24-natural-coordinates.md#short-runs-and-colours."""
    if c.recipe != "white" or "lr" not in c.preset.white:
        return {}
    warmup = min(max(c.warmup_epochs, _RISE / steps_per_epoch), c.epochs / 2)
    steps = c.epochs * steps_per_epoch
    whole = c.preset.whole_rate
    share = min(1, math.sqrt(steps / whole))
    if colours:
        share = min(share, max((whole / steps) ** (1 / 3), 1 / math.sqrt(3)))
    options = {"warmup_epochs": warmup, "lr": share * c.lr}
    # three digits, as in the lines and files that show them
    options = {name: float(f"{value:.3g}") for name, value in options.items()}
    if colours or steps < c.preset.steps:
        options["clip_norm"] = c.clip_norm or _CLIP_OF_SHORT
    return options


_LR = _preset("lr")
_WARMUP = _preset("warmup_epochs")
_CLIP = _preset("clip_norm")


def _lam(c: Any) -> float:
    """The preset's λ for the objective; 0 if no inverse is learned."""
    if not LEARNS.holds(c):
        return 0.0
    forward = c.preset.lam_forward if c.effective("objective") == "forward" else None
    return c.preset.lam if forward is None else forward


_PAPER = [
    f"{n}: {p.paper_epochs}" for n, p in PRESETS.items() if p.paper_epochs is not None
]
_EXACT = presets_with(lambda preset: preset.gradients[0] == "exact").replace(
    " or ", " and "
)

_RELATIONS = {
    **{name: _size(name) for name in ("levels", "depth", "width", "kernel")},
    "bins": _size("bins", _is("activation", "spline")),
    "activation": _only(_preset_needs(lambda preset: "bins" in preset.size), "spline"),
    "inverse_kernel": Relation(
        (_preset_needs(lambda preset: preset.has_inverse_kernel), LEARNS),
        words="the forward kernel's, 3",
    ),
    "model": Relation((), lambda c: "fc", "fc; vector for rows of numbers"),
    "bias_init": _preset(
        "bias_init", "zero", (_preset_needs(lambda preset: preset.has_bias_init),)
    ),
    "gradient": Relation(
        (), lambda c: c.preset.gradients[0], f"self-normalizing; exact for {_EXACT}"
    ),
    "objective": _preset("objective", "mixture", (LEARNS,)),
    "noise_vectors": _only(_is("objective", "variational"), 8),
    "recipe": Relation((_NOT_RELATIVE, _RECIPE)),
    "jvp_weight": Relation(FREE_LAMBDA),
    "jvp_probes": Relation(
        (Need(lambda c: c.jvp_weight > 0, "a positive `jvp_weight`"),)
    ),
    "lam": Relation(
        (LEARNS,),
        _lam,
        f"{by_preset(lambda preset: preset.lam)}; with `objective=forward` "
        f"{by_preset(lambda preset: preset.lam_forward or preset.lam)}",
    ),
    "lambda_control": Relation(FREE_LAMBDA),
    "constraint": Relation((_GECO,)),
    "tolerance": _constraint(1e-3, None),
    # ln λ moves at first by about C − κ per step, for the C relative to a typical ‖h‖² of 10⁴
    "lambda_rate": _constraint(1.0, 1e-4),
    "lambda_smoothing": _only(_GECO, 0.99),
    "lr_schedule": _preset("lr_schedule"),
    "batch_size": _preset("batch_size"),
    "lr": _LR._replace(
        words=f"{_LR.words}; its own times √(steps / N) below N = "
        f"{by_preset(lambda preset: preset.whole_rate)} steps, and on colours down to 1/√3 above "
        "them"
    ),
    "warmup_epochs": _WARMUP._replace(
        fill=_warmup,
        words=f"{_WARMUP.words}, and {_RISE} steps at least; at most a quarter of the run, half of "
        "it where the rate falls after it",
    ),
    "coordinates": _preset("coordinates", "plain", (_NOT_RELATIVE, _COORDINATES)),
    "final_lr_fraction": _only(_is("lr_schedule", *SCHEDULES[1:]), 0.0),
    "clip_norm": _CLIP._replace(
        # none for an exact gradient that the paper does not clip
        fill=lambda c: (
            _CLIP.fill(c) if c.preset.clip_exact or LEARNS.holds(c) else None
        ),
        words=f"{_CLIP.words}; {_CLIP_OF_SHORT:g} with its rate on colours and in runs shorter "
        "than those without `epochs`",
    ),
    **dict.fromkeys(
        ("validation", "test"),
        Relation(
            (Need(lambda c: c.data not in DATA_SETS, "`data=PATH`"),),
            words=f"{HELD_OUT}, or the file's own",
        ),
    ),
    "header": Relation((_TABLE,), words="if a cell of line 1 is text above a number"),
    "columns": Relation((_TABLE,), words="all"),
    "drop_incomplete": Relation((_TABLE,)),
    "preprocess": Relation(words="logit for images, standardise for rows"),
    "data_dir": Relation(
        (_is("data", *PUBLISHED),),
        words="$SNFNP_DATA_DIR, else the user's cache, else a download, else a small sample",
    ),
    "augment": Relation(
        (), lambda c: c.data == _AUGMENTED, f"on for {_AUGMENTED} only"
    ),
    "epochs": Relation(
        words=f"enough for this many steps: {by_preset(lambda preset: preset.steps)}; for vector "
        f"800 to 8000, by the number of rows; in the paper {', '.join(_PAPER)}"
    ),
    "eval_every": Relation(
        (), lambda c: 1, "1; for rows, and on a GPU, about 40 evaluations in all"
    ),
    "threads": Relation(
        (_is("backend", *(name for name in BACKENDS if name not in _ON_GPU)),),
        words="the cores it has",
    ),
    "track_angle": Relation((LEARNS,)),
    "out": Relation(words="runs/<data>-<model>-<gradient>-<time>"),
    "recompute": Relation(
        (_preset_needs(lambda preset: preset.has_recomputable_layers),)
    ),
    "graph": Relation((_GPU,)),
    "tf32": Relation((_GPU, _is("dtype", "float32"))),
}
# most options have none
RELATIONS: dict[str, Relation] = defaultdict(Relation, _RELATIONS)


def conflicts(c: Any) -> Iterator[str]:
    """One line for each contradiction between options of a whole configuration."""
    if c.gradient not in c.preset.gradients:
        yield (
            f"`model={c.model_name}` cannot be trained with `gradient={c.gradient}`: choose "
            f"{', '.join(c.preset.gradients)}"
        )
    for name, default in (
        ("objective", "mixture"),
        ("jvp_weight", 0.0),
        ("init", "paper"),
    ):
        if not c.preset.takes_choices and getattr(c, name) != default:
            yield (
                f"`{name}={getattr(c, name)}` has no effect on {c.model_name}, which takes no "
                "choices: leave it out"
            )
    if c.init == "authors" and c.model != "fc" and c.kernel in (None, 1):
        yield (
            "`init=authors` only has an effect with `model=fc` or a `kernel` above 1 (elsewhere it "
            "is the same as paper): leave it out"
        )
    if c.tf32 and c.eval_dtype == "float32":
        yield "`tf32` would round the products of `eval_dtype=float32`: leave one of them out"
    if c.objective == "variational" and c.lam == 0:
        yield "`lam` is 0: `objective=variational` has noise of variance 1/(2λ): raise it"
    if not c.controller:
        return
    if c.tolerance is None:
        yield "`constraint=absolute` needs `tolerance`: give the error per sample that is allowed"
    if not 0 < c.lam <= GREATEST_LAMBDA:
        yield (
            f"`lam` is {c.lam:g}, where geco starts: it must be positive, and "
            f"{GREATEST_LAMBDA:g} at most"
        )
