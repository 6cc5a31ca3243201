"""Everything that is to be seen on a real GPU, in order of value, in pieces of a few minutes.

Run it again with the same --out until it says that nothing is left: what passed or failed is not
repeated (but if its line is deleted from state.json), and a step is started only if its time limit
fits into the piece. All output is in that one folder: log.txt (of all steps), state.json (what is
done), and what the steps write.

    python -m pip install --no-deps "nvidia-cuda-sanitizer-api==13.0.*"  # if there is none
    SNFNP_DATA_DIR=mnist python scripts/gpu_hour.py --out runs/gpu-hour    # MNIST's files

A newer compute-sanitizer may need a newer driver than CUDA 13.0 does. --dry-run takes the same way
with short commands on the CPU stand-in for a GPU (tests/gpu). Exit status: 0 all done, 1 a step
failed, 3 steps are left for another piece.
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PIECE = 9 * 60  # seconds
PASSED, FAILED, STOPPED, SKIPPED = "passed", "failed", "stopped at its limit", "skipped"
_SHORTEST = 30  # seconds that a step which continues is started for

# Runs its first argument, a script, where `import cupy` finds a GPU or the stand-in.
_ON_DEVICE = """
import runpy, sys
sys.path[:0] = ["tests", "scripts"]
from gpu import standin
standin.device()
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""

# Every kernel on shapes of a few blocks, against the definitions. Without CuPy's pool an array ends
# where its memory ends, so that an overrun is seen.
_KERNELS = """
import sys
sys.path[:0] = ["tests"]
from gpu import standin
standin.device()
import cupy
cupy.cuda.set_allocator(None)
import numpy as np
from gpu.test_ops import FACTORISING, NAMES
from support.operation_calls import assert_as_defined, in_order
from support.operation_cases import OVERRIDES
from snfnp.ops import RandomKey, get_ops
ops, names = get_ops("cupy"), [name for name in NAMES if name not in FACTORISING]
sizes = [(np.float32, size) for size in ((5, 37), (3, 5, 7, 2), (96, 8))]
for name in names[: int(sys.argv[1])]:
    for dtype, size in (*sizes, (np.float64, (3, 5, 7, 2))):
        call = OVERRIDES[name](np.random.default_rng(0), dtype, size)
        assert_as_defined(ops, name, call, in_order(ops.asarray))
    print(name, flush=True)
# what launches kernels without being an operation on arrays
ops.step.scalars().set(3, 0.1, 1.0)
source = ops.images.source(np.zeros((7, 5, 3, 1), np.uint8))
source.reorder(np.arange(7)[::-1].copy())
for key in (None, RandomKey(0, 0, 0)):
    source.take(2, 5, key)
ops.device.synchronise()
"""


class Step(NamedTuple):
    """command, dry: the arguments with and without a GPU, made from the folder of the output.

    limit: seconds in a piece. needs: says why the step cannot run, or None. continues: it may be
    stopped and run again, and then goes on, until it is done.
    """

    name: str
    limit: int
    command: Callable[[Path], list[str]]
    dry: Callable[[Path], list[str]]
    needs: Callable[[], str | None] = lambda: None
    continues: bool = False

    def is_open(self, state: dict[str, str]) -> bool:
        """True if the step is still to be done; what was missing may be there now."""
        status = state.get(self.name, SKIPPED)
        return status == SKIPPED or (status == STOPPED and self.continues)


def _python(*arguments) -> list[str]:
    return [sys.executable, *map(str, arguments)]


def _script(path: str, *arguments) -> list[str]:
    return _python("-c", _ON_DEVICE, path, *arguments)


def _pytest(*arguments) -> list[str]:
    """-v: what was running when it was stopped, and what had failed, is in the log."""
    return _python("-m", "pytest", "-v", "--tb=short", "-p", "no:cacheprovider", *arguments)


def _sanitizer() -> str | None:
    """The path of compute-sanitizer, from the PATH or from its wheel."""
    wheels = map(str, Path(sysconfig.get_path("purelib")).glob("nvidia/*/bin"))
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), *wheels])
    return shutil.which("compute-sanitizer", path=path)


def _sanitised(tool: str, limit: int) -> Step:
    options = ["--tool", tool, "--error-exitcode", "9", "--print-limit", "20"]
    return Step(
        tool,
        limit,
        lambda out: [str(_sanitizer()), *options, *_python("-c", _KERNELS, 1000)],
        lambda out: _python("-c", _KERNELS, 3),
        lambda: None if _sanitizer() else "no compute-sanitizer: see the head of this script",
    )


def _no_mnist() -> str | None:
    """Without its files, and without a network, training takes the sample of the package."""
    sys.path.insert(0, str(ROOT))
    from snfnp.data import load_dataset
    from snfnp.errors import SnfnpError

    try:
        found = load_dataset("mnist")
    except SnfnpError as error:
        return str(error)
    return "no MNIST but the package's sample: set SNFNP_DATA_DIR" if found.is_sample else None


_BENCHMARK, _REPRODUCE = "scripts/benchmark.py", "scripts/reproduce.py"
_HELP = {path: lambda out, path=path: _script(path, "--help") for path in (_BENCHMARK, _REPRODUCE)}
# Of Table 1, in order of value. An exact evaluation takes as long as the steps of some epochs: so
# one in 20. The convolution's 1000 epochs then fit into its limit; the fully connected flow's 6000
# do not, and go on in the next piece, if its runs are kept.
_EVAL_EVERY, _FIRST = 20, ("conv-snf",)
_ROWS = (*_FIRST, "fc-snf", "conv-exact", "fc-exact", "glow-lambda-100", "glow-exact")
_ONE_TEST = "tests/gpu/test_graph.py::test_constants_are_not_in_a_graphs_pool"
# One rank, and two on one GPU if that is allowed; the log says why a test was skipped.
_NCCL = ("tests/gpu/test_communication.py", "-m", "real_gpu", "-rs")


def _reproduce(out: Path, *arguments) -> list[str]:
    return _script(_REPRODUCE, *arguments, "--backend", "cupy", "--runs", out / "reproduction")


def _table_1(out: Path, scale: str, rows: tuple[str, ...]) -> list[str]:
    options = ("--scale", scale, "--seeds", 0, "--eval-every", _EVAL_EVERY, "--rows", *rows)
    return _reproduce(out, "table1", *options)


# fmt: off
STEPS = (
    Step("environment", 20, lambda out: ["nvidia-smi"],
         lambda out: _python("-c", "print('no nvidia-smi on the stand-in')")),
    Step("tests", 360, lambda out: _pytest("tests/gpu"), lambda out: _pytest(_ONE_TEST)),
    Step("benchmark", 240,
         lambda out: _script(_BENCHMARK, "--backend", "cupy", "--json", out / "benchmark.json"),
         _HELP[_BENCHMARK]),
    Step("table 1, convolution", 320, lambda out: _table_1(out, "paper", _FIRST),
         _HELP[_REPRODUCE], _no_mnist, continues=True),
    _sanitised("memcheck", 150),
    Step("sweep", 110, lambda out: _reproduce(out, "figure4"), _HELP[_REPRODUCE]),
    _sanitised("racecheck", 110),
    _sanitised("initcheck", 110),
    Step("nccl", 40, lambda out: _pytest(*_NCCL), lambda out: _pytest(*_NCCL, "--collect-only")),
    Step("table 1", PIECE, lambda out: _table_1(out, "paper", _ROWS),
         lambda out: _table_1(out, "smoke", _ROWS[:1]), _no_mnist, continues=True),
)
# fmt: on


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="the folder of all output")
    parser.add_argument("--seconds", type=float, default=PIECE, help="length of this piece")
    parser.add_argument("--dry-run", action="store_true", help="on the stand-in, with short steps")
    args = parser.parse_args(argv)
    end, out = time.monotonic() + args.seconds, args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    file = out / "state.json"
    state = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    # by an exception, so that what the script started ends as well
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    with open(out / "log.txt", "a", encoding="utf-8") as log:
        for step in (step for step in STEPS if step.is_open(state)):
            missing, room = None if args.dry_run else step.needs(), end - time.monotonic()
            if missing:
                _say(f"{step.name}: {SKIPPED} ({missing})", log)
                state[step.name] = SKIPPED
            elif room >= (_SHORTEST if step.continues else step.limit):
                limit, began = min(step.limit, room), time.monotonic()
                _say(f"== {step.name}, at most {limit:.0f} s", log)
                command = (step.dry if args.dry_run else step.command)(out)
                status = state[step.name] = _run(command, limit, args.dry_run, log)
                _say(f"== {step.name}: {status} after {time.monotonic() - began:.0f} s", log)
            unfinished = file.with_suffix(".part")
            unfinished.write_text(json.dumps(state, indent=2), encoding="utf-8")
            unfinished.replace(file)
        rest = [step for step in STEPS if state.get(step.name) not in (PASSED, SKIPPED)]
        left = [step.name for step in rest if step.is_open(state)]
        failed = [step.name for step in rest if step.name not in left]
        _say(f"failed: {', '.join(failed) or 'none'}", log)
        _say(f"left: {', '.join(left)}: run it again" if left else "nothing is left", log)
    return 3 if left else 1 if failed else 0


def _run(command: list[str], limit: float, dry: bool, log) -> str:
    """The status of a command, which is stopped, with what it started, at its limit."""
    # the package need not be installed, and on a GPU no test may be skipped for want of one
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "PYTHONUNBUFFERED": "1",
        "SNFNP_DEVICE": "standin" if dry else "gpu",
        "SNFNP_REQUIRE": "device" if dry else "device,real_gpu",
    }
    options = {"cwd": ROOT, "env": environment, "start_new_session": True}
    try:
        process = subprocess.Popen(command, stdout=log, stderr=log, **options)
    except OSError as error:
        _say(f"{command[0]}: {error.strerror}", log)
        return FAILED
    try:
        return FAILED if process.wait(limit) else PASSED
    except subprocess.TimeoutExpired:
        return STOPPED
    finally:  # after an interrupt too: nothing may run on
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
            if process.poll() is None:
                os.killpg(process.pid, number)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(10)


def _say(line: str, log) -> None:
    for where in (sys.stdout, log):
        print(line, file=where, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
