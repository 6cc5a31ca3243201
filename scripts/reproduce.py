"""Reproduce the paper's tables: train what is missing, print ours beside the paper's figures."""

import sys
from pathlib import Path

from snfnp.cli import run_script
from snfnp.errors import UsageError


def main(argv):
    # Here, where `run_script` already watches for Ctrl-C: these imports take their time.
    from reproduction.report import markdown
    from reproduction.runs import images_at, plan
    from reproduction.tables import TABLES

    from snfnp.cli.shared import Parser
    from snfnp.data import load_dataset
    from snfnp.ops import BACKENDS, get_ops

    parser = Parser(description=__doc__)
    parser.add_argument(
        "target", nargs="?", metavar="TARGET", help=f"{' or '.join(TABLES)}; without one: a list"
    )
    parser.add_argument(
        "--scale",
        choices=("smoke", "hour", "paper"),
        default="hour",
        help="smoke: one epoch of a few small images, to see that everything runs; hour: what two "
        "cores do in about an hour; paper: the paper's epochs, three seeds (default: hour)",
    )
    parser.add_argument(
        "--runs",
        type=Path,
        default=Path("runs") / "reproduction",
        help="where the runs are, or will be (default: %(default)s). What is there is not trained "
        "again, what was stopped is gone on with",
    )
    parser.add_argument(
        "--seeds", type=int, nargs="+", help="seeds of every row (default: 0, or 0 to 2 by table)"
    )
    parser.add_argument(
        "--backend", choices=BACKENDS, default="numba", help="what computes (default: numba)"
    )
    parser.add_argument("--data-dir", type=Path, help="folder with MNIST's files")
    args = parser.parse_args(argv)
    if args.target is None:
        for name, table in TABLES.items():
            print(f"{name}: {table.title} ({len(table.rows)} rows)")
        return
    if args.target not in TABLES:
        raise UsageError(f"there is no {args.target}: choose from {', '.join(TABLES)}")
    _check_seeds(args.seeds)

    table = TABLES[args.target]
    ops = get_ops(args.backend)
    dataset = images_at(args.scale, load_dataset("mnist", args.data_dir))
    runs = plan(table, args.scale, args.runs, args.seeds)
    results = {row: [] for row in table.rows}
    for run, result in _results(runs, dataset, ops):
        results[run.row].append((run.seed, result))
    print(markdown(table, args.scale, dataset, results))


def _check_seeds(seeds: list[int] | None) -> None:
    if seeds is None:
        return
    if min(seeds) < 0 or max(seeds) >= 2**63:
        raise UsageError("--seeds must be whole numbers from 0 to 2**63 - 1")
    if len(set(seeds)) < len(seeds):
        raise UsageError("--seeds names a seed twice: leave one out")


def _results(runs, dataset, ops):
    """(run, result) of every run, trained where it is not there yet. All that is there is looked at
    first, so that nothing is trained before an error."""
    from reproduction.runs import found, perform

    there = [found(run, dataset, ops.name) for run in runs]
    left = there.count(None)
    for run, result in zip(runs, there, strict=True):
        if result is None:
            # the run's own progress bar is below
            print(
                f"{run.folder.name}: {run.epochs} epochs, {left} of {len(runs)} runs left",
                file=sys.stderr,
                flush=True,
            )
            result = perform(run, dataset, ops, report=lambda text: None)
            left -= 1
        yield run, result


if __name__ == "__main__":
    run_script(main)
