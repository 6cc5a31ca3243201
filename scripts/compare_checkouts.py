"""Train a few steps in two checkouts with the same seed and compare every number they write.

For a restructuring that must not change a number: every preset, gradient rule and option that
enters the arithmetic runs in this checkout and in another one, by their own command lines only
(nothing of either is imported here), and these are compared:

parameters, Adam m, Adam v   of the best and the last checkpoint; the moments contain the gradients
metrics                      metrics.jsonl, summary.json and the checkpoints' step, λ and seed
reports                      the exact ledger by evaluate.py, and the angles by angle.py
samples                      the picture of samples through the learned and the exact inverses

"=" is bit-equal. Otherwise a cell holds the largest difference, relative to the largest entry of
the array (of the number, in metrics and reports); "inf" is a shape, a name or a word that differs.
Exit status 1 where anything differs, or differs by more than --rtol.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from run_differences import COLUMNS, compare_runs

ROOT = Path(__file__).resolve().parents[1]
_NAME_WIDTH, _CELL_WIDTH = 26, 12


@dataclass(frozen=True)
class Configuration:
    """One run: a training script, its options, and what is done with the run afterwards.

    resume: the other checkout's run of `--epochs 1` is continued to two epochs by each checkout,
    which proves that old run folders open. angle: whether angle.py has something to report.
    """

    name: str
    options: str
    script: str = "train_mnist.py"
    resume: bool = False
    angle: bool = False


def _configurations() -> tuple[Configuration, ...]:
    fc = "--model fc --batch-size 1000 --epochs 2 --warmup-epochs 1"
    conv = "--model conv --batch-size 1667 --epochs 1 --warmup-epochs 1"
    nine = "--batch-size 1667 --epochs 1 --warmup-epochs 1 --model"
    glow = "--model glow --depth 2 --width 8 --batch-size 1667 --epochs 1 --warmup-epochs 1"
    small = "--data patches --depth 1 --width 8 --batch-size 1900 --epochs 1"
    exact, relative = "--gradient exact", "--gradient relative --relative-bias"
    cifar, imagenet = "train_cifar10.py", "train_imagenet32.py"
    return (
        Configuration("fc", fc, angle=True),
        Configuration("fc-forward", f"{fc} --objective forward"),
        Configuration("fc-probe", f"{fc} --gradient probe"),
        Configuration("fc-recipe", f"{fc} --recipe least-squares"),
        Configuration("fc-variational", f"{fc} --objective variational"),
        Configuration("fc-jvp", f"{fc} --jvp-weight 0.2"),
        Configuration("fc-control", f"{fc} --lambda-control geco"),
        Configuration("fc-exact", f"{fc} {exact}"),
        Configuration("fc-relative-plain", f"{fc} {relative} plain"),
        Configuration("fc-relative-gresele", f"{fc} {relative} gresele"),
        Configuration("fc-relative-full", f"{fc} {relative} full"),
        Configuration("fc-lambda", f"{fc} --lambda 30 --lr 0.001 --seed 5"),
        Configuration("fc-clip-norm", f"{fc} --clip-norm 10"),
        Configuration("fc-identity", f"{fc} --init identity"),
        Configuration("fc-float64", f"{fc} --dtype float64"),
        Configuration("fc-no-shuffle", f"{fc} --no-shuffle"),
        Configuration("fc-augment", f"{fc} --augment"),
        Configuration("fc-resume", fc, resume=True),
        Configuration("conv", conv, angle=True),
        Configuration("conv-forward", f"{conv} --objective forward"),
        Configuration("conv-probe", f"{conv} --gradient probe"),
        Configuration("conv-recipe", f"{conv} --recipe least-squares"),
        Configuration("conv-exact", f"{conv} {exact}"),
        Configuration("conv-exact-dense", f"{conv} {exact}-dense"),
        Configuration("conv-inverse-kernel", f"{conv} --inverse-kernel 5", angle=True),
        Configuration("conv-inverse-depth", f"{conv} --inverse-depth 2", angle=True),
        Configuration("conv-recompute", f"{conv} --recompute"),
        Configuration("conv-identity", f"{conv} --init identity"),
        Configuration("conv-float64", f"{conv} --dtype float64 --clip-norm 100"),
        Configuration("emerging", f"{nine} emerging"),
        Configuration("emerging-recompute", f"{nine} emerging --recompute --init identity"),
        Configuration("conv-exponential", f"{nine} conv-exponential"),
        Configuration("glow", glow, angle=True),
        Configuration("glow-forward", f"{glow} --objective forward"),
        Configuration("glow-exact", f"{glow} {exact}"),
        Configuration("glow-recompute", f"{glow} --recompute"),
        Configuration("glow-identity", f"{glow} --init identity"),
        Configuration("glow-kernel-5", f"{glow} --kernel 5 --levels 1"),
        Configuration("glow-float64", f"{glow} --dtype float64"),
        Configuration("glow-recompute-float64", f"{glow} --recompute --dtype float64"),
        Configuration("glow-resume", glow, resume=True),
        Configuration("glow-2l-4k", f"--model glow-2l-4k {small}", cifar),
        Configuration("glow-3l-32k", f"--model glow-3l-32k {small} --augment", cifar),
        Configuration("glow-3l-32k-exact", f"--model glow-3l-32k {small} {exact}", cifar),
        Configuration("glow-3l-48k", f"--model glow-3l-48k {small} --clip-norm 100", imagenet),
    )


CONFIGURATIONS = _configurations()


class FailedError(Exception):
    """A command of a checkout failed; the message is its last line."""


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("other", type=Path, help="the checkout to compare with this one")
    parser.add_argument(
        "--backend", default="numpy,numba", help="one or several (default: numpy,numba)"
    )
    parser.add_argument(
        "--only",
        default="*",
        metavar="NAME",
        help="configurations: names or patterns, separated by commas (default: all): "
        + ", ".join(entry.name for entry in CONFIGURATIONS),
    )
    parser.add_argument(
        "--rtol", type=float, default=0.0, help="difference that is allowed (default: 0, bit-equal)"
    )
    parser.add_argument(
        "--keep",
        type=Path,
        metavar="FOLDER",
        help="keep the other checkout's runs here and use those that are here already: right "
        "as long as that checkout does not change",
    )
    args = parser.parse_args(argv)
    chosen = choose(args.only)
    if not chosen:
        parser.error(f"--only {args.only} is no configuration")
    checkouts = ROOT, args.other.resolve()
    for checkout in checkouts:
        _check(parser, checkout)

    backends = args.backend.split(",")
    print(
        f"this checkout {ROOT}\nother checkout {checkouts[1]}\n\n{_row('', '', COLUMNS)}  seconds"
    )
    different = []
    for entry in chosen:
        for backend in backends:
            if not _compare(entry, backend, checkouts, args.rtol, args.keep):
                different.append(f"{entry.name} ({backend})")
    count = len(chosen) * len(backends)
    allowed = f"equal to {args.rtol:g}" if args.rtol else "bit-equal"
    print(f"\n{count - len(different)} of {count} {allowed}", end="")
    print(f"; different: {', '.join(different)}" if different else "")
    return 1 if different else 0


def choose(only: str) -> list[Configuration]:
    """The configurations that one of the patterns names, in their order."""
    patterns = only.split(",")
    return [e for e in CONFIGURATIONS if any(fnmatchcase(e.name, p) for p in patterns)]


def _check(parser, checkout: Path) -> None:
    """Refuse a folder whose own code would not be what runs."""
    code = "import pathlib, snfnp; print(pathlib.Path(snfnp.__file__).resolve().parents[1])"
    try:
        found = _run(checkout, "-c", code).strip()
    except (FailedError, OSError) as error:
        parser.error(f"{checkout} is no checkout of snfnp ({error})")
    if found != str(checkout):
        parser.error(f"in {checkout} the package comes from {found}")


def _compare(entry: Configuration, backend: str, checkouts, rtol: float, keep: Path | None) -> bool:
    """Run one configuration in both checkouts, print its row; whether nothing differs."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as temporary:
        this, other = Path(temporary, "this"), Path(temporary, "other")
        if keep:
            other = keep.resolve() / f"{entry.name}-{backend}"
        try:
            done = other / "done"
            if not (done.exists() and done.read_text() == repr(entry)):
                shutil.rmtree(other, ignore_errors=True)
                _train(checkouts[1], entry, backend, other)
                done.write_text(repr(entry))
            _train(checkouts[0], entry, backend, this, other / "begun")
        except FailedError as error:
            print(f"{_row(entry.name, backend, ())} failed: {error}", flush=True)
            return False
        found = compare_runs(this, other, loose=rtol > 0)
    worst = {column: max(found[column].values(), default=0.0) for column in COLUMNS}
    cells = ["=" if value == 0 else f"{value:.1e}" for value in worst.values()]
    print(f"{_row(entry.name, backend, cells)}  {time.perf_counter() - start:7.1f}", flush=True)
    for column, value in worst.items():
        if value > rtol:
            name = max(found[column], key=found[column].get)
            print(f"    {column}: {value:.1e} in {name}", flush=True)
    return all(value <= rtol for value in worst.values())


def _row(name: str, backend: str, cells) -> str:
    values = "".join(cell.rjust(_CELL_WIDTH) for cell in cells)
    return f"{name:<{_NAME_WIDTH}}{backend:<6}{values}"


# ---------------------------------------------------------------- running a checkout


def _train(
    checkout: Path, entry: Configuration, backend: str, folder: Path, begun: Path | None = None
) -> None:
    """Train, and write the reports, into `folder`: run/ and *.txt.

    A run to be resumed is trained for one epoch into `folder`/begun, unless `begun` is given, the
    other checkout's.
    """
    folder.mkdir(parents=True)
    run, script = folder / "run", f"scripts/{entry.script}"
    options = [*entry.options.split(), "--backend", backend]
    if entry.resume:
        if begun is None:
            begun = folder / "begun"
            _run(checkout, script, *options, "--epochs", "1", "--out", str(begun))
        shutil.copytree(begun, run)
        options = ["--resume", "--epochs", "2", "--backend", backend]
    _run(checkout, script, *options, "--out", str(run))
    _report(checkout, folder, "evaluate", "--split", "validation", "--seed", "1")
    if entry.angle:
        _report(checkout, folder, "angle", "--images", "500")


def _report(checkout: Path, folder: Path, name: str, *options: str) -> None:
    text = _run(checkout, f"scripts/{name}.py", str(folder / "run"), *options)
    (folder / f"{name}.txt").write_text(text)


def _run(checkout: Path, *arguments: str) -> str:
    """Standard output of Python in a checkout, offline: MNIST is the sample that ships."""
    kept = {name: value for name, value in os.environ.items() if name != "SNFNP_DATA_DIR"}
    with tempfile.TemporaryDirectory() as empty:
        environment = {
            **kept,
            "PYTHONPATH": str(checkout),
            "SNFNP_OFFLINE": "1",
            "XDG_CACHE_HOME": empty,
        }
        command = [sys.executable, *arguments]
        done = subprocess.run(
            command, cwd=checkout, env=environment, capture_output=True, text=True
        )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise FailedError(f"{checkout}: {lines[-1]}")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
