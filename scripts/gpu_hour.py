"""Everything that is to be seen on a real GPU, in order of value, in pieces of a few minutes.

Run it again with the same --out until it says that nothing is left: steps that are done are not
repeated, and a step is started only if its time limit fits into the piece. All output is in
that one folder: log.txt (of all steps), state.json (what is done), and what the steps write.

    python -m pip install --no-deps "nvidia-cuda-sanitizer-api==13.0.*"  # if there is none
    SNFNP_DATA_DIR=mnist python scripts/gpu_hour.py --out runs/gpu-hour    # MNIST's files

When the time of all pieces is used up and the device is lent once more, --new-session counts from
0 and goes on with what was left. A newer compute-sanitizer may need a newer driver than CUDA 13.0
does. --dry-run takes the same way with short commands on the CPU stand-in for a GPU (tests/gpu).
Exit status: 0 all done, 1 a step failed, 3 steps are left for another piece.
"""

from __future__ import annotations

import argparse
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
PIECE, TOTAL = 9 * 60, 25 * 60  # seconds of a piece, and of all pieces together
PASSED, FAILED, STOPPED, SKIPPED = "passed", "failed", "stopped at its limit", "skipped"
INTERRUPTED = "interrupted"  # with this script: done again, or gone on with
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

# Samples per second of models as they start: the time does not depend on the parameters' values.
_SAMPLES = """
import sys, time
sys.path[:0] = ["tests", "scripts"]
from gpu import standin
standin.device()
from benchmarks.steps import IMAGE, make_trainer
from snfnp.ops import get_ops
ops, count = get_ops("cupy"), int(sys.argv[1])
for model in sys.argv[2:]:
    trainer = make_trainer(ops, model, "self-normalizing", IMAGE, 1000, batch_size=100)
    likelihood = trainer.likelihood()
    for exact in (False, True):
        likelihood.sample(count, seed=0, exact=exact)
        ops.device.synchronise()
        start = time.perf_counter()
        likelihood.sample(count, seed=1, exact=exact)
        ops.device.synchronise()
        rate = count / (time.perf_counter() - start)
        print(f"{model}, {'exact' if exact else 'learned'} inverse: {rate:.0f} samples/s")
"""


class Step(NamedTuple):
    """command, dry: the arguments with and without a GPU, made from the folder of the output.

    limit: seconds; None: all that the other steps leave. needs: says why the step cannot run, or
    None. continues: it may be stopped and run again, and then goes on, until its limit is used up
    in all.
    """

    name: str
    limit: int | None
    command: Callable[[Path], list[str]]
    dry: Callable[[Path], list[str]]
    needs: Callable[[], str | None] = lambda: None
    continues: bool = False


def _python(*arguments) -> list[str]:
    return [sys.executable, *map(str, arguments)]


def _script(path: str, *arguments) -> list[str]:
    return _python("-c", _ON_DEVICE, path, *arguments)


def _pytest(*arguments) -> list[str]:
    """-v: what was running when it was stopped, and what had failed, is in the log."""
    return _python("-m", "pytest", "-v", "--tb=short", "-p", "no:cacheprovider", *arguments)


def compute_sanitizer() -> str | None:
    """The path of compute-sanitizer, from the PATH or from its wheel."""
    folders = [Path(path) for path in (sysconfig.get_path("purelib"), *sys.path) if path]
    wheels = (found for folder in folders for found in folder.glob("nvidia/*/bin"))
    return shutil.which("compute-sanitizer") or shutil.which(
        "compute-sanitizer", path=os.pathsep.join(map(str, wheels))
    )


def _sanitised(tool: str, limit: int) -> Step:
    options = ["--tool", tool, "--error-exitcode", "9", "--print-limit", "20"]

    def command(out: Path) -> list[str]:
        return [str(compute_sanitizer()), *options, *_python("-c", _KERNELS, 1000)]

    def missing() -> str | None:
        return None if compute_sanitizer() else "no compute-sanitizer: see the head of this script"

    return Step(tool, limit, command, lambda out: _python("-c", _KERNELS, 3), missing)


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
# Of Table 1, in order of value. An exact evaluation with its monitors and checkpoints takes as long
# as the steps of an epoch, or of several: so one in 20 epochs. At 0.5 ms a step the convolution's
# 1000 epochs then fit into its limit, and the fully connected flow's 6000 do not: that one takes
# what is left in the end, and goes on in the next session, if its runs are kept.
_EVAL_EVERY = 20
_FIRST = ("conv-snf",)
_ROWS = (*_FIRST, "fc-snf", "conv-exact", "fc-exact", "glow-lambda-100", "glow-exact")
_ONE_TEST = "tests/gpu/test_graph.py::test_constants_are_not_in_a_graphs_pool"
# One rank, and two on one GPU if that is allowed; the log says why a test was skipped.
_NCCL = ("tests/gpu/test_communication.py", "-m", "real_gpu", "-rs")


def _reproduce(out: Path, *arguments) -> list[str]:
    return _script(_REPRODUCE, *arguments, "--backend", "cupy", "--runs", out / "reproduction")


def _table_1(out: Path, scale: str, rows: tuple[str, ...]) -> list[str]:
    options = ("--scale", scale, "--seeds", 0, "--eval-every", _EVAL_EVERY, "--rows", *rows)
    return _reproduce(out, "table1", *options)


def _help(path: str) -> Callable[[Path], list[str]]:
    return lambda out: _script(path, "--help")


# fmt: off
STEPS = (
    Step("environment", 20, lambda out: ["nvidia-smi"],
         lambda out: _python("-c", "print('no nvidia-smi on the stand-in')")),
    Step("tests", 360, lambda out: _pytest("tests/gpu"), lambda out: _pytest(_ONE_TEST)),
    Step("benchmark", 240,
         lambda out: _script(_BENCHMARK, "--backend", "cupy", "--json", out / "benchmark.json"),
         _help(_BENCHMARK)),
    Step("table 1, convolution", 320, lambda out: _table_1(out, "paper", _FIRST),
         _help(_REPRODUCE), _no_mnist, continues=True),
    _sanitised("memcheck", 150),
    Step("sweep", 110, lambda out: _reproduce(out, "figure4"), _help(_REPRODUCE)),
    Step("samples", 40, lambda out: _python("-c", _SAMPLES, 1000, "fc", "conv", "glow"),
         lambda out: _python("-c", _SAMPLES, 2, "fc")),
    _sanitised("racecheck", 110),
    _sanitised("initcheck", 110),
    Step("nccl", 40, lambda out: _pytest(*_NCCL), lambda out: _pytest(*_NCCL, "--collect-only")),
    Step("table 1", None, lambda out: _table_1(out, "paper", _ROWS),
         lambda out: _table_1(out, "smoke", _ROWS[:1]), _no_mnist, continues=True),
)
# fmt: on


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="the folder of all output")
    parser.add_argument("--seconds", type=float, default=PIECE, help="length of this piece")
    parser.add_argument("--again", action="append", default=[], help="repeat this step")
    parser.add_argument(
        "--new-session", action="store_true", help="the device is lent once more: count from 0"
    )
    parser.add_argument("--dry-run", action="store_true", help="on the stand-in, with short steps")
    args = parser.parse_args(argv)
    out = args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    state = State(out / "state.json")
    if args.new_session:
        state.used = 0.0
    for name in args.again:
        state.steps.pop(name, None)
    signal.signal(signal.SIGTERM, _stop)
    end = time.monotonic() + min(args.seconds, TOTAL - state.used)
    left = []
    with open(out / "log.txt", "a") as log:
        for step in filter(state.is_open, STEPS):
            missing = None if args.dry_run else step.needs()
            limit, room = state.left(step), end - time.monotonic()
            if missing:
                _say(f"{step.name}: {SKIPPED} ({missing})", log)
                state.note(step, SKIPPED, 0.0)
            elif room < (min(limit, _SHORTEST) if step.continues else limit):
                left.append(step.name)
            else:
                _say(f"== {step.name}, at most {min(limit, room):.0f} s", log)
                began, status = time.monotonic(), INTERRUPTED
                command = (step.dry if args.dry_run else step.command)(out)
                try:
                    status = _run(command, min(limit, room), args.dry_run, log)
                finally:
                    state.note(step, status, time.monotonic() - began)
                _say(f"== {step.name}: {status} after {time.monotonic() - began:.0f} s", log)
        failed = [name for name, step in state.steps.items() if step["status"] in (FAILED, STOPPED)]
        _say(f"used {state.used:.0f} s of {TOTAL}; failed: {', '.join(failed) or 'none'}", log)
        _say(f"left: {', '.join(left)}: run it again" if left else "nothing is left", log)
    return 3 if left else 1 if failed else 0


def _stop(number, frame):
    """Ends this script by an exception, so that what it started ends as well."""
    raise SystemExit(128 + number)


class State:
    """The file that says what is done. steps: {step: {"status", "seconds"}}; used: seconds of this
    session, which no step gives back."""

    def __init__(self, path: Path):
        known = json.loads(path.read_text()) if path.exists() else {"used": 0.0, "steps": {}}
        self._path, self.used, self.steps = path, known["used"], known["steps"]

    def is_open(self, step: Step) -> bool:
        """True if the step is still to be done; what was missing may be there now."""
        status = self.steps.get(step.name, {}).get("status", SKIPPED)
        again = status == STOPPED and step.continues and self.left(step) > 0
        return status in (SKIPPED, INTERRUPTED) or again

    def left(self, step: Step) -> float:
        """Seconds that a step may still take."""
        before = self.steps.get(step.name, {}).get("seconds", 0.0) if step.continues else 0.0
        return TOTAL - self.used if step.limit is None else step.limit - before

    def note(self, step: Step, status: str, seconds: float) -> None:
        """Write what became of a step, and count its seconds."""
        before = self.steps.get(step.name, {}).get("seconds", 0.0)
        self.used += seconds
        self.steps[step.name] = {"status": status, "seconds": before + seconds}
        unfinished = self._path.with_suffix(".part")
        unfinished.write_text(json.dumps({"used": self.used, "steps": self.steps}, indent=2))
        unfinished.replace(self._path)


def _run(command: list[str], limit: float, dry: bool, log) -> str:
    """The status of a command, which is stopped, with what it started, at its limit."""
    # the package need not be installed, and on a GPU no test may be skipped for want of one
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "PYTHONUNBUFFERED": "1",
        "SNFNP_DEVICE": "standin" if dry else "gpu",
        "SNFNP_REQUIRE": "device" if dry else "device,real_gpu",
    }
    try:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True
        )
    except OSError as error:
        _say(f"{command[0]}: {error.strerror}", log)
        return FAILED
    try:
        return FAILED if process.wait(limit) else PASSED
    except BaseException as stop:  # an interrupt too: nothing may run on
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(process.pid, number)
                process.wait(10)
                break
            except ProcessLookupError:
                break
            except subprocess.TimeoutExpired:
                continue
        if not isinstance(stop, subprocess.TimeoutExpired):
            raise
        return STOPPED


def _say(line: str, log) -> None:
    for where in (sys.stdout, log):
        print(line, file=where, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
