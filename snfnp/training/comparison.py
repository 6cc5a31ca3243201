"""Several runs beside each other: what each of them reached, and how far it is from the first."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from snfnp.errors import UsageError
from snfnp.training.config import TrainConfig
from snfnp.training.files import parse_json, read_bytes
from snfnp.training.options import flag_of, options_of
from snfnp.training.run import RunFolder

# Options that say how long a run is and what computes it: no name for what it does.
_UNNAMED = ("epochs", "eval_every", "checkpoint_every", "backend", "graph", "overlap")
_UNNAMED += ("data_dir", "out", "tensorboard")


@dataclass(frozen=True)
class ComparedRun:
    """What a run folder tells without its checkpoints.

    folder: its files; record: its config.json; metrics: a record per exact evaluation.
    """

    folder: RunFolder
    record: dict
    metrics: list[dict]

    @classmethod
    def open(cls, path: Path) -> ComparedRun:
        """Raises UsageError where there is no run, or none that was evaluated yet."""
        folder, record = RunFolder.open(path)
        metrics = folder.read_metrics()
        if not metrics:
            raise UsageError(f"{path} has no evaluation yet: let it train for an epoch")
        return cls(folder, record, metrics)

    @cached_property
    def config(self) -> TrainConfig:
        return TrainConfig.from_dict(self.record["config"]).filled()

    @property
    def data(self) -> tuple:
        """What two runs must have in common for their likelihoods to be compared."""
        images, shape = self.folder.data(self.record)
        return self.config.data, tuple(images), shape

    @cached_property
    def nll(self) -> dict[int, float]:
        """{epoch: exact validation NLL in nats}."""
        return {record["epoch"]: record["validation_nll_nats"] for record in self.metrics}

    @property
    def best(self) -> dict:
        """The record of the best evaluation."""
        return min(self.metrics, key=lambda record: record["validation_nll_nats"])

    @property
    def seconds_per_epoch(self) -> float:
        """Training alone, averaged over all epochs so far."""
        return self.metrics[-1]["seconds"] / self.metrics[-1]["epoch"]

    @property
    def test(self) -> dict | None:
        """The summary with the test likelihood at the best epoch; None: the run is not done."""
        if not self.folder.summary_file.exists():
            return None
        return parse_json(read_bytes(self.folder.summary_file, UsageError, "the summary is gone"))


def open_runs(paths: list[Path]) -> list[ComparedRun]:
    """The runs in these folders. Raises UsageError where they are not of the same images."""
    runs = [ComparedRun.open(path) for path in paths]
    for run, path in zip(runs[1:], paths[1:], strict=True):
        if run.data != runs[0].data:
            raise UsageError(
                f"{path} was trained on other images than {paths[0]}: their likelihoods cannot be "
                "compared"
            )
    return runs


def labels(runs: list[ComparedRun]) -> list[str]:
    """For each run the options by which it differs from others, as on the command line; of
    different models without what each preset says.

    Runs that differ in nothing get the names of their folders.
    """
    found = [[] for _ in runs]
    models = {run.config.model for run in runs}
    for entry, about in options_of(TrainConfig):
        values = [getattr(run.config, entry.name) for run in runs]
        if entry.name in _UNNAMED or len({repr(value) for value in values}) == 1:
            continue
        for run, value, parts in zip(runs, values, found, strict=True):
            of_preset = len(models) > 1 and value == about.fill(run.config)
            if value is not None and not of_preset:
                parts.append(_as_typed(entry, value))
    found = [" ".join(parts) for parts in found]
    if len(set(found)) < len(found):
        return [str(run.folder.path) for run in runs]
    return found


def _as_typed(entry, value) -> str:
    flag = flag_of(entry, value)
    if isinstance(value, bool):
        return flag
    return f"{flag} {value:g}" if isinstance(value, float) else f"{flag} {value}"


def common_epochs(runs: list[ComparedRun]) -> list[int]:
    """The epochs after which every run was evaluated."""
    return sorted(set.intersection(*(set(run.nll) for run in runs)))


def largest_gap(run: ComparedRun, first: ComparedRun, start: int) -> tuple[int, float] | None:
    """(epoch, difference in nats from `first`) where the difference is largest in size, over
    the evaluations of both from epoch `start` on; None: there are none."""
    gaps = {epoch: run.nll[epoch] - first.nll[epoch] for epoch in common_epochs([run, first])}
    later = [epoch for epoch in gaps if epoch >= start]
    if not later:
        return None
    worst = max(later, key=lambda epoch: abs(gaps[epoch]))
    return worst, gaps[worst]
