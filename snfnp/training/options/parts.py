"""The options of a run, in six parts. A part knows nothing of the others: `rules` does.

Derivation: derivations/18-jacobian-vector-products.md and 20-lambda-controllers.md.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any, get_args

from snfnp.data import DATA_SETS
from snfnp.layers.preprocess import WAYS
from snfnp.models import ACTIVATIONS, BIAS_INITS, GRADIENTS, INITS, PRESETS, Preset
from snfnp.ops import BACKENDS
from snfnp.registry import LARGEST_SIGMA, SMALLEST_SIGMA
from snfnp.training.adam import SCHEDULES

LARGEST = 1e300  # of a number that is not whole: what is computed from it stays finite
_KINDS: dict[type, tuple[Any, str]] = {  # {kind: (the types of its values, words for them)}
    bool: (bool, "True or False"),
    int: (int, "a whole number"),
    float: ((int, float), "a finite number"),
    str: (str, "text"),
    Path: ((str, Path), "a path"),
}

# Limits of a value: a predicate, and words for it.
Limits = tuple[Callable[[Any], object], str]
AT_LEAST_1: Limits = (lambda value: value >= 1, "at least 1")
POSITIVE: Limits = (lambda value: value > 0, "positive")
NOT_NEGATIVE: Limits = (lambda value: value >= 0, "0 or more")
_GIVEN: Limits = (bool, "a name or a path")
_OWN = ".npy, .npz or .csv files or of a folder of images"
_HELD_OUT = "data of --data PATH: another path, or a fraction, drawn by --seed"
_UP_TO_1000: Limits = (lambda value: 1 <= value <= 1000, "from 1 to 1000")
_ODD: Limits = (lambda value: value >= 1 and value % 2, "odd, 1 or larger")
_ODD_3: Limits = (lambda value: value >= 3 and value % 2, "odd, 3 or larger")
_FRACTION: Limits = (lambda value: 0 <= value <= 1, "from 0 to 1")
_SMOOTHING: Limits = (lambda value: 0 <= value < 1, "from 0 up to, but not, 1")
_SEED: Limits = (lambda value: 0 <= value < 2**63, "a whole number from 0 to 2**63 - 1")
_INTERVAL: Limits = (lambda value: interval(value), "steps, as 500, or minutes, as 10m")
_SIGMA: Limits = (
    lambda value: SMALLEST_SIGMA <= value <= LARGEST_SIGMA,
    f"positive, from {SMALLEST_SIGMA:g} to {LARGEST_SIGMA:g}",
)


@dataclass(frozen=True)
class Option:
    """A field of one of the parts of a configuration, by a name that is also in config.json.

    kind: bool, int, float, str or Path; optional: None is filled in by `rules`; must: the
    limits of its values; changeable: a resumed run may have another value.
    """

    name: str
    kind: type
    optional: bool
    default: object
    help: str
    must: Limits
    choices: tuple[str, ...]
    flag: str
    changeable: bool

    def flag_for(self, value) -> str:
        """The flag that sets a value: for False the one that switches the option off."""
        return self.flag.replace("--", "--no-", 1) if value is False else self.flag

    def problem(self, value: Any) -> str | None:
        """The words for what a value must be and is not; None: it is all that."""
        types, words = _KINDS[self.kind]
        if value is None:
            return None if self.optional else words
        if not isinstance(value, types) or isinstance(value, bool) != (self.kind is bool):
            return words
        if self.choices and value not in self.choices:
            return f"one of {', '.join(self.choices)}"
        holds, words = self.must
        if self.kind is float and not abs(value) < LARGEST:
            return f"{words} and finite"
        return None if holds(value) else words


def option(default, help: str, must=(lambda value: True, ""), **about) -> Any:
    """A dataclass field with what `Option` says beside its name and type."""
    usual = {"choices": (), "flag": "", "changeable": False}
    return field(default=default, metadata={"help": help, "must": must, **usual, **about})


changeable = partial(option, changeable=True)


def options_in(part: type) -> dict[str, Option]:
    """{name: option} of a part of the configuration."""
    options = {}
    for entry in fields(part):
        kind: Any
        kind, *none = get_args(entry.type) or (entry.type,)
        about = {**entry.metadata}
        about["flag"] = about["flag"] or "--" + entry.name.replace("_", "-")
        options[entry.name] = Option(entry.name, kind, bool(none), entry.default, **about)
    return options


def interval(text: str) -> tuple[float, float] | None:
    """(steps, seconds) that "500" or "10m" stands for, one of them infinite; None: neither."""
    match = re.fullmatch(r"([0-9]{1,9})|([0-9]{1,9}(?:\.[0-9]{1,9})?)m", text)
    steps, minutes = (float(part or math.inf) for part in match.groups()) if match else (0, 0)
    return (steps, 60 * minutes) if steps and minutes else None


def presets_with(has: Callable[[Preset], object]) -> str:
    """The names of the presets that have a property: "conv, emerging or glow"."""
    *names, last = (name for name, preset in PRESETS.items() if has(preset))
    return f"{', '.join(names)} or {last}" if names else last


def by_preset(setting: str | Callable[[Preset], Any], none: str = "none") -> str:
    """The presets' values, grouped: "0.0001 for fc; 0.001 for conv, glow". setting: of a preset, or
    a function of it; none: the name of None; "" leaves it out."""
    models: dict[str, list[str]] = {}
    for name, preset in PRESETS.items():
        value = setting(preset) if callable(setting) else getattr(preset, setting)
        text = none if value is None else value if isinstance(value, str) else f"{value:g}"
        models.setdefault(text, []).append(name)
    models.pop("", None)
    if len(models) == 1:
        return next(iter(models))
    return "; ".join(f"{value} for {', '.join(names)}" for value, names in models.items())


_MODELS = "; ".join(f"{name}, {preset.summary}" for name, preset in PRESETS.items())
_MODELS = f"the model: {_MODELS}; or module:function, which builds one of your own"
_RELATIVE = presets_with(lambda preset: "relative" in preset.gradients)


@dataclass(frozen=True)
class ModelOptions:
    """The flow and where its weights start."""

    model: str | None = option(None, _MODELS, _GIVEN)
    levels: int | None = option(None, "L of Glow, blocks between squeezes", _UP_TO_1000)
    depth: int | None = option(
        None, "K of Glow, steps of flow per block; of vector, dense layers but one", _UP_TO_1000
    )
    width: int | None = option(None, "channels inside the networks of Glow's couplings", AT_LEAST_1)
    kernel: int | None = option(None, "size of Glow's mixing convolutions (Table 5: 5)", _ODD)
    activation: str | None = option(
        None, "the elementwise maps of vector: splines, or the paper's for fc", choices=ACTIVATIONS
    )
    inverse_kernel: int | None = option(None, "kernel size of the learned R (Eqs. 28-30)", _ODD_3)
    init: str = option(
        "paper",
        "the start of weights. paper (A.3): the identity plus Xavier noise of gain 0.01, in Glow "
        "an orthogonal matrix (plus that noise if --kernel is above 1). authors, their code: fc "
        "the identity, Glow with --kernel above 1 that plus noise. identity: exactly that",
        choices=INITS,
    )
    bias_init: str | None = option(
        None, "biases at 0 (zero), or for first outputs of mean 0 (data)", choices=BIAS_INITS
    )


@dataclass(frozen=True)
class GradientOptions:
    """The rule by which linear layers learn, and how their inverse is found."""

    gradient: str | None = option(
        None,
        "the gradient of log|det W|: by the learned inverse (self-normalizing, Eqs. 10, 11, 15, "
        "16), exact (Eq. 2; by blocks, or exact-dense through the whole matrix, the paper's "
        f"baseline), or relative (Gresele et al. 2020; {_RELATIVE} only)",
        choices=GRADIENTS,
    )
    objective: str | None = option(
        None,
        "both densities (mixture, Eq. 3), the forward one alone, or the variational bound (A.4)",
        choices=("mixture", "forward", "variational"),
    )
    sigma: float | None = option(None, "σ, the noise of a linear layer; λ is 1/(2σ²)", _SIGMA)
    noise_vectors: int | None = option(None, "noise vectors of a layer in a step", AT_LEAST_1)
    relative_bias: str = option(
        "plain",
        "the bias on its own (plain), in an augmented matrix (full), or as in Gresele's code",
        choices=("plain", "gresele", "full"),
    )
    recipe: str = option(
        "paper",
        "defaults of other options: the paper's, or those that come to its likelihoods in a few "
        "epochs (white: --coordinates white, --objective forward, cosine, one epoch of warm-up, a "
        "larger --lr, biases from data)",
        choices=("paper", "white"),
    )
    jvp_weight: float = option(
        0.0, "μ, the weight of Eq. 31, ‖J_g J_f ν − ν‖² of every layer (0: off)", NOT_NEGATIVE
    )
    jvp_probes: int = option(4, "how many directions ν of Eq. 31 a step looks along", AT_LEAST_1)


@dataclass(frozen=True)
class MultiplierOptions:
    """λ of Eq. 3, and what it follows (derivations/20-lambda-controllers.md)."""

    lam: float | None = changeable(
        None, "λ of Eq. 3, the weight of the reconstruction error", NOT_NEGATIVE, flag="--lambda"
    )
    lambda_control: str = option(
        "fixed",
        "λ stays (fixed), or keeps the error below --tolerance (geco, A.5)",
        choices=("fixed", "geco"),
    )
    constraint: str = option(
        "relative",
        "what stays below --tolerance: a layer's reconstruction error E/‖h‖² (relative), or E",
        choices=("relative", "absolute"),
    )
    tolerance: float | None = option(
        None, "κ, the error that is allowed; 0: λ never falls, as in A.5", NOT_NEGATIVE
    )
    lambda_rate: float | None = option(None, "η, how fast λ moves", POSITIVE)
    lambda_smoothing: float | None = option(None, "α, what a step keeps of C's mean", _SMOOTHING)
    lambda_min: float | None = option(
        None, "λ never falls below this: for the mixture too small a λ breaks a run", NOT_NEGATIVE
    )
    lambda_max: float | None = option(None, "λ never rises above this", POSITIVE)


@dataclass(frozen=True)
class OptimiserOptions:
    """Adam, and the batches that it sees."""

    batch_size: int | None = option(None, "images per step; a rest is left out", AT_LEAST_1)
    lr: float | None = changeable(None, "Adam's learning rate after warm-up", POSITIVE)
    warmup_epochs: float | None = option(None, "epochs in which --lr rises from 0", NOT_NEGATIVE)
    coordinates: str | None = option(
        None,
        "what Adam ascends in: the weights (plain), or coordinates in which the inputs of weights "
        "have second moments I (white): dense layers behind fixed ones, which whiten",
        choices=("plain", "white"),
    )
    lr_schedule: str | None = changeable(
        None, "how --lr falls from warm-up to the last of --epochs", choices=SCHEDULES
    )
    final_lr_fraction: float | None = changeable(None, "what is left of --lr then", _FRACTION)
    clip_norm: float | None = changeable(None, "scale gradients to at most this norm", POSITIVE)


@dataclass(frozen=True)
class RunOptions:
    """The images, the random numbers, and what is kept of the run."""

    data: str = changeable("mnist", f"{', '.join(DATA_SETS)}, or the path of {_OWN}", _GIVEN)
    validation: str | None = changeable(None, f"validation {_HELD_OUT}", _GIVEN)
    test: str | None = changeable(None, f"test {_HELD_OUT}", _GIVEN)
    preprocess: str | None = option(
        None,
        "what turns data into the flow's inputs: dequantisation and a logit, or a scale alone, for "
        "images; standardise, or none, for rows of numbers",
        choices=WAYS,
    )
    data_dir: Path | None = changeable(None, "folder with the data set's files")
    augment: bool | None = option(None, "randomly flip images horizontally, shift them by a pixel")
    shuffle: bool = option(True, "draw a new order of the training images for every epoch")
    seed: int = option(0, "seed of initialisation, shuffle and dequantisation noise", _SEED)
    epochs: int | None = changeable(None, "passes over the training images", AT_LEAST_1)
    eval_every: int = changeable(1, "epochs between exact validation likelihoods", AT_LEAST_1)
    checkpoint_every: str = changeable(
        "10m", "steps (500) or minutes (10m) between checkpoints: what a crash can cost", _INTERVAL
    )
    track_angle: int | None = changeable(
        None, "record the angles to exact gradients on so many batches (Fig. 3)", AT_LEAST_1
    )
    patience: int | None = changeable(
        None, "stop after so many evaluations in a row without a better one", AT_LEAST_1
    )
    tensorboard: bool = changeable(False, "also write metrics for TensorBoard; needs tensorboardX")
    out: Path | None = changeable(None, "run folder to make")


@dataclass(frozen=True)
class DeviceOptions:
    """The device and the precision."""

    backend: str = changeable(
        "numba", "numba (CPU, fused kernels), numpy (CPU, plain) or cupy (GPU)", choices=BACKENDS
    )
    dtype: str = option("float32", "precision of training", choices=("float32", "float64"))
    eval_dtype: str = changeable(
        "float64", "precision of evaluation, but for determinants", choices=("float32", "float64")
    )
    recompute: bool = changeable(
        False, "save memory: find layer inputs in the backward pass by exact inverses"
    )
    graph: bool = changeable(True, "replay the step as a CUDA graph (default: --graph)")
    # Not changeable: a precision of its own, as dtype is.
    tf32: bool = option(
        False, "round factors of float32 products to 10 bits: faster, no longer single precision"
    )
    overlap: bool = changeable(
        False, "compute the gradients of linear layers' weights on a second stream"
    )
