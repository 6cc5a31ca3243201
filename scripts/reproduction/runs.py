"""The runs behind a table: planned, started, gone on with, and left alone where they are done."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from reproduction.tables import Row, Table
from snfnp.data import Dataset
from snfnp.errors import DivergedError, SingularMatrixError, SnfnpError, UsageError
from snfnp.training import files
from snfnp.training.config import TrainConfig
from snfnp.training.loop import train
from snfnp.training.run import RunFolder

_SMOKE = {"train": 200, "validation": 100, "test": 100}  # images at the smoke scale
_SMOKE_SIDE = 8  # and their pixels: the middle of each image
_PAPER_SEEDS = 3


@dataclass(frozen=True)
class Result:
    """What became of a run: its test NLL in nats at the best validation epoch, or the step at which
    it diverged (0: not known). epochs: that it was trained, or asked for where it diverged."""

    nll: float | None
    epochs: int
    diverged_at: int | None = None


@dataclass(frozen=True)
class Run:
    """A row with one seed. folder: of the run; outcome: a file beside it that says where the run
    diverged, so that it is not done again."""

    row: Row
    seed: int
    epochs: int
    folder: Path

    @property
    def outcome(self) -> Path:
        return self.folder.with_name(f"{self.folder.name}.diverged.json")

    def config(self, training_images: int, backend: str) -> TrainConfig:
        wanted = TrainConfig(
            **self.row.options, seed=self.seed, epochs=self.epochs, backend=backend
        )
        return wanted.resolve(training_images)


def plan(table: Table, scale: str, folder: Path, seeds: list[int] | None) -> list[Run]:
    """The runs of a table. Those of the smoke scale are in a folder of their own."""
    if seeds is None:
        count = {"smoke": 1, "hour": table.seeds, "paper": max(table.seeds, _PAPER_SEEDS)}[scale]
        seeds = list(range(count))
    folder = folder / scale if scale == "smoke" else folder
    epochs = {"smoke": lambda row: 1, "hour": lambda row: row.hour, "paper": lambda row: row.epochs}
    return [
        Run(row, seed, epochs[scale](row), folder / f"{row.name}-seed-{seed}")
        for row in table.rows
        for seed in seeds
    ]


def images_at(scale: str, dataset: Dataset) -> Dataset:
    """The images that a scale is run on: all, or so few and small that a run takes a second."""
    if scale != "smoke":
        return dataset
    splits = {}
    for name, count in _SMOKE.items():
        images = getattr(dataset, name)
        top, left = ((size - _SMOKE_SIDE) // 2 for size in images.shape[1:3])
        middle = images[:count, top : top + _SMOKE_SIDE, left : left + _SMOKE_SIDE]
        splits[name] = np.ascontiguousarray(middle)
    return replace(dataset, **splits)


def found(run: Run, dataset: Dataset, backend: str) -> Result | None:
    """What is there of a run that is done; None where there is something left to do.

    Raises UsageError where its folder holds another run, SnfnpError where it is damaged.
    """
    wanted = run.config(len(dataset.train), backend)
    if run.outcome.exists():
        record = _read(run.outcome)
        _refuse_another(run, wanted, TrainConfig.from_dict(record.get("config")))
        return Result(None, run.epochs, int(record.get("step") or 0))
    if not _is_started(run):
        return None
    folder, record = RunFolder.open(run.folder)
    config = TrainConfig.from_dict(record["config"])
    _refuse_another(run, wanted, config)
    images, shape = folder.data(record)
    here = [len(split) for split in (dataset.train, dataset.validation, dataset.test)]
    if images != here or shape != tuple(dataset.train.shape[1:]):
        raise UsageError(
            f"{run.folder} was trained on {images} images of {shape}, found {here} of "
            f"{tuple(dataset.train.shape[1:])}: give the same data, or choose another --runs"
        )
    if config.epochs < run.epochs or not folder.summary_file.exists():
        return None
    nll = _read(folder.summary_file).get("test_nll_nats")
    if not isinstance(nll, float):
        raise SnfnpError(f"{folder.summary_file} is damaged: delete it to evaluate again")
    return Result(nll, config.epochs)


def perform(run: Run, dataset: Dataset, ops, report: Callable[[str], None]) -> Result:
    """Train a run from where it is to its end, or to where it diverges."""
    config = run.config(len(dataset.train), ops.name)
    goes_on = _is_started(run)
    if goes_on:
        folder, record = RunFolder.open(run.folder)
        before = TrainConfig.from_dict(record["config"])
        config = replace(config, epochs=max(config.epochs, before.epochs))
    else:
        folder = RunFolder.create(run.folder)
    try:
        summary = train(config, dataset, ops, folder, goes_on, report)
    except (DivergedError, SingularMatrixError) as error:
        record = {
            "step": getattr(error, "step", None),
            "message": str(error),
            "config": config.as_dict(),
        }
        content = (json.dumps(record, indent=2) + "\n").encode()
        files.write_atomically(run.outcome, content)
        return Result(None, config.epochs, record["step"] or 0)
    return Result(summary["test_nll_nats"], config.epochs)


def _is_started(run: Run) -> bool:
    folder = RunFolder(run.folder)
    return folder.last.exists() or folder.best.exists()


def _refuse_another(run: Run, wanted: TrainConfig, config: TrainConfig) -> None:
    different = set(wanted.unlike(config)) | {
        name for name in run.row.options if getattr(wanted, name) != getattr(config, name)
    }
    if different:
        raise UsageError(
            f"{run.folder} holds another run ({', '.join(sorted(different))} differ): choose "
            "another --runs, or move it away"
        )


def _read(path: Path) -> dict:
    """A JSON file of ours."""
    try:
        return files.parse_json(files.read_bytes(path, SnfnpError, f"{path} is gone"))
    except ValueError as error:
        raise SnfnpError(
            f"{path} is damaged ({str(error)[:80]}): delete it to train or evaluate again"
        ) from None
