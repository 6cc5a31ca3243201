"""The runs behind a command's tables: planned, looked at, trained from where they are."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np

from reproduction import provenance
from reproduction.rows import Row
from snfnp.data import Dataset, load_dataset
from snfnp.errors import DivergedError, SingularMatrixError, SnfnpError, UsageError
from snfnp.training import files
from snfnp.training.loop import train
from snfnp.training.options import TrainConfig
from snfnp.training.runs.folder import RunFolder

SCALES = ("smoke", "hour", "paper")
_SMOKE = {"train": 200, "validation": 100, "test": 100}  # images at the smoke scale
_SMOKE_SIDE = 8  # and their pixels: the middle of each image
_PAPER_SEEDS = 3
_WORSE = 1.1  # times the best validation NLL: a run that stays above is lost
_DECISIVE = ("lr", "lam", "clip_norm")  # a run may go on with others, and is then not the paper's


@dataclass(frozen=True, eq=False)
class Command:
    """The options of a `reproduce.py` command.

    scale: one of `SCALES`; runs: the folder of all runs; ops: the operations that compute; seeds,
    epochs: of every row, None: the table's; data_dir: where data sets are, if that was said; rows:
    the names of the wanted ones in the order in which they are to be trained, None: all;
    eval_every: epochs from one evaluation to the next.
    """

    scale: str
    runs: Path
    ops: object
    seeds: list[int] | None = None
    epochs: int | None = None
    data_dir: Path | None = None
    rows: tuple[str, ...] | None = None
    eval_every: int = 1

    @property
    def folder(self) -> Path:
        """The folder of the runs: those of the smoke scale have one of their own."""
        return self.runs / self.scale if self.scale == "smoke" else self.runs

    @cache  # noqa: B019 (one object lives as long as the command)
    def dataset(self, name: str) -> Dataset:
        """A data set's images at this scale: at the smoke scale so few and small that a run takes
        a second. Raises UsageError or SnfnpError if it is not there."""
        dataset = load_dataset(name, self.data_dir)
        if self.scale != "smoke":
            return dataset
        splits = {}
        for split, count in _SMOKE.items():
            images = getattr(dataset, split)
            top, left = ((size - _SMOKE_SIDE) // 2 for size in images.shape[1:3])
            middle = images[:count, top : top + _SMOKE_SIDE, left : left + _SMOKE_SIDE]
            splits[split] = np.ascontiguousarray(middle)
        return replace(dataset, **splits, is_sample=True)

    @cache  # noqa: B019
    def is_missing(self, name: str) -> bool:
        """True if a data set is not there; the reason is printed once. MNIST has to be."""
        try:
            self.dataset(name)
        except SnfnpError as error:
            if name == "mnist":
                raise
            print(f"no rows of {name}: {error}", file=sys.stderr)
            return True
        return False

    def wanted(self, rows: Iterable[Row]) -> list[Row]:
        """The rows that are wanted, as they are trained at this scale."""
        chosen = (row.at(self.scale) for row in rows)
        return [row for row in chosen if self.rows is None or row.name in self.rows]


@dataclass(frozen=True)
class Run:
    """A row with one seed. folder: of the run."""

    row: Row
    seed: int
    epochs: int
    folder: Path
    eval_every: int = 1

    @property
    def divergence(self) -> Path:
        """A file that says where the run diverged, so that it is not done again."""
        return self.folder.with_name(f"{self.folder.name}.diverged.json")

    def config(self, training_images: int, backend: str) -> TrainConfig:
        """The run's configuration: the row's options, and what every run has of its own."""
        own = {"seed": self.seed, "epochs": self.epochs, "eval_every": self.eval_every}
        return TrainConfig(**self.row.options, **own, backend=backend).resolve(training_images)


def plan(rows: Iterable[Row], command: Command, seeds: int = 1) -> list[Run]:
    """The runs of those rows that are wanted and whose images are there, in the order in which
    they are to be trained. seeds: how many at `--scale hour`."""
    usual = {"smoke": 1, "hour": seeds, "paper": max(seeds, _PAPER_SEEDS)}[command.scale]
    planned = []
    for row in command.wanted(rows):
        epochs = {"smoke": 1, "hour": row.hour, "paper": row.epochs}[command.scale]
        for seed in range(usual) if command.seeds is None else command.seeds:
            folder = command.folder / f"{row.name}-seed-{seed}"
            planned.append(Run(row, seed, command.epochs or epochs, folder, command.eval_every))
    if command.rows:
        planned.sort(key=lambda run: command.rows.index(run.row.name))
    return [run for run in planned if not command.is_missing(run.row.data)]


class Training:
    """The runs of a command. One that several targets need is trained once, as long as any says.

    Everything that is there is looked at here, so that nothing is trained before an error.
    """

    def __init__(self, runs: list[Run], command: Command):
        self._command = command
        self._runs: dict[Path, Run] = {}
        for run in runs:
            known = self._runs.setdefault(run.folder, run)
            if run.epochs > known.epochs:
                self._runs[run.folder] = run
        found = {folder: outcome(run, command) for folder, run in self._runs.items()}
        self._outcomes = {folder: own for folder, own in found.items() if own is not None}

    def outcomes(self, runs: list[Run]) -> dict[Path, dict]:
        """{folder: `outcome`} of these runs, trained if it is not known yet."""
        for folder in (run.folder for run in runs):
            if folder not in self._outcomes:
                run, left = self._runs[folder], len(self._runs) - len(self._outcomes)
                text = f"{folder.name}, to epoch {run.epochs:,}; runs left: {left}"
                print(text, file=sys.stderr, flush=True)
                self._outcomes[folder] = perform(run, self._command)
        return {run.folder: self._outcomes[run.folder] for run in runs}


def outcome(run: Run, command: Command) -> dict | None:
    """The end of a run, None if it is not done: in results.json's words its `epochs` and

    value, best_epoch             the test NLL, in the row's unit, at the best validation epoch
    diverged_at, asked, before    the step at which it diverged (0: not known), the epochs that it
                                  was to be trained, and the monitors of the last evaluation before

    Raises UsageError if its folder holds another run, SnfnpError if it is damaged.
    """
    if not (_is_started(run) or run.divergence.exists()):
        return None
    folder, record = RunFolder.open(run.folder)
    dataset, config = command.dataset(run.row.data), TrainConfig.from_dict(record["config"])
    diverged = _read_json(run.divergence) if run.divergence.exists() else None
    if diverged:
        config = TrainConfig.from_dict(diverged["config"])
    wanted = run.config(len(dataset.train), command.ops.name)
    different = set(wanted.incompatible_options(config)) | {
        name
        for name in (*run.row.options, *_DECISIVE)
        if getattr(wanted, name) != getattr(config, name)
    }
    images = [len(split) for split in (dataset.train, dataset.validation, dataset.test)]
    if folder.data(record) != (images, tuple(dataset.train.shape[1:])):
        different.add("images")
    if different:
        raise UsageError(
            f"{run.folder} holds another run ({', '.join(sorted(different))} differ): choose "
            "another --runs, or move it away"
        )
    if diverged:
        config = replace(config, epochs=max(config.epochs, run.epochs))
        return _diverged(diverged, config, images[0])
    if config.epochs < run.epochs or not folder.summary_file.exists():
        return None
    return _finished(run, _read_json(folder.summary_file), config)


def perform(run: Run, command: Command) -> dict:
    """Train a run from where it is to its end, or to where it diverges; returns its `outcome`."""
    dataset, folder = command.dataset(run.row.data), RunFolder(run.folder)
    config, goes_on = run.config(len(dataset.train), command.ops.name), _is_started(run)
    try:
        if goes_on:
            before = TrainConfig.from_dict(RunFolder.open(run.folder)[1]["config"]).epochs
            config = replace(config, epochs=max(config.epochs, before))
        else:
            RunFolder.create(run.folder)
        provenance.note(run.folder)
        summary = train(config, dataset, command.ops, folder, goes_on, _silent)
    except (DivergedError, SingularMatrixError) as error:
        metrics = folder.read_metrics()
        record = {
            "step": getattr(error, "step", None),
            "message": str(error),
            "before": _monitors(metrics[-1]) if metrics else {},
            "config": config.as_dict(),
        }
        files.write_atomically(run.divergence, (json.dumps(record, indent=2) + "\n").encode())
        return _diverged(record, config, len(dataset.train))
    except UsageError as error:  # which names the option of the training scripts
        raise UsageError(str(error).replace("--out", "--runs")) from None
    return _finished(run, summary, config)


def _finished(run: Run, summary: dict, config: TrainConfig) -> dict:
    figure = "test_nll_nats" if run.row.unit == "nats" else "test_bits_per_dimension"
    value, best = summary[figure], summary["best_epoch"]
    return {"epochs": config.epochs, "value": value, "best_epoch": best}


def _diverged(record: dict, config: TrainConfig, images: int) -> dict:
    """record: of a file `Run.divergence`; images: of training. The step is not always known."""
    step, before = record.get("step") or 0, record.get("before") or {}
    epochs = math.ceil(step / config.steps_per_epoch(images)) or before.get("epoch", 0)
    return {"epochs": epochs, "asked": config.epochs, "diverged_at": step, "before": before}


def lost(lines: list[dict]) -> dict | None:
    """The step from which on a run's validation NLL stayed more than a tenth above its best to the
    end, and the monitors before; None if it did not.

    lines: of the run's metrics.jsonl.
    """
    best, first = math.inf, None
    for number, line in enumerate(lines):
        nll = line["validation_nll_nats"]
        if nll <= _WORSE * best:
            first = None
        elif first is None:
            first = number
        best = min(best, nll)
    return first and {"step": lines[first]["step"], "before": _monitors(lines[first - 1])}


def _monitors(line: dict) -> dict:
    """The epoch of an evaluation, and its layers' largest rho."""
    values = [layer["rho"] for layer in line.get("layers", {}).values() if "rho" in layer]
    return {"epoch": line["epoch"]} | ({"rho": max(values)} if values else {})


def _is_started(run: Run) -> bool:
    folder = RunFolder(run.folder)
    return folder.last.exists() or folder.best.exists()


def _read_json(path: Path) -> dict:
    try:
        return files.parse_json(files.read_bytes(path, SnfnpError, f"{path} is gone"))
    except ValueError as error:
        why = str(error)[:80]
        raise SnfnpError(f"{path} is damaged ({why}): delete it to train again") from None


def _silent(text: str) -> None:
    """A run's own messages are not shown: what its monitors say is in its table."""
