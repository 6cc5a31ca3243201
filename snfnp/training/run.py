"""A run's folder: configuration, metrics as JSON lines, checkpoints and pictures.

config.json              every choice, versions, data source, device, threads; under "history" what
                         was changed by `--resume`, and at which step; with a SHA-256 of it all
metrics.jsonl            one line per exact evaluation
last.safetensors         where `--resume` goes on
best.safetensors         the best validation epoch, which `load_run` opens
summary.json             the best epoch and its test likelihood, once the run is done
samples.png, curves.png
tensorboard              the same metrics for TensorBoard, with --tensorboard
run.lock                 the process that trains in the folder, while one does
"""

from __future__ import annotations

import hashlib
import json
import platform
from importlib import metadata
from pathlib import Path

import snfnp
from snfnp import threads
from snfnp.errors import SnfnpError, UsageError
from snfnp.layers import ActNorm
from snfnp.training import files
from snfnp.training.checkpoint import is_evaluation
from snfnp.training.config import TrainConfig

_PACKAGES = ("numpy", "scipy", "numba", "llvmlite", "safetensors")


class RunFolder:
    """Paths and files of one run. `with run.lock:` keeps other programs from training in it."""

    def __init__(self, path: Path):
        self.path = Path(path)
        self.lock = files.FolderLock(self.path / "run.lock")

    config_file = property(lambda self: self.path / "config.json")
    metrics_file = property(lambda self: self.path / "metrics.jsonl")
    last = property(lambda self: self.path / "last.safetensors")
    best = property(lambda self: self.path / "best.safetensors")
    summary_file = property(lambda self: self.path / "summary.json")
    samples = property(lambda self: self.path / "samples.png")
    curves = property(lambda self: self.path / "curves.png")
    board = property(lambda self: self.path / "tensorboard")

    def checkpoint(self, name: str) -> Path:
        """The file of a checkpoint: "best" or "last"."""
        known = {"best": self.best, "last": self.last}
        if name not in known:
            raise UsageError(f"checkpoint is {name!r}: choose one of {', '.join(known)}")
        return known[name]

    @classmethod
    def create(cls, path: Path) -> RunFolder:
        """A new folder, or one in which a run was started and wrote no checkpoint yet."""
        run = cls(path)
        try:
            run.path.mkdir(parents=True, exist_ok=True)
            run.refuse_started()
        except OSError as error:
            raise UsageError(
                f"cannot make {path} ({error.strerror}): choose another --out"
            ) from None
        return run

    def refuse_started(self) -> None:
        """Raises UsageError where the folder holds more than a start that failed leaves."""
        found = self.left_by_a_run()
        if found:
            raise UsageError(
                f"{self.path} exists and holds {found.name}: choose another --out, or add "
                "--resume to go on with that run"
            )

    def left_by_a_run(self) -> Path | None:
        """A file in the folder that a start that failed does not leave."""
        failed = {self.config_file, self.path / "run.lock"}
        others = (own for own in self.path.iterdir() if own not in failed)
        return next((own for own in others if not files.is_partial(own)), None)

    def remove_partial(self) -> None:
        """What killed runs left half written; only with the lock."""
        for path in (self.config_file, self.metrics_file, self.last, self.best, self.summary_file):
            files.remove_partial(path)

    @classmethod
    def open(cls, path: Path) -> tuple[RunFolder, dict]:
        """An existing run and the contents of its config.json."""
        run = cls(path)
        missing = f"{path} is no run folder (it has no config.json): check the path"
        content = files.read_bytes(run.config_file, UsageError, missing)
        try:
            record = files.parse_json(content)
            if "sha256" in record and record["sha256"] != _digest(record):
                raise ValueError("its checksum differs")
            if not isinstance(record.get("history", []), list):
                raise ValueError("history is no list")
            TrainConfig.from_dict(record.get("config"))
        except (ValueError, UsageError) as error:
            raise SnfnpError(
                f"{run.config_file} is damaged ({str(error)[:100]}): restore it (options are "
                "changed by --resume, not in the file)"
            ) from None
        return run, record

    def data(self, record: dict) -> tuple[list[int], tuple[int, ...]]:
        """What a config.json says of the data: images per split, and their shape (H, W, C)."""
        data = record.get("data")
        found = [data.get(key) if isinstance(data, dict) else None for key in ("images", "shape")]
        for numbers in found:
            whole = isinstance(numbers, list) and len(numbers) == 3
            if not (whole and all(type(n) is int and 0 < n < 2**31 for n in numbers)):
                raise SnfnpError(f"{self.config_file} is damaged (its data): restore it")
        return found[0], tuple(found[1])

    def write_config(self, record: dict) -> None:
        _write_json(self.config_file, {**record, "sha256": _digest(record)})

    def write_summary(self, record: dict) -> None:
        _write_json(self.summary_file, record)

    def remove_summary(self) -> None:
        """Where a run goes on, it will be another."""
        try:
            self.summary_file.unlink(missing_ok=True)
        except OSError as error:
            raise SnfnpError(
                f"cannot remove {self.summary_file} ({error.strerror}): remove it"
            ) from None

    def append_metrics(self, record: dict) -> None:
        """One more line; flushed, so that a crash keeps it."""
        line = json.dumps(record, allow_nan=False) + "\n"
        try:
            with open(self.metrics_file, "a", encoding="utf-8") as file:
                file.write(line)
        except OSError as error:
            raise SnfnpError(
                f"cannot write {self.metrics_file} ({error.strerror}): free some space"
            ) from None

    def read_metrics(self) -> list[dict]:
        """All evaluations so far. Raises SnfnpError where a line is damaged."""
        return [record for _, record in self._lines()]

    def metrics(self) -> bytes:
        """The same as the file has it; nothing where there is no file."""
        if not self.metrics_file.exists():
            return b""
        return files.read_bytes(self.metrics_file, SnfnpError, f"{self.metrics_file} is gone")

    def metrics_at(self, step: int, mark: list | None) -> bytes:
        """The metrics without the lines after a step.

        mark: `mark_of` the metrics at that step; None: not known, in a checkpoint of format 1.
        Raises SnfnpError where they are not what they were.
        """
        if mark is None:
            return b"".join(line for line, record in self._lines() if record["step"] <= step)
        content = self.metrics()[: mark[0]]
        if mark_of(content) != mark:
            raise SnfnpError(
                f"{self.metrics_file} is damaged (not what it was at step {step}): restore it, "
                "or delete it to go on without"
            )
        return content

    def write_metrics(self, content: bytes) -> None:
        files.write_atomically(self.metrics_file, content)

    def _lines(self):
        """(line, record) of every evaluation, but for a last line that a crash cut off."""
        *lines, _ = self.metrics().split(b"\n")
        for number, line in enumerate(lines, start=1):
            try:
                record = files.parse_json(line)
                if not is_evaluation(record):
                    raise ValueError("no evaluation")
            except ValueError as error:
                raise SnfnpError(
                    f"{self.metrics_file} is damaged (line {number}: {str(error)[:80]}): restore "
                    "it, or delete it to go on without"
                ) from None
            yield line + b"\n", record


def mark_of(metrics: bytes) -> list:
    """[length, SHA-256]: what a checkpoint records of the metrics."""
    return [len(metrics), hashlib.sha256(metrics).hexdigest()]


def _digest(record: dict) -> str:
    """The SHA-256 of a record, without that itself."""
    rest = {name: value for name, value in record.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _write_json(path: Path, record: dict) -> None:
    files.write_atomically(path, (json.dumps(record, indent=2) + "\n").encode())


def describe_run(config: TrainConfig, flow, layout, dataset, ops, processes: int = 1) -> dict:
    """What config.json holds: everything that a repetition of the run needs to know."""
    return {
        "config": config.as_dict(),
        "data": {
            "source": dataset.source,
            "is_sample": dataset.is_sample,
            "images": [len(dataset.train), len(dataset.validation), len(dataset.test)],
            "shape": list(dataset.train.shape[1:]),
        },
        "model": {
            "parameters": layout.count,
            "layers": {name: repr(layer) for name, layer in flow.layers},
            "preprocess": repr(flow.preprocess),
            "initialisation": f"{config.init}, NumPy default_rng({config.seed}); R = flip(W)"
            + ("" if config.inverse_depth == 1 else ", then identities")
            + ("; b = 0" if config.chosen("bias_init") == "zero" else "; b from the first batch")
            + ("; actnorm from the first batch" if _has_actnorm(flow) else ""),
        },
        "randomness": {
            "seed": config.seed,
            "shuffle": "a new order per epoch, NumPy default_rng((seed, epoch))"
            if config.shuffle
            else "file order",
            "noise": "Philox 4x32-10 from (seed, stream, step)",
        },
        "processes": processes,
        **environment(ops),
    }


def environment(ops) -> dict:
    """What computes: backend, device, threads, versions and platform."""
    versions = {"snfnp": snfnp.__version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "backend": ops.name,
        "device": ops.device.describe(),
        "threads": threads.describe(),
        "versions": versions,
        "platform": f"{platform.platform()}, {platform.processor() or platform.machine()}",
    }


def _has_actnorm(flow) -> bool:
    return any(isinstance(layer, ActNorm) for _, layer in flow.layers)
