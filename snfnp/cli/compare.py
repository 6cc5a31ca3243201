"""Compare runs: exact validation NLL at common epochs, best and test NLL, and time."""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from snfnp.cli.shared import Parser, check_file
from snfnp.errors import UsageError, in_flags, printable
from snfnp.files import read_json
from snfnp.training.options import OPTIONS, TrainConfig
from snfnp.training.options.user_models import title_of
from snfnp.training.runs.folder import RunFolder

_SHOWN = 8  # epochs in the table at most
# Options of a run's length and of what computes it, omitted where runs differ.
_UNNAMED = (
    "data",
    "epochs",
    "eval_every",
    "checkpoint_every",
    "backend",
    "threads",
    "graph",
    "data_dir",
    "out",
)


class ComparedRun(NamedTuple):
    """A run as its folder describes it, without its checkpoints.

    metrics: a record per exact evaluation; nll: {epoch: exact validation NLL in nats}; test_nll: at
    the best epoch, None: the run is not done.
    """

    path: Path
    config: TrainConfig
    metrics: list[dict]
    nll: dict[int, float]
    test_nll: float | None


def main(argv: list[str], prog: str | None = None) -> None:
    parser = Parser(prog=prog, description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+", help="run folders")
    parser.add_argument(
        "--plot",
        type=Path,
        metavar="PATH",
        help="draw NLL against epochs and seconds here",
    )
    args = parser.parse_args(argv)
    if args.plot:
        from snfnp.training import curves, plots  # Matplotlib takes a second to import

        check_file(args.plot, "plot", plots.SUFFIXES)

    runs = open_runs(args.runs)
    names = names_of(runs)
    options = differences(runs)
    print(_table(runs, names, options))
    if args.plot:
        lines = {}
        for run, name, changes in zip(runs, names, options, strict=True):
            lines[f"{name}: {changes}" if changes else name] = {
                key: [record[key] for record in run.metrics] for key in curves.COMPARED
            }
        curves.save_comparison(args.plot, lines)
        print(printable(f"picture: {args.plot}"))


def open_runs(paths: list[Path]) -> list[ComparedRun]:
    """The runs in these folders. Raises UsageError if one is no run or has no evaluation yet, or if
    they are not of the same data."""
    runs = []
    kinds = []  # the data of each run: likelihoods of the same data alone can be compared
    for path in paths:
        folder, record = RunFolder.open(path)
        metrics = folder.read_metrics()
        if not metrics:
            raise UsageError(
                f"{path} has no evaluation yet: let it train until there is one"
            )
        config = TrainConfig.from_dict(record["config"]).filled()
        kinds.append(folder.data(record)["sha256"])
        nll = {line["epoch"]: line["validation_nll_nats"] for line in metrics}
        test = read_json(
            folder.summary_file,
            lambda summary: float(summary["test_nll_nats"]),
            "restore it, or delete it",
        )
        runs.append(ComparedRun(path, config, metrics, nll, test))
        if kinds[-1] != kinds[0]:
            raise UsageError(
                f"{path} was trained on other data than {runs[0].path}: their likelihoods cannot "
                "be compared"
            )
    return runs


def names_of(runs: list[ComparedRun]) -> list[str]:
    """The runs' folders: the last part of each path, or all of it where two are the same."""
    names = [run.path.resolve().name for run in runs]
    if len(set(names)) < len(names):
        names = [str(run.path) for run in runs]
    return [printable(name) for name in names]


def differences(runs: list[ComparedRun]) -> list[str]:
    """The options of each run that differ between runs, as on the command line, without those
    that follow from a run's other options in every run."""
    options: list[list[str]] = [[] for _ in runs]
    for name in OPTIONS:
        values = [getattr(run.config, name) for run in runs]
        is_one = len(set(map(repr, values))) == 1
        defaults = [run.config.default_for(name) for run in runs]
        if name in _UNNAMED or is_one or values == defaults:
            continue
        for value, parts in zip(values, options, strict=True):
            if value is not None:
                value = title_of(value) if name == "model" else value
                shown = f"{value:g}" if isinstance(value, float) else value
                parts.append(in_flags(f"`{name}={shown}`"))
    return [printable(" ".join(parts)) for parts in options]


def common_epochs(runs: Iterable[Iterable[int]], most: int) -> list[int]:
    """The epochs after which every run was evaluated, given those of each run; at most `most` of
    them, evenly spread, the last one included."""
    common = sorted(set.intersection(*map(set, runs)))
    count = min(most, len(common))
    return [common[(i + 1) * len(common) // count - 1] for i in range(count)]


def _table(runs: list[ComparedRun], names: list[str], options: list[str]) -> str:
    """A Markdown table, a row for each run."""
    epochs = common_epochs([run.nll for run in runs], _SHOWN)
    figures = (*(f"NLL at {epoch}" for epoch in epochs), "best", "test", "s/epoch")
    words = ["run", "options"] if any(options) else ["run"]
    lines = [[*words, *figures], [*["---"] * len(words), *["---:"] * len(figures)]]
    for run, *about in zip(runs, names, options, strict=True):
        line = [f"`{text}`" if text else "" for text in about[: len(words)]]
        line += [_short(run.nll[epoch]) for epoch in epochs]
        best = min(run.nll, key=run.nll.__getitem__)
        last = run.metrics[-1]
        line.append(f"{_short(run.nll[best])} at {best}")
        line.append("not done" if run.test_nll is None else _short(run.test_nll))
        line.append(_short(last["seconds"] / last["epoch"], ".1f"))
        lines.append(line)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _short(number: float, form: str = ".2f") -> str:
    """A number in this form, or with an exponent where it would be too long for a table."""
    return f"{number:{form if abs(number) < 1e9 else '.3g'}}"
