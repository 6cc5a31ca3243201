"""Change the mathematics in small ways, one at a time, and see whether the tests notice.

A sample of mutants is drawn; each is written into a copy of the checkout, where the tests that
guard its file run until one fails. What no test notices is printed as a diff: a test is missing, or
the change changes nothing (scripts/equivalents.py knows those). Some seconds per mutant.
"""

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from equivalents import EQUIVALENT
from mutants import Mutant, mutants_of

ROOT = Path(__file__).resolve().parents[1]
COPIED = ("snfnp", "tests", "scripts", "derivations", "pyproject.toml", "README.md")
SLOWEST = 90  # seconds for one mutant's tests: one that does not end is noticed too
FILES = (
    "snfnp/**/rules/[a-z]*.py",
    "snfnp/context.py",
    "snfnp/flow.py",
    "snfnp/**/maps/[a-z]*.py",
    "snfnp/ops/*/definition.py",
    "snfnp/beyond/[a-z]*.py",
)
_USUAL = ("rules", "gradcheck_linear", "layers", "whole_step")
# The name of a file, or of the folder of a definition -> the tests that are to kill its mutants,
# the quickest first. Of a file that is not here: those of its name, or the usual ones.
TESTS = {
    "jacobian_penalty": ("jacobian_penalty", "gradcheck_linear"),
    "context": ("rules", "flow", "whole_step"),
    "flow": ("flow", "split", "recompute", "likelihood", "whole_step", "actnorm"),
    "dense": ("maps", "layers"),
    "explicit": ("maps", "block_tridiagonal", "conv"),
    "block_tridiagonal": ("maps", "block_tridiagonal"),
    "emerging": ("emerging", "gradcheck_linear"),
    "conv_exponential": ("conv_exponential", "gradcheck_linear"),
    "multipliers": ("control",),
    "second_moment": ("monitors",),
    "maps/conv": ("maps", "conv", "rules"),
    "activation": ("layers", "ops"),
    "causal": ("emerging", "ops", "gradcheck_linear"),
    "channels": ("actnorm", "layers", "ops"),
    "communication": ("communication", "slices", "processes"),
    "conv": ("maps", "conv", "rules", "emerging", "ops"),
    "coupling": ("coupling", "layers", "ops", "gradcheck_linear"),
    "images": ("augment", "preprocess", "steps", "ops"),
    "linalg": ("rules", "maps", "layers", "block_tridiagonal", "ops"),
    "random": ("ops", "likelihood"),
    "spline": ("spline", "ops", "properties"),
    "step": ("steps", "optim", "ops", "whole_step"),
}
# Constants and functions that decide speed or memory alone, by the same name: not mutated.
PERFORMANCE = {
    # rows of a product at once; where BLAS is found, and held to one thread
    "linalg": {"_BLOCK", "_ONE_THREAD", "chain_of_products", "_blas_libraries"},
    "conv": {"_MANY"},  # which of two equal ways to take
    "coupling": {"network_values", "keeps_first"},  # of the hidden layers, at once or at all
}


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--count", type=int, default=100, help="mutants to draw (default: 100)")
    add("--seed", type=int, default=0, help="seed of the draw (default: 0)")
    add("--only", default="", metavar="TEXT", help="files with this in their path (default: all)")
    add("--list", action="store_true", help="print the mutants and run nothing")
    args = parser.parse_args(argv)

    sources = {
        path: (ROOT / path).read_text(encoding="utf-8") for path in files() if args.only in path
    }
    everything = [
        mutant
        for path, source in sources.items()
        for mutant in mutants_of(path, source, PERFORMANCE.get(_name(path), set()))
    ]
    drawn = random.Random(args.seed).sample(everything, min(args.count, len(everything)))
    drawn.sort(key=everything.index)
    print(f"{len(drawn)} of {len(everything)} mutants in {len(sources)} files, seed {args.seed}")
    if args.list:
        for mutant in drawn:
            print(mutant.what, mutant.diff(sources[mutant.path]), sep="\n")
        return 0
    with tempfile.TemporaryDirectory(prefix="snfnp-mutants-") as folder:
        for name in COPIED:  # with dates, so that compiled kernels stay valid
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy2
            copy(ROOT / name, Path(folder, name))
        for names in sorted({guards_of(mutant.path) for mutant in drawn}):
            failed = _first_failure(names, Path(folder))
            if failed:
                sys.exit(f"error: without any mutant, {failed}: repair that first")
        fates = [_report(mutant, sources[mutant.path], Path(folder)) for mutant in drawn]
    killed, lived = fates.count("killed"), fates.count("LIVES")
    known = f"{len(drawn) - killed - lived} equivalent"
    print(f"\n{killed} of {len(drawn)} mutants killed, {known}, {lived} live unexplained")
    return 1 if lived else 0


def files() -> list[str]:
    """The files that are mutated, from the root: those of the mathematics."""
    found = (path.relative_to(ROOT) for pattern in FILES for path in ROOT.glob(pattern))
    return sorted(str(path) for path in found if path.stem != "tensorboard")


def _name(path: str) -> str:
    """The name of a file, or of the folder of a definition."""
    file = Path(path)
    return file.parent.name if file.stem == "definition" else file.stem


def guards_of(path: str) -> tuple[str, ...]:
    """The tests that guard a file, by name."""
    name = _name(path)
    own = (name,) if (ROOT / f"tests/test_{name}.py").exists() else _USUAL
    return TESTS.get(f"{Path(path).parent.name}/{name}") or TESTS.get(name, own)


def _first_failure(names: tuple[str, ...], folder: Path) -> str | None:
    """The first of these tests that fails in a copy of the checkout, or None."""
    tests = [f"tests/test_{name}.py" for name in names]
    # the definitions are what NumPy's backend computes with: no other test need run
    options = ["-x", "-q", "-n0", "-p", "no:cacheprovider", "-k", "not numba"]
    # dates of mutants are too close together for compiled files
    own = {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1", "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", *options, *tests]
    how = {"cwd": folder, "env": os.environ | own, "capture_output": True, "text": True}
    try:
        done = subprocess.run(command, timeout=SLOWEST, **how)
    except subprocess.TimeoutExpired:
        return "no end"
    if done.returncode == 0:
        return None
    lines = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return lines[0].split(" - ")[0] if lines else f"pytest ended with {done.returncode}"


def _report(mutant: Mutant, source: str, folder: Path) -> str:
    """Print what became of a mutant, with its diff if it lives; "killed", "LIVES" or a reason."""
    began, file = time.monotonic(), folder / mutant.path
    file.write_text(mutant.apply(source), encoding="utf-8")
    failure = _first_failure(guards_of(mutant.path), folder)
    file.write_text(source, encoding="utf-8")
    known = EQUIVALENT.get(mutant.mutated(source))
    fate = failure or (f"equivalent: {known}" if known else "LIVES")
    where, seconds = f"{mutant.path}:{mutant.line(source)}", time.monotonic() - began
    print(f"{where}  {mutant.what}  {fate}  ({seconds:.0f} s)", flush=True)
    if not failure:
        print(mutant.diff(source), flush=True)
    return "killed" if failure else fate


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
