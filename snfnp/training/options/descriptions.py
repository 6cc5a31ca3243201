"""A flow as JSON: its layers in order; of each part, the class with its module, and all fields.

`first_difference` compares two descriptions. `build` makes a flow from one that names only classes
of this package; nothing else is imported.
"""

import hashlib
import json
import math
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import MISSING, fields, is_dataclass
from importlib import import_module
from itertools import zip_longest
from typing import Any

import numpy as np

from snfnp.errors import UsageError
from snfnp.flow import Flow
from snfnp.layers import Layer
from snfnp.layers.preprocess import Preprocess, Standardise
from snfnp.maps import Map
from snfnp.rules import Rule

LISTED = 16  # numbers of a tuple that a run's description lists one by one
_MOST_PARTS = 10_000  # so that a forged flow is refused at once; glow-3l-48k has 729
_PARTS = (Flow, Layer, Map, Rule, Preprocess, Standardise)
_PACKAGE = re.compile(
    r"(snfnp\.(?:flow|layers|maps|rules|beyond)(?:\.[a-z]\w*)?):(\w+)"
)
_ABSENT = "absent"


def class_name(thing: Any) -> str:
    """ "module:name" of a class or a function, or else of the class of a thing."""
    named = thing if hasattr(thing, "__qualname__") else type(thing)
    return f"{named.__module__}:{named.__qualname__}"


def describe(value: Any, listed: float = math.inf) -> Any:
    """A flow, or a part of one, as JSON. listed: a sequence of more numbers than this becomes a
    digest, as every array of two axes or more does."""
    if isinstance(value, (np.generic, np.ndarray)) and value.ndim < 2:
        value = value.tolist()
    if is_dataclass(value) and not isinstance(value, type):
        parts = {
            each.name: describe(getattr(value, each.name), listed)
            for each in fields(value)
        }
        return {"class": class_name(value), **parts}
    if isinstance(value, dict):
        return {str(name): describe(each, listed) for name, each in value.items()}
    if (
        isinstance(value, (tuple, list))
        and len(value) > listed
        and all(isinstance(each, (int, float, np.number)) for each in value)
    ):
        value = np.asarray(value)
    if isinstance(value, np.ndarray) and value.dtype != object:
        return f"{value.dtype} {value.shape}, SHA-256 {hashlib.sha256(value.tobytes()).hexdigest()}"
    if isinstance(value, (tuple, list, np.ndarray)):
        return [describe(each, listed) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return {"class": class_name(value)}


def build(text: str) -> Flow:
    """The flow that a description in JSON stands for. Raises UsageError if it is damaged, if its
    parts do not fit together, or if they are not this package's."""
    count = 0

    def part(values):
        nonlocal count
        count += 1
        if count > _MOST_PARTS:
            raise ValueError(f"more than {_MOST_PARTS:,} layers, maps and rules")
        kind = _class_of(values.pop("class", None))
        if unknown := sorted(values.keys() - {each.name for each in fields(kind)}):
            raise ValueError(f"{kind.__name__} has no {unknown[0]}")
        return kind(**{name: _as_tuple(value) for name, value in values.items()})

    try:
        flow = json.loads(text, object_hook=part)
        if not isinstance(flow, Flow):
            raise ValueError(f"a {type(flow).__name__}")
        return flow
    except UsageError:
        raise
    except Exception as error:  # the text is no JSON, or a class has other fields
        raise UsageError(
            f"the flow cannot be built ({type(error).__name__}: {str(error)[:80]}): let its layers "
            "fit together, or restore config.json"
        ) from error


def first_difference(then: dict, now: dict) -> str | None:
    """The first difference between the description in a file and that of a flow, in words; None:
    they are the same."""
    for path, old, new in _differences(_by_name(then), _by_name(now), "", {}):
        return f"{path} was {_shown(old)}, is {_shown(new)}"
    return None


def _class_of(name: Any) -> Any:
    """This package's class of that name. Raises UsageError for a class of another package."""
    match = _PACKAGE.fullmatch(str(name))
    if not match:
        raise UsageError(
            f"the flow has {str(name)[:80]}, which is no class of this package: give the code that "
            "builds it with `model` (flow= in Python)"
        )
    kind = getattr(import_module(match[1]), match[2], None)
    if not (isinstance(kind, type) and issubclass(kind, _PARTS) and is_dataclass(kind)):
        raise ValueError(f"{name} is no layer, map or rule")
    return kind


def _as_tuple(value: Any) -> Any:
    return tuple(map(_as_tuple, value)) if isinstance(value, list) else value


def _by_name(flow: dict) -> dict:
    """A flow's description with `layers` as a dict by name, and `layer`, the list of the names in
    order."""
    layers: Any = flow.get("layers")
    # a forged file may have anything there
    with suppress(TypeError, ValueError):
        layers = {str(name): part for name, part in layers}
    order = list(layers) if isinstance(layers, dict) else None
    return {"layer": order, **flow, "layers": layers}


def _differences(
    then: Any, now: Any, path: str, modules: dict
) -> Iterator[tuple[str, Any, Any]]:
    """(path, then, now) of each difference. modules: {then: now} of a user's modules so far."""
    if isinstance(then, dict) and isinstance(now, dict):
        for name in dict.fromkeys([*now, *then]):
            old = then[name] if name in then else _default(now, name)
            new = now.get(name, _ABSENT)
            if name == "class" and _is_renamed(old, new, modules):
                continue
            below = f"{path}.{name}" if path else name
            yield from _differences(old, new, below, modules)
    elif isinstance(then, list) and isinstance(now, list):
        for index, (old, new) in enumerate(zip_longest(then, now, fillvalue=_ABSENT)):
            yield from _differences(old, new, f"{path}[{index}]", modules)
    elif then != now:
        yield path, then, now


def _is_renamed(then: Any, now: Any, modules: dict) -> bool:
    """Say whether two names are of one class, whose module may have been renamed: not this
    package's, and for all of its classes alike."""
    before, _, old = str(then).partition(":")
    after, _, new = str(now).partition(":")
    packages = (before.partition(".")[0], after.partition(".")[0])
    if old != new or "snfnp" in packages:
        return False
    return modules.setdefault(before, after) == after


def _default(part: dict, name: str) -> Any:
    """The default of a field that a description lacks: this package added it later."""
    if _PACKAGE.fullmatch(str(part.get("class"))):
        for each in fields(_class_of(part["class"])):
            if each.name == name and each.default is not MISSING:
                return describe(each.default, LISTED)
    return _ABSENT


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        value = value.get("class", "{…}")
    return "[…]" if isinstance(value, list) else str(value)[:60]
