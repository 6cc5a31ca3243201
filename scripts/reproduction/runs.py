"""The runs behind a table: planned, started, gone on with, and left alone where they are done."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from reproduction import provenance
from reproduction.rows import Row
from reproduction.setting import Setting
from snfnp.data import Dataset
from snfnp.errors import DivergedError, SingularMatrixError, SnfnpError, UsageError
from snfnp.ops import ALONE, Communicator
from snfnp.training import files
from snfnp.training.config import TrainConfig
from snfnp.training.loop import train
from snfnp.training.progress import ProgressLine
from snfnp.training.run import RunFolder

_PAPER_SEEDS = 3
_WORSE = 1.1  # times the best validation NLL: a run that stays above is lost
# Options that say how long a run is, which one of several, and where: each run has its own.
_NOT_OF_A_ROW = ("epochs", "seed", "backend", "data_dir", "out", "eval_every", "checkpoint_every")
_NOT_OF_A_ROW += ("tensorboard", "overlap")
# What must be in a file of ours, by its name there.
_SUMMARY = {"test_nll_nats": float, "test_bits_per_dimension": float, "best_epoch": int}
_OUTCOME = {"config": dict, "step": int | None, "before": dict | None}
_DECISIVE = ("lr", "lam", "clip_norm")  # a run may go on with others, and is then not the paper's


@dataclass(frozen=True)
class Result:
    """What became of a run: its test NLL in nats and bits/dim at the best validation epoch, or the
    step at which it diverged (0: not known).

    epochs: that it was trained; where it diverged, the one in which it did, and `asked`, those that
    it was to be trained: however many it is asked for again, it ends there; before: what the
    monitors said at the last evaluation before a run diverged ({} where there was none): the epoch
    and the largest rho of its layers (`Inspection.figures`).
    """

    nll: float | None
    epochs: int
    diverged_at: int | None = None
    bits: float | None = None
    best_epoch: int | None = None
    before: dict | None = None
    asked: int | None = None


@dataclass(frozen=True)
class Run:
    """A row with one seed. folder: of the run; outcome: a file beside it that says where the run
    diverged, so that it is not done again."""

    row: Row
    seed: int
    epochs: int
    folder: Path
    eval_every: int = 1

    @property
    def outcome(self) -> Path:
        return self.folder.with_name(f"{self.folder.name}.diverged.json")

    def config(self, training_images: int, backend: str) -> TrainConfig:
        own = {"seed": self.seed, "epochs": self.epochs, "eval_every": self.eval_every}
        wanted = TrainConfig(**self.row.options, **own, backend=backend)
        return wanted.resolve(training_images)


def plan(rows: Iterable[Row], setting: Setting, seeds: int = 1) -> list[Run]:
    """The runs of those of these rows that are wanted and whose images are there, in the order in
    which they are to be trained. seeds: how many at `--scale hour`."""
    if setting.seeds is not None:
        chosen = setting.seeds
    else:
        counts = {"smoke": 1, "hour": seeds, "paper": max(seeds, _PAPER_SEEDS)}
        chosen = range(counts[setting.scale])
    planned = []
    for row in (row.at(setting.scale) for row in rows):
        if not setting.wants(row) or setting.missing(row.data):
            continue
        usual = {"smoke": 1, "hour": row.hour, "paper": row.epochs}[setting.scale]
        epochs = setting.epochs or usual
        planned += [
            Run(row, seed, epochs, setting.folder / f"{row.name}-seed-{seed}", setting.eval_every)
            for seed in chosen
        ]
    if setting.rows:
        planned.sort(key=lambda run: setting.rows.index(run.row.name))
    return planned


def settings(run: Run, setting: Setting) -> dict:
    """The configuration of a row of which this is a run, as results.json keeps it."""
    config = run.config(len(setting.dataset(run.row.data).train), setting.ops.name)
    return {
        name: value
        for name, value in config.as_dict().items()
        if value is not None and name not in _NOT_OF_A_ROW
    }


def united(runs: Iterable[Run]) -> list[Run]:
    """Each run once, with the most epochs that anybody asked for."""
    longest: dict[Path, Run] = {}
    for run in runs:
        known = longest.get(run.folder)
        if known is None or run.epochs > known.epochs:
            longest[run.folder] = run
    return list(longest.values())


def found(run: Run, dataset: Dataset, backend: str) -> Result | None:
    """What is there of a run that is done; None where there is something left to do.

    Raises UsageError where its folder holds another run, or cannot hold this one, SnfnpError where
    it is damaged: before anything is trained.
    """
    wanted = run.config(len(dataset.train), backend)
    diverged = _outcome(run) if run.outcome.exists() else None
    if diverged is None and not _is_started(run):
        _check_place(run)
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
    provenance.of_run(run.folder)
    metrics = folder.read_metrics()
    if diverged:
        record, config = diverged
        _refuse_another(run, wanted, config)
        asked = max(config.epochs, run.epochs)
        return _diverged(record, replace(config, epochs=asked), images[0])
    if config.epochs < run.epochs or not folder.summary_file.exists():
        _check_place(run)
        return None
    summary = _read(folder.summary_file, _SUMMARY)
    if not metrics:
        raise SnfnpError(
            f"{folder.metrics_file} has no evaluation, but the run is done: restore it, or move "
            f"{run.folder} away to train again"
        )
    return _result(summary, config.epochs)


def _check_place(run: Run) -> None:
    """Raises UsageError where a run cannot be trained, or gone on with, in its folder."""
    folder, advice = RunFolder(run.folder), "move it away, or choose another --runs"
    if not run.folder.exists():
        return
    if not run.folder.is_dir():
        raise UsageError(f"{run.folder} is no folder: {advice}")
    left = None if folder.last.exists() else folder.left_by_a_run()
    if left:
        raise UsageError(f"{run.folder} holds {left.name} and no {folder.last.name}: {advice}")
    try:
        with folder.lock:
            pass
    except UsageError as error:  # which names the option of the training scripts
        found, _, advice = str(error).rpartition(": ")
        raise UsageError(f"{found}: {advice.replace('--out', '--runs')}") from None


def _outcome(run: Run) -> tuple[dict, TrainConfig]:
    """The file of a run that diverged, and what it was trained with."""
    record = _read(run.outcome, _OUTCOME)
    try:
        return record, TrainConfig.from_dict(record["config"])
    except UsageError as error:
        raise _damaged(run.outcome, error) from None


def _diverged(record: dict, config: TrainConfig, images: int) -> Result:
    """record: of an outcome's file; images: of training. The step is not always known."""
    step, before = record.get("step") or 0, record.get("before") or {}
    epoch = math.ceil(step / config.steps_per_epoch(images)) or before.get("epoch", 0)
    return Result(None, epoch, step, before=before, asked=config.epochs)


def _result(summary: dict, epochs: int) -> Result:
    return Result(
        summary["test_nll_nats"],
        epochs,
        bits=summary["test_bits_per_dimension"],
        best_epoch=summary["best_epoch"],
    )


def perform(
    run: Run,
    dataset: Dataset,
    ops,
    report: Callable[[str], None],
    line=ProgressLine,
    world: Communicator = ALONE,
) -> Result:
    """Train a run from where it is to its end, or to where it diverges. line, world: see
    `train`."""
    config = run.config(len(dataset.train), ops.name)

    def prepare() -> tuple[bool, int]:
        """Whether the run goes on, and the epochs that it was asked for before."""
        goes_on = _is_started(run)
        if goes_on:
            _, record = RunFolder.open(run.folder)
            before = TrainConfig.from_dict(record["config"]).epochs
        else:
            RunFolder.create(run.folder)
            before = 0
        provenance.note(run.folder)
        return goes_on, before

    goes_on, before = world.first(prepare)
    config, folder = replace(config, epochs=max(config.epochs, before)), RunFolder(run.folder)
    try:
        summary = train(config, dataset, ops, folder, goes_on, report, line, world)
    except (DivergedError, SingularMatrixError) as error:
        record = {
            "step": getattr(error, "step", None),
            "message": str(error),
            "before": _last_monitors(folder),
            "config": config.as_dict(),
        }
        content = (json.dumps(record, indent=2) + "\n").encode()
        if world.rank == 0:
            files.write_atomically(run.outcome, content)
        return _diverged(record, config, len(dataset.train))
    return _result(summary, config.epochs)


def lost(lines: list[dict]) -> dict | None:
    """Where a run's validation NLL became worse than the best by more than a tenth, and stayed so
    to the end: the step from which on, and what the monitors said before; None where it did not.

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


def _last_monitors(folder: RunFolder) -> dict:
    metrics = folder.read_metrics()
    return _monitors(metrics[-1]) if metrics else {}


def _monitors(line: dict) -> dict:
    """The epoch of an evaluation, and the largest rho."""
    values = [layer["rho"] for layer in line.get("layers", {}).values() if "rho" in layer]
    return {"epoch": line["epoch"]} | ({"rho": max(values)} if values else {})


def _is_started(run: Run) -> bool:
    folder = RunFolder(run.folder)
    return folder.last.exists() or folder.best.exists()


def _refuse_another(run: Run, wanted: TrainConfig, config: TrainConfig) -> None:
    decisive = (*run.row.options, *_DECISIVE)
    different = set(wanted.unlike(config)) | {
        name for name in decisive if getattr(wanted, name) != getattr(config, name)
    }
    if different:
        raise UsageError(
            f"{run.folder} holds another run ({', '.join(sorted(different))} differ): choose "
            "another --runs, or move it away"
        )


def _read(path: Path, kinds: dict) -> dict:
    """A JSON file of ours. kinds: what is in it, by its name."""
    try:
        content = files.parse_json(files.read_bytes(path, SnfnpError, f"{path} is gone"))
    except ValueError as error:
        raise _damaged(path, error) from None
    for name, kind in kinds.items():
        if not isinstance(content.get(name), kind):
            raise _damaged(path, f"its {name}")
    return content


def _damaged(path: Path, why: object) -> SnfnpError:
    said = f"{path} is damaged ({str(why)[:80]}): delete it to train or evaluate again"
    return SnfnpError(said)
