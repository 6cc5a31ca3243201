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
from contextlib import closing
from pathlib import Path

from snfnp.cli import run_script
from snfnp.errors import UsageError

ALL, PAGE = "all", "page"
# Options that have an effect on the page, on all targets, on those that are trained, and on those
# that are measured.
_OF_PAGE = {"target", "runs"}
_OF_ALL = _OF_PAGE | {"scale", "backend"}
_OF_TRAINED = {"seeds", "epochs", "eval_every", "rows", "processes", "data_dir"}
_OF_MEASURED = {"measure_again"}


def main(argv):
    # Here, where `run_script` already watches for Ctrl-C: these imports take their time.
    from reproduction import results
    from reproduction.joining import joined, kept
    from reproduction.page import publish, read
    from reproduction.setting import SCALES, Setting
    from reproduction.targets import TARGETS
    from reproduction.training import Training

    from snfnp.cli import processes
    from snfnp.cli.shared import Parser, check_range
    from snfnp.ops import BACKENDS, get_ops

    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "target", nargs="?", metavar="TARGET", help=f"{', '.join(TARGETS)}, {ALL} or {PAGE}"
    )
    parser.add_argument(
        "--scale",
        choices=SCALES,
        default="hour",
        help="smoke: one epoch of a few small images, to see that everything runs; hour: what two "
        "cores do in about an hour for each target; paper: the paper's epochs, three seeds "
        "(default: hour)",
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
        "--epochs", type=int, help="train every row so long (default: by scale and row)"
    )
    parser.add_argument(
        "--eval-every",
        type=int,
        default=1,
        metavar="N",
        help="evaluate exactly after every N-th epoch, and after the last one: what is trained "
        "then takes less time, has its best epoch among these, and its curve only their points "
        "(default: 1)",
    )
    parser.add_argument(
        "--rows",
        nargs="+",
        metavar="NAME",
        help="these rows of the target only, by the names of their folders (conv-snf), in this "
        "order in each target, with those that are in results.json: a way to train some longer",
    )
    parser.add_argument(
        "--backend", choices=BACKENDS, default="numba", help="what computes (default: numba)"
    )
    parser.add_argument(
        processes.OPTION,
        type=int,
        default=1,
        metavar="N",
        help="train every run in so many processes, which share its batches: mpiexec starts them "
        "(default: 1)",
    )
    parser.add_argument("--data-dir", type=Path, help="folder with the data sets' files")
    parser.add_argument(
        "--measure-again", action="store_true", help="also times that were measured before"
    )
    args = parser.parse_args(argv)
    if args.target is None:
        for name, target in TARGETS.items():
            print(f"{name}: {target.title}")
        print(f"{ALL}: all of these")
        print(f"{PAGE}: what is in --runs, to the derivations' page")
        return
    if args.target not in (*TARGETS, ALL, PAGE):
        choices = f"{', '.join(TARGETS)}, {ALL} or {PAGE}"
        raise UsageError(f"there is no {args.target}: choose from {choices}")
    if args.target == PAGE:
        _refuse_idle(args, parser, _OF_PAGE, "the page")
        print(*publish(args.runs), sep="\n")
        return
    if args.epochs is not None:
        check_range(args, "--epochs", 1)
    check_range(args, "--eval-every", 1)
    _check_seeds(args.seeds)
    wanted = TARGETS if args.target == ALL else {args.target: TARGETS[args.target]}
    _refuse_idle(args, parser, _effective(wanted, args.scale), args.target)
    if args.rows:
        wanted = _with_rows(args.rows, wanted, args.scale)
        _refuse_idle(args, parser, _effective(wanted, args.scale), ", ".join(wanted))
    with processes.process_group() as world:
        processes.start(args.processes, argv, world)
        ops = get_ops(args.backend, world=world)
        rows = tuple(dict.fromkeys(args.rows)) if args.rows else None
        options = (args.seeds, args.epochs, args.data_dir, args.measure_again, rows, world)
        options += (args.eval_every,)
        setting = Setting(args.scale, args.runs, ops, *options)
        _make(setting.folder)
        setting.dataset("mnist")  # what is wrong with it is said before anything else
        runs = [run for target in wanted.values() for run in target.plan(setting)]
        _refuse_idle_seeds(args, runs)
        file = setting.folder / results.NAME
        world.on_rank_zero(lambda: read(file))  # damage in it, too
        with closing(Training(runs, setting)) as training:
            for number, (name, target) in enumerate(wanted.items()):
                found = training.results(target.plan(setting))
                if world.rank:
                    continue
                record = target.collect(setting, found)
                training.clear_line()
                if not results.parts(record):
                    print(f"{name}: no row has its images, and nothing of it is written")
                    continue
                picture = setting.folder / f"{name}{target.suffix}"
                known, new = read(file).get(name) if rows else None, record
                record = joined(target, known, new)
                if record is known:
                    print(kept(name, known, new, file))
                else:
                    results.write(file, {name: record}, list(TARGETS))
                    picture.unlink(missing_ok=True)  # there may be nothing to draw any more
                    target.draw(record, picture, setting)
                print(("\n" if number else "") + target.show(record))
                if picture.exists():  # there are no samples where a run diverged
                    print(f"* Picture: {picture}", flush=True)


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"cannot make {folder} ({error.strerror}): choose another --runs"
        ) from None


def _effective(targets: dict, scale: str) -> set[str]:
    """The options that have an effect on any of these targets: what is measured has no rows."""
    trained = [bool(target.names(scale)) for target in targets.values()]
    effective = _OF_ALL | _OF_TRAINED if any(trained) else _OF_ALL
    return effective if all(trained) else effective | _OF_MEASURED


def _refuse_idle(args, parser, effective: set[str], on: str) -> None:
    for name, value in vars(args).items():
        if name not in effective and value != parser.get_default(name):
            option = f"--{name.replace('_', '-')}"
            raise UsageError(f"{option} has no effect on {on}: leave it out")


def _refuse_idle_seeds(args, runs: list) -> None:
    """A figure is made of one run of each row."""
    idle = set(args.seeds or ()) - {run.seed for run in runs}
    if runs and idle:
        raise UsageError(f"--seeds has seeds without effect on {args.target}: name one alone")


def _with_rows(names: list[str], targets: dict, scale: str) -> dict:
    """Those of the targets that have any of these rows."""
    known = dict.fromkeys(name for target in targets.values() for name in target.names(scale))
    for name in names:
        if name not in known:
            raise UsageError(f"there is no row {name} here: choose from {', '.join(known)}")
    return {
        name: target
        for name, target in targets.items()
        if not set(names).isdisjoint(target.names(scale))
    }


def _check_seeds(seeds: list[int] | None) -> None:
    if seeds is None:
        return
    if min(seeds) < 0 or max(seeds) >= 2**63:
        raise UsageError("--seeds must be whole numbers from 0 to 2**63 - 1")
    if len(set(seeds)) < len(seeds):
        raise UsageError("--seeds names a seed twice: leave one out")


if __name__ == "__main__":
    run_script(main)
