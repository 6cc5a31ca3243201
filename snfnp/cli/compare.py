"""Compare runs: exact validation NLL at the same epochs, test NLL, time, and largest gaps."""

from pathlib import Path

from snfnp.cli.shared import Parser, check_file, check_range
from snfnp.training.runs import comparison

_SHOWN = 8  # epochs that the table shows at most


def main(argv: list[str], prog: str | None = None) -> None:
    parser = Parser(prog=prog, description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+", help="run folders; gaps are from the first")
    parser.add_argument("--plot", type=Path, help="a picture of NLL against epochs and seconds")
    first = "the first epoch at which the largest gap is looked for (default: 1)"
    parser.add_argument("--from-epoch", type=int, default=1, help=first)
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
    common = comparison.common_epochs(runs)
    count = min(_SHOWN, len(common))  # evenly spread, the last one among them
    epochs = [common[(i + 1) * len(common) // count - 1] for i in range(count)]
    columns = ("largest gap", "best", "test", "s/epoch")
    head = ("run", *(f"NLL at {epoch}" for epoch in epochs), *columns)
    lines = [head, ("---", *["---:"] * (len(head) - 1))]
    for run, name in zip(runs, names, strict=True):
        gap = comparison.largest_gap(run, runs[0], start) if run is not runs[0] else None
        best, last = min(run.nll, key=run.nll.__getitem__), run.metrics[-1]
        part = f"{gap[1] / runs[0].nll[gap[0]]:+.3%}" if gap else ""
        cells = (
            f"`{name}`" if name else "the run",
            *(f"{run.nll[epoch]:.2f}" for epoch in epochs),
            f"{gap[1]:+.2f} nats = {part} at {gap[0]}" if gap else "-",
            f"{run.nll[best]:.2f} at {best}",
            "not done" if run.test_nll is None else f"{run.test_nll:.2f}",
            f"{last['seconds'] / last['epoch']:.1f}",
        )
        lines.append(cells)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
