"""Compare runs: exact validation NLL at the same epochs, test NLL, time, and how far apart."""

from __future__ import annotations

from pathlib import Path

from snfnp.cli.shared import Parser, check_file, check_range
from snfnp.training import comparison

_SHOWN = 8  # epochs that the table shows at most


def main(argv: list[str], prog: str | None = None) -> None:
    parser = Parser(prog=prog, description=__doc__)
    parser.add_argument(
        "runs", type=Path, nargs="+", help="run folders; gaps are from the first one"
    )
    parser.add_argument(
        "--plot", type=Path, help="draw NLL against epochs and seconds in this file"
    )
    parser.add_argument(
        "--from-epoch",
        type=int,
        default=1,
        help="where the search for the largest gap begins (default: 1)",
    )
    args = parser.parse_args(argv)
    check_range(args, "--from-epoch", 1)
    if args.plot:
        from snfnp.training import plots  # Matplotlib takes a second to import

        check_file(args.plot, "--plot", plots.SUFFIXES)

    runs = comparison.open_runs(args.runs)
    names = comparison.labels(runs)
    print(_table(runs, names, args.from_epoch))
    if args.plot:
        lines = {
            name: {key: [record[key] for record in run.metrics] for key in plots.COMPARED}
            for name, run in zip(names, runs, strict=True)
        }
        plots.save_comparison(args.plot, lines, "exact validation NLL (nats)")
        print(f"picture: {args.plot}")


def _table(runs, names, start) -> str:
    """A Markdown table, a row for each run."""
    epochs = _thinned(comparison.common_epochs(runs))
    columns = ("largest gap", "best", "test", "s/epoch")
    head = ["run", *(f"NLL at {epoch}" for epoch in epochs), *columns]
    rows = [_row(run, name, runs[0], epochs, start) for run, name in zip(runs, names, strict=True)]
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _row(run, name, first, epochs, start) -> list[str]:
    gap = comparison.largest_gap(run, first, start) if run is not first else None
    test = run.test
    return [
        f"`{name}`" if name else "the run",
        *(f"{run.nll[epoch]:.2f}" for epoch in epochs),
        f"{gap[1]:+.2f} nats = {gap[1] / first.nll[gap[0]]:+.3%} at {gap[0]}" if gap else "-",
        f"{run.best['validation_nll_nats']:.2f} at {run.best['epoch']}",
        f"{test['test_nll_nats']:.2f}" if test else "not done",
        f"{run.seconds_per_epoch:.1f}",
    ]


def _thinned(epochs: list[int]) -> list[int]:
    """At most _SHOWN of the epochs, evenly spread, the last one among them."""
    count = min(_SHOWN, len(epochs))
    return [epochs[(i + 1) * len(epochs) // count - 1] for i in range(count)]
