"""The runs behind a command's tables: planned, checked and trained."""

import math
import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from reproduction import provenance
from reproduction.rows import Row
from snfnp import files
from snfnp.data import Dataset, load_dataset
from snfnp.errors import DivergedError, SingularMatrixError, SnfnpError, UsageError
from snfnp.training.options import TrainConfig
from snfnp.training.runs.folder import RunFolder
from snfnp.training.session import resume, train

_WORSE = 1.1  # times the best validation NLL: a run that stays above is lost
# a run may be resumed with others, and is then another row
_DECISIVE = ("lr", "lam", "clip_norm")


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
        """A file that says where the run diverged, so that it is not trained again."""
        return self.folder.with_name(f"{self.folder.name}.diverged.json")

    def config(self, training_images: int, backend: str) -> TrainConfig:
        """The run's configuration: the row's options, its seed and its length."""
        return TrainConfig(
            **self.row.settings,
            seed=self.seed,
            epochs=self.epochs,
            eval_every=self.eval_every,
            backend=backend,
        ).resolve(training_images)


@dataclass(frozen=True, eq=False)
class Command:
    """The options of a `reproduce.py` command.

    runs: the folder of all runs; ops: the operations that compute; seeds, epochs: of every row,
    None: the table's; data_dir: where data sets are; rows: names of the wanted ones in the order
    in which they are trained, None: all; eval_every: epochs from one evaluation to the next.
    """

    runs: Path
    ops: object
    seeds: list[int] | None = None
    epochs: int | None = None
    data_dir: Path | None = None
    rows: list[str] | None = None
    eval_every: int = 1

    @cache  # noqa: B019 (one object lives as long as the command)
    def dataset(self, name: str) -> Dataset:
        """A data set. Raises UsageError or SnfnpError if it is missing, or only a sample."""
        dataset = load_dataset(name, self.data_dir)
        if dataset.is_sample:
            raise UsageError(
                f"found {len(dataset.train):,} training images of {name}, a sample: "
                "give the folder of all of them with --data-dir"
            )
        return dataset

    @cache  # noqa: B019
    def has_images(self, name: str) -> bool:
        """False if a data set other than MNIST is not there; the reason is printed once."""
        try:
            return bool(self.dataset(name))
        except SnfnpError as error:
            if name == "mnist":
                raise
            print(f"no rows of {name}: {error}", file=sys.stderr)
            return False

    def plan(self, rows: Iterable[Row], seeds: int) -> list[Run]:
        """The runs of the wanted rows whose images are there, in the order of training. seeds: how
        many if none were given."""
        planned = []
        for row in rows:
            wanted = bool(row.ours) if self.rows is None else row.name in self.rows
            if wanted and self.has_images(row.data):
                for seed in range(seeds) if self.seeds is None else self.seeds:
                    folder = self.runs / f"{row.name}-seed-{seed}"
                    epochs = self.epochs or row.ours
                    planned.append(
                        Run(row, seed, epochs or row.epochs, folder, self.eval_every)
                    )
        return sorted(
            planned, key=lambda run: self.rows.index(run.row.name) if self.rows else 0
        )


def outcome(run: Run, command: Command) -> dict | None:
    """The end of a run, or None before it: in results.json's words its `epochs` and

    value, best_epoch             the test NLL, in the row's unit, at the best validation epoch
    diverged_at, asked, before    the step at which it diverged (0: not known), the epochs that it
                                  was to be trained, and the monitors of the last evaluation before

    Raises UsageError if its folder holds another run, SnfnpError if it is damaged.
    """
    folder = RunFolder(run.folder)
    dataset = command.dataset(run.row.data)
    ends = (run.divergence, folder.summary_file)  # a finished run needs no checkpoint
    if not (folder.has_checkpoint() or any(file.exists() for file in ends)):
        return None
    config = folder.config()
    wanted = run.config(len(dataset.train), command.ops.name)
    different = [
        name for name in _DECISIVE if getattr(wanted, name) != getattr(config, name)
    ]
    different += wanted.incompatible_options(config)
    if config.lr_schedule != "constant" and config.epochs != wanted.epochs:
        different.append("epochs")  # its learning rate falls over all of them
    if different:
        raise UsageError(
            f"{run.folder} holds another run ({', '.join(sorted(different))} differ): "
            "choose another --runs, or move it away"
        )
    folder.check_same_data(folder.open(run.folder)[1], dataset)
    divergence = files.read_json(
        run.divergence, _divergence, "delete it to train again"
    )
    every = {"eval_every": config.eval_every} if config.eval_every > 1 else {}
    if divergence:
        step, before = divergence
        epochs = math.ceil(step / wanted.steps_per_epoch(len(dataset.train)))
        return {
            "epochs": epochs or before.get("epoch", 0),
            "asked": max(config.epochs, run.epochs),
            "diverged_at": step,
            "before": before,
            **every,
        }
    if config.epochs < run.epochs or not folder.summary_file.exists():
        return None
    figure = "test_nll_nats" if run.row.unit == "nats" else "test_bits_per_dimension"

    def best(summary: dict) -> dict:
        return {
            "value": float(summary[figure]),
            "best_epoch": int(summary["best_epoch"]),
        }

    advice = "delete it to have it made again"
    figures = files.read_json(folder.summary_file, best, advice)
    return {"epochs": config.epochs} | figures | every


def perform(run: Run, command: Command) -> None:
    """Start or resume a run, and train it to its end, or until it diverges."""
    dataset = command.dataset(run.row.data)
    folder = RunFolder(run.folder)
    config = replace(run.config(len(dataset.train), command.ops.name), out=run.folder)
    try:
        if folder.has_checkpoint():
            provenance.note(run.folder)
            resume(
                run.folder,
                dataset=dataset,
                report=_report,
                epochs=max(config.epochs, folder.config().epochs),
                eval_every=config.eval_every,
                backend=config.backend,
            )
        else:
            RunFolder.create(run.folder)
            provenance.note(run.folder)
            train(config, dataset, ops=command.ops, report=_report)
    except (DivergedError, SingularMatrixError) as error:
        metrics = folder.read_metrics()
        before = _monitors(metrics[-1]) if metrics else {}
        record = {"step": getattr(error, "step", None) or 0, "message": str(error)}
        files.write_json(run.divergence, record | {"before": before})
    except UsageError as error:  # which names the training's parameter
        raise UsageError(str(error).replace("`out`", "`runs`")) from None


def _report(text: str) -> None:
    """Print a line of a run if it says why it is slow."""
    if "cannot be recorded" in text:
        print(text, file=sys.stderr, flush=True)


def _divergence(content: dict) -> tuple[int, dict]:
    """The step (0: not known), and the monitors of the last evaluation before."""
    kinds = {"epoch": int, "rho": float}
    before = content["before"] or {}
    return int(content["step"] or 0), {
        name: kinds[name](value) for name, value in before.items()
    }


def lost(lines: list[dict]) -> dict | None:
    """The step from which a run's validation NLL stayed more than a tenth above its best to the
    end, and the monitors before; None if it did not. lines: of the run's metrics.jsonl."""
    best = math.inf
    first = None
    for number, line in enumerate(lines):
        nll = line["validation_nll_nats"]
        if nll <= _WORSE * best:
            first = None
        elif first is None:
            first = number
        best = min(best, nll)
    return first and {
        "step": lines[first]["step"],
        "before": _monitors(lines[first - 1]),
    }


def _monitors(line: dict) -> dict:
    """The epoch of an evaluation, and its layers' largest rho."""
    values = [
        layer["rho"] for layer in line.get("layers", {}).values() if "rho" in layer
    ]
    return {"epoch": line["epoch"]} | ({"rho": max(values)} if values else {})
