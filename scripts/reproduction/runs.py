"""The runs behind a command's tables: planned, looked at, trained from where they are."""

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
_AGAIN = "delete it to train again"
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
        starts = [(size - _SMOKE_SIDE) // 2 for size in dataset.train.shape[1:3]]
        rows, columns = (slice(start, start + _SMOKE_SIDE) for start in starts)
        splits = {
            split: np.ascontiguousarray(getattr(dataset, split)[:count, rows, columns])
            for split, count in _SMOKE.items()
        }
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

    @property
    def is_started(self) -> bool:
        return RunFolder(self.folder).has_checkpoint()

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
        self._runs = {run.folder: run for run in sorted(runs, key=lambda run: run.epochs)}
        found = ((folder, outcome(run, command)) for folder, run in self._runs.items())
        self._outcomes = {folder: own for folder, own in found if own is not None}

    def outcomes(self, runs: list[Run]) -> dict[Path, dict]:
        """{folder: `outcome`} of these runs, trained if it is not known yet."""
        for folder in (run.folder for run in runs if run.folder not in self._outcomes):
            run, left = self._runs[folder], len(self._runs) - len(self._outcomes)
            text = f"{folder.name}, to epoch {run.epochs:,}; runs left: {left}"
            print(text, file=sys.stderr, flush=True)
            perform(run, self._command)
            self._outcomes[folder] = outcome(run, self._command)
        return {run.folder: self._outcomes[run.folder] for run in runs}


def outcome(run: Run, command: Command) -> dict | None:
    """The end of a run, None if it is not done: in results.json's words its `epochs` and

    value, best_epoch             the test NLL, in the row's unit, at the best validation epoch
    diverged_at, asked, before    the step at which it diverged (0: not known), the epochs that it
                                  was to be trained, and the monitors of the last evaluation before

    Raises UsageError if its folder holds another run, SnfnpError if it is damaged.
    """
    there = (run.divergence, RunFolder(run.folder).summary_file)  # a finished run needs no more
    if not (run.is_started or any(file.exists() for file in there)):
        return None
    folder, record = RunFolder.open(run.folder)
    dataset = command.dataset(run.row.data)
    diverged = files.read_json(run.divergence, _divergence, _AGAIN)
    config = diverged[0] if diverged else folder.config()
    wanted = run.config(len(dataset.train), command.ops.name)
    own = (*run.row.options, *_DECISIVE)
    different = {name for name in own if getattr(wanted, name) != getattr(config, name)}
    different |= set(wanted.incompatible_options(config))
    images = [len(split) for split in (dataset.train, dataset.validation, dataset.test)]
    if folder.data(record) != (images, tuple(dataset.train.shape[1:])):
        different.add("images")
    if different:
        said = f"{run.folder} holds another run ({', '.join(sorted(different))} differ)"
        raise UsageError(f"{said}: choose another --runs, or move it away")
    if diverged:
        _, step, before = diverged
        epochs = -(-step // wanted.steps_per_epoch(images[0])) or before.get("epoch", 0)
        asked = max(config.epochs or 0, run.epochs)
        return {"epochs": epochs, "asked": asked, "diverged_at": step, "before": before}
    if config.epochs < run.epochs or not folder.summary_file.exists():
        return None
    figure = "test_nll_nats" if run.row.unit == "nats" else "test_bits_per_dimension"
    make = lambda own: {"value": float(own[figure]), "best_epoch": int(own["best_epoch"])}  # noqa: E731
    return {"epochs": config.epochs} | files.read_json(folder.summary_file, make, _AGAIN)


def perform(run: Run, command: Command) -> None:
    """Train a run from where it is to its end, or to where it diverges."""
    dataset, folder = command.dataset(run.row.data), RunFolder(run.folder)
    config, goes_on = run.config(len(dataset.train), command.ops.name), run.is_started
    try:
        if goes_on:
            config = replace(config, epochs=max(config.epochs, folder.config().epochs))
        else:
            RunFolder.create(run.folder)
        provenance.note(run.folder)
        # a run's own messages are not shown: what its monitors say is in its table
        train(config, dataset, command.ops, folder, goes_on, lambda text: None)
    except (DivergedError, SingularMatrixError) as error:
        metrics = folder.read_metrics()
        record = {"step": getattr(error, "step", None), "message": str(error)}
        record["before"] = _monitors(metrics[-1]) if metrics else {}
        record["config"] = config.as_dict()
        files.write_json(run.divergence, record)
    except UsageError as error:  # which names the training's parameter
        raise UsageError(str(error).replace("`out`", "`runs`")) from None


def lost(lines: list[dict]) -> dict | None:
    """The step from which on a run's validation NLL stayed more than a tenth above its best to the
    end, and the monitors before; None if it did not. lines: of the run's metrics.jsonl."""
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


def _divergence(found: dict) -> tuple[TrainConfig, int, dict]:
    """The options, the step (0: not known) and the monitors before of a run that diverged."""
    step, before = int(found.get("step") or 0), found.get("before") or {}
    kinds = {"epoch": int, "rho": float}
    known = {name: kind(before[name]) for name, kind in kinds.items() if name in before}
    return TrainConfig.from_dict(found["config"]), step, known
