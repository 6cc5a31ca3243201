"""A run's folder: configuration, metrics as JSON lines, checkpoints and pictures.

config.json              every choice, versions, data source, device, threads
metrics.jsonl            one line per exact evaluation
last.safetensors         where `--resume` goes on
best.safetensors         the best validation epoch, for evaluate.py and sample.py
summary.json             the best epoch and its test likelihood, once the run is done
samples.png, curves.png
"""

from __future__ import annotations

import json
import platform
from importlib import metadata
from pathlib import Path

import snfnp
from snfnp import threads
from snfnp.checkpoint import write_atomically
from snfnp.config import TrainConfig
from snfnp.errors import SnfnpError, UsageError

_PACKAGES = ("numpy", "scipy", "numba", "llvmlite", "safetensors")


class RunFolder:
    """Paths and files of one run."""

    def __init__(self, path: Path):
        self.path = Path(path)

    config_file = property(lambda self: self.path / "config.json")
    metrics_file = property(lambda self: self.path / "metrics.jsonl")
    last = property(lambda self: self.path / "last.safetensors")
    best = property(lambda self: self.path / "best.safetensors")
    summary_file = property(lambda self: self.path / "summary.json")
    samples = property(lambda self: self.path / "samples.png")
    curves = property(lambda self: self.path / "curves.png")

    @classmethod
    def create(cls, path: Path) -> RunFolder:
        """A new folder; refuses one that exists."""
        try:
            Path(path).mkdir(parents=True)
        except FileExistsError:
            raise UsageError(
                f"{path} exists: choose another --out, or add --resume to go on with that run"
            ) from None
        except OSError as error:
            raise UsageError(
                f"cannot make {path} ({error.strerror}): choose another --out"
            ) from None
        return cls(path)

    @classmethod
    def open(cls, path: Path) -> tuple[RunFolder, dict]:
        """An existing run and the contents of its config.json."""
        run = cls(path)
        if not run.config_file.is_file():
            raise UsageError(f"{path} is no run folder (it has no config.json): check the path")
        try:
            return run, json.loads(run.config_file.read_text())
        except (OSError, ValueError) as error:
            raise SnfnpError(f"{run.config_file} is damaged ({error}): restore it") from None

    def write_config(self, record: dict) -> None:
        _write_json(self.config_file, record)

    def write_summary(self, record: dict) -> None:
        _write_json(self.summary_file, record)

    def append_metrics(self, record: dict) -> None:
        """One more line; flushed, so that a crash keeps it."""
        try:
            with open(self.metrics_file, "a") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            raise SnfnpError(f"cannot write {self.metrics_file} ({error.strerror})") from None

    def read_metrics(self, up_to_step: int | None = None) -> list[dict]:
        """All evaluations so far. `up_to_step` drops later lines, in the file too: a run that is
        resumed from an earlier checkpoint will write them again."""
        if not self.metrics_file.exists():
            return []
        records = []
        for line in self.metrics_file.read_text().splitlines():
            try:
                records.append(json.loads(line))
            except ValueError:
                break  # a crash cut the last line off
        if up_to_step is not None:
            records = [record for record in records if record["step"] <= up_to_step]
            lines = "".join(json.dumps(record) + "\n" for record in records)
            write_atomically(self.metrics_file, lines.encode())
        return records


def _write_json(path: Path, record: dict) -> None:
    write_atomically(path, (json.dumps(record, indent=2) + "\n").encode())


def describe_run(config: TrainConfig, flow, layout, dataset, ops) -> dict:
    """What config.json holds: everything that a repetition of the run needs to know."""
    versions = {"snfnp": snfnp.__version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
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
            "initialisation": f"{config.init}, NumPy default_rng({config.seed}); "
            "R = flip(W); b = 0"
            + ("; actnorm from the first batch" if flow.initialises_from_data else ""),
        },
        "randomness": {
            "seed": config.seed,
            "shuffle": "a new order per epoch, NumPy default_rng((seed, epoch))"
            if config.shuffle
            else "file order",
            "noise": "Philox 4x32-10 from (seed, stream, step)",
        },
        "backend": ops.name,
        "device": ops.describe_device(),
        "threads": threads.describe(),
        "versions": versions,
        "platform": f"{platform.platform()}, {platform.processor() or platform.machine()}",
    }
