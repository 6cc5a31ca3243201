"""Train a few steps in two checkouts with the same seed and compare every number they write.

Every preset, gradient rule and option that enters the arithmetic runs in this checkout and in
another one, by their own command lines only, on some images of the sample of MNIST that ships.
Compared are the arrays of the best and the last checkpoint (Adam's moments contain the gradients),
the checkpoints' step, λ and seed, metrics.jsonl and summary.json, the numbers that `snfnp evaluate`
and `snfnp angle` print, and the picture of samples through the learned and the exact inverses.

A row has the largest difference, "=" if all is bit-equal: relative to the largest entry of an array
(of a number), and "inf" for a shape or a name that differs. The arrays that differ most follow;
the exit status is then 1.
"""

import argparse
import json
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors import safe_open

from snfnp.data import load_dataset

ROOT = Path(__file__).resolve().parents[1]
# Figures that depend on the clock.
_TIMED = {"seconds", "samples_per_second", "training_seconds", "milliseconds_per_step"}
_NUMBER = re.compile(r"[-+]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?")

# Prints what each command of a list prints, run one after another in this process: most of a
# command's time is that of its imports.
_ONE_AFTER_ANOTHER = """
import contextlib, io, json, runpy, sys

outputs = []
for path, *arguments in json.loads(sys.argv[1]):
    sys.argv = [path, *arguments]
    run = runpy.run_path if path.endswith(".py") else runpy.run_module
    with contextlib.redirect_stdout(io.StringIO()) as out:
        try:
            run(path, run_name="__main__")
        except SystemExit as end:
            if end.code:
                raise
    outputs.append(out.getvalue())
print(json.dumps(outputs))
"""
# {split: every n-th image of the sample is taken}: 834 images to train on, more than a dense layer
# has columns, as whitening needs; 100 and 100.
_EVERY = {"train": 6, "validation": 10, "test": 10}
_SHORT = "--epochs 1 --warmup-epochs 1 --batch-size 278"
# (model, options of all its runs, and the runs between bars: a name, or = for the model's own, and
# options). "resume": both checkouts resume the other one's run of one epoch up to two epochs, which
# proves that old run folders open.
# fmt: skip
_RUNS = (
    (
        "fc",
        "--batch-size 166 --epochs 2 --warmup-epochs 1",
        """= | forward --objective forward | variational --objective variational
        | jvp --jvp-weight 0.2 | control --lambda-control geco | exact --gradient exact
        | relative --gradient relative
        | lambda --lambda 30 --lr 0.001 --seed 5 | clip-norm --clip-norm 10
        | identity --init identity | float64 --dtype float64 | no-shuffle --no-shuffle
        | augment --augment | white --recipe white | resume""",
    ),
    (
        "vector",
        f"{_SHORT} --epochs 2 --depth 1",
        "= | exact --gradient exact | relative --gradient relative --activation smooth-leaky-relu",
    ),
    (
        "conv",
        _SHORT,
        """= | forward --objective forward | exact --gradient exact
        | exact-dense --gradient exact-dense
        | inverse-kernel --inverse-kernel 5 | recompute --recompute | identity --init identity
        | float64 --dtype float64 --clip-norm 100 | white --recipe white --epochs 2""",
    ),
    ("emerging", _SHORT, "= | recompute --recompute --init identity"),
    ("conv-exponential", _SHORT, "="),
    (
        "glow",
        f"{_SHORT} --depth 2 --width 8",
        """= | forward --objective forward | exact --gradient exact | recompute --recompute
        | identity --init identity | kernel-5 --kernel 5 --levels 1 | float64 --dtype float64
        | recompute-float64 --recompute --dtype float64 | resume""",
    ),
    ("glow-2l-4k", f"{_SHORT} --depth 1 --width 8", "="),
    (
        "glow-3l-32k",
        f"{_SHORT} --depth 1 --width 8",
        "= --augment | exact --gradient exact",
    ),
    ("glow-3l-48k", f"{_SHORT} --depth 1 --width 8", "= --clip-norm 100"),
)
CONFIGURATIONS = {
    f"{model}-{name}".removesuffix("-="): " ".join(
        ("--model", model, options, *more_options)
    )
    for model, options, runs in _RUNS
    for name, *more_options in map(str.split, runs.split("|"))
}
_ANGLES = ("fc", "conv", "conv-inverse-kernel", "glow")  # `snfnp angle` reports
_IMAGES = "images.npz"


class FailedError(Exception):
    """A command of a checkout failed; the message is its last line."""


def main(argv: list[str]) -> int:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    add = parser.add_argument
    add("other", type=Path, help="the checkout to compare with this one")
    add(
        "--backend", default="numpy,numba", help="one or several (default: numpy,numba)"
    )
    names = "configurations: names or patterns, separated by commas (default: all): "
    add("--only", default="*", metavar="NAME", help=names + ", ".join(CONFIGURATIONS))
    args = parser.parse_args(argv)
    chosen = choose(args.only)
    checkouts = (ROOT, args.other.resolve())
    if not chosen:
        parser.error(f"--only {args.only} is no configuration")
    for checkout in checkouts:  # each has to run its own code
        code = "import pathlib, snfnp; print(pathlib.Path(snfnp.__file__).resolve().parents[1])"
        try:
            package = _python(checkout, code).strip()
        except (FailedError, OSError) as error:
            parser.error(f"{checkout} is no checkout of snfnp ({error})")
        if package != str(checkout):
            parser.error(f"in {checkout} the package comes from {package}")

    print(f"this checkout {ROOT}\nother checkout {checkouts[1]}\n")
    cases = [(name, backend) for name in chosen for backend in args.backend.split(",")]
    equal = [_compare(*case, checkouts) for case in cases]
    print(f"\n{sum(equal)} of {len(equal)} bit-equal")
    return 0 if all(equal) else 1


def choose(only: str) -> list[str]:
    """The configurations that one of the patterns names, in their order."""
    return [
        name
        for name in CONFIGURATIONS
        if any(fnmatchcase(name, p) for p in only.split(","))
    ]


def _compare(name: str, backend: str, checkouts) -> bool:
    """Run one configuration in both checkouts, and print its row; True if nothing differs."""
    start = time.perf_counter()
    row = f"{name:<26}{backend:<6}"
    with tempfile.TemporaryDirectory() as temporary:
        this = Path(temporary, "this")
        other = Path(temporary, "other")
        _write_images(Path(temporary, _IMAGES))
        try:
            _train(checkouts[1], name, backend, other)
            _train(checkouts[0], name, backend, this)
        except FailedError as error:
            print(f"{row} failed: {error}", flush=True)
            return False
        differences = compare_runs(this, other)
    differing = {name: each for name, each in differences.items() if each}
    worst = max(differing.values(), default=0.0)
    seconds = f"{time.perf_counter() - start:.1f} s"
    print(f"{row} {f'{worst:.1e}' if worst else '=':>8} {seconds:>8}", flush=True)
    for array in sorted(differing, key=differing.get, reverse=True)[:5]:
        print(f"    {differing[array]:.1e} in {array}", flush=True)
    return not differing


def _train(checkout: Path, name: str, backend: str, folder: Path) -> None:
    """Train, and write the reports, into `folder`: run/ and *.txt. A run to be resumed is trained
    for one epoch by the checkout that comes first, for both."""
    folder.mkdir(parents=True)
    run = str(folder / "run")
    train = ("scripts/train_mnist.py", "--backend", backend)
    options = [*CONFIGURATIONS[name].split(), "--data", str(folder.parent / _IMAGES)]
    if name.endswith("-resume"):
        begun = folder.parent / "begun"
        if not begun.exists():
            _run(checkout, (*train, *options, "--epochs", "1", "--out", str(begun)))
        shutil.copytree(begun, run)
        options = ["--resume", "--epochs", "2"]
    split = ("--split", "validation", "--seed", "1")
    reports = {"evaluate": ("snfnp", "evaluate", run, *split)}
    if name in _ANGLES:
        reports["angle"] = ("snfnp", "angle", run, "--images", "100")
    # what training prints has the time that was taken
    commands = ((*train, *options, "--out", run), *reports.values())
    _, *outputs = _run(checkout, *commands)
    for report, output in zip(reports, outputs, strict=True):
        (folder / f"{report}.txt").write_text(output, encoding="utf-8")


def _run(checkout: Path, *commands: tuple[str, ...]) -> list[str]:
    """Standard output of each command (a script or module, and arguments) of a checkout."""
    return json.loads(_python(checkout, _ONE_AFTER_ANOTHER, json.dumps(commands)))


def _python(checkout: Path, code: str, *arguments: str) -> str:
    """Standard output of code in a checkout."""
    process = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=checkout,
        env=os.environ | {"PYTHONPATH": str(checkout)},
        capture_output=True,
        text=True,
    )
    if process.returncode:
        lines = process.stderr.strip().splitlines() or [
            f"exit status {process.returncode}"
        ]
        raise FailedError(f"{checkout}: {lines[-1]}")
    return process.stdout


def _write_images(path: Path) -> None:
    """A file of some images of the sample, in its splits."""
    sample = load_dataset("mnist-sample")
    every = {
        split: getattr(sample, split)[::step, ..., 0] for split, step in _EVERY.items()
    }
    np.savez(path, **every)


def compare_runs(this: Path, other: Path) -> dict[str, float]:
    """{array, metric or report: its difference, 0.0 only if every bit is the same}."""
    ours = _read(this)
    theirs = _read(other)
    return {
        name: difference(ours.get(name), theirs.get(name)) for name in ours | theirs
    }


def difference(ours: np.ndarray | None, theirs: np.ndarray | None) -> float:
    """max |ours - theirs| / max |theirs|; 0 only if every bit is the same.

    inf: one is missing, other shapes or types, words, or what is no finite number. The smallest
    number there is: equal as numbers, in other bits (-0 and 0).
    """
    if ours is None or theirs is None:
        return math.inf
    if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
        return math.inf
    if ours.tobytes() == theirs.tobytes():
        return 0.0
    if ours.dtype.kind not in "biuf":
        return math.inf
    ours = ours.astype(np.float64)
    theirs = theirs.astype(np.float64)
    if np.array_equal(ours, theirs):
        return math.ulp(0.0)
    with np.errstate(all="ignore"):
        largest = float(np.abs(ours - theirs).max() / np.abs(theirs).max())
    return max(largest, math.ulp(0.0)) if math.isfinite(largest) else math.inf


def _read(folder: Path) -> dict[str, np.ndarray]:
    """{name: array} of a finished run "run" and the reports on it, *.txt."""
    run = folder / "run"
    arrays = {}
    for checkpoint in ("best.safetensors", "last.safetensors"):
        with safe_open(run / checkpoint, framework="numpy") as file:
            for name in file.keys():  # noqa: SIM118
                arrays[f"{checkpoint} {name}"] = file.get_tensor(name)
            header = file.metadata()
        config = json.loads(header["record"])["config"]
        numbers = [header["step"], config["lam"], config["seed"]]
        arrays[f"{checkpoint} step, λ, seed"] = np.array(numbers, float)
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    lines.append((run / "summary.json").read_text(encoding="utf-8"))
    for index, text in enumerate(lines, start=1):
        for name, value in flat(json.loads(text)):
            if name.rpartition(" ")[2] not in _TIMED:
                arrays[f"record {index} {name}"] = np.array(value)
    for path in folder.glob("*.txt"):
        numbers = _NUMBER.findall(path.read_text(encoding="utf-8"))
        arrays[path.name] = np.array([float(text.replace(",", "")) for text in numbers])
    with Image.open(run / "samples.png") as image:
        arrays["samples.png"] = np.asarray(image)
    return arrays


def flat(record: dict, above: str = ""):
    """(name, value) of all entries of a record and the records in it: "layers dense1 rho"."""
    for name, value in record.items():
        if isinstance(value, dict):
            yield from flat(value, f"{above}{name} ")
        else:
            yield above + name, value


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
