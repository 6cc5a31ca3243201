"""Compare runs: exact validation NLL at common epochs, best and test NLL, time, largest gaps."""

import math
from pathlib import Path

from snfnp.cli.shared import Parser, add_trust, check_file
from snfnp.errors import printable
from snfnp.training.runs import comparison

_SHOWN = 8  # epochs in the table at most


def main(argv: list[str], prog: str | None = None) -> None:
    parser = Parser(prog=prog, description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+", help="run folders; gaps are to the first")
    parser.add_argument("--plot", type=Path, help="draw NLL against epochs and seconds here")
    parser.number("--from-epoch", "ignore gaps before this epoch", 1)
    add_trust(parser)
    args = parser.parse_args(argv)
    if args.plot:
        from snfnp.training import plots  # Matplotlib takes a second to import

        check_file(args.plot, "plot", plots.SUFFIXES)

    runs = comparison.open_runs(args.runs, args.trust)
    names = comparison.labels(runs)
    print(_table(runs, names, args.from_epoch))
    if args.plot:
        lines = {
            name: {key: [record[key] for record in run.metrics] for key in plots.COMPARED}
            for name, run in zip(names, runs, strict=True)
        }
        plots.save_comparison(args.plot, lines, "exact validation NLL (nats)")
        print(printable(f"picture: {args.plot}"))


def _table(runs, names, start) -> str:
    """A Markdown table, a row for each run."""
    epochs = comparison.common_epochs([run.nll for run in runs], _SHOWN)
    columns = ("largest gap", "best", "test", "s/epoch")
    head = ("run", *(f"NLL at {epoch}" for epoch in epochs), *columns)
    lines = [head, ("---", *["---:"] * (len(head) - 1))]
    for run, name in zip(runs, names, strict=True):
        gap = comparison.largest_gap(run, runs[0], start) if run is not runs[0] else None
        best, last = min(run.nll, key=run.nll.__getitem__), run.metrics[-1]
        shown = "-"
        if gap:
            part = gap[1] / (runs[0].nll[gap[0]] or math.inf)
            shown = f"{_short(gap[1], '+.2f')} nats = {_short(100 * part, '+.3f')}% at {gap[0]}"
        own = (f"`{printable(name)}`", *(_short(run.nll[epoch]) for epoch in epochs))
        test = "not done" if run.test_nll is None else _short(run.test_nll)
        speed = _short(last["seconds"] / last["epoch"], ".1f")
        lines.append((*own, shown, f"{_short(run.nll[best])} at {best}", test, speed))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _short(number: float, form: str = ".2f") -> str:
    """A number in this form, or with an exponent where it would be too long for a table."""
    return f"{number:{form if abs(number) < 1e9 else '.3g'}}"
