"""Checkpoint files: everything that a run needs to go on, in one safetensors file.

The file holds every parameter, both of Adam's moments and what else layers keep from step to step,
all by name. Its header has the step, λ, the seed (the random numbers are a function of seed and
step, see `snfnp.ops.random`), the sums of the log, the run's record, and a SHA-256 of the whole
file, in which its own place counts as zeros. It is written to a temporary file and renamed, so that
a crash leaves the previous one.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from safetensors.numpy import load, save

from snfnp.errors import CheckpointError, UsageError
from snfnp.parameters import Layout
from snfnp.training.files import parse_json, read_bytes, write_atomically
from snfnp.training.options import TrainConfig
from snfnp.training.options.option import LARGEST

FORMAT = "snfnp checkpoint 2"
_ROLES = ("parameter", "adam_m", "adam_v")
_STATE = "state"
_BLANK = "0" * hashlib.sha256().digest_size * 2
_NO_SUMS = (0.0, 0.0, 0.0, 0.0)
_NO_STATE = Layout.of({})


@dataclass
class Checkpoint:
    """p, m, v: flat host arrays in `layout`'s order, m and v as far as the optimiser moves it
    (`Layout.climbing`). step: updates done. record: JSON values.

    sums: of the log since the last evaluation (`snfnp.ops.step.StepLog.sums`). state: a flat host
    array in double precision in `state_layout`'s order.
    """

    layout: Layout
    p: np.ndarray
    m: np.ndarray
    v: np.ndarray
    step: int
    lam: float
    seed: int
    record: dict = field(default_factory=dict)
    sums: tuple[float, ...] = _NO_SUMS
    state_layout: Layout = _NO_STATE
    state: np.ndarray = field(default_factory=lambda: np.zeros(0))


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write atomically: after a crash, `path` is the old checkpoint or the new one, whole."""
    tensors = {}
    for role, flat in zip(_ROLES, (checkpoint.p, checkpoint.m, checkpoint.v), strict=True):
        layout = _layout_of(role, checkpoint.layout)
        views = layout.views(flat)
        for entry in layout.entries:
            tensors[f"{role}.{entry.key}"] = views[entry.layer][entry.name]
    states = checkpoint.state_layout.views(checkpoint.state)
    for entry in checkpoint.state_layout.entries:
        tensors[f"{_STATE}.{entry.key}"] = states[entry.layer][entry.name]
    header = {
        "format": FORMAT,
        "sha256": _BLANK,
        "step": str(checkpoint.step),
        "lam": repr(float(checkpoint.lam)),
        "seed": str(checkpoint.seed),
        "sums": json.dumps(checkpoint.sums),
        "record": json.dumps(checkpoint.record),
    }
    content = bytearray(save(tensors, metadata=header))
    start, stop = _place_of_checksum(content)
    content[start:stop] = _digest(content).encode()
    write_atomically(path, content)


def load_checkpoint(path: Path, layout: Layout, run: dict | None = None) -> Checkpoint:
    """A checkpoint of a model with this layout.

    run: the contents of the run's config.json, with which it is compared.
    Raises CheckpointError if the file is missing, damaged, or of another model or run.
    """
    header, tensors = _read(path)
    state_layout, state = _state(path, tensors)
    expected = {
        f"{role}.{e.key}": e.shape for role in _ROLES for e in _layout_of(role, layout).entries
    }
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    if shapes != expected:
        name, shape = min(set(shapes.items()) ^ set(expected.items()))
        raise CheckpointError(
            f"{path} belongs to another model ({name} of shape {shape} is not in both): give "
            "the run that it was made by"
        )
    dtypes = {tensor.dtype for tensor in tensors.values()}
    if len(dtypes) != 1 or not dtypes <= {np.dtype(np.float32), np.dtype(np.float64)}:
        raise _damaged(path, f"its arrays are of {' and '.join(sorted(map(str, dtypes)))}")
    flats = []
    for role in _ROLES:
        part = _layout_of(role, layout)
        flat = np.zeros(part.size, dtypes.copy().pop())
        views = part.views(flat)
        for e in part.entries:
            views[e.layer][e.name][...] = tensors[f"{role}.{e.key}"]
        flats.append(flat)
    if not all(np.isfinite(flat).all() for flat in flats) or (flats[2] < 0).any():
        raise _damaged(path, "it holds what no training leaves: NaN, infinity, or a negative v")
    numbers = _numbers(path, header)
    checkpoint = Checkpoint(layout, *flats, **numbers, state_layout=state_layout, state=state)
    if run is not None:
        _compare(path, checkpoint, run)
    return checkpoint


def _layout_of(role: str, layout: Layout) -> Layout:
    """The layout of one role: the optimiser has moments of what it moves alone."""
    return layout if role == "parameter" else layout.climbing


def _state(path: Path, tensors: dict[str, np.ndarray]) -> tuple[Layout, np.ndarray]:
    """Take the values that layers keep beside parameters out of `tensors`: their layout, and the
    flat array."""
    named: dict[str, dict[str, np.ndarray]] = {}
    for key in sorted(key for key in tensors if key.startswith(f"{_STATE}.")):
        layer, _, name = key.removeprefix(f"{_STATE}.").rpartition(".")
        named.setdefault(layer, {})[name] = tensors.pop(key)
    arrays = [array for entries in named.values() for array in entries.values()]
    if not all(array.dtype == np.float64 and np.isfinite(array).all() for array in arrays):
        raise _damaged(path, "what layers keep beside parameters is no finite float64")
    layout = Layout.of(
        {
            layer: {name: array.shape for name, array in entries.items()}
            for layer, entries in named.items()
        }
    )
    return layout, layout.pack(named, np.float64)


def _numbers(path: Path, header: dict) -> dict:
    """The numbers of the header, checked."""
    try:
        texts = [header[name] for name in ("step", "lam", "seed")]
        if not all(re.fullmatch(r"[0-9.e+-]+", text) for text in texts):
            raise ValueError
        step, lam, seed = int(texts[0]), float(texts[1]), int(texts[2])
        record = parse_json(header["record"].encode())
        sums = tuple(map(float, json.loads(header["sums"])))
        if not (
            step >= 0
            and 0 <= lam < math.inf
            and 0 <= seed < 2**63
            and len(sums) == len(_NO_SUMS)
            and all(map(math.isfinite, sums))
        ):
            raise ValueError
    except (KeyError, TypeError, ValueError, RecursionError):
        raise _damaged(path, "step, λ, seed or record in its header") from None
    return {"step": step, "lam": lam, "seed": seed, "record": record, "sums": sums}


def _compare(path: Path, checkpoint: Checkpoint, run: dict) -> None:
    """Raises CheckpointError unless this is a checkpoint of the run that a config.json is of."""
    record, config = checkpoint.record, TrainConfig.from_dict(run["config"])
    try:
        saved = TrainConfig.from_dict(record["config"])
        best, seconds, (length, digest) = record["best"], record["seconds"], record["metrics"]
        plausible = seconds >= 0 and checkpoint.lam == saved.lam
        plausible = plausible and type(length) is int and length >= 0 and isinstance(digest, str)
        if best is not None:
            plausible = plausible and is_evaluation(best) and best["step"] <= checkpoint.step
            plausible = plausible and best["validation_bits_per_dimension"] < LARGEST
    except (KeyError, TypeError, ValueError, UsageError):
        plausible = False
    if not plausible:
        raise _damaged(path, "the run's record in its header")
    differing = saved.incompatible_options(config)
    if record.get("run") != run.get("run"):
        differing.append("run")
    if checkpoint.seed != config.seed:
        differing.append("seed")
    if checkpoint.p.dtype != config.dtype:
        differing.append("dtype")
    if differing:
        raise CheckpointError(
            f"{path} belongs to another run than the config.json beside it (another "
            f"{differing[0]}): restore the one or the other"
        )


def is_evaluation(record: dict) -> bool:
    """Say whether this is a line of metrics.jsonl, as far as others count on it."""
    whole, real = ("epoch", "step"), ("seconds", "validation_nll_nats", "reconstruction")
    return (
        isinstance(record, dict)
        and all(type(record.get(name)) is int and record[name] >= 1 for name in whole)
        and all(type(record.get(name)) in (int, float) for name in real)
        and all(abs(record[name]) < LARGEST for name in real)
    )


def _read(path: Path) -> tuple[dict, dict[str, np.ndarray]]:
    missing = f"there is no checkpoint {path}: is this the run's folder, and was it evaluated yet?"
    content = read_bytes(path, CheckpointError, missing)
    try:
        size = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + size]).get("__metadata__", {})
        tensors = load(content)
        form, checksum = header.get("format"), header.get("sha256")
        if form != FORMAT:
            raise CheckpointError(f"{path} is no {FORMAT}: it was not written by this version")
        digest = _digest(content)
    except (CheckpointError, MemoryError):
        raise
    except Exception as error:  # whatever a damaged file makes a library raise
        raise _damaged(path, str(error).partition("\n")[0][:100]) from None
    if checksum != digest:
        raise _damaged(path, "its checksum differs")
    return header, tensors


def _damaged(path: Path, why: str) -> CheckpointError:
    return CheckpointError(f"{path} is damaged ({why}): use another checkpoint")


def _place_of_checksum(content) -> tuple[int, int]:
    key = b'"sha256":"'
    start = content.index(key, 0, 8 + int.from_bytes(content[:8], "little")) + len(key)
    return start, start + len(_BLANK)


def _digest(content) -> str:
    """The SHA-256 of a whole file, its own place as zeros."""
    start, stop = _place_of_checksum(content)
    whole, digest = memoryview(content), hashlib.sha256()
    for part in (whole[:start], _BLANK.encode(), whole[stop:]):
        digest.update(part)
    return digest.hexdigest()
