"""A user's own flow as a preset: registered, named by its function, or given as a whole.

config.json keeps a model as text: a preset's name, "module:function" of a builder, or the flow's
layers in JSON, by their classes and fields. Nothing is ever unpickled, and text from a file makes
nothing be imported but layers, maps and rules of this package (`require_trusted`).
Derivation: derivations/16-write-your-own-layer.md.
"""

import inspect
import json
import os
import re
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import fields, is_dataclass
from importlib import import_module, util
from importlib.machinery import PathFinder
from typing import Any

import numpy as np

from snfnp.errors import UsageError, suggestion
from snfnp.flow import Flow
from snfnp.layers import Layer
from snfnp.layers.preprocess import Preprocess, Scale, Standardise
from snfnp.maps import Map
from snfnp.models import PRESETS, WHITE, Choices, Preset
from snfnp.rules import Rule

_OURS = tuple(PRESETS)
_REFERENCE = re.compile(r"\w[\w.]*:(?!__)\w+(\.(?!__)\w+)*")
_PARTS = (Flow, Layer, Map, Rule, Preprocess, Scale, Standardise)  # classes that a text may name
_MANY = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
_ROOMS = re.compile(r"snfnp\.(flow|layers|maps|rules|beyond)\b")


class ModuleError(UsageError):
    """A file names a module that is not trusted, or cannot be imported."""


def register(name: str, build: Callable[..., Flow], **settings) -> None:
    """Let `name` stand for a model of the user's own in this process.

        snfnp.register("mine", build, lr=1e-3)    # TrainConfig(model="mine"), load_run, …

    Args:
        name: letters, digits, hyphens and dots; no preset of this package.
        build: build(shape), or build(shape, choices) with what the options say of layers
            (`snfnp.models.Choices`), which returns the flow for data of that shape.
        **settings: its training settings, fields of `snfnp.models.Preset`.

    Raises:
        UsageError: the name cannot be taken, `build` has other arguments, or a field is unknown.
    """
    if not re.fullmatch(r"[\w.-]+", str(name)) or name in _OURS:
        found = f"{name!r} cannot be the name of a preset of your own"
        raise UsageError(f"{found}: choose another, of letters, digits, hyphens and dots")
    if unknown := sorted(settings.keys() - {field.name for field in fields(Preset)[1:]}):
        raise UsageError(f"a preset has no {unknown[0]}: see snfnp.models.Preset")
    PRESETS[name] = _preset(name, build, **settings)


def preset_of(model: str) -> Preset:
    """The preset that a model's text stands for. Raises UsageError if there is none."""
    if model in PRESETS:
        return PRESETS[model]
    if model.startswith("{"):
        return _preset("the flow", lambda shape: _whole(model, shape))
    if _REFERENCE.fullmatch(model):
        return _preset(model, _found(model, "`model`"))
    found = f"`model={model[:40]}` is unknown{suggestion(model, PRESETS)}"
    advice = f"choose one of {', '.join(PRESETS)}, or first import what registers it"
    raise UsageError(f"{found}: {advice} (snfnp.register), or give module:function")


def text_of(model: Any) -> Any:
    """The text that a configuration keeps of a flow or a builder; a name stays as it is. Raises
    UsageError if they cannot be found again by it."""
    if isinstance(model, Flow):
        _require_flow(model, model.image_shape or model.shape, "the flow")
        return json.dumps(_described(model, "the flow"))
    return _reference(model) if callable(model) else model


def title_of(model: str) -> str:
    """The name of a model in messages."""
    return "own flow" if model.startswith("{") else model


def require_trusted(model: Any, trust: bool = False) -> None:
    """Let no model's text that a file holds run code that this process does not have: modules that
    it names must be imported already, or have this package's layers, maps or rules. trust: others
    are imported now. Raises ModuleError for a module that is not trusted or cannot be imported."""
    text = model if isinstance(model, str) else ""
    names = [text] if _REFERENCE.fullmatch(text) else []
    for name in _classes(text) if text.startswith("{") else names:
        module = name.partition(":")[0]
        if module in sys.modules or _ROOMS.match(module):
            continue
        if not trust:
            # only the first part: to look for a submodule imports what it is in
            first = module.partition(".")[0]
            spec = util.find_spec(first) or PathFinder.find_spec(first, [os.getcwd()])
            places = [spec.origin, *(spec.submodule_search_locations or ())] if spec else []
            where = next(filter(None, places), None)
            found = f"its model {name} needs {module}, which is not found: set PYTHONPATH, and"
            if where:
                found = f"its model {name} would import {module} from {where}, whose code is not "
                found += "trusted:"
            raise ModuleError(f"{found} if you trust it, give `trust=True`")
        try:
            _found(name, "the run")
        except UsageError as error:
            raise ModuleError(str(error)) from error


def _preset(name: str, build: Any, **settings) -> Preset:
    if isinstance(build, Preset):
        return build
    found, takes, needed = f"{name} is of type {type(build).__name__}", [], set()
    with suppress(TypeError, ValueError):  # not a function, or one without a signature
        parameters = inspect.signature(build).parameters
        takes = list(parameters)
        needed = {key for key, each in parameters.items() if each.default is each.empty}
        needed -= {key for key, each in parameters.items() if each.kind in _MANY}
        found = f"{name} takes {', '.join(takes) or 'nothing'}"
    # before it is called: the name may come from a file
    if takes[:1] != ["shape"] or not needed <= {"shape", "choices"}:
        raise UsageError(f"{found}: let it be build(shape) or build(shape, choices) -> Flow")
    takes = "choices" in takes

    def built(choices: Choices, shape: tuple[int, ...]) -> Flow:
        flow: Any = build(shape, choices=choices) if takes else build(shape)
        return _require_flow(flow, shape, name)

    usual = {"gradients": ("self-normalizing", "exact"), "takes_rows": True, "takes_choices": takes}
    usual["white"] = {name: value for name, value in WHITE.items() if takes or name != "objective"}
    return Preset(built, **{"summary": "one's own", **usual, **settings})


def _require_flow(flow: Any, shape: tuple[int, ...], name: str) -> Flow:
    """A flow for data of that shape, as it is. Raises UsageError for anything else."""
    problem = ""
    if not isinstance(flow, Flow):
        problem = f"the function returned a {type(flow).__name__}; let it return a snfnp.Flow"
    elif (own := flow.image_shape or flow.shape) != shape:
        problem = f"it is for data of shape {own}, found {shape}; give both the same (image_shape=)"
    if problem:
        raise UsageError(f"{name}: {problem}")
    return flow


def _reference(thing: Any) -> str:
    """The "module:name" by which a function or class is found again."""
    name = f"{getattr(thing, '__module__', '')}:{getattr(thing, '__qualname__', '?')}"
    if not _REFERENCE.fullmatch(name) or _found(name, "the run") is not thing:
        found = f"{name} is no name at the top of a module, by which the run would find it again"
        advice = "define it there, or snfnp.register a name for what builds the flow"
        raise UsageError(f"{found}: {advice}")
    return name


def _found(reference: str, what: str) -> Any:
    """The object that a "module:name" stands for, of its module or a class there; what: what needs
    it, for the error."""
    module, _, path = reference.partition(":")
    try:
        found = import_module(module)
        for name in path.split("."):
            if not (found is sys.modules[module] or isinstance(found, type)):
                raise AttributeError(f"{name} is in no class")
            found = getattr(found, name)
        return found
    except (Exception, SystemExit) as error:  # as a program does that is imported
        why = f"{type(error).__name__}: {str(error)[:80]}"
        advice = "define it here first" if module == "__main__" else "fix it, or set PYTHONPATH"
        found = f"{what} needs {reference}, which cannot be imported ({why})"
        raise UsageError(f"{found}: {advice}") from error


def _described(value: Any, where: str) -> Any:
    """A flow, or what is in one, as far as JSON can hold it and `_rebuilt` takes it."""
    if isinstance(value, np.generic):
        value = value.item()
    if is_dataclass(value) and isinstance(value, _PARTS):
        own = {field.name: getattr(value, field.name) for field in fields(value) if field.init}
        inside = {name: _described(each, f"{where}.{name}") for name, each in own.items()}
        return {"class": _reference(type(value)), **inside}
    if isinstance(value, (tuple, list)):
        return [_described(each, f"{where}[{place}]") for place, each in enumerate(value)]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    found = f"{where} is a {type(value).__name__}, which config.json cannot hold"
    raise UsageError(f"{found}: give a function of a module that builds the flow instead")


def _classes(model: str) -> list[str]:
    """The names of the classes in a flow's JSON. Raises UsageError for other text."""
    names: list = []
    try:
        json.loads(model, object_hook=lambda part: names.append(part["class"]))
        for name in names:
            if not (isinstance(name, str) and _REFERENCE.fullmatch(name)):
                raise ValueError(f"a part of class {name!r}")
        return names
    except (ValueError, KeyError, RecursionError) as error:
        found = f"the flow is damaged ({type(error).__name__}: {str(error)[:80]})"
        raise UsageError(f"{found}: restore it as it was") from None


def _whole(model: str, shape: tuple[int, ...]) -> Flow:
    """The flow that a text describes; a text from a file has passed `require_trusted`. Raises
    UsageError if its parts do not fit together."""
    try:
        flow = _require_flow(json.loads(model, object_hook=_rebuilt), shape, "the flow")
        _ = flow.layout  # asks every layer for its shapes
        return flow
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
        found = f"the flow cannot be built ({str(error)[:80]})"
        raise UsageError(f"{found}: let its layers fit together, or restore config.json") from error


def _rebuilt(part: dict) -> Any:
    """A part of a flow from what `_described` made of it. Its class is checked before the call."""
    kind = _found(name := part.pop("class"), "the flow")
    if not (isinstance(kind, type) and issubclass(kind, _PARTS) and is_dataclass(kind)):
        raise UsageError(f"the flow needs {name}, which is no layer, map or rule: restore it")
    if part.keys() - kind.__dataclass_fields__.keys():
        raise UsageError(f"the flow needs {name} with {', '.join(part)}: restore it as it was")
    return kind(**{field: _tuples(value) for field, value in part.items()})


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
