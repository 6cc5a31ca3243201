"""A flow of one's own as a preset: registered, named by its function, or given whole.

What config.json keeps of a model is text: a preset's name, "module:function" of a builder, or the
flow's layers in JSON, by their classes and fields. Nothing is ever unpickled.
Derivation: derivations/16-write-your-own-layer.md.
"""

import inspect
import json
import re
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from functools import reduce
from importlib import import_module
from typing import Any

import numpy as np

from snfnp.errors import UsageError, suggestion
from snfnp.flow import Flow
from snfnp.layers import Layer
from snfnp.models import PRESETS, WHITE, Choices, Preset

_OURS = tuple(PRESETS)
_REFERENCE = re.compile(r"\w[\w.]*:[\w.]+")


def register(name: str, build: Callable[..., Flow], **settings) -> None:
    """Let `name` stand for a model of one's own, from here on in this process.

        snfnp.register("mine", build, lr=1e-3)    # TrainConfig(model="mine"), load_run, …

    build(shape), or build(shape, choices) with what the options say of layers (`Choices`), returns
    the flow for data of that shape. settings: its training settings, fields of
    `snfnp.models.Preset`. Raises UsageError for a name of the package's own, or an unknown field.
    """
    if not re.fullmatch(r"[\w.-]+", str(name)) or name in _OURS:
        found = f"{name!r} cannot be the name of a preset of your own"
        raise UsageError(f"{found}: choose another, of letters, digits, hyphens and dots")
    if unknown := sorted(settings.keys() - {field.name for field in fields(Preset)[1:]}):
        raise UsageError(f"a preset has no {unknown[0]}: see snfnp.models.Preset")
    PRESETS[name] = _preset(name, build, **settings)


def preset_of(model: str) -> Preset:
    """The preset that a model's text in a configuration stands for. Raises UsageError if there is
    none, or its function is not where it was."""
    if model in PRESETS:
        return PRESETS[model]
    if model.startswith("{"):
        return _preset("the flow", lambda shape: _rebuilt(json.loads(model)))
    if _REFERENCE.fullmatch(model):
        return _preset(model, _found(model, "--model"))
    found = f"--model {model[:40]} is unknown{suggestion(model, PRESETS)}"
    advice = f"choose one of {', '.join(PRESETS)}, or first import what registers it"
    raise UsageError(f"{found}: {advice} (snfnp.register), or give module:function")


def text_of(model: Any) -> Any:
    """The text that a configuration keeps of a whole flow or a builder; a name stays as it is.
    Raises UsageError for what could not be found by that text again."""
    if isinstance(model, Flow):
        _require_flow(model, model.image_shape or model.shape, "the flow")
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
    takes = "choices" in inspect.signature(build).parameters

    def built(choices: Choices, shape: tuple[int, ...]) -> Flow:
        flow: Any = build(shape, choices=choices) if takes else build(shape)
        return _require_flow(flow, shape, name)

    usual = {"gradients": ("self-normalizing", "exact"), "takes_rows": True, "takes_choices": takes}
    usual["white"] = {name: value for name, value in WHITE.items() if takes or name != "objective"}
    return Preset(built, **{"summary": "one's own", **usual, **settings})


def _require_flow(flow: Any, shape: tuple[int, ...], name: str) -> Flow:
    """A flow for data of that shape, as it is. Raises UsageError for anything else."""
    layers, problem = flow.layers if isinstance(flow, Flow) else (), ""
    names = [layer for layer, _ in layers]
    if not layers:
        problem = f"the function returned a {type(flow).__name__}; let it return a snfnp.Flow"
    elif twice := [layer for layer in names if names.count(layer) > 1]:
        problem = f"two layers are called {twice[0]}; give each a name of its own"
    elif wrong := [layer for layer, each in layers if not isinstance(each, Layer)]:
        problem = f"layer {wrong[0]} is no snfnp.Layer; make it an instance of one"
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
    """The object that a "module:name" stands for. what: what needs it."""
    module, _, path = reference.partition(":")
    try:
        return reduce(getattr, path.split("."), import_module(module))
    except Exception as error:
        why = f"{type(error).__name__}: {str(error)[:80]}"
        advice = "define it here first" if module == "__main__" else "mend it, or set PYTHONPATH"
        found = f"{what} needs {reference}, which cannot be imported ({why})"
        raise UsageError(f"{found}: {advice}") from error


def _described(value: Any, where: str) -> Any:
    """A flow, a layer or what is in one, as far as JSON can hold it."""
    if isinstance(value, np.generic):
        value = value.item()
    if is_dataclass(value) and not isinstance(value, type):
        own = {field.name: getattr(value, field.name) for field in fields(value) if field.init}
        inside = {name: _described(each, f"{where}.{name}") for name, each in own.items()}
        return {"class": _reference(type(value)), **inside}
    if isinstance(value, (tuple, list)):
        return [_described(each, f"{where}[{place}]") for place, each in enumerate(value)]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    found = f"{where} is a {type(value).__name__}, which config.json cannot hold"
    raise UsageError(f"{found}: give a function of a module that builds the flow instead")


def _rebuilt(value: Any) -> Any:
    """The inverse of `_described`."""
    if isinstance(value, list):
        return tuple(map(_rebuilt, value))
    if not isinstance(value, dict):
        return value
    given = {name: _rebuilt(each) for name, each in value.items()}
    kind = _found(name := given.pop("class"), "the flow")
    known = getattr(kind, "__dataclass_fields__", None)
    if not isinstance(kind, type) or known is None or given.keys() - known.keys():
        raise UsageError(f"the flow needs {name} with {', '.join(given)}: restore it as it was")
    return kind(**given)
