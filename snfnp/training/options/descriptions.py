"""A flow as JSON: its layers in order; of each part, the class with its module, and all fields.

`first_difference` compares two descriptions. `build` makes a flow from one that names only classes
of this package; nothing else is imported.
"""

import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import MISSING, fields, is_dataclass
from importlib import import_module
from itertools import zip_longest
from typing import Any

import numpy as np

from snfnp.errors import UsageError
from snfnp.flow import Flow
from snfnp.layers import Layer, Split
from snfnp.layers.preprocess import Preprocess, Scale, Standardise
from snfnp.maps import Map
from snfnp.rules import Rule

LISTED = 16  # numbers of a tuple that a run's description lists one by one
_MOST_PARTS = 10_000  # so that a forged flow is refused at once; glow-3l-48k has 729
_PARTS = (Flow, Layer, Map, Rule, Preprocess, Scale, Standardise)
_PACKAGE = re.compile(
    r"(snfnp\.(?:flow|layers|maps|rules|beyond)(?:\.[a-z]\w*)?):(\w+)"
)
_ABSENT = "absent"


def class_name(thing: Any) -> str:
    """ "module:name" of a class or a function, or else of the class of a thing."""
    named = thing if hasattr(thing, "__qualname__") else type(thing)
    return f"{named.__module__}:{named.__qualname__}"


def describe(value: Any, listed: float = math.inf) -> Any:
    """A flow, or a part of one, as JSON. listed: a tuple or list of more numbers than this becomes
    a digest, as every array does."""
    if isinstance(value, np.generic):
        value = value.item()
    if is_dataclass(value) and not isinstance(value, type):
        parts = {
            each.name: describe(getattr(value, each.name), listed)
            for each in fields(value)
        }
        return {"class": class_name(value), **parts}
    if isinstance(value, dict):
        return {str(name): describe(each, listed) for name, each in value.items()}
    if isinstance(value, (tuple, list)) and len(value) > listed and _are_numbers(value):
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

    def part(values: dict) -> Any:
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
    except Exception as error:  # of the JSON, or of a class that is given other fields
        problem = (
            f"the flow cannot be built ({type(error).__name__}: {str(error)[:80]})"
        )
        advice = "let its layers fit together, or restore config.json"
        raise UsageError(f"{problem}: {advice}") from error


def first_difference(then: dict, now: dict) -> str | None:
    """The first difference between the description in a file, which may be of an earlier version,
    and that of a flow, in words; None: they are the same."""
    for path, old, new in _differences(_by_name(then), _by_name(now), "", {}):
        return f"{path} was {_shown(old)}, is {_shown(new)}"
    return None


def _are_numbers(values: Iterable) -> bool:
    return all(isinstance(each, (int, float, np.number)) for each in values)


def _class_of(name: Any) -> Any:
    """This package's class of that name. Raises UsageError for a class of another package."""
    match = _PACKAGE.fullmatch(str(name))
    if not match:
        problem = f"the flow has {str(name)[:80]}, which is no class of this package"
        raise UsageError(
            f"{problem}: give the code that builds it with `model` (flow= in Python)"
        )
    kind: Any = getattr(import_module(match[1]), match[2], None)
    if not (isinstance(kind, type) and issubclass(kind, _PARTS) and is_dataclass(kind)):
        raise ValueError(f"{name} is no layer, map or rule")
    return kind


def _as_tuple(value: Any) -> Any:
    return tuple(map(_as_tuple, value)) if isinstance(value, list) else value


def _by_name(flow: dict) -> dict:
    """A flow's description with `layers` as a dict by name, and `layer`, the list of the names in
    order. Earlier versions wrote such a dict, but neither the order nor the flow's class."""
    layers: Any = flow.get("layers")
    # a forged file may have anything there
    with suppress(TypeError, ValueError, AttributeError):
        pairs = layers.items() if isinstance(layers, dict) else layers
        layers = {
            str(name): part
            for pair in pairs
            for name, part in _without_split_prior(*pair)
        }
    order = list(layers) if isinstance(layers, dict) else None
    return {"class": class_name(Flow), "layer": order, **flow, "layers": layers}


def _without_split_prior(name: str, layer: dict) -> Iterator[tuple[str, dict]]:
    """A layer by its name. Earlier versions described a coupling and the split after it as one
    layer, "SplitPrior"."""
    if str(layer.get("class")).endswith("SplitPrior"):
        yield name, layer["coupling"]
        yield name.replace("split", "latent"), {"class": class_name(Split)}
    else:
        yield name, layer


def _differences(
    then: Any, now: Any, path: str, modules: dict
) -> Iterator[tuple[str, Any, Any]]:
    """(path, then, now) of each difference. modules: {then: now} of a user's modules, which may
    have been renamed; this package's may not."""
    if isinstance(then, dict) and isinstance(now, dict):
        for name in dict.fromkeys([*now, *then]):
            old = then[name] if name in then else _default(now, name)
            new = now.get(name, _ABSENT)
            if (name, old, new) == ("bias", "plain", _ABSENT):
                continue  # an earlier option of `Relative`: "plain" is what it does now
            if name == "class" and _same_class(old, new, modules):
                continue
            yield from _differences(
                old, new, f"{path}.{name}" if path else name, modules
            )
    elif isinstance(then, list) and isinstance(now, list):
        for index, (old, new) in enumerate(zip_longest(then, now, fillvalue=_ABSENT)):
            yield from _differences(old, new, f"{path}[{index}]", modules)
    elif (
        isinstance(now, dict)
        and now.keys() == {"class"}
        and now["class"].endswith(f":{then}")
    ):
        pass  # earlier versions wrote only the class's name for an object without fields
    elif then != now and not _are_close(then, now):
        yield path, then, now


def _are_close(then: Any, now: Any) -> bool:
    """Say whether two numbers differ by rounding only, as a recorded σ may differ from the σ that
    is computed from the recorded λ."""
    numbers = isinstance(then, float) and isinstance(now, float)
    return numbers and math.isclose(then, now, rel_tol=1e-15)


def _same_class(then: Any, now: Any, modules: dict) -> bool:
    """Say whether two names are of one class; earlier versions wrote them without modules."""
    old_module, _, old_name = str(then).rpartition(":")
    new_module, _, new_name = str(now).rpartition(":")
    if old_name != new_name:
        return False
    if not old_module or old_module == new_module:
        return True
    # a user's module may have been renamed; all of its classes then name the same new module
    packages = old_module.partition(".")[0], new_module.partition(".")[0]
    return (
        "snfnp" not in packages
        and modules.setdefault(old_module, new_module) == new_module
    )


def _default(part: dict, name: str) -> Any:
    """The default of a field that a description lacks: this package added it later, or the version
    that wrote it left defaults out."""
    if _PACKAGE.fullmatch(str(part.get("class"))):
        for each in fields(_class_of(part["class"])):
            if each.name == name and each.default is not MISSING:
                return describe(each.default, LISTED)
    return _ABSENT


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        value = value.get("class", "{…}")
    return "[…]" if isinstance(value, list) else str(value)[:60]
