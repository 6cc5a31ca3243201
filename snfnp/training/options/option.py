"""The description of one option of a run by itself; `rules` says what it needs of others."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

from snfnp.models import PRESETS, Preset

LARGEST = 1e300  # of a number that is not whole: what is computed from it stays finite
_KINDS: dict[str, tuple[Any, str]] = {  # {kind: (the types of its values, words for them)}
    "bool": (bool, "True or False"),
    "int": (int, "a whole number"),
    "float": ((int, float), "a finite number"),
    "str": (str, "text"),
    "Path": ((str, Path), "a path"),
}

# Limits of a value: a predicate, and words for it.
Limits = tuple[Callable[[Any], object], str]
AT_LEAST_1: Limits = (lambda value: value >= 1, "at least 1")
POSITIVE: Limits = (lambda value: value > 0, "positive")
NOT_NEGATIVE: Limits = (lambda value: value >= 0, "0 or more")


def odd(smallest: int) -> Limits:
    """The limits of an odd number."""
    return lambda value: value >= smallest and value % 2, f"odd, {smallest} or larger"


@dataclass(frozen=True)
class Option:
    """A field of one of the parts of a configuration.

    name: as keyword and in config.json; kind: "bool", "int", "float", "str" or "Path"; optional:
    None is filled in by `rules`; default: as declared; help: for `--help`; must: the limits of its
    values; choices: the values it may have; flag: on the command line; changeable: a resumed run
    may have another value.
    """

    name: str
    kind: str
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
        if value is None and self.optional:
            return None
        if not isinstance(value, types) or isinstance(value, bool) != (self.kind == "bool"):
            return words
        if self.choices and value not in self.choices:
            return f"one of {', '.join(self.choices)}"
        holds, words = self.must
        if self.kind == "float" and not abs(value) < LARGEST:
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
        kind, _, none = str(entry.type).partition(" | ")
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


def by_preset(setting: str, none: str = "none") -> str:
    """The presets' values, grouped: "0.0001 for fc; 0.001 for conv, glow". none: the name of None;
    "" leaves it out."""
    models: dict[str, list[str]] = {}
    for name, preset in PRESETS.items():
        value = getattr(preset, setting)
        models.setdefault(none if value is None else f"{value:g}", []).append(name)
    models.pop("", None)
    if len(models) == 1:
        return next(iter(models))
    return "; ".join(f"{value} for {', '.join(names)}" for value, names in models.items())
