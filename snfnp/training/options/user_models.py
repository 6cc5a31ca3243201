"""A user's own flow as a preset: registered, given as a function or as a whole, or named on the
command line.

config.json keeps a model as text: a preset's name, "module:function" of a builder, or the flow's
layers in JSON (`descriptions`). Text from a file imports nothing: code is given by whoever opens
the run, and only what is typed on the command line is imported (`imported`).
Derivation: derivations/17-write-your-own-layer.md.
"""

import inspect
import json
import pkgutil
import re
import sys
from collections.abc import Callable
from dataclasses import fields
from importlib import util
from pathlib import Path
from typing import Any

from snfnp.errors import UsageError, suggestion
from snfnp.flow import Flow
from snfnp.models import PRESETS, WHITE, Preset
from snfnp.training.options.descriptions import build as build_described
from snfnp.training.options.descriptions import class_name, describe

_OURS = tuple(PRESETS)
# "module:name" or "module:name.attribute"; no name begins with two underscores
_REFERENCE = re.compile(r"(\w[\w.]*):((?!__)\w+(?:\.(?!__)\w+)*)")
_BUILDERS = "let it be build(shape) or build(shape, choices) -> Flow"


def register(name: str, build: Callable[..., Flow], **settings: Any) -> None:
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
    name = str(name)
    if not re.fullmatch(r"[\w.-]+", name) or name in _OURS:
        raise UsageError(
            f"{name!r} cannot be the name of a preset of your own: choose another, of letters, "
            "digits, hyphens and dots"
        )
    if unknown := sorted(settings.keys() - {field.name for field in fields(Preset)}):
        raise UsageError(f"a preset has no {unknown[0]}: see snfnp.models.Preset")
    PRESETS[name] = _preset(name, build, **settings)


def is_code(model: Any) -> bool:
    """True if a model is a flow or builds one, False if it is text."""
    return isinstance(model, (Flow, Preset)) or callable(model)


def preset_of(model: Any) -> Preset:
    """The preset that a model stands for. If this process has no code of it, the preset has default
    settings, and its `build` raises UsageError."""
    if isinstance(model, Flow):
        return _preset("the flow", lambda shape: model)
    if not isinstance(model, str):
        return _preset(title_of(model), model)
    if model in PRESETS:
        return PRESETS[model]
    build = build_described if model.startswith("{") else check_known
    return _preset("the flow", lambda shape: build(model))


def text_of(value: Any) -> Any:
    """The text that a configuration keeps of a flow, a builder or a path; other values stay as they
    are."""
    if isinstance(value, Flow):
        return json.dumps(describe(value))
    if isinstance(value, Preset):
        return class_name(value.build)
    if isinstance(value, Path):
        return str(value)
    return class_name(value) if is_code(value) else value


def title_of(model: Any) -> str:
    """The name of a model in messages."""
    whole = isinstance(model, Flow) or str(model).startswith("{")
    return "own flow" if whole else text_of(model)


def imported(model: Any) -> Any:
    """The function, preset or flow that "module:name" on the command line stands for; any other
    model stays as it is.

    It is imported, from the current folder if the package is nowhere else. Raises UsageError if it
    cannot be imported."""
    match = _REFERENCE.fullmatch(model) if isinstance(model, str) else None
    if model in PRESETS or not match:
        return model
    package = match[1].partition(".")[0]
    try:
        if package not in sys.modules and util.find_spec(package) is None:
            sys.path.append("")  # the current folder, also if it was deleted
        thing = pkgutil.resolve_name(model)
    except (Exception, SystemExit) as error:  # a module may be a program, which exits
        raise UsageError(
            f"`model` needs {model}, which cannot be imported ({type(error).__name__}: "
            f"{str(error)[:80]}): fix it, or set PYTHONPATH"
        ) from error
    if not is_code(thing):
        raise UsageError(f"{model} is of type {type(thing).__name__}: {_BUILDERS}")
    return thing


def check_known(model: Any) -> None:
    """Raises UsageError for a text of which this process has no code."""
    if not isinstance(model, str) or model in PRESETS or model.startswith("{"):
        return
    if ":" in model:
        raise UsageError(
            f"the model {model[:80]} is code of your own, which is not imported by its name: give "
            "it with `model` (in Python the function, with flow=)"
        )
    raise UsageError(
        f"`model={model[:40]}` is unknown{suggestion(model, PRESETS)}: choose one of "
        f"{', '.join(PRESETS)}, or first import what registers it (snfnp.register), or give "
        "module:function (in Python the function, with flow=)"
    )


def _preset(name: str, build: Any, **settings: Any) -> Preset:
    if isinstance(build, Preset):
        return build
    message = f"{name} is of type {type(build).__name__}"
    try:
        signature = inspect.signature(build)
        names = signature.parameters.keys()
        message = f"{name} takes {', '.join(names) or 'nothing'}"
        taken = {"shape"} | (names & {"choices"})
        signature.bind(**dict.fromkeys(taken))
    except (TypeError, ValueError):  # also without a signature
        raise UsageError(f"{message}: {_BUILDERS}") from None

    def built(choices, shape):
        chosen = {"choices": choices} if takes_choices else {}
        flow = build(shape=shape, **chosen)
        if not isinstance(flow, Flow):
            raise UsageError(
                f"{name}: the function returned {type(flow).__name__}; let it return a snfnp.Flow"
            )
        if (expected := flow.image_shape or flow.shape) != shape:
            raise UsageError(
                f"{name}: it is for data of shape {expected}, found {shape}; give both the same "
                "(image_shape=)"
            )
        return flow

    takes_choices = "choices" in taken
    usual = {
        "summary": "one's own",
        "gradients": ("self-normalizing", "exact"),
        "takes_rows": True,
        "takes_choices": takes_choices,
        # The objective changes the rule, and only choices tell a function its rule.
        "white": {
            option: value
            for option, value in WHITE.items()
            if takes_choices or option != "objective"
        },
    }
    return Preset(built, **usual | settings)
