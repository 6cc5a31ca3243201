"""Checkpoint files: everything that a run needs to go on, in one safetensors file.

The file holds parameters, Adam's moments and the training states by name. Its header has the step
(random numbers are a function of it and the seed), the sums of the log, the run's record, and a
SHA-256 of the whole file, in which its own place counts as zeros. A file of weights to share is the
same without moments and training states: it is evaluated, not trained further.
"""

import hashlib
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load, save

from snfnp.errors import CheckpointError
from snfnp.files import ADVICE, Json, parse_json, read_bytes, readable, write_atomically
from snfnp.parameters import Entry, Layout
from snfnp.step.trainer import Trainer
from snfnp.training.options import TrainConfig
from snfnp.training.options.groups import LARGEST

FORMAT = "snfnp checkpoint 2"
_STATE = "state."
_ADVICE = "use another file"
_LONGEST_HEADER = 1 << 26  # bytes
_BLANK = "0" * 64  # the digits of a SHA-256
_NO_SUMS = (0.0, 0.0, 0.0, 0.0)


@dataclass
class Checkpoint:
    """p, and m and v of what the optimiser moves: flat host arrays in `layout`'s order. step:
    updates done. record: JSON values. sums: of the log since the last evaluation. state: the
    training states by name, host arrays in double precision. Of weights alone m and v are empty.
    """

    layout: Layout
    p: np.ndarray = field(repr=False)
    m: np.ndarray = field(repr=False)
    v: np.ndarray = field(repr=False)
    step: int
    record: Json = field(repr=False)
    sums: tuple[float, ...] = _NO_SUMS
    state: dict[str, np.ndarray] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, trainer: Trainer, record: Json) -> "Checkpoint":
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
        if not self.has_moments:
            raise CheckpointError(
                "the checkpoint holds weights alone, without Adam's moments: evaluate it, or "
                "train a new run"
            )
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

    @property
    def has_moments(self) -> bool:
        """False for weights alone."""
        return self.m.size == self.layout.optimised.size

    def is_finite(self) -> bool:
        """False for a NaN, an infinity or a negative v: it is then neither saved nor loaded."""
        arrays = (self.p, self.m, self.v, *self.state.values(), self.sums)
        return (
            all(np.isfinite(array).all() for array in arrays) and not (self.v < 0).any()
        )


def save_checkpoint(path: Path, checkpoint: Checkpoint, advice: str = ADVICE) -> None:
    """Write a checkpoint's file atomically; advice: where it cannot be written."""
    locations = _locations(checkpoint.layout, checkpoint.has_moments)
    tensors = {
        key: np.asarray(entry.view(getattr(checkpoint, name)), order="C")
        for key, (name, entry) in locations.items()
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


def load_checkpoint(path: Path, layout: Layout, run: Json | None = None) -> Checkpoint:
    """A checkpoint of a model with this layout, and of the run with this config.json.

    Raises:
        CheckpointError: the file is missing, damaged, or of another model or run.
    """
    advice = "train first (without `resume`)"
    if path.stem == "best":
        advice = "train until an evaluation succeeds, or choose `checkpoint=last`"
    missing = f"there is no checkpoint {path}: restore it, or {advice}"
    # p, m and v, and of a kernel the U of white coordinates, all in 8 bytes at most
    numbers = sum(math.prod(each.shape[:-1]) ** 2 for each in layout.entries)
    limit = _LONGEST_HEADER + 8 * (3 * layout.size + numbers)
    content = read_bytes(path, CheckpointError, missing, limit)
    with readable(path, _ADVICE, CheckpointError, "is damaged"):
        header = _header(path, content)
        tensors = load(content)
        if header.get("sha256") != _digest(content):
            raise ValueError("its checksum differs")
        checkpoint = _restored(path, layout, tensors, header)
        if not 0 <= checkpoint.step < 2**63 or len(checkpoint.sums) != len(_NO_SUMS):
            raise ValueError("step or sums in its header")
        if not checkpoint.is_finite():
            raise ValueError(
                "it holds what no training leaves: NaN, infinity, or a negative v"
            )
    if run is not None:
        _compare(path, checkpoint, run)
    return checkpoint


def _restored(
    path: Path, layout: Layout, tensors: dict[str, np.ndarray], header: dict[str, str]
) -> Checkpoint:
    """The checkpoint of a file's arrays and header."""
    names = [key for key in tensors if key.startswith(_STATE)]
    states = {key.removeprefix(_STATE): tensors.pop(key) for key in names}
    has_moments = any(key.startswith("adam_") for key in tensors)
    locations = _locations(layout, has_moments)
    expected = {key: entry.shape for key, (_, entry) in locations.items()}
    shapes = {key: tensor.shape for key, tensor in tensors.items()}
    if shapes != expected:  # before anything is allocated
        name, shape = min(set(shapes.items()) ^ set(expected.items()))
        raise CheckpointError(
            f"{path} belongs to another model ({name} of shape {shape} is not in both): give the "
            "run that it was made by"
        )
    dtypes = {str(tensor.dtype) for tensor in tensors.values()}
    state_dtypes = {str(values.dtype) for values in states.values()}
    if dtypes not in ({"float32"}, {"float64"}) or not state_dtypes <= {"float64"}:
        raise ValueError(
            f"its arrays are of {' and '.join(sorted(dtypes | state_dtypes))}"
        )
    (dtype,) = dtypes
    moved = layout.optimised.size if has_moments else 0
    p, m, v = (np.zeros(size, dtype) for size in (layout.size, moved, moved))
    checkpoint = Checkpoint(
        layout,
        p,
        m,
        v,
        int(header["step"]),
        parse_json(header["record"].encode()),
        tuple(map(float, json.loads(header["sums"]))),
        states,
    )
    for key, (name, entry) in locations.items():
        entry.view(getattr(checkpoint, name))[...] = tensors[key]
    return checkpoint


def _locations(layout: Layout, has_moments: bool) -> dict[str, tuple[str, Entry]]:
    """{name in the file: (array of the checkpoint, place in it)}."""
    parts = [("parameter", "p", layout)]
    if has_moments:  # the optimiser has them of what it moves alone
        parts += [(f"adam_{name}", name, layout.optimised) for name in ("m", "v")]
    return {
        f"{role}.{entry.key}": (name, entry)
        for role, name, part in parts
        for entry in part.entries
    }


def _compare(path: Path, checkpoint: Checkpoint, run: Json) -> None:
    """Raises CheckpointError unless this is a checkpoint of the run that a config.json is of."""
    record = checkpoint.record
    config = TrainConfig.from_dict(run["config"])
    problem = "is damaged in the run's record in its header"
    with readable(path, _ADVICE, CheckpointError, problem):
        saved = TrainConfig.from_dict(record["config"])
        best = record["best"]
        is_sound = saved.lam is not None and 0 <= record["seconds"] < LARGEST
        if best is not None:
            is_sound &= is_evaluation(best) and best["step"] <= checkpoint.step
        if not is_sound:
            raise ValueError("its λ, its seconds or its best evaluation")
    differing = saved.incompatible_options(config)
    if record.get("run") != run.get("run"):
        differing.append("run")
    if checkpoint.p.dtype != config.dtype:
        differing.append("dtype")
    if differing:
        raise CheckpointError(
            f"{path} belongs to another run than the config.json beside it (another "
            f"{differing[0]}): restore the one or the other"
        )


def is_evaluation(record: Any) -> bool:
    """Say whether a record has the fields of an evaluation, a line of metrics.jsonl."""
    if not isinstance(record, dict):
        return False
    whole = [record.get(name) for name in ("epoch", "step")]
    names = ("seconds", "validation_nll_nats", "reconstruction")
    real: Any = [record.get(name) for name in names]
    real.append(record.get("validation_bits_per_dimension", 0.0))  # of images
    return all(type(value) is int and 1 <= value < 2**63 for value in whole) and all(
        type(value) in (int, float) and abs(value) < LARGEST for value in real
    )


def record_of(path: Path) -> Json:
    """The record in a file's header, without the rest of the file. Raises CheckpointError."""
    missing = f"there is no file {path}: check the path"
    content = read_bytes(path, CheckpointError, missing, _LONGEST_HEADER, whole=False)
    with readable(path, _ADVICE, CheckpointError, "is damaged"):
        return parse_json(_header(path, content)["record"].encode())


def _header(path: Path, content: bytes) -> dict[str, str]:
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size]).get("__metadata__", {})
    if header.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} is no {FORMAT}: it was not written by this version"
        )
    return header


def _place_of_checksum(content: bytes | bytearray) -> tuple[int, int]:
    key = b'"sha256":"'
    start = content.index(key, 0, 8 + int.from_bytes(content[:8], "little")) + len(key)
    return start, start + len(_BLANK)


def _digest(content: bytes | bytearray) -> str:
    """The SHA-256 of a whole file, its own place as zeros."""
    start, stop = _place_of_checksum(content)
    digest = hashlib.sha256(content[:start] + _BLANK.encode())
    digest.update(memoryview(content)[stop:])  # the rest is long: no copy
    return digest.hexdigest()
