"""Change the mathematics in small ways, one at a time, and see whether the tests notice.

A sample of mutants of the rules, maps, definitions of operations and the flow is drawn; each is
written into a copy of the checkout, where the tests that guard its file run until one fails. What
no test notices is printed as a diff, and either a test is missing or the change changes nothing
(scripts/mutation/known.py knows those). Some seconds per mutant.
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

from mutation.known import EQUIVALENT, FILES, PERFORMANCE, TESTS
from mutation.mutants import Mutant, mutants_of

ROOT = Path(__file__).resolve().parents[1]
COPIED = ("snfnp", "tests", "scripts", "derivations", "pyproject.toml", "README.md")
SLOWEST = 90  # seconds for one mutant's tests: one that does not end is noticed too


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100, help="mutants to draw (default: 100)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the draw (default: 0)")
    parser.add_argument(
        "--only", default="", metavar="TEXT", help="files with this in their path (default: all)"
    )
    parser.add_argument("--list", action="store_true", help="print the mutants and run nothing")
    args = parser.parse_args(argv)

    sources = {path: (ROOT / path).read_text() for path in _files() if args.only in path}
    everything = [
        mutant
        for path, source in sources.items()
        for mutant in mutants_of(path, source, PERFORMANCE.get(path, {}))
    ]
    drawn = random.Random(args.seed).sample(everything, min(args.count, len(everything)))
    drawn.sort(key=everything.index)
    print(f"{len(drawn)} of {len(everything)} mutants in {len(sources)} files, seed {args.seed}")
    if args.list:
        for mutant in drawn:
            print(mutant.what, mutant.diff(sources[mutant.path]), sep="\n")
        return 0
    with tempfile.TemporaryDirectory(prefix="snfnp-mutants-") as folder:
        copy = Copy(Path(folder))
        copy.require_success({_tests(mutant.path) for mutant in drawn})
        lived = [mutant for mutant in drawn if not _report(copy, mutant, sources[mutant.path])]
    return _summary(drawn, lived, sources)


class Copy:
    """A copy of the checkout, in which mutants live."""

    def __init__(self, folder: Path):
        self._folder = folder
        for name in COPIED:
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy2
            copy(ROOT / name, folder / name)  # with dates, so that compiled kernels stay valid

    def require_success(self, tests: set[tuple[str, ...]]) -> None:
        """The tests must pass where nothing was changed."""
        for names in sorted(tests):
            failed = self._first_failure(names)
            if failed:
                sys.exit(f"error: without any mutant, {failed}: repair that first")

    def first_failure(self, mutant: Mutant, source: str) -> str | None:
        """The test that notices a mutant, or None."""
        file = self._folder / mutant.path
        file.write_text(mutant.apply(source))
        try:
            return self._first_failure(_tests(mutant.path))
        finally:
            file.write_text(source)

    def _first_failure(self, names: tuple[str, ...]) -> str | None:
        files = [f"tests/test_{name}.py" for name in names]
        # the definitions are what NumPy's backend computes with: no other test need run
        options = ["-x", "-q", "-n0", "-p", "no:cacheprovider", "-k", "not numba"]
        environment = {
            **os.environ,
            "PYTHONPATH": str(self._folder),
            "PYTHONDONTWRITEBYTECODE": "1",  # dates of mutants are too close together
            "OPENBLAS_NUM_THREADS": "1",
        }
        try:
            done = subprocess.run(
                [sys.executable, "-m", "pytest", *options, *files],
                cwd=self._folder,
                env=environment,
                capture_output=True,
                text=True,
                timeout=SLOWEST,
            )
        except subprocess.TimeoutExpired:
            return "no end"
        if done.returncode == 0:
            return None
        lines = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
        return lines[0].split(" - ")[0] if lines else f"pytest ended with {done.returncode}"


def _files() -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for pattern in FILES for path in ROOT.glob(pattern))


def _tests(path: str) -> tuple[str, ...]:
    found = [tests for start, tests in TESTS.items() if path.startswith(start)]
    return found[0] if found else sys.exit(f"error: no tests for {path}: name them in known.py")


def _report(copy: Copy, mutant: Mutant, source: str) -> bool:
    """Whether a mutant is dead, printed in one line (and its diff, where it lives)."""
    began = time.monotonic()
    failure = copy.first_failure(mutant, source)
    known = EQUIVALENT.get(mutant.key(source))
    fate = failure or (f"equivalent: {known}" if known else "LIVES")
    where = f"{mutant.path}:{mutant.line(source)}"
    print(f"{where}  {mutant.what}  {fate}  ({time.monotonic() - began:.0f} s)", flush=True)
    if not failure:
        print(mutant.diff(source), flush=True)
    return failure is not None


def _summary(drawn, lived, sources) -> int:
    unexplained = [m for m in lived if m.key(sources[m.path]) not in EQUIVALENT]
    killed, explained = len(drawn) - len(lived), len(lived) - len(unexplained)
    print(
        f"\n{killed} of {len(drawn)} mutants killed, {explained} equivalent, "
        f"{len(unexplained)} live unexplained"
    )
    for mutant in unexplained:
        source = sources[mutant.path]
        print(f"\n{mutant.what}, line {mutant.line(source)}\n{mutant.diff(source)}")
    return 1 if unexplained else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
