"""A run's configuration: every choice that its numbers depend on, checked before the first step.

An option is one field of `TrainConfig`, with everything that the rest of the package needs to know
about it; those of the model and of the way in which it learns are in `method.py`, `recipes.py` and
`probes.py`, those of λ's controllers in `control.py`, of what is followed in `tracking.py`. What a
model needs or cannot do is in its preset (`snfnp.models.PRESETS`).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from snfnp.errors import UsageError
from snfnp.models import Choices, GlowSize
from snfnp.ops import BACKENDS
from snfnp.registry import WHOLE_BATCH
from snfnp.training.control import ControlOptions
from snfnp.training.method import MethodOptions
from snfnp.training.options import (
    AT_LEAST_1,
    HAS_LAMBDA,
    NOT_NEGATIVE,
    POSITIVE,
    by_preset,
    flag_of,
    interval,
    may_be,
    needs_preset,
    option,
    options_of,
    preset_option,
)
from snfnp.training.probes import ProbeOptions
from snfnp.training.recipes import RecipeOptions
from snfnp.training.tracking import TrackingOptions

DTYPES = ("float32", "float64")
_PLACES = ("data_dir", "out")  # where files are: no part of a run
_OPTIMISER = ("lr", "lam", "clip_norm")
_RETIRED = ("track_log_det", "lambda_integral", "lambda_proportional")  # of older runs, unused
_AUGMENTED = ("cifar-10",)  # the data sets that the paper augments (A.3)
# What some options need: a predicate of the configuration, and words for it.
_ON_GPU = (lambda config: config.backend == "cupy", "--backend cupy")


@dataclass(frozen=True)
class TrainConfig(TrackingOptions, ControlOptions, ProbeOptions, RecipeOptions, MethodOptions):
    """Everything that decides a run. None: filled in by `resolve`, in most cases as the preset
    has it."""

    backend: str = option(
        "numba",
        "numba (CPU, fused kernels), numpy (CPU, plain definitions) or cupy (GPU)",
        choices=BACKENDS,
        changeable=True,
    )
    epochs: int | None = option(
        None,
        "passes over the training images (default: the fewest that come to this many steps: "
        f"{by_preset('steps')}; the paper ran {by_preset('paper_epochs', none='')})",
        must=AT_LEAST_1,
        changeable=True,
    )
    batch_size: int | None = preset_option(
        "batch_size",
        "images per step; a rest that fills no batch is left out of the epoch",
        must=AT_LEAST_1,
    )
    lr: float | None = preset_option(
        "lr", "Adam's learning rate after warm-up", must=POSITIVE, changeable=True
    )
    warmup_epochs: float | None = preset_option(
        "warmup_epochs",
        "epochs over which the learning rate rises linearly from 0",
        must=NOT_NEGATIVE,
    )
    clip_norm: float | None = preset_option(
        "clip_norm",
        "scale a gradient of larger global norm down to this one",
        must=(lambda value: value > 0, "positive"),
        fill=lambda c: c.preset.clip_norm if c.preset.clip_exact or c.rule.learns_inverse else None,
        changeable=True,
    )
    seed: int = option(
        0,
        "seed of initialisation, shuffle and dequantisation noise",
        must=(lambda value: 0 <= value < 2**63, "a whole number from 0 to 2**63 - 1"),
    )
    shuffle: bool = option(True, "draw a new order of the training images for every epoch")
    augment: bool | None = option(
        None,
        "flip images horizontally and shift them by a pixel, at random (default: for "
        f"{', '.join(_AUGMENTED)} only, as in the paper)",
        fill=lambda config: config.data in _AUGMENTED,
    )
    dtype: str = option(
        "float32", "precision of training; evaluation is always in float64", choices=DTYPES
    )
    recompute: bool = option(
        False,
        "recompute layer inputs in the backward pass through exact inverses, to save memory",
        effect=(needs_preset(lambda preset: preset.has_recomputable_layers),),
        changeable=True,
    )
    graph: bool = option(
        True,
        "cupy only: record the training step as a CUDA graph and replay it (default: --graph)",
        effect=(_ON_GPU,),
        changeable=True,
    )
    # Not changeable: a precision of its own, as dtype is.
    tf32: bool = option(
        False,
        "cupy only: let tensor cores round the factors of float32 products to 10 bits; faster, "
        "and no longer single precision",
        effect=(_ON_GPU, (lambda config: config.dtype == "float32", "--dtype float32")),
    )
    overlap: bool = option(
        False,
        "cupy only: compute the gradients of linear layers' weights on a second stream, beside the "
        "pass from layer to layer",
        effect=(_ON_GPU, *HAS_LAMBDA),
        changeable=True,
    )
    eval_every: int = option(
        1,
        "epochs between exact evaluations on the validation images",
        must=AT_LEAST_1,
        changeable=True,
    )
    checkpoint_every: str = option(
        "10m",
        "between evaluations, write a checkpoint after this many steps (500) or minutes (10m): "
        "what a crash can cost",
        must=(lambda value: interval(value) is not None, "steps, as 500, or minutes, as 10m"),
        changeable=True,
    )
    data_dir: Path | None = option(
        None,
        "folder with the data set's files (default: $SNFNP_DATA_DIR, else the user's cache, else a "
        "download, else a small sample that ships with the package)",
        changeable=True,
    )
    out: Path | None = option(
        None,
        "run folder to make (default: runs/<data>-<model>-<gradient>-<time>)",
        changeable=True,
    )

    # ---------------------------------------------------------------- what follows from it

    @property
    def model_name(self) -> str:
        """The model for people: its preset, or Glow's size."""
        if self.levels is None:
            return self.model
        kernel = "" if self.kernel == 1 else f" kernel {self.kernel}"
        return f"glow {self.levels}L-{self.depth}K width {self.width}{kernel}"

    def steps_per_epoch(self, training_images: int) -> int:
        return training_images // self.batch_size

    @property
    def checkpoint_interval(self) -> tuple[float, float]:
        """(steps, seconds) between checkpoints, one of them infinite."""
        return interval(self.checkpoint_every)

    def build_flow(self, image_shape):
        """The flow that this configuration describes, for images (H, W, C)."""
        choices = Choices(
            rule=self.rule,
            init=self.init,
            bias_init=self.chosen("bias_init"),
            exact="dense" if self.gradient == "exact-dense" else "block",
            inverse_kernel=self.chosen("inverse_kernel"),
            inverse_depth=self.inverse_depth,
            size=GlowSize(self.levels, self.depth, self.width, self.kernel),
        )
        return self.preset.build(choices, tuple(image_shape))

    # ---------------------------------------------------------------- filled in, checked, resumed

    def filled(self) -> TrainConfig:
        """The same with every option that was left out filled in, but for the epochs."""
        config = self
        for entry, about in options_of(self):
            if getattr(config, entry.name) is None:
                config = replace(config, **{entry.name: about.fill(config)})
        return config

    def resolve(self, training_images: int) -> TrainConfig:
        """The same with everything filled in and checked. Raises UsageError, one line each."""
        config = self.filled()
        if config.gradient not in config.preset.gradients:
            raise UsageError(
                f"--model {config.model} cannot be trained with --gradient {config.gradient}: "
                f"choose {' or '.join(config.preset.gradients)}"
            )
        for entry, needed in config._without_effect():
            flag = flag_of(entry, getattr(config, entry.name))
            raise UsageError(f"{flag} only has an effect with {needed}: leave it out")
        for entry, about in options_of(config):
            value, (holds, words) = getattr(config, entry.name), about.must
            if value is not None and not holds(value):
                raise UsageError(f"{flag_of(entry)} is {value}: it must be {words}")
        config.check_recipe()
        config.check_control()
        if config.batch_size > training_images:
            raise UsageError(
                f"--batch-size is {config.batch_size}, but there are only {training_images} "
                "training images: choose a smaller one"
            )
        if config.epochs is None:
            epochs = math.ceil(config.preset.steps / config.steps_per_epoch(training_images))
            config = replace(config, epochs=epochs)
        return config

    def check_processes(self, processes: int) -> None:
        """Raises UsageError where so many processes cannot share this run's batches."""
        if self.batch_size % processes:
            raise UsageError(
                f"--batch-size {self.batch_size} does not divide by {processes} processes: give a "
                f"multiple of {processes}"
            )
        if processes > 1 and self.inverse_update in WHOLE_BATCH:
            raise UsageError(
                f"--inverse-update {self.inverse_update} needs every batch whole: train in one "
                "process, or with another --inverse-update"
            )

    def resumed(self, given: dict, run: Path) -> TrainConfig:
        """The configuration with which `run` goes on: its own, changed by what is given now.

        Raises UsageError where that would not be the same run.
        """
        for entry, about in options_of(self):
            before = getattr(self, entry.name)
            value = given.get(entry.name, before)
            if value != before and not about.changeable:
                raise UsageError(
                    f"{run} was started with {entry.name} = {before}: it cannot go on with "
                    f"{value}; leave that option out, or start a new run"
                )
        if self.lambda_control != "fixed" and given.get("lam", self.lam) != self.lam:
            raise UsageError(
                f"{run} was started with --lambda-control {self.lambda_control}: its λ goes on "
                "from the checkpoint; leave --lambda out, or start a new run"
            )
        config = replace(self, **given)
        for entry, _ in config._without_effect():
            if entry.name in given:
                continue  # `resolve` refuses it
            if not entry.metadata["option"].changeable:
                raise UsageError(
                    f"{run} was started with {flag_of(entry)}, which --backend {config.backend} "
                    "does not have: leave --backend out, or start a new run"
                )
            config = replace(config, **{entry.name: entry.default})
        return config

    def _without_effect(self):
        """(field, what it needs) of the options that were given although they do not matter."""
        for entry, about in options_of(self):
            unmet = [needed for holds, needed in about.effect if not holds(self)]
            if unmet and getattr(self, entry.name) not in (entry.default, about.fill(self)):
                yield entry, unmet[0]

    def unlike(self, other: TrainConfig) -> list[str]:
        """The options by which a run with this configuration cannot be one with the other."""
        ours, theirs = self.filled(), other.filled()
        return [
            entry.name
            for entry, about in options_of(self)
            if not about.changeable and getattr(ours, entry.name) != getattr(theirs, entry.name)
        ]

    def changes_from(self, before: TrainConfig) -> dict[str, list]:
        """{option: [before, now]} of all that differs but where files are."""
        then, now = before.filled().as_dict(), self.as_dict()
        return {
            name: [then[name], value]
            for name, value in now.items()
            if value != then[name] and name not in _PLACES
        }

    def as_at(self, saved: dict) -> TrainConfig:
        """The same with the settings of the optimiser that a checkpoint was made with."""
        then = TrainConfig.from_dict(saved)
        return replace(self, **{name: getattr(then, name) for name in _OPTIMISER})

    def as_dict(self) -> dict:
        """The configuration as JSON-ready values."""
        return {k: str(v) if isinstance(v, Path) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict) -> TrainConfig:
        """The configuration from `as_dict`. Raises UsageError where it can be none.

        What is absent (in one of an older version) is as by default; unknown entries (of a newer
        one) are an error.
        """
        if not isinstance(values, dict):
            raise UsageError("the configuration is no JSON object")
        values = {k: v for k, v in values.items() if k not in _RETIRED or v}
        unknown = sorted(set(values) - {f.name for f in fields(cls)})
        if unknown:
            raise UsageError(f"the configuration has unknown entries: {', '.join(unknown)}")
        for entry, about in options_of(cls):
            value = values.get(entry.name, entry.default)
            if not may_be(value, entry, about):
                raise UsageError(f"the configuration has {entry.name} = {str(value)[:40]!r}")
        paths = {k: Path(values[k]) for k in _PLACES if values.get(k)}
        return cls(**{**values, **paths})
