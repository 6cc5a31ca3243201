"""A run's configuration: every choice that its results depend on, checked before the first step."""

import functools
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from snfnp.data import DATA_SETS
from snfnp.data.table import is_table
from snfnp.errors import UsageError, suggestion
from snfnp.flow import Flow, Shape
from snfnp.layers.preprocess import Preprocess, preprocess_by_name
from snfnp.models import Choices, Preset, make_rule
from snfnp.ops import BACKENDS
from snfnp.ops.step.definition import Controller
from snfnp.rules import Rule
from snfnp.step.settings import Settings
from snfnp.training.options import groups
from snfnp.training.options.groups import Option, options_in
from snfnp.training.options.relations import (
    GREATEST_LAMBDA,
    RELATIONS,
    Need,
    conflicts,
    paced,
)
from snfnp.training.options.user_models import (
    check_known,
    is_code,
    preset_of,
    text_of,
    title_of,
)


@dataclass(frozen=True, kw_only=True)
class TrainConfig(
    groups.DeviceOptions,
    groups.RunOptions,
    groups.OptimiserOptions,
    groups.MultiplierOptions,
    groups.GradientOptions,
    groups.ModelOptions,
    Settings,
):
    """Everything that decides a run: `TrainConfig(model="conv", epochs=5)`.

    An option has the same name here and in config.json, and as a flag of the command line
    (batch_size is --batch-size; lam is --lambda). `python -m snfnp train --help-all` explains all.
    None is filled in by `resolve`.

    Args:
        model: the name of a preset (`snfnp.register` adds one), a function build(shape) -> Flow, or
            a `Flow`; config.json keeps text of it, from which no code is imported.

    Raises:
        UsageError: an option has a value that it cannot have.
    """

    def __post_init__(self):
        model = self.model
        if (
            isinstance(model, Flow)
            and self.gradient is None
            and not model.learned_inverses()
        ):
            object.__setattr__(self, "gradient", "exact")
        for name, option in OPTIONS.items():
            value = getattr(self, name)
            if name == "model" and is_code(value):
                continue
            if isinstance(value, np.generic):  # an element of an array of values to try
                value = value.item()
            if isinstance(value, os.PathLike) and option.kind is str:
                value = os.fspath(value)
            if problem := option.problem(value):
                quoted = isinstance(value, str) and option.kind in (bool, int, float)
                shown = repr(value) if quoted else str(value)
                raise UsageError(f"`{name}` is {shown[:40]}: it must be {problem}")
            if option.kind is Path and isinstance(value, str):
                value = Path(value)
            object.__setattr__(self, name, value)

    @property
    def preset(self) -> Preset:
        """The model's preset, with its defaults."""
        return preset_of(self.effective("model"))

    @property
    def rule(self) -> Rule:
        """The rule of the linear layers."""
        return make_rule(self.effective)

    @property
    def controller(self) -> Controller | None:
        """The settings of λ's controller, once they are filled in; None if λ is fixed."""
        if self.lambda_control == "fixed":
            return None
        return Controller(
            relative=self.constraint == "relative",
            tolerance=self.tolerance,
            rate=self.lambda_rate,
            smoothing=self.lambda_smoothing,
            lowest=self.lam,
            highest=GREATEST_LAMBDA,
        )

    @property
    def model_name(self) -> str:
        """The model's name in messages: its preset, or Glow's size."""
        if self.levels is None:
            return title_of(self.model)
        kernel = "" if self.kernel == 1 else f" kernel {self.kernel}"
        return f"glow {self.levels}L-{self.depth}K width {self.width}{kernel}"

    def default_for(self, name: str) -> Any:
        """The default of an option, given the others."""
        default = OPTIONS[name].default
        return RELATIONS[name].fill(self) if default is None else default

    def effective(self, name: str) -> Any:
        """The value of an option, or its default."""
        value = getattr(self, name)
        return self.default_for(name) if value is None else value

    def steps_per_epoch(self, training_images: int) -> int:
        return training_images // self.batch_size

    @property
    def data_name(self) -> str:
        """The data's name: of a file, its name without the suffix."""
        return Path(self.data).stem

    def splits_of(self, data: str) -> dict:
        """The other arguments of `load_dataset` for a name or path of data."""
        if data in DATA_SETS:
            return {}
        names = ["validation", "test", "seed"]
        if is_table(data):
            names += ["header", "columns", "drop_incomplete"]
        return {name: getattr(self, name) for name in names}

    def located(self) -> "TrainConfig":
        """The configuration with absolute paths of the data, valid in any folder."""
        own = () if self.data in DATA_SETS else ("data", "validation", "test")
        paths = {
            name: os.path.abspath(path)
            for name in ("data_dir", *own)
            if (path := getattr(self, name)) and os.path.exists(path)
        }
        return replace(self, **paths)

    def build_flow(self, image_shape: Shape, moments: Any = None) -> Flow:
        """The flow that this configuration describes.

        Args:
            image_shape: (H, W, C) of images, or (D,) of rows.
            moments: mean and standard deviation of the training rows.
        """
        if len(image_shape) == 1:
            found = f"needs images, found rows of {image_shape[0]} numbers"
            if self.augment:
                raise UsageError(f"`augment` {found}: leave it out")
            if not self.preset.takes_rows:
                fits = groups.presets_with(lambda preset: preset.takes_rows)
                raise UsageError(f"`model={self.model_name}` {found}: choose {fits}")
        exact = "dense" if self.gradient == "exact-dense" else "block"
        names = {each.name for each in fields(Choices)} - {"rule", "exact"}
        choices = Choices(
            self.rule, exact, **{name: self.effective(name) for name in names}
        )
        flow = self.preset.build(choices, tuple(image_shape))
        if bool(flow.learned_inverses()) != self.rule.learns_inverse:
            other = "exact" if self.rule.learns_inverse else "self-normalizing"
            raise UsageError(
                f"`gradient={self.gradient}` is not that of the layers of {self.model_name}: "
                f"choose {other}"
            )
        if any(
            layer.rule.adds_noise and layer.rule != self.rule
            for layer, _ in flow.learned_inverses().values()
        ):
            raise UsageError(
                f"{self.model_name} has a variational rule, whose noise and λ are options: let "
                "build(shape, choices) take choices.rule, with `objective=variational`"
            )
        has_preprocess = flow.preprocess != Preprocess()
        if self.preprocess is None and (has_preprocess or len(image_shape) == 3):
            return flow
        return replace(
            flow, preprocess=preprocess_by_name(self.preprocess, image_shape, moments)
        )

    def filled(self) -> "TrainConfig":
        """The configuration with defaults in place of None, except the epochs."""
        config = self
        for name in OPTIONS:
            value = config.effective(name)
            if value is not getattr(config, name):  # each copy checks all options
                config = replace(config, **{name: value})
        return config

    def resolve(self, training_images: int, shape: Shape = ()) -> "TrainConfig":
        """The configuration with everything filled in and checked.

        Args:
            training_images: the number of training samples.
            shape: of an image or row, for defaults that depend on it: Glow has as many levels as
                height and width can be halved.

        Raises:
            UsageError: in one line, what is wrong.
        """
        of_rows = len(shape) == 1
        of_images = len(shape) == 3
        if self.model is None and of_rows:
            return replace(self, model="vector").resolve(training_images, shape)
        check_known(self.model)
        config = self.filled()
        if self.levels is None and config.levels and of_images:
            side = math.gcd(*shape[:2])
            halvings = (side & -side).bit_length() - 1  # the largest n with 2ⁿ | side
            config = replace(config, levels=max(1, min(config.levels, halvings)))
        if of_images and self.ties != OPTIONS["ties"].default:
            raise UsageError("`ties` needs rows of numbers, found images: leave it out")
        fitting = config.preset.fits(shape, training_images) if shape else {}
        steps = fitting.pop("steps", config.preset.steps)
        for name, value in fitting.items():
            is_open = getattr(self, name) is None and config.effective(name) is not None
            if is_open and config._unmet(name) is None:
                config = replace(config, **{name: value})
        config._require_effects()
        if self.batch_size is None:
            config = replace(config, batch_size=min(config.batch_size, training_images))
        if config.batch_size > training_images:
            noun = "rows" if of_rows else "images"
            raise UsageError(
                f"`batch_size` is {config.batch_size}, but there are only {training_images} "
                f"training {noun}: choose a smaller one"
            )
        if config.epochs is None:
            epochs = math.ceil(steps / config.steps_per_epoch(training_images))
            # warm-up fits them
            return replace(self, epochs=epochs).resolve(training_images, shape)
        colours = of_images and shape[2] > 1
        pace = paced(config, config.steps_per_epoch(training_images), colours)
        if self.lr is not None:  # a limit for gradients belongs to the recipe's rate
            pace.pop("clip_norm", None)
        for name, value in pace.items():
            if getattr(self, name) is None:
                config = replace(config, **{name: value})
        # beside quick steps evaluations take long
        is_quick = of_rows or BACKENDS[config.backend] == "GPU"
        if self.eval_every is None and is_quick:
            config = replace(config, eval_every=max(1, config.epochs // 40))
        if config.lr_schedule != "constant" and config.warmup_epochs >= config.epochs:
            raise UsageError(
                f"`lr_schedule={config.lr_schedule}` begins after `warmup_epochs` "
                f"({config.warmup_epochs:g}), and `epochs` is {config.epochs}: give more epochs, "
                "or fewer of warm-up"
            )
        return config

    def check(self) -> None:
        """Raises UsageError for what `resolve` would refuse with any data."""
        check_known(self.model)
        # of rows; of images
        unknown = ["vector"] if is_table(self.data) else ["fc", "vector"]
        problem: Any = None
        for model in [self.model] if self.model else unknown:
            try:
                replace(self, model=model).filled()._require_effects()
                return
            except UsageError as error:
                problem = error
        raise problem

    def _require_effects(self) -> None:
        """Raises UsageError if an option of a configuration that is filled in has no effect, or
        contradicts another."""
        for option, need in self._without_effect():
            raise UsageError(
                f"`{option.name}{'=False' if getattr(self, option.name) is False else ''}` only "
                f"has an effect with {need.words}: leave it out"
            )
        for conflict in conflicts(self):
            raise UsageError(conflict)

    def _without_effect(self) -> Iterator[tuple[Option, Need]]:
        """The options that are set but have no effect, each with its first unmet need."""
        for name, option in OPTIONS.items():
            need = self._unmet(name)
            if need and getattr(self, name) != self.default_for(name):
                yield option, need

    def resumed(self, changes: dict[str, Any], run: Path) -> "TrainConfig":
        """This configuration, that of `run`, with changes. Raises UsageError if that would not be
        the same run."""
        config = replace(self, **changes)
        for name in changes:
            before = getattr(self, name)
            value = getattr(config, name)
            if value == before:
                continue
            # the user's data may be
            moved = name != "data" or not {before, value} & set(DATA_SETS)
            # its flow is compared later
            moved = is_code(value) if name == "model" else moved
            if not (OPTIONS[name].changeable and moved):
                raise UsageError(
                    f"{run} was started with {name} = {before}: it cannot be resumed with "
                    f"{value}; leave it out, or start a new run"
                )
            if name == "lam" and self.controller:
                raise UsageError(
                    f"{run} was started with `lambda_control={self.lambda_control}`: its λ is in "
                    "the checkpoint; leave `lam` out, or start a new run"
                )
        for option, need in config._without_effect():
            if option.name in changes:
                continue  # refused by `resolve`
            if not option.changeable:
                raise UsageError(
                    f"{run} was started with `{option.name}`, which needs {need.words}: keep that, "
                    "or start a new run"
                )
            config = replace(config, **{option.name: option.default})
        return config

    def incompatible_options(self, other: "TrainConfig") -> list[str]:
        """The options that differ although a run cannot change them."""
        return [
            name for name in self.changes_from(other) if not OPTIONS[name].changeable
        ]

    def changes_from(self, before: "TrainConfig") -> dict[str, list]:
        """{option: [before, now]} of the options that differ, except paths."""
        then = before.filled()._texts()
        now = self.filled()._texts()
        return {
            name: [then[name], now[name]]
            for name, option in OPTIONS.items()
            if option.kind is not Path and now[name] != then[name]
        }

    def with_model(self, model: Any) -> "TrainConfig":
        """The configuration with a model that is given, if one is."""
        return self if model is None else replace(self, model=model)

    def with_optimiser_of(self, saved: Any) -> "TrainConfig":
        """The configuration with λ and the optimiser's options of a saved one."""
        then = TrainConfig.from_dict(saved)
        names = ["lam", *options_in(groups.OptimiserOptions)]
        return replace(self, **{name: getattr(then, name) for name in names})

    def as_dict(self) -> dict[str, Any]:
        """{option: value}, flat, ready for JSON; without options that have no effect here, as those
        of other models."""
        return {
            name: value
            for name, value in self._texts().items()
            if value != OPTIONS[name].default or self._unmet(name) is None
        }

    def _texts(self) -> dict[str, Any]:
        """{option: value} of all options, ready for JSON."""
        return {name: text_of(getattr(self, name)) for name in OPTIONS}

    def _unmet(self, name: str) -> Need | None:
        """The first need of an option that does not hold."""
        return next(
            (need for need in RELATIONS[name].needs if not need.holds(self)), None
        )

    @classmethod
    def from_dict(cls, values: Any) -> "TrainConfig":
        """The configuration from `as_dict`; absent options have their defaults. Raises UsageError
        for unknown options or bad values."""
        if not isinstance(values, dict):
            raise UsageError("the configuration is no JSON object")
        return cls(**values)


OPTIONS = options_in(TrainConfig)


_init = TrainConfig.__init__


@functools.wraps(_init)
def _checked_init(self: TrainConfig, **options: Any) -> None:
    """`TrainConfig.__init__` with a UsageError for options that there are not."""
    for name in options.keys() - OPTIONS.keys():
        raise UsageError(
            f"there is no option {name}{suggestion(name, OPTIONS)}: see snfnp.TrainConfig"
        )
    _init(self, **options)


TrainConfig.__init__ = _checked_init


def help_of(option: Option, default: Any) -> str:
    """An option's line of `--help`: its own, what it needs, and its default (or a script's)."""
    relation = RELATIONS[option.name]
    text = option.help
    if relation.needs:
        text += f"; needs {', '.join(need.words for need in relation.needs)}"
    shown = relation.words if default is None else default
    if isinstance(shown, bool):
        shown = "on" if shown else "off"
    return f"{text} (default: {shown})" if shown != "" else text
