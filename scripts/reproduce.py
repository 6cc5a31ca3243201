"""Reproduce the paper's tables and figures: train what is missing, print ours beside the paper's.

    python scripts/reproduce.py                       # a list of what there is
    python scripts/reproduce.py table1 --scale hour   # a table, its runs, and a picture
    python scripts/reproduce.py all --scale smoke     # everything, with models of no use
    python scripts/reproduce.py page                  # what is in --runs, to the derivations' page

It can be stopped and started again at any time. Tables are printed; results.json, with all that is
in them and how it was made, and the pictures are in the folder --runs.

    python scripts/reproduce.py table1 --rows conv-snf --epochs 1000   # one row, trained longer

puts this row in the place of a shorter one in results.json, and `page` on the derivations' page.
"""

import argparse
from pathlib import Path

from snfnp.cli import run_script
from snfnp.errors import UsageError

ALL, PAGE = "all", "page"
_OF_ALL = {"target", "scale", "runs", "backend"}  # other options have none on what is measured


def main(argv):
    # Here, where `run_script` already watches for Ctrl-C: these imports take their time.
    from reproduction.page import publish
    from reproduction.targets import TARGETS

    from snfnp.cli.shared import check_range

    parser = _parser(TARGETS)
    args = parser.parse_args(argv)
    if args.target is None:
        for name, target in TARGETS.items():
            print(f"{name}: {target.title}")
        print(f"{ALL}: all of these\n{PAGE}: what is in --runs, to the derivations' page")
        return
    if args.target == PAGE:
        _refuse_idle(args, parser, {"target", "runs"})
        print(*publish(args.runs), sep="\n")
        return
    if args.target not in (*TARGETS, ALL):
        choices = f"{', '.join(TARGETS)}, {ALL} or {PAGE}"
        raise UsageError(f"there is no {args.target}: choose from {choices}")
    wanted = {name: own for name, own in TARGETS.items() if args.target in (name, ALL)}
    names = {name: target.names(args.scale) for name, target in wanted.items()}
    known = dict.fromkeys(row for own in names.values() for row in own)
    if not known:
        _refuse_idle(args, parser, _OF_ALL)
    if args.rows:
        for row in args.rows:
            if row not in known:
                raise UsageError(f"there is no row {row} here: choose from {', '.join(known)}")
        wanted = {name: own for name, own in wanted.items() if set(args.rows) & set(names[name])}
    for name in ["eval_every"] + ["epochs"] * (args.epochs is not None):
        check_range(args, name, 1)
    seeds = args.seeds or [0]
    if min(seeds) < 0 or max(seeds) >= 2**63:
        raise UsageError("--seeds must be whole numbers from 0 to 2**63 - 1")
    if len(set(seeds)) < len(seeds):
        raise UsageError("--seeds names a seed twice: leave one out")
    _reproduce(args, wanted, list(TARGETS))


def _reproduce(args, wanted: dict, order: list[str]) -> None:
    from reproduction import results
    from reproduction.runs import Command, Training

    from snfnp.ops import get_ops

    rows = args.rows and tuple(dict.fromkeys(args.rows))
    options = (args.seeds, args.epochs, args.data_dir, rows, args.eval_every)
    command = Command(args.scale, args.runs, get_ops(args.backend), *options)
    try:
        command.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        why = f"cannot make {command.folder} ({error.strerror})"
        raise UsageError(f"{why}: choose another --runs") from None
    command.dataset("mnist")  # what is wrong with it is said before anything else
    runs = [run for target in wanted.values() for run in target.plan(command)]
    if runs and set(args.seeds or ()) - {run.seed for run in runs}:  # a figure is of one run
        raise UsageError(f"--seeds has seeds without effect on {args.target}: name one alone")
    file = command.folder / results.NAME
    results.read(file)  # damage in it, too, is said before
    training = Training(runs, command)
    for number, (name, target) in enumerate(wanted.items()):
        outcomes = training.outcomes(target.plan(command))
        record = target.collect(command, outcomes)
        if not results.parts(record):
            print(f"{name}: no row has its images, and nothing of it is written")
            continue
        if args.rows:
            record = results.merged(target, results.read(file).get(name), record)
        results.write(file, {name: record}, order)
        picture = command.folder / f"{name}{target.suffix}"
        picture.unlink(missing_ok=True)  # there may be nothing to draw any more
        target.draw(record, picture)
        print(("\n" if number else "") + target.show(record))
        if picture.exists():
            print(f"* Picture: {picture}", flush=True)


def _parser(targets: dict):
    from reproduction.runs import SCALES

    from snfnp.cli.shared import Parser
    from snfnp.ops import BACKENDS

    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("target", nargs="?", metavar="TARGET", help=f"{', '.join(targets)}, {ALL} or {PAGE}")
    scale = "smoke: one epoch of a few small images; hour: what two cores do in about an hour for "
    scale += "each target; paper: the paper's epochs, three seeds (default: hour)"
    add("--scale", choices=SCALES, default="hour", help=scale)
    kept = "where the runs are, or will be (default: %(default)s). What is there is not trained "
    kept += "again, what was stopped is gone on with"
    add("--runs", type=Path, default=Path("runs") / "reproduction", help=kept)
    seeds = "seeds of every row (default: 0, or 0 to 2 by table)"
    add("--seeds", type=int, nargs="+", help=seeds)
    add("--epochs", type=int, help="train every row so long (default: by scale and row)")
    every = "evaluate exactly after every N-th epoch and the last one, which takes less time: the "
    every += "best epoch, and the points of curves, are among these (default: 1)"
    add("--eval-every", type=int, default=1, metavar="N", help=every)
    rows = "these rows of the target only, by the names of their folders (conv-snf), in this order "
    rows += "in each target, with those that are in results.json: a way to train some longer"
    add("--rows", nargs="+", metavar="NAME", help=rows)
    add("--backend", choices=BACKENDS, default="numba", help="what computes (default: numba)")
    add("--data-dir", type=Path, help="folder with the data sets' files")
    return parser


def _refuse_idle(args, parser, effective: set[str]) -> None:
    for name, value in vars(args).items():
        if name not in effective and value != parser.get_default(name):
            option = f"--{name.replace('_', '-')}"
            raise UsageError(f"{option} has no effect on {args.target}: leave it out")


if __name__ == "__main__":
    run_script(main)
