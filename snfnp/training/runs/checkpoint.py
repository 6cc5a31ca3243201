"""Checkpoint files: everything that a run needs to go on, in one safetensors file.

The file holds parameters, Adam's moments and the training states by name. Its header has the step
(random numbers are a function of it and the seed), the sums of the log, the run's record, and a
SHA-256 of the whole file, in which its own place counts as zeros.
"""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load, save

from snfnp.errors import CheckpointError, UsageError
from snfnp.files import ADVICE, parse_json, read_bytes, readable, write_atomically
from snfnp.parameters import Entry, Layout
from snfnp.step.trainer import Trainer
from snfnp.training.options import TrainConfig
from snfnp.training.options.groups import LARGEST

FORMAT = "snfnp checkpoint 2"
_STATE, _ADVICE = "state.", "use another file"
_LONGEST_HEADER = 1 << 26  # bytes
_LARGEST_NUMBER = 64  # bytes in a file for each parameter, with moments and training states
_BLANK = "0" * hashlib.sha256().digest_size * 2
_NO_SUMS = (0.0, 0.0, 0.0, 0.0)


@dataclass
class Checkpoint:
    """p, and m and v of what the optimiser moves: flat host arrays in `layout`'s order. step:
    updates done. record: JSON values. sums: of the log since the last evaluation. state: the
    training states by name, host arrays in double precision.
    """

    layout: Layout
    p: np.ndarray = field(repr=False)
    m: np.ndarray = field(repr=False)
    v: np.ndarray = field(repr=False)
    step: int
    record: dict = field(default_factory=dict, repr=False)
    sums: tuple[float, ...] = _NO_SUMS
    state: dict[str, np.ndarray] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, trainer: Trainer, record: dict[str, Any]) -> "Checkpoint":
        """The state of a training. Waits for the device."""
        to_host = trainer.ops.to_host
        return cls(
            trainer.layout,
            to_host(trainer.p),
            to_host(trainer.m),
            to_host(trainer.v),
            trainer.step,
            record,
            trainer.log.sums,
            {key: to_host(values) for key, values in trainer.state.items()},
        )

    def restore(self, trainer: Trainer) -> None:
        """Restore a trainer of the same model, with λ as its configuration has it."""
        saved = {key: values.shape for key, values in self.state.items()}
        if saved != {key: values.shape for key, values in trainer.state.items()}:
            raise CheckpointError(
                "the checkpoint is from another version or other options (its training states "
                "differ): give the run that it was made by"
            )
        for name in ("p", "m", "v"):
            buffer = getattr(trainer, name)
            buffer[...] = trainer.ops.asarray(getattr(self, name), buffer.dtype)
        for key, values in trainer.state.items():
            values[...] = trainer.ops.asarray(self.state[key])
        trainer.step = self.step
        trainer.log.restore(self.sums)

    def is_finite(self) -> bool:
        """False for a NaN, an infinity or a negative v: it is then neither saved nor loaded."""
        numbers = (self.p, self.m, self.v, *self.state.values(), self.sums)
        return all(np.isfinite(each).all() for each in numbers) and not (self.v < 0).any()


def save_checkpoint(path: Path, checkpoint: Checkpoint, advice: str = ADVICE) -> None:
    """Write a checkpoint's file atomically; advice: where it cannot be written."""
    tensors = {
        key: np.asarray(entry.view(getattr(checkpoint, name)), order="C")
        for key, (name, entry) in _places(checkpoint.layout).items()
    }
    tensors |= {_STATE + name: array for name, array in checkpoint.state.items()}
    header = {
        "format": FORMAT,
        "sha256": _BLANK,
        "step": str(checkpoint.step),
        "sums": json.dumps(checkpoint.sums),
        "record": json.dumps(checkpoint.record),
    }
    content = bytearray(save(tensors, metadata=header))
    start, stop = _place_of_checksum(content)
    content[start:stop] = _digest(content).encode()
    write_atomically(path, content, advice)


def load_checkpoint(path: Path, layout: Layout, run: dict | None = None) -> Checkpoint:
    """A checkpoint of a model with this layout, and of the run with this config.json. Raises
    CheckpointError if the file is missing, damaged, or of another model or run."""
    values, tensors = _read(path, _LONGEST_HEADER + _LARGEST_NUMBER * layout.size)
    places = _places(layout)
    names = [key for key in tensors if key.startswith(_STATE)]
    states = {key.removeprefix(_STATE): tensors.pop(key) for key in names}
    expected = {key: entry.shape for key, (_, entry) in places.items()}
    shapes = {key: tensor.shape for key, tensor in tensors.items()}
    if shapes != expected:  # before anything is allocated
        name, shape = min(set(shapes.items()) ^ set(expected.items()))
        found = f"another model ({name} of shape {shape} is not in both)"
        raise CheckpointError(f"{path} belongs to {found}: give the run that it was made by")
    dtypes, of_state = ({str(each.dtype) for each in of.values()} for of in (tensors, states))
    if dtypes not in ({"float32"}, {"float64"}) or not of_state <= {"float64"}:
        raise _damaged(path, f"its arrays are of {' and '.join(sorted(dtypes | of_state))}")
    (dtype,), moved = dtypes, layout.optimised.size
    p, m, v = (np.zeros(size, dtype) for size in (layout.size, moved, moved))
    checkpoint = Checkpoint(layout, p, m, v, **values, state=states)
    for key, (name, entry) in places.items():
        entry.view(getattr(checkpoint, name))[...] = tensors[key]
    if not checkpoint.is_finite():
        raise _damaged(path, "it holds what no training leaves: NaN, infinity, or a negative v")
    if run is not None:
        _compare(path, checkpoint, run)
    return checkpoint


def _places(layout: Layout) -> dict[str, tuple[str, Entry]]:
    """{name in the file: (array of the checkpoint, place in it)}."""
    moved = layout.optimised  # the optimiser has moments of what it moves alone
    parts = {"parameter": ("p", layout), "adam_m": ("m", moved), "adam_v": ("v", moved)}
    return {f"{role}.{e.key}": (name, e) for role, (name, of) in parts.items() for e in of.entries}


def _compare(path: Path, checkpoint: Checkpoint, run: dict) -> None:
    """Raises CheckpointError unless this is a checkpoint of the run that a config.json is of."""
    record, config = checkpoint.record, TrainConfig.from_dict(run["config"])
    try:
        saved = TrainConfig.from_dict(record["config"])
        best = record["best"]
        plausible = saved.lam is not None and 0 <= record["seconds"] < LARGEST
        if best is not None:
            plausible = plausible and is_evaluation(best) and best["step"] <= checkpoint.step
            plausible = plausible and abs(best.get("validation_bits_per_dimension", 0.0)) < LARGEST
    except (KeyError, TypeError, ValueError, UsageError):
        plausible = False
    if not plausible:
        raise _damaged(path, "the run's record in its header")
    differing = saved.incompatible_options(config)
    differing += ["run"] * (record.get("run") != run.get("run"))
    differing += ["dtype"] * (checkpoint.p.dtype != config.dtype)
    if differing:
        found = f"another run than the config.json beside it (another {differing[0]})"
        raise CheckpointError(f"{path} belongs to {found}: restore the one or the other")


def is_evaluation(record: dict) -> bool:
    """Say whether this is a line of metrics.jsonl, by the entries that are used."""
    whole, real = ("epoch", "step"), ("seconds", "validation_nll_nats", "reconstruction")
    return (
        isinstance(record, dict)
        and all(type(record.get(name)) is int and 1 <= record[name] < 2**63 for name in whole)
        and all(type(record.get(name)) in (int, float) for name in real)
        and all(abs(record[name]) < LARGEST for name in real)
    )


def record_of(path: Path) -> dict:
    """The record in a file's header, without the rest of the file. Raises CheckpointError."""
    missing = f"there is no file {path}: check the path"
    content = read_bytes(path, CheckpointError, missing, _LONGEST_HEADER, whole=False)
    with readable(path, _ADVICE, CheckpointError, "is damaged"):
        return parse_json(_header(path, content)["record"].encode())


def _header(path: Path, content: bytes) -> dict:
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size]).get("__metadata__", {})
    if header.get("format") != FORMAT:
        raise CheckpointError(f"{path} is no {FORMAT}: it was not written by this version")
    return header


def _read(path: Path, most: int) -> tuple[dict, dict[str, np.ndarray]]:
    """The values of a file's header, and its arrays by name. most: bytes that it may have."""
    missing = f"there is no checkpoint {path}: restore it, or train first (without `resume`)"
    content = read_bytes(path, CheckpointError, missing, most)
    with readable(path, _ADVICE, CheckpointError, "is damaged"):
        header, tensors = _header(path, content), load(content)
        if header.get("sha256") != _digest(content):
            raise ValueError("its checksum differs")
        step, record = int(header["step"]), parse_json(header["record"].encode())
        sums = tuple(map(float, json.loads(header["sums"])))
        if not 0 <= step < 2**63 or len(sums) != len(_NO_SUMS):
            raise ValueError("step or sums in its header")
    return {"step": step, "record": record, "sums": sums}, tensors


def _damaged(path: Path, why: str) -> CheckpointError:
    return CheckpointError(f"{path} is damaged ({why}): {_ADVICE}")


def _place_of_checksum(content) -> tuple[int, int]:
    key = b'"sha256":"'
    start = content.index(key, 0, 8 + int.from_bytes(content[:8], "little")) + len(key)
    return start, start + len(_BLANK)


def _digest(content) -> str:
    """The SHA-256 of a whole file, its own place as zeros."""
    start, stop = _place_of_checksum(content)
    digest = hashlib.sha256(content[:start] + _BLANK.encode())
    digest.update(memoryview(content)[stop:])  # the rest is long: no copy
    return digest.hexdigest()
