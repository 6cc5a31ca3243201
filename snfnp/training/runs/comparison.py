"""Several runs beside each other: what each of them reached, and how far it is from the first."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from snfnp.errors import SnfnpError, UsageError
from snfnp.training.files import parse_json, read_bytes
from snfnp.training.options import OPTIONS, TrainConfig
from snfnp.training.runs.folder import RunFolder

# Options that say how long a run is and what computes it: no name for what it does.
_UNNAMED = ("epochs", "eval_every", "checkpoint_every", "backend", "graph", "overlap")
_UNNAMED += ("data_dir", "out", "tensorboard")


@dataclass(frozen=True)
class ComparedRun:
    """A run as its folder describes it, without its checkpoints.

    folder: its files; record: its config.json; metrics: a record per exact evaluation.
    """

    folder: RunFolder
    record: dict
    metrics: list[dict]

    @classmethod
    def open(cls, path: Path) -> ComparedRun:
        """The run in a folder. Raises UsageError if there is none, or none evaluated yet."""
        folder, record = RunFolder.open(path)
        metrics = folder.read_metrics()
        if not metrics:
            raise UsageError(f"{path} has no evaluation yet: let it train for an epoch")
        return cls(folder, record, metrics)

    @cached_property
    def config(self) -> TrainConfig:
        """Its configuration, with the defaults of its preset filled in."""
        return TrainConfig.from_dict(self.record["config"]).filled()

    @property
    def data(self) -> tuple:
        """The data that two runs must have in common for their likelihoods to be compared."""
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
        """The seconds of training alone, averaged over all epochs so far."""
        return self.metrics[-1]["seconds"] / self.metrics[-1]["epoch"]

    @cached_property
    def test_nll(self) -> float | None:
        """The test NLL at the best epoch; None: the run is not done."""
        path = self.folder.summary_file
        if not path.exists():
            return None
        try:
            summary = parse_json(read_bytes(path, UsageError, f"{path} is gone"))
            return float(summary["test_nll_nats"])
        except (KeyError, TypeError, ValueError, OverflowError):
            raise SnfnpError(f"{path} is damaged: restore it, or delete it") from None


def open_runs(paths: list[Path]) -> list[ComparedRun]:
    """The runs in these folders. Raises UsageError if they are not of the same images."""
    runs = [ComparedRun.open(path) for path in paths]
    for run, path in zip(runs[1:], paths[1:], strict=True):
        if run.data != runs[0].data:
            raise UsageError(
                f"{path} was trained on other images than {paths[0]}: their likelihoods cannot be "
                "compared"
            )
    return runs


def labels(runs: list[ComparedRun]) -> list[str]:
    """The options by which each run differs from others, as on the command line; of different
    models without what each preset says.

    Runs that differ in nothing get the names of their folders.
    """
    names: list[list[str]] = [[] for _ in runs]
    models = {run.config.model for run in runs}
    for option in OPTIONS.values():
        values = [getattr(run.config, option.name) for run in runs]
        if option.name in _UNNAMED or len({repr(value) for value in values}) == 1:
            continue
        for run, value, parts in zip(runs, values, names, strict=True):
            of_preset = len(models) > 1 and value == run.config.usual(option.name)
            if value is None or of_preset:
                continue
            flag = option.flag_for(value)
            shown = f"{value:g}" if isinstance(value, float) else value
            parts.append(flag if isinstance(value, bool) else f"{flag} {shown}")
    joined = [" ".join(parts) for parts in names]
    if len(set(joined)) < len(joined):
        return [str(run.folder.path) for run in runs]
    return joined


def common_epochs(runs: list[ComparedRun]) -> list[int]:
    """The epochs after which every run was evaluated."""
    return sorted(set.intersection(*(set(run.nll) for run in runs)))


def largest_gap(run: ComparedRun, first: ComparedRun, start: int) -> tuple[int, float] | None:
    """(epoch, difference in nats from `first`) of the largest difference in size, over the
    evaluations of both from epoch `start` on; None: there are none."""
    later = [epoch for epoch in common_epochs([run, first]) if epoch >= start]
    gaps = {epoch: run.nll[epoch] - first.nll[epoch] for epoch in later}
    return max(gaps.items(), key=lambda gap: abs(gap[1]), default=None)
