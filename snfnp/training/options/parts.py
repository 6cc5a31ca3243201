"""The options of a run, in six parts. A part knows nothing of the others: `rules` does."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from snfnp.data import DATA_SETS
from snfnp.models import BIAS_INITS, GRADIENTS, INITS, INVERSE_UPDATES, PRESETS
from snfnp.ops import BACKENDS
from snfnp.ops.step.control import CONTROLLERS
from snfnp.registry import LARGEST_SIGMA, SMALLEST_SIGMA
from snfnp.training.options.option import (
    AT_LEAST_1,
    NOT_NEGATIVE,
    POSITIVE,
    Limits,
    changeable,
    interval,
    odd,
    option,
    presets_with,
)

_MODELS = "; ".join(f"{name}, {preset.summary}" for name, preset in PRESETS.items())
_RELATIVE = presets_with(lambda preset: "relative" in preset.gradients)
_UP_TO_3: Limits = (lambda value: 1 <= value <= 3, "1, 2 or 3")
_SMOOTHING: Limits = (lambda value: 0 <= value < 1, "from 0 up to, but not, 1")
_SEED: Limits = (lambda value: 0 <= value < 2**63, "a whole number from 0 to 2**63 - 1")
_INTERVAL: Limits = (lambda value: interval(value), "steps, as 500, or minutes, as 10m")
_SIGMA: Limits = (
    lambda value: SMALLEST_SIGMA <= value <= LARGEST_SIGMA,
    f"positive, from {SMALLEST_SIGMA:g} to {LARGEST_SIGMA:g}",
)


@dataclass(frozen=True)
class ModelOptions:
    """The flow and where its weights start."""

    model: str = option("fc", f"the model: {_MODELS}", choices=tuple(PRESETS))
    levels: int | None = option(None, "L of Glow, blocks between squeezes", AT_LEAST_1)
    depth: int | None = option(None, "K of Glow, steps of flow per block", AT_LEAST_1)
    width: int | None = option(None, "channels inside the networks of Glow's couplings", AT_LEAST_1)
    kernel: int | None = option(None, "size of Glow's mixing convolutions (Table 5: 5)", odd(1))
    inverse_kernel: int | None = option(None, "kernel size of the learned R (Eqs. 28-30)", odd(3))
    inverse_depth: int = option(1, "convolutions in a learned inverse (A.4): 1 to 3", _UP_TO_3)
    init: str = option(
        "paper",
        "the start of weights. paper, as in A.3: the identity plus Xavier noise of gain 0.01, in "
        "Glow an orthogonal matrix (plus that noise if --kernel is above 1). authors, as in their "
        "code: fc at exactly the identity, Glow with a --kernel above 1 at the identity plus "
        "noise. identity: exactly the identity",
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
        "16), the same by random probes (probe), by an exact inverse (exact, Eq. 2; by block "
        "recursion, or exact-dense through the whole matrix, the paper's baseline), or "
        f"relative (Gresele et al. 2020; {_RELATIVE} only)",
        choices=GRADIENTS,
    )
    objective: str = option(
        "mixture",
        "the paper's mixture of both densities (Eq. 3); the forward density alone, R learning from "
        "the reconstruction error; or the variational bound of A.4, with noise --sigma",
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
        "defaults for --inverse-update, --inverse-kernel and --bias-init: the paper's, or those "
        "with which no λ is to be tuned and training keeps up with the exact gradient "
        "(least-squares: fc by projection, conv by least squares with 5x5 inverses, both with "
        "biases from data; glow by least squares)",
        choices=("paper", "least-squares"),
    )
    inverse_update: str | None = option(
        None,
        "how R is found: by its gradient (Eqs. 11, 16), or without λ, and W by the forward density "
        "alone: projected on every batch (projection, fc), or the best one for W of its kernel "
        "size (least-squares, conv and glow; of 1x1 kernels that is the exact gradient)",
        choices=INVERSE_UPDATES,
    )
    jvp_weight: float = option(
        0.0, "μ, the weight of Eq. 31, ‖J_g J_f ν − ν‖² of every layer (0: off)", NOT_NEGATIVE
    )
    jvp_probes: int = option(4, "how many directions ν of Eq. 31 a step looks along", AT_LEAST_1)
    probes: int = option(1, "how many directions take the place of flip(R) ⊙ m", AT_LEAST_1)


@dataclass(frozen=True)
class MultiplierOptions:
    """λ of Eq. 3, and what it follows (derivations/20-lambda-controllers.md)."""

    lam: float | None = changeable(
        None, "λ of Eq. 3, the weight of the reconstruction error", NOT_NEGATIVE, flag="--lambda"
    )
    lambda_control: str = option(
        "fixed",
        "λ stays (fixed), or starts at --lambda and keeps the error below --tolerance: "
        "geco (Rezende & Viola 2018, the paper's A.5) or mdmm (Platt & Barr 1988)",
        choices=("fixed", *CONTROLLERS),
    )
    lambda_sharing: str = option(
        "layer", "a λ for every layer, or one for the whole flow", choices=("layer", "flow")
    )
    constraint: str = option(
        "relative",
        "what stays below --tolerance: a layer's reconstruction error E/‖h‖² (relative), or E",
        choices=("relative", "absolute"),
    )
    tolerance: float | None = option(
        None, "κ, the error that is allowed; 0 (geco): λ never falls, as in A.5", NOT_NEGATIVE
    )
    lambda_rate: float | None = option(None, "η, how fast λ moves", POSITIVE)
    lambda_smoothing: float | None = option(None, "α, what a step keeps of C's mean", _SMOOTHING)
    lambda_damping: float | None = option(None, "c; λ + c (C − κ) is used for λ", NOT_NEGATIVE)
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
    clip_norm: float | None = changeable(None, "scale gradients to at most this norm", POSITIVE)


@dataclass(frozen=True)
class RunOptions:
    """The images, the random numbers, and what is kept of the run."""

    data: str = option("mnist", "the images to model", choices=DATA_SETS)
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
        None,
        "batches of each evaluation on which angles to exact gradients are measured (Fig. 3)",
        AT_LEAST_1,
    )
    tensorboard: bool = changeable(False, "also write metrics for TensorBoard; needs tensorboardX")
    out: Path | None = changeable(None, "run folder to make")


@dataclass(frozen=True)
class DeviceOptions:
    """The device and the precision."""

    backend: str = changeable(
        "numba", "numba (CPU, fused kernels), numpy (CPU, plain) or cupy (GPU)", choices=BACKENDS
    )
    dtype: str = option(
        "float32", "precision of training; evaluation is in float64", choices=("float32", "float64")
    )
    recompute: bool = changeable(
        False, "save memory: find layer inputs in the backward pass by exact inverses"
    )
    graph: bool = changeable(True, "replay the step as a CUDA graph (default: --graph)")
    # Not changeable: a precision of its own, as dtype is.
    tf32: bool = option(
        False, "round factors of float32 products to 10 bits: faster, no longer single precision"
    )
    overlap: bool = changeable(False, "gradients of linear layers' weights on a second stream")
