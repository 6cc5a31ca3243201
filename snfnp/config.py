"""A run's configuration: every choice that its numbers depend on, checked at the start."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from snfnp.data import DATA_SETS
from snfnp.errors import UsageError
from snfnp.models import GRADIENTS, INITS, PRESETS, Choices, GlowSize, make_rule
from snfnp.ops import BACKENDS

DTYPES = ("float32", "float64")

# Options whose default is the preset's.
PRESET_SETTINGS = ("batch_size", "lr", "lam", "warmup_epochs", "clip_norm")
GLOW_SETTINGS = ("levels", "depth", "width", "kernel")


def option(default, help: str, **settings):
    """A field with what the command line says about it (see `snfnp.cli`)."""
    return field(default=default, metadata={"help": help, **settings})


@dataclass
class TrainConfig:
    """Everything that decides a run. None means "the preset's value" until `resolve` fills it in.

    The help texts are what `--help` prints.
    """

    model: str = option(
        "fc",
        "the model: fc, the 2-layer fully connected flow; conv, the 9-layer convolutional flow "
        "with splines; emerging and conv-exponential, the same flow with those convolutions, the "
        "baselines of Table 1; glow, Glow of L levels and K steps: 2L-16K, glow-2l-4k (width 16), "
        "glow-3l-32k (CIFAR-10), glow-3l-48k (ImageNet32)",
        choices=tuple(PRESETS),
    )
    data: str = option("mnist", "the images to model", choices=DATA_SETS)
    gradient: str | None = option(
        None,
        "where the gradient of log|det W| comes from: the learned inverse (self-normalizing, "
        "Eqs. 10, 11, 15, 16; the default), an exact inverse (exact, Eq. 2; for convolutions by "
        "block recursion, or exact-dense through the whole matrix, the paper's baseline), or the "
        "relative gradient of Gresele et al. 2020 (relative, fc only)",
        choices=GRADIENTS,
    )
    objective: str = option(
        "mixture",
        "self-normalizing only: the paper's mixture of both densities (Eq. 3), or the forward "
        "density alone, where R learns from the reconstruction error only",
        choices=("mixture", "forward"),
    )
    relative_bias: str = option(
        "plain",
        "relative gradient only: treat the bias on its own (plain), inside an augmented matrix "
        "(full), or as in Gresele's code (gresele)",
        choices=("plain", "gresele", "full"),
    )
    inverse_kernel: int | None = option(
        None,
        "self-normalizing convolutions only: kernel size of the learned inverse, 3 or larger "
        "(Eqs. 28-30; default: the forward kernel's, 3)",
    )
    levels: int | None = option(None, "Glow only: L, blocks between squeezes")
    depth: int | None = option(None, "Glow only: K, steps of flow per block")
    width: int | None = option(None, "Glow only: channels inside the couplings' networks")
    kernel: int | None = option(
        None, "Glow only: size of the mixing convolutions, odd (1 in Glow, 5 in Table 5)"
    )
    backend: str = option(
        "numba",
        "numba (CPU, fused kernels), numpy (CPU, plain definitions) or cupy (GPU)",
        choices=BACKENDS,
    )
    epochs: int | None = option(
        None,
        "passes over the training images (default: few enough for minutes on two CPU cores, ten on "
        "the full MNIST for fc; the paper ran 6000 for fc, 1000 for conv, 250 for glow)",
    )
    batch_size: int | None = option(
        None, "images per step; a rest that fills no batch is left out of the epoch"
    )
    lr: float | None = option(None, "Adam's learning rate after warm-up")
    lam: float | None = option(
        None,
        "λ of Eq. 3, the weight of the reconstruction error (self-normalizing only)",
        flag="--lambda",
    )
    warmup_epochs: float | None = option(
        None, "epochs over which the learning rate rises linearly from 0"
    )
    clip_norm: float | None = option(
        None, "scale a gradient of larger global norm down to this one"
    )
    seed: int = option(0, "seed of initialisation, shuffle and dequantisation noise")
    shuffle: bool = option(True, "draw a new order of the training images for every epoch")
    augment: bool | None = option(
        None,
        "flip images horizontally and shift them by a pixel, at random (default: for cifar-10 "
        "only, as in the paper)",
    )
    init: str = option(
        "paper",
        "weights start at the identity plus Xavier noise of gain 0.01 (paper), or at the identity "
        "alone, as in the authors' code (identity)",
        choices=INITS,
    )
    dtype: str = option(
        "float32", "precision of training; evaluation is always in float64", choices=DTYPES
    )
    recompute: bool = option(
        False,
        "recompute layer inputs in the backward pass through exact inverses, to save memory",
    )
    graph: bool = option(
        True,
        "cupy only: record the training step as a CUDA graph and replay it (default: --graph)",
    )
    tf32: bool = option(
        False,
        "cupy only: let tensor cores round the factors of float32 products to 10 bits; faster, "
        "and no longer single precision",
    )
    eval_every: int = option(1, "epochs between exact evaluations on the validation images")
    data_dir: Path | None = option(
        None,
        "folder with the data set's files (default: $SNFNP_DATA_DIR, else the user's cache, else a "
        "download, else a small sample that ships with the package)",
    )
    out: Path | None = option(
        None, "run folder to make (default: runs/<data>-<model>-<gradient>-<time>)"
    )

    def resolve(self, training_images: int) -> None:
        """Fill in the preset's values and check every number. Raises UsageError, one line each."""
        preset = PRESETS[self.model]
        if self.gradient is None:
            self.gradient = preset.gradients[0]
        if self.gradient not in preset.gradients:
            raise UsageError(
                f"--model {self.model} cannot be trained with --gradient {self.gradient}: choose "
                f"{' or '.join(preset.gradients)}"
            )
        self._refuse_settings_without_effect()
        for name in PRESET_SETTINGS:
            if getattr(self, name) is None:
                setattr(self, name, getattr(preset, name))
        if self.clip_norm == preset.clip_norm and not (preset.clip_exact or self._learns):
            self.clip_norm = None
        for name in GLOW_SETTINGS if preset.size else ():
            if getattr(self, name) is None:
                setattr(self, name, getattr(preset.size, name))
            self._require(getattr(self, name) >= 1, f"--{name}", "at least 1")
        self._require(self.kernel is None or self.kernel % 2, "--kernel", "odd")
        if self.augment is None:
            self.augment = self.data == "cifar-10"
        if not self._learns:
            self.lam = 0.0  # no layer reconstructs anything
        self._require(self.batch_size >= 1, "--batch-size", "at least 1")
        if self.batch_size > training_images:
            raise UsageError(
                f"--batch-size is {self.batch_size}, but there are only {training_images} training "
                "images: choose a smaller one"
            )
        if self.epochs is None:
            self.epochs = math.ceil(preset.steps / self.steps_per_epoch(training_images))
        self._require(self.epochs >= 1, "--epochs", "at least 1")
        self._require(0 < self.lr < math.inf, "--lr", "positive")
        self._require(0 <= self.lam < math.inf, "--lambda", "0 or more")
        self._require(0 <= self.warmup_epochs < math.inf, "--warmup-epochs", "0 or more")
        kernel = self.inverse_kernel
        self._require(
            kernel is None or (kernel >= 3 and kernel % 2), "--inverse-kernel", "odd, 3 or larger"
        )
        self._require(self.clip_norm is None or self.clip_norm > 0, "--clip-norm", "positive")
        self._require(self.eval_every >= 1, "--eval-every", "at least 1")
        self._require(0 <= self.seed < 2**63, "--seed", "a whole number from 0 to 2**63 - 1")

    def steps_per_epoch(self, training_images: int) -> int:
        return training_images // self.batch_size

    def build_flow(self, image_shape):
        """The flow that this configuration describes, for images (H, W, C)."""
        choices = Choices(
            rule=make_rule(self.gradient, self.objective, self.relative_bias),
            init=self.init,
            exact="dense" if self.gradient == "exact-dense" else "block",
            inverse_kernel=self.inverse_kernel,
            size=GlowSize(self.levels, self.depth, self.width, self.kernel),
        )
        return PRESETS[self.model].build(choices, tuple(image_shape))

    @property
    def model_name(self) -> str:
        """The model for people: its preset, or Glow's size."""
        if self.levels is None:
            return self.model
        kernel = "" if self.kernel == 1 else f" kernel {self.kernel}"
        return f"glow {self.levels}L-{self.depth}K width {self.width}{kernel}"

    @property
    def uses_gpu(self) -> bool:
        """Whether `graph` and `tf32` have an effect."""
        return self.backend == "cupy"

    def as_dict(self) -> dict:
        """The configuration as JSON-ready values."""
        return {k: str(v) if isinstance(v, Path) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict) -> TrainConfig:
        """The configuration from `as_dict`; unknown entries (of a newer version) are an error."""
        known = {f.name for f in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise UsageError(f"the configuration has unknown entries: {', '.join(unknown)}")
        paths = {k: Path(values[k]) for k in ("data_dir", "out") if values.get(k)}
        return cls(**{**values, **paths})

    @property
    def _learns(self) -> bool:
        return self.gradient == "self-normalizing"

    def _refuse_settings_without_effect(self) -> None:
        learns = self._learns
        concerns = (
            ("--lambda", self.lam not in (None, 0.0), learns, "--gradient self-normalizing"),
            ("--objective", self.objective != "mixture", learns, "--gradient self-normalizing"),
            (
                "--relative-bias",
                self.relative_bias != "plain",
                self.gradient == "relative",
                "--gradient relative",
            ),
            (
                "--inverse-kernel",
                self.inverse_kernel is not None,
                learns and self.model == "conv",
                "--model conv --gradient self-normalizing",
            ),
            (
                "--recompute",
                self.recompute,
                self.model != "fc",
                "a --model other than fc, which has no layer with a cheap exact inverse",
            ),
        )
        concerns += (
            ("--no-graph", not self.graph, self.uses_gpu, "--backend cupy"),
            ("--tf32", self.tf32, self.uses_gpu, "--backend cupy"),
            ("--tf32", self.tf32, self.dtype == "float32", "--dtype float32"),
        )
        is_glow = PRESETS[self.model].size is not None
        concerns += tuple(
            (f"--{name}", getattr(self, name) is not None, is_glow, "--model glow or glow-...")
            for name in GLOW_SETTINGS
        )
        for flag, given, has_effect, what in concerns:
            if given and not has_effect:
                raise UsageError(f"{flag} only has an effect with {what}: leave it out")

    def _require(self, holds: bool, flag: str, what: str) -> None:
        if not holds:
            name = {"--lambda": "lam"}.get(flag, flag[2:].replace("-", "_"))
            raise UsageError(f"{flag} is {getattr(self, name)}: it must be {what}")
