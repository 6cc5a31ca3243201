"""Checkpoints: everything that a run needs to go on, in one safetensors file.

The file holds every parameter and both of Adam's moments by name, and in its header the step, λ,
the seed (the random numbers are a function of seed and step, see `snfnp.ops.philox`), the run's
record, and a SHA-256 of the arrays. It is written to a temporary file and renamed, so that a
crash leaves the previous one.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from snfnp.errors import CheckpointError, SnfnpError
from snfnp.parameters import Layout

FORMAT = "snfnp checkpoint 1"
_ROLES = ("parameter", "adam_m", "adam_v")


@dataclass
class Checkpoint:
    """p, m, v: flat host arrays in `layout`'s order. step: updates done. record: JSON values."""

    layout: Layout
    p: np.ndarray
    m: np.ndarray
    v: np.ndarray
    step: int
    lam: float
    seed: int
    record: dict = field(default_factory=dict)


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write atomically: after a crash, `path` is the old checkpoint or the new one, whole."""
    tensors = {}
    for role, flat in zip(_ROLES, (checkpoint.p, checkpoint.m, checkpoint.v), strict=True):
        views = checkpoint.layout.views(flat)
        for entry in checkpoint.layout.entries:
            tensors[f"{role}.{entry.key}"] = views[entry.layer][entry.name]
    header = {
        "format": FORMAT,
        "sha256": _digest(tensors),
        "step": str(checkpoint.step),
        "lam": repr(checkpoint.lam),
        "seed": str(checkpoint.seed),
        "record": json.dumps(checkpoint.record),
    }
    write_atomically(path, save(tensors, metadata=header))


def load_checkpoint(path: Path, layout: Layout) -> Checkpoint:
    """Read a checkpoint of a model with this layout.

    Raises CheckpointError where the file is missing, damaged, or of another model.
    """
    header, tensors = _read(path)
    expected = {f"{role}.{e.key}": e.shape for role in _ROLES for e in layout.entries}
    found = {name: tensor.shape for name, tensor in tensors.items()}
    if found != expected:
        odd = sorted(set(found.items()) ^ set(expected.items()))[0]
        raise CheckpointError(
            f"{path} belongs to another model ({odd[0]} of shape {odd[1]} is not in both): give "
            "the run that it was made by"
        )
    dtype = next(iter(tensors.values())).dtype
    flats = []
    for role in _ROLES:
        flat = np.zeros(layout.size, dtype)
        views = layout.views(flat)
        for e in layout.entries:
            views[e.layer][e.name][...] = tensors[f"{role}.{e.key}"]
        flats.append(flat)
    return Checkpoint(
        layout,
        *flats,
        step=int(header["step"]),
        lam=float(header["lam"]),
        seed=int(header["seed"]),
        record=json.loads(header["record"]),
    )


def write_atomically(path: Path, content: bytes) -> None:
    """Write a whole file beside its place, make it durable, and rename it into place."""
    temporary = path.with_name(path.name + ".partial")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise SnfnpError(
            f"cannot write {path} ({error.strerror}): free some space or choose another --out"
        ) from None


def _read(path: Path):
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint {path}: is this the run's folder?")
    try:
        with safe_open(path, framework="numpy") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged ({error}): use another checkpoint") from None
    if header.get("format") != FORMAT:
        raise CheckpointError(f"{path} is no {FORMAT}: it was not written by this program")
    if header["sha256"] != _digest(tensors):
        raise CheckpointError(f"{path} is damaged (its checksum differs): use another checkpoint")
    return header, tensors


def _digest(tensors: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(tensors[name]).data)
    return digest.hexdigest()
