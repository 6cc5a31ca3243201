"""Reproduce the paper's tables and figures: train missing runs, print ours beside the paper's.

    python scripts/reproduce.py                       # a list of what there is
    python scripts/reproduce.py table1                # a table, and its runs
    python scripts/reproduce.py page                  # publish --runs on the derivations' page
    python scripts/reproduce.py commands              # how the rows of that page are trained

It can be stopped and started again at any time. It prints tables, and writes figures and
results.json (the content of the tables, and how it was made) to the folder --runs.

    python scripts/reproduce.py table1 --rows conv-snf --epochs 1000   # one row, trained longer

replaces a shorter run of this row in results.json; `page` then replaces it on the derivations' page
(derivations/27-the-paper-reproduced.md), which also explains the tables.
"""

import argparse
import sys
from pathlib import Path

from snfnp.cli import run_script
from snfnp.errors import UsageError

ALL = "all"
PAGE = "page"
COMMANDS = "commands"


def main(argv):
    # Slow imports, here because `run_script` already watches for Ctrl-C.
    from reproduction.page import TARGETS, commands, committed, listing, publish
    from reproduction.runs import Command

    from snfnp.cli.shared import Parser
    from snfnp.files import explained
    from snfnp.ops import BACKENDS, get_ops

    words = (ALL, PAGE, COMMANDS)
    parser = Parser(
        description=__doc__,
        epilog=listing(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("target", nargs="?", metavar="TARGET", help=", ".join((*TARGETS, *words)))
    add(
        "--runs",
        type=Path,
        default=Path("runs") / "reproduction",
        help="the folder of the runs (default: %(default)s). Finished runs are not trained again, "
        "stopped ones are resumed",
    )
    add(
        "--seeds",
        type=int,
        nargs="+",
        help="seeds of every row (default: 0, or 0 to 2 by table)",
    )
    parser.number(
        "--epochs",
        "epochs of every row (default: by row, as listed below with their times; in the paper "
        "6000 for FC, 1000 for Conv. and 250 for Glow)",
    )
    parser.number(
        "--eval-every",
        "to save time, evaluate after every N-th epoch and the last one: only these can be "
        "the best epoch, or points of a curve",
        default=1,
    )
    add(
        "--rows",
        nargs="+",
        metavar="NAME",
        help="only these rows of the target, by the names of their folders (conv-snf), trained in "
        "this order, and shown with those in results.json. The paper's large Glows are trained "
        "only if they are named",
    )
    add(
        "--backend",
        choices=BACKENDS,
        default="numba",
        help="the backend (default: numba)",
    )
    add("--data-dir", type=Path, help="folder with the data sets' files")
    args = parser.parse_args(argv)
    if args.target is None:
        print(listing())
        print(f"{ALL}: all of these\n{PAGE}: publish --runs on the derivations' page")
        print(f"{COMMANDS}: those that train the rows of that page")
        return
    wanted = {name: own for name, own in TARGETS.items() if args.target in (name, ALL)}
    if not wanted and args.target not in words:
        choices = ", ".join((*TARGETS, *words))
        raise UsageError(f"there is no {args.target}: choose from {choices}")
    rows = {name: {row.name for row in own.rows} for name, own in wanted.items()}
    known = sorted(set().union(*rows.values()))
    effective = {"target", "runs"} | ({"backend"} if wanted else set())
    for name, value in vars(args).items() if not known else ():
        if name not in effective and value != parser.get_default(name):
            option = f"--{name.replace('_', '-')}"
            raise UsageError(f"{option} has no effect on {args.target}: leave it out")
    if args.target == COMMANDS:
        print(commands(committed()))
        return
    if not wanted:
        print(*publish(args.runs), sep="\n")
        return
    for row in set(args.rows or ()).difference(known):
        raise UsageError(f"there is no row {row} here: choose from {', '.join(known)}")
    if args.rows:
        wanted = {
            name: own for name, own in wanted.items() if set(args.rows) & rows[name]
        }
    seeds = args.seeds or [0]
    if min(seeds) < 0 or max(seeds) >= 2**63 or len(set(seeds)) < len(seeds):
        raise UsageError("--seeds must be different whole numbers from 0 to 2**63 - 1")
    with explained(f"make {args.runs}", "choose another --runs", UsageError):
        args.runs.mkdir(parents=True, exist_ok=True)
    options = (args.seeds, args.epochs, args.data_dir, args.rows, args.eval_every)
    _reproduce(Command(args.runs, get_ops(args.backend), *options), wanted, TARGETS)


def _reproduce(command, wanted: dict, order) -> None:
    from reproduction import results
    from reproduction.runs import outcome, perform

    plans = {name: target.plan(command) for name, target in wanted.items()}
    runs = {run.folder: run for plan in plans.values() for run in plan}
    if runs and set(command.seeds or ()) - {run.seed for run in runs.values()}:
        raise UsageError("--seeds: a figure shows one run for each row: name one seed")
    file = command.runs / results.NAME
    results.read(file)  # errors in it, or in a run, come before any training
    found = {folder: outcome(run, command) for folder, run in runs.items()}
    for name, target in wanted.items():
        if target.rows and not plans[name]:  # without images, or too large for a CPU
            rows = ", ".join(row.name for row in target.rows)
            print(
                f"{name}: nothing to train: name rows with --rows ({rows})",
                file=sys.stderr,
            )
            continue
        for run in plans[name]:
            if found[run.folder] is None:
                left = sum(own is None for own in found.values())
                text = f"{run.folder.name}, to epoch {run.epochs:,}; runs left: {left}"
                print(text, file=sys.stderr, flush=True)
                perform(run, command)
                found[run.folder] = outcome(run, command)
        record = target.collect(command, plans[name], found)
        if command.rows:
            record = results.merged(target, results.read(file).get(name), record)
        results.write(file, {name: record}, order)
        picture = command.runs / f"{name}{target.suffix}"
        picture.unlink(missing_ok=True)  # there may be nothing to draw now
        target.draw(record, picture)
        print(f"**{target.title}**\n\n{target.show(record)}\n", flush=True)
        if picture.exists():
            print(f"Picture: {picture}\n", flush=True)


if __name__ == "__main__":
    run_script(main)
