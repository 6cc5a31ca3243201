"""The options of a run, in groups; `relations` says what they need of each other.

Derivation: derivations/19-jacobian-vector-products.md and 21-lambda-controllers.md.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any, get_args

from snfnp import models
from snfnp.data import DATA_SETS
from snfnp.data.ties import TIES
from snfnp.layers.preprocess import WAYS
from snfnp.models import PRESETS, Preset
from snfnp.ops import BACKENDS
from snfnp.step.update import SCHEDULES

# An option is annotated with the type of its value after `TrainConfig.resolve`, which fills in
# options that are None. `T | None` may stay None. `T | Any` also takes values of other types, which
# become a T, as text becomes a path.
LARGEST = 1e300  # of a real number, so that what is computed from it stays finite
# {kind: (the types of its values, words for them)}
_KINDS: dict[type, tuple[Any, str]] = {
    bool: (bool, "True or False"),
    int: (int, "a whole number"),
    float: ((int, float), "a finite number"),
    str: (str, "text"),
    Path: ((str, Path), "a path"),
}


def interval(text: str) -> tuple[float, float] | None:
    """Steps and seconds: (500, ∞) for "500", (∞, 600) for "10m"; None for 0 or another text."""
    match = re.fullmatch(r"([0-9]{1,9})|([0-9]{1,9}(?:\.[0-9]{1,9})?)m", text)
    if not match:
        return None
    steps, minutes = (float(part or math.inf) for part in match.groups())
    return (steps, 60 * minutes) if steps and minutes else None


# Limits of a value: a predicate, and words for it.
Limits = tuple[Callable[[Any], object], str]
_ANY = (lambda value: True, "")
AT_LEAST_1 = (lambda value: value >= 1, "at least 1")
POSITIVE = (lambda value: value > 0, "positive")
NOT_NEGATIVE = (lambda value: value >= 0, "0 or more")
_GIVEN = (bool, "a name or a path")
_UP_TO_1000 = (lambda value: 1 <= value <= 1000, "from 1 to 1000")
_FROM_2 = (lambda value: 2 <= value <= 100, "from 2 to 100")
_ODD = (lambda value: value >= 1 and value % 2, "odd, 1 or larger")
_ODD_3 = (lambda value: value >= 3 and value % 2, "odd, 3 or larger")
_FRACTION = (lambda value: 0 <= value <= 1, "from 0 to 1")
_SMOOTHING = (lambda value: 0 <= value < 1, "at least 0 and less than 1")
_SEED = (lambda value: 0 <= value < 2**63, "a whole number from 0 to 2**63 - 1")
_INTERVAL = (interval, "steps, as 500, or minutes, as 10m")


@dataclass(frozen=True)
class Option:
    """A field of `TrainConfig`: a keyword, a flag of the command line, an entry of config.json.

    kind: bool, int, float, str or Path; default: if it is None, None is allowed; must: the limits
    of its values; changeable: a resumed run may have another value.
    """

    name: str
    kind: type
    default: object
    help: str
    must: Limits
    choices: tuple[str, ...] = ()
    changeable: bool = False

    def problem(self, value: Any) -> str | None:
        """The words for what a value must be and is not; None: it is valid."""
        types, words = _KINDS[self.kind]
        if value is None:
            return None if self.default is None else words
        # a bool is an int to Python, but no number here
        is_bool = isinstance(value, bool)
        if not isinstance(value, types) or is_bool != (self.kind is bool):
            return words
        if self.choices and value not in self.choices:
            return f"one of {', '.join(self.choices)}"
        holds, words = self.must
        if self.kind is float and not abs(value) < LARGEST:
            return f"{words} and finite"
        return None if holds(value) else words


def option(help: str, must: Limits = _ANY, default: Any = None, **about: Any) -> Any:
    """A dataclass field with what `Option` says beside its name and type."""
    return field(default=default, metadata={"help": help, "must": must, **about})


changeable = partial(option, changeable=True)


def options_in(config: type) -> dict[str, Option]:
    """{name: option} of a dataclass of options."""
    options = {}
    for entry in fields(config):
        kind: Any
        # T, also of `T | None` and `T | Any`
        kind, *_ = get_args(entry.type) or (entry.type,)
        options[entry.name] = Option(entry.name, kind, entry.default, **entry.metadata)
    return options


def presets_with(has: Callable[[Preset], object]) -> str:
    """The names of the presets that have a property: "conv, emerging or glow"."""
    *names, last = (name for name, preset in PRESETS.items() if has(preset))
    return f"{', '.join(names)} or {last}" if names else last


def shown(value: Any) -> str:
    """A setting in a help text: a number briefly, "none" for what is not set."""
    return f"{value:g}" if isinstance(value, int | float) else value or "none"


def by_preset(setting: Callable[[Preset], Any]) -> str:
    """The presets' values of a setting, after the most frequent one: "0.001 [fc: 0.0001]"."""
    presets: dict[str, list[str]] = {}
    for name, preset in PRESETS.items():
        presets.setdefault(shown(setting(preset)), []).append(name)
    usual = max(presets, key=lambda value: len(presets[value]))
    others = (
        f"{', '.join(names)}: {value}"
        for value, names in presets.items()
        if value != usual
    )
    return f"{usual} [{'; '.join(others)}]" if len(presets) > 1 else usual


_DTYPES = ("float32", "float64")
_MODELS = "; ".join(f"{name}: {preset.summary}" for name, preset in PRESETS.items())
_RELATIVE = presets_with(lambda preset: "relative" in preset.gradients)
_HELD_OUT = (
    "data for `data=PATH`: another path, or a fraction of the data, drawn by `seed`"
)


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """The flow and its initial weights."""

    # changeable to another that builds the same flow
    model: str | Any = changeable(
        f"{_MODELS}; or module:function, a function of yours that builds the flow",
        _GIVEN,
    )
    levels: int | None = option("L of Glow: blocks between squeezes", _UP_TO_1000)
    depth: int | None = option(
        "K of Glow: steps of flow per block; for vector, hidden dense layers",
        _UP_TO_1000,
    )
    width: int | None = option(
        "channels inside the networks of Glow's couplings", AT_LEAST_1
    )
    bins: int | None = option("bins of the splines of vector", _FROM_2)
    kernel: int | None = option(
        "size of Glow's mixing convolutions (5 in Table 5)", _ODD
    )
    activation: str | None = option(
        "elementwise maps: splines, or fc's smooth leaky ReLU",
        choices=models.ACTIVATIONS,
    )
    inverse_kernel: int | None = option(
        "kernel size of the learned R (Eqs. 28-30)", _ODD_3
    )
    init: str = option(
        "initial weights. paper (A.3): the identity plus Xavier noise of gain 0.01; in Glow an "
        "orthogonal matrix, plus that noise if `kernel` is above 1. authors: as in their code, "
        "where fc starts at the identity, and Glow with `kernel` above 1 at the identity plus "
        "that noise. identity: the identity",
        default="paper",
        choices=models.INITS,
    )
    bias_init: str = option(
        "biases start at 0 (zero), or where the first batch's outputs have mean 0 (data)",
        choices=models.BIAS_INITS,
    )


@dataclass(frozen=True, kw_only=True)
class GradientOptions:
    """The gradient of log|det W|, and the objective."""

    gradient: str = option(
        "the gradient of log|det W|: from the learned inverse (self-normalizing; Eqs. 10, 11, 15, "
        "16), exact (Eq. 2; convolutions block by block), exact-dense (by the whole matrix, the "
        f"paper's baseline), or relative (Gresele et al. 2020; {_RELATIVE} only)",
        choices=models.GRADIENTS,
    )
    objective: str = option(
        "what training maximises: both densities (mixture, Eq. 3), the forward density alone, or "
        "the variational bound, with noise of variance 1/(2λ) in linear layers (A.4)",
        choices=("mixture", "forward", "variational"),
    )
    noise_vectors: int | None = option(
        "noise vectors of the variational bound per layer and step", AT_LEAST_1
    )
    recipe: str = option(
        "defaults of other options: the paper's, or those that reach its likelihoods in a few "
        "epochs (white: `coordinates=white`, `objective=forward`, a cosine schedule, a shorter "
        "warm-up, a larger `lr` that suits the number of steps, biases from data)",
        default="paper",
        choices=("paper", "white"),
    )
    jvp_weight: float = option(
        "μ, the weight of Eq. 31 in every layer; 0: off", NOT_NEGATIVE, default=0.0
    )
    jvp_probes: int = option(
        "random directions ν of Eq. 31 per step", AT_LEAST_1, default=4
    )


@dataclass(frozen=True, kw_only=True)
class MultiplierOptions:
    """λ of Eq. 3, fixed or controlled (derivations/21-lambda-controllers.md)."""

    lam: float = changeable(
        "λ, the weight of the error in Eq. 3; with geco its first and least value",
        NOT_NEGATIVE,
    )
    lambda_control: str = option(
        "λ is fixed, or raised and lowered to keep the error below `tolerance` (geco, A.5)",
        default="fixed",
        choices=("fixed", "geco"),
    )
    constraint: str = option(
        "the error of each layer that geco bounds: E/‖h‖² (relative), or E (absolute)",
        default="relative",
        choices=("relative", "absolute"),
    )
    tolerance: float = option(
        "κ, the error that geco tolerates; at 0 λ never falls, as in A.5",
        NOT_NEGATIVE,
    )
    lambda_rate: float = option("η, how fast geco changes λ", POSITIVE)
    lambda_smoothing: float = option(
        "α, the weight of geco's former mean error", _SMOOTHING
    )


@dataclass(frozen=True, kw_only=True)
class OptimiserOptions:
    """Adam and its batches."""

    batch_size: int = option(
        "samples per step; an epoch leaves out an incomplete last batch",
        AT_LEAST_1,
    )
    lr: float = changeable("Adam's learning rate after warm-up", POSITIVE)
    warmup_epochs: float = option("epochs of a linear rise to `lr`", NOT_NEGATIVE)
    coordinates: str = option(
        "white: steps as if each layer's inputs had unit second moments (K-FAC's factor of the "
        "inputs; a dense layer gets a layer before it that whitens); scaled: unit variances alone; "
        "plain: neither",
        choices=("plain", "scaled", "white"),
    )
    lr_schedule: str = changeable(
        "decay of the learning rate from warm-up to the last epoch",
        choices=SCHEDULES,
    )
    final_lr_fraction: float = changeable(
        "learning rate of the last step, as a fraction of `lr`", _FRACTION
    )
    clip_norm: float | None = changeable("clip the gradient to this norm", POSITIVE)


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """The data, the random numbers, and the files of the run."""

    data: str = changeable(
        f"{', '.join(DATA_SETS)}, or the path of a .npy, .npz, .csv, .tsv or .txt file or a folder "
        "of images",
        _GIVEN,
        default="mnist",
    )
    validation: str | None = changeable(f"validation {_HELD_OUT}", _GIVEN)
    test: str | None = changeable(f"test {_HELD_OUT}", _GIVEN)
    header: bool | None = option("line 1 of a table names the columns")
    columns: str | None = option("columns of a table to use: names, or numbers from 0")
    drop_incomplete: bool = option(
        "leave out rows that have gaps, of a table", default=False
    )
    preprocess: str | None = option(
        "how data become the flow's inputs: images by dequantisation and a logit; rows of numbers "
        "standardised, or unchanged (none)",
        choices=WAYS,
    )
    ties: str = option(
        "columns with repeated values, such as integers: add uniform noise of one step and round "
        "samples (dequantise), leave them (keep), or refuse them (raise)",
        default="dequantise",
        choices=TIES,
    )
    data_dir: Path | Any = changeable("folder with the files of a published data set")
    augment: bool = option(
        "flip training images left to right and shift them by a pixel, at random"
    )
    noise: float = option(
        "standard deviation of the noise in the flow's training inputs, which smooths the density",
        NOT_NEGATIVE,
        default=0.0,
    )
    shuffle: bool = option("shuffle the training data in every epoch", default=True)
    seed: int = option(
        "seed of initialisation, order and dequantisation noise", _SEED, default=0
    )
    epochs: int = changeable("passes over the training data", AT_LEAST_1)
    eval_every: int = changeable("epochs between evaluations", AT_LEAST_1)
    checkpoint_every: str = changeable(
        "steps (500) or minutes (10m) between checkpoints: what a crash can cost",
        _INTERVAL,
        default="10m",
    )
    track_angle: int | None = changeable(
        "record angles to exact gradients, on this many batches (Fig. 3)",
        AT_LEAST_1,
    )
    patience: int | None = changeable(
        "stop after this many evaluations in a row without a new best", AT_LEAST_1
    )
    out: Path | Any = changeable("folder of the run: new or empty, unless resumed")


@dataclass(frozen=True, kw_only=True)
class DeviceOptions:
    """The device and its precision."""

    backend: str = changeable(
        ", ".join(f"{name} ({device})" for name, device in BACKENDS.items()),
        default=next(iter(BACKENDS)),
        choices=tuple(BACKENDS),
    )
    threads: int | None = changeable(
        "at most N threads for each process; set it to repeat a run bit for bit",
        AT_LEAST_1,
    )
    dtype: str = option("precision of training", default="float32", choices=_DTYPES)
    eval_dtype: str = changeable(
        "precision of evaluation; determinants are always in float64",
        default="float64",
        choices=_DTYPES,
    )
    recompute: bool = changeable(
        "save memory: the backward pass recomputes layer inputs by exact inverses",
        default=False,
    )
    graph: bool = changeable(
        "record the step as a CUDA graph, and replay it", default=True
    )
    # Not changeable: a precision of its own, as dtype is.
    tf32: bool = option(
        "round the factors of float32 products to 10 bits: faster, but less precise",
        default=False,
    )
