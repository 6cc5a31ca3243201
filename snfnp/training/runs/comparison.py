"""Several runs beside each other: what each of them reached, and how far it is from the first."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from snfnp.errors import UsageError, in_flags, printable
from snfnp.training.files import read_json
from snfnp.training.options import OPTIONS, TrainConfig
from snfnp.training.runs.folder import RunFolder

# Options of a run's length and of what computes it, omitted from labels.
_UNNAMED = ("epochs", "eval_every", "checkpoint_every", "backend", "threads", "graph", "overlap")
_UNNAMED += ("data_dir", "out", "tensorboard")


@dataclass(frozen=True)
class ComparedRun:
    """A run as its folder describes it, without its checkpoints.

    config: its options, filled in; data: what two runs must have in common for their likelihoods
    to be compared; metrics: a record per exact evaluation; nll: {epoch: exact validation NLL in
    nats}; test_nll: the test NLL at the best epoch, None: the run is not done.
    """

    path: Path
    config: TrainConfig
    data: tuple
    metrics: list[dict]
    nll: dict[int, float]
    test_nll: float | None


def _open(path: Path, trust: bool) -> ComparedRun:
    folder, record = RunFolder.open(path, trust)
    metrics = folder.read_metrics()
    if not metrics:
        raise UsageError(f"{path} has no evaluation yet: let it train for an epoch")
    config = TrainConfig.from_dict(record["config"]).filled()
    nll = {line["epoch"]: line["validation_nll_nats"] for line in metrics}
    said, advice = lambda summary: float(summary["test_nll_nats"]), "restore it, or delete it"
    test = read_json(folder.summary_file, said, advice)
    return ComparedRun(path, config, (config.data, folder.data(record)), metrics, nll, test)


def open_runs(paths: list[Path], trust: bool = False) -> list[ComparedRun]:
    """The runs in these folders; trust: see `RunFolder.open`. Raises UsageError if one is no run or
    has no evaluation yet, or if they are not of the same images."""
    first, *others = runs = [_open(path, trust) for path in paths]
    for run in others:
        if run.data != first.data:
            found = f"{run.path} was trained on other images than {first.path}"
            raise UsageError(f"{found}: their likelihoods cannot be compared")
    return runs


def labels(runs: list[ComparedRun]) -> list[str]:
    """The options by which each run differs from others, as on the command line; of different
    models without what each preset says. Runs that differ in nothing are named by their folders.
    """
    names: list[list[str]] = [[] for _ in runs]
    several = len({run.config.model for run in runs}) > 1
    for option in OPTIONS.values():
        values = [getattr(run.config, option.name) for run in runs]
        if option.name in _UNNAMED or len(set(map(repr, values))) == 1:
            continue
        for run, value, parts in zip(runs, values, names, strict=True):
            usual = (
                several and option.name != "model" and value == run.config.default_for(option.name)
            )
            if value is None or usual:
                continue
            shown = f"{value:g}" if isinstance(value, float) else value
            parts.append(in_flags(f"`{option.name}={shown}`"))
    joined = [printable(" ".join(parts)) for parts in names]
    apart = all(joined) and len(set(joined)) == len(joined)
    return joined if apart else [str(run.path) for run in runs]


def common_epochs(runs: Iterable[Iterable[int]], most: int | None = None) -> list[int]:
    """The epochs after which every run was evaluated, given those of each; if they are more than
    `most`, so many of them, evenly spread, the last one among them."""
    common = sorted(set.intersection(*map(set, runs)))
    count = min(most or len(common), len(common))
    return [common[(i + 1) * len(common) // count - 1] for i in range(count)]


def largest_gap(run: ComparedRun, first: ComparedRun, start: int) -> tuple[int, float] | None:
    """(epoch, difference in nats from `first`) of the largest difference in size, over the
    evaluations of both from epoch `start` on; None: there are none."""
    later = [epoch for epoch in common_epochs([run.nll, first.nll]) if epoch >= start]
    gaps = {epoch: run.nll[epoch] - first.nll[epoch] for epoch in later}
    return max(gaps.items(), key=lambda gap: abs(gap[1]), default=None)
