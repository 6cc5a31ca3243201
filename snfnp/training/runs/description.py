"""The description of a run in config.json: all that is needed to repeat it, and to notice that the
code of its model has changed."""

import hashlib
import math
import platform
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import fields, is_dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

import snfnp
from snfnp import threads
from snfnp.data import SPLITS
from snfnp.errors import UsageError
from snfnp.flow import Flow
from snfnp.layers.preprocess import Standardise
from snfnp.training.options import TrainConfig

_LISTED = 16  # values of a tuple that are listed one by one
_PACKAGES = ("numpy", "scipy", "numba", "llvmlite", "safetensors")


def describe_run(config: TrainConfig, flow, dataset, ops, processes: int = 1) -> dict:
    """The contents of config.json."""
    before = flow.preprocess
    moments = before.moments if isinstance(before, Standardise) else dataset.moments or ()
    return {
        "config": config.as_dict(),
        "data": {
            "name": dataset.name,
            "source": dataset.source,
            "is_sample": dataset.is_sample,
            "images": [len(dataset.train), len(dataset.validation), len(dataset.test)],
            "shape": list(dataset.train.shape[1:]),
            **({"columns": list(dataset.columns)} if dataset.columns else {}),
            **({"moments": np.array(moments).tolist()} if moments else {}),
            "sha256": {split: dataset.fingerprint(split) for split in SPLITS},
        },
        "model": {"parameters": flow.layout.count, "flow": describe_flow(flow)},
        "processes": processes,
        **environment(ops),
    }


def environment(ops) -> dict:
    """The backend, device, threads, versions and platform that compute."""
    versions = {"snfnp": snfnp.__version__, "python": platform.python_version()}
    for package in _PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return {
        "backend": ops.name,
        "device": ops.device.describe(),
        "threads": threads.describe(),
        "versions": versions,
        "platform": f"{platform.platform()}, {platform.processor() or platform.machine()}",
    }


def describe_flow(flow: Flow) -> dict:
    """A flow as JSON: its fields, and each layer by its name."""
    layers = {name: _described(layer) for name, layer in flow.layers}
    own = {"shape": flow.shape, "image_shape": flow.image_shape, "preprocess": flow.preprocess}
    return {**{name: _described(value) for name, value in own.items()}, "layers": layers}


def refuse_other_flow(path: Path, record: dict, flow: Flow) -> str | None:
    """Raises UsageError if the flow that the code builds now is not the one in a config.json.
    Returns a line to show if that is not known: an earlier version wrote it."""
    model: Any = record.get("model")
    described = model.get("flow") if isinstance(model, dict) else None
    if described is None:
        unknown = "whether the code still builds the same flow cannot be checked"
        return f"{path} has no description of its flow (an earlier version's): {unknown}"
    then, now = dict(_leaves(described)), dict(_leaves(describe_flow(flow)))
    for place in dict.fromkeys([*then, *now]):
        before, here = then.get(place, "the default"), now.get(place, "the default")
        if before != here:
            found = f"{path}: its model has changed since it was trained ({place} was "
            found += f"{str(before)[:60]}, is {str(here)[:60]})"
            raise UsageError(f"{found}: restore the code that builds it, or start a new run")
    return None


def _described(value: Any) -> Any:
    """A part of a flow as JSON: classes by name and their fields, long values by a digest. Fields
    of this package's classes at their default are left out, so that a new one changes nothing."""
    if isinstance(value, np.generic):
        value = value.item()
    if is_dataclass(value) and not isinstance(value, type):
        ours = type(value).__module__.startswith("snfnp.")
        usual = {each.name: _described(each.default) for each in fields(value) if ours}
        own = {each.name: _described(getattr(value, each.name)) for each in fields(value)}
        own = {name: each for name, each in own.items() if name not in usual or each != usual[name]}
        return {"class": type(value).__qualname__, **own}
    if isinstance(value, dict):
        return {str(name): _described(each) for name, each in value.items()}
    if isinstance(value, (tuple, list)) and len(value) <= _LISTED:
        return [_described(each) for each in value]
    if isinstance(value, (tuple, list, np.ndarray)):
        array = np.asarray(value)
        return f"{array.dtype} {array.shape}, SHA-256 {hashlib.sha256(array.tobytes()).hexdigest()}"
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return getattr(value, "__qualname__", type(value).__qualname__)


def _leaves(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """(place, value) of everything in JSON that is neither an object nor a list."""
    if not isinstance(value, (dict, list)):
        yield place, value
        return
    for name, each in value.items() if isinstance(value, dict) else enumerate(value):
        yield from _leaves(each, f"{place}.{name}" if place else str(name))
