"""What an option of a training run is: a field of a dataclass, and all that is known about it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import Field, dataclass, field, fields

from snfnp.models import PRESETS, Preset

AT_LEAST_1 = (lambda value: value >= 1, "at least 1")
POSITIVE = (lambda value: 0 < value < math.inf, "positive")
NOT_NEGATIVE = (lambda value: 0 <= value < math.inf, "0 or more")

# What some options need: a predicate of the configuration, and words for it.
LEARNS = (lambda config: config.rule.learns_inverse, "--gradient self-normalizing")
SELF_NORMALIZING = (
    lambda config: config.gradient == "self-normalizing",
    "--gradient self-normalizing",
)
HAS_LAMBDA = (
    LEARNS,
    (lambda config: config.rule.has_lambda, "--inverse-update gradient"),
)
FREE_LAMBDA = (
    *HAS_LAMBDA,
    (
        lambda config: config.objective != "variational",
        "--objective mixture or forward (in the variational one σ decides λ)",
    ),
)


def odd(smallest: int) -> tuple[Callable, str]:
    return lambda value: value >= smallest and value % 2, f"odd, {smallest} or larger"


def needs_preset(has: Callable[[Preset], object]) -> tuple[Callable, str]:
    """The effect of an option that matters to presets with a property only."""
    return lambda config: has(config.preset), f"--model {presets_with(has)}"


def _nothing(config) -> None:
    return None


@dataclass(frozen=True)
class Option:
    """What is known about a field of a configuration.

    help: for `--help`; flag: on the command line, where it is not made of the field's name;
    choices: the values it may have; must: (predicate of the value, words), checked where it is
    not None; fill(config): its value where nobody gave one; effect: pairs (predicate of the
    configuration, words) that must all hold for the option to matter; changeable: whether it may
    be another when a run is resumed.
    """

    help: str
    flag: str | None = None
    choices: tuple[str, ...] | None = None
    must: tuple[Callable, str] = (lambda value: True, "")
    fill: Callable = _nothing
    effect: tuple[tuple[Callable, str], ...] = ()
    changeable: bool = False


def option(default, help: str, **about):
    """A dataclass field that is an `Option`."""
    return field(default=default, metadata={"option": Option(help, **about)})


def options_of(config) -> list[tuple[Field, Option]]:
    """The fields of a configuration or its class."""
    return [(entry, entry.metadata["option"]) for entry in fields(config)]


def preset_option(setting: str, help: str, **about):
    """An option whose default is the preset's `setting`."""
    about.setdefault("fill", lambda config: getattr(config.preset, setting))
    return option(None, f"{help} (default: {by_preset(setting)})", **about)


def size_option(setting: str, help: str, must):
    """An option for the size of a model that comes in several (see `Preset.size`)."""
    return option(
        None,
        f"Glow only: {help}",
        must=must,
        fill=lambda config: getattr(config.preset.size, setting, None),
        effect=(needs_preset(lambda preset: preset.size),),
    )


def by_preset(setting: str, none: str = "none") -> str:
    """The presets' values, grouped: "0.0001 for fc; 0.001 for conv, glow". none: what None is
    called; "" leaves it out."""
    models: dict[str, list[str]] = {}
    for name, preset in PRESETS.items():
        value = getattr(preset, setting)
        models.setdefault(none if value is None else f"{value:g}", []).append(name)
    models.pop("", None)
    if len(models) == 1:
        return next(iter(models))
    return "; ".join(f"{value} for {', '.join(names)}" for value, names in models.items())


def presets_with(has: Callable[[Preset], object]) -> str:
    """The names of the presets that have a property: "conv, emerging or glow"."""
    *names, last = (name for name, preset in PRESETS.items() if has(preset))
    return f"{', '.join(names)} or {last}" if names else last


def flag_of(entry: Field, value=None) -> str:
    """An option's flag on the command line; the one that switches it off where `value` is False."""
    flag = entry.metadata["option"].flag or "--" + entry.name.replace("_", "-")
    return flag.replace("--", "--no-", 1) if value is False else flag


def may_be(value, entry: Field, about: Option) -> bool:
    """Whether an option's value, from JSON, is one that it may have."""
    kind = entry.type.removesuffix(" | None")
    if value is None:
        return kind != entry.type
    types = {"float": (int, float), "int": (int,), "bool": (bool,)}.get(kind, (str,))
    if type(value) not in types or about.choices and value not in about.choices:
        return False
    return bool(about.must[0](value)) and (kind != "float" or value < 1e300)


def interval(text: str) -> tuple[float, float] | None:
    """(steps, seconds) that "500" or "10m" stands for, one of them infinite; None: neither."""
    found = re.fullmatch(r"([0-9]{1,9})|([0-9]{1,9}(?:\.[0-9]{1,9})?)m", text)
    steps, minutes = (float(part or math.inf) for part in found.groups()) if found else (0, 0)
    return (steps, 60 * minutes) if steps and minutes else None
