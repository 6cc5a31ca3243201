"""A flow of one's own as a preset: registered, named by its function, or given whole.

What config.json keeps of a model is text: a preset's name, "module:function" of a builder, or the
flow's layers in JSON, by their classes and fields. Nothing is ever unpickled.
Derivation: derivations/16-write-your-own-layer.md.
"""

import difflib
import inspect
import json
import re
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np

from snfnp.errors import UsageError
from snfnp.flow import Flow
from snfnp.layers import Layer
from snfnp.models import PRESETS, Choices, Preset

_OURS = tuple(PRESETS)
_REFERENCE = re.compile(r"[\w.]+:[\w.]+")
_CLASS = "class"  # the key of an object's class in a description
_GRADIENTS = ("self-normalizing", "exact")


def register(name: str, build: Callable[..., Flow], **settings) -> None:
    """Let `name` stand for a model of one's own, from here on in this process.

        snfnp.register("mine", build, lr=1e-3)    # TrainConfig(model="mine"), load_run, …

    build(shape), or build(shape, choices) with what the options say of layers (`Choices`), returns
    the flow for data of that shape. settings: its training settings, fields of
    `snfnp.models.Preset`. Raises UsageError for a name of the package's own, or an unknown field.
    """
    if not re.fullmatch(r"[\w.-]+", str(name)):
        found = f"{name!r} is no name for a preset"
        raise UsageError(f"{found}: use letters, digits, hyphens, dots and underscores")
    if name in _OURS:
        raise UsageError(f"{name} is a preset of the package's own: choose another name")
    PRESETS[name] = _preset(name, build, **settings)


def preset_of(model: str) -> Preset:
    """The preset that a model's text in a configuration stands for. Raises UsageError if there is
    none, or its function is not where it was."""
    if model in PRESETS:
        return PRESETS[model]
    if model.startswith("{"):
        return _preset("the flow", partial(_whole, model))
    if _REFERENCE.fullmatch(model):
        return _preset(model, _found(model, f"--model {model}"))
    near = difflib.get_close_matches(model, PRESETS, 1)
    found = f"--model {model[:40]} is unknown" + (f" (did you mean {near[0]}?)" if near else "")
    advice = f"choose one of {', '.join(PRESETS)}, or first import what registers it"
    raise UsageError(f"{found}: {advice} (snfnp.register), or give module:function")


def text_of(model: Any) -> Any:
    """The text that a configuration keeps of a whole flow or a builder; a name stays as it is.
    Raises UsageError for what could not be found by that text again."""
    if isinstance(model, Flow):
        return json.dumps(_described(model, "the flow"))
    return _reference(model) if callable(model) else model


def title_of(model: str) -> str:
    """The name of a model for people."""
    return "own flow" if model.startswith("{") else model


def _preset(name: str, build: Any, **settings) -> Preset:
    if isinstance(build, Preset):
        return build
    if not callable(build):
        found = f"{name} is of type {type(build).__name__}"
        raise UsageError(f"{found}: let it be a function build(shape) -> Flow")
    if unknown := sorted(settings.keys() - {field.name for field in fields(Preset)[1:]}):
        raise UsageError(f"a preset has no {unknown[0]}: see snfnp.models.Preset")
    takes = "choices" in inspect.signature(build).parameters

    def built(choices: Choices, shape: tuple[int, ...]) -> Flow:
        flow = build(shape, choices=choices) if takes else build(shape)
        if problem := _fault(flow, shape):
            raise UsageError(f"{name}: {problem}")
        return flow

    usual = {"gradients": _GRADIENTS, "takes_rows": True, "takes_choices": takes}
    return Preset(built, **{"summary": "one's own", **usual, **settings})


def _fault(flow: Any, shape: tuple[int, ...]) -> str | None:
    """The reason why this is no flow for data of that shape."""
    if not isinstance(flow, Flow):
        return f"the function returned a {type(flow).__name__}; let it return a snfnp.Flow"
    names = [name for name, _ in flow.layers]
    if twice := [name for name in names if names.count(name) > 1]:
        return f"two layers are called {twice[0]}; give each a name of its own"
    for name, layer in flow.layers:
        if not isinstance(layer, Layer):
            return f"layer {name} is a {type(layer).__name__}; make it an instance of a snfnp.Layer"
    if (flow.image_shape or flow.shape) != shape:
        found = f"its flow is for data of shape {flow.image_shape or flow.shape}, found {shape}"
        return f"{found}; give both one shape (Flow(…, image_shape=) if its layers have another)"
    return None


def _reference(thing: Any) -> str:
    """The "module:name" by which a function or class is found again."""
    name = f"{getattr(thing, '__module__', '')}:{getattr(thing, '__qualname__', '?')}"
    if not _REFERENCE.fullmatch(name) or _found(name, name) is not thing:
        found = f"{name} is no name at the top of a module, by which the run would find it again"
        advice = "define it there, or snfnp.register a name for what builds the flow"
        raise UsageError(f"{found}: {advice}")
    return name


def _found(reference: str, what: str) -> Any:
    """The object that a "module:name" stands for. what: what it is for, in words."""
    module, _, path = reference.partition(":")
    place = "define it here first" if module == "__main__" else "restore it, or name another"
    try:
        value: Any = import_module(module)
    except ModuleNotFoundError as error:
        if not f"{module}.".startswith(f"{error.name}."):
            raise _failed(what, module, error) from error
        advice = "install it, or put its folder on PYTHONPATH"
        raise UsageError(f"{what}: there is no module {error.name} here; {advice}") from None
    except Exception as error:
        raise _failed(what, module, error) from error
    for part in path.split("."):
        if not hasattr(value, part):
            raise UsageError(f"{what}: the module {module} has no {path}; {place}")
        value = getattr(value, part)
    return value


def _failed(what: str, module: str, error: Exception) -> UsageError:
    why = f"{type(error).__name__}: {str(error)[:80]}"
    return UsageError(f"{what}: the module {module} cannot be imported ({why}); mend it")


def _described(value: Any, where: str) -> Any:
    """A flow, a layer or what is in one, as far as JSON can hold it."""
    if isinstance(value, np.generic):
        value = value.item()
    if is_dataclass(value) and not isinstance(value, type):
        own = {field.name: getattr(value, field.name) for field in fields(value) if field.init}
        inside = {name: _described(each, f"{where}.{name}") for name, each in own.items()}
        return {_CLASS: _reference(type(value)), **inside}
    if isinstance(value, (tuple, list)):
        return [_described(each, f"{where}[{place}]") for place, each in enumerate(value)]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    found = f"{where} is a {type(value).__name__}, which config.json cannot hold"
    raise UsageError(f"{found}: give a function of a module that builds the flow instead")


def _whole(description: str, shape: tuple[int, ...]) -> Any:
    """The flow of a description, whatever the shape: `_fault` compares them."""
    try:
        return _rebuilt(json.loads(description))
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        why = f"{type(error).__name__}: {str(error)[:80]}"
        found = f"the flow cannot be made of its description ({why})"
        raise UsageError(f"{found}: restore its classes as they were") from None


def _rebuilt(value: Any) -> Any:
    """The inverse of `_described`."""
    if isinstance(value, list):
        return tuple(map(_rebuilt, value))
    if not isinstance(value, dict):
        return value
    reference = value[_CLASS]
    kind = _found(reference, f"the flow has a {reference}")
    if not (isinstance(kind, type) and is_dataclass(kind)):
        raise TypeError(f"{reference} is no dataclass")
    return kind(**{name: _rebuilt(each) for name, each in value.items() if name != _CLASS})
