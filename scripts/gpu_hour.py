"""Everything that is to be seen on a real GPU, in order of value, in pieces of a few minutes.

Run it again with the same --out until it says that nothing is left: what passed or failed is not
repeated (but if its line is deleted from state.json), and a step is started only if its time limit
fits into the piece. All output is in that one folder: log.txt (of all steps, beside.txt of what
trains beside them), state.json (what is done), what the steps write, and CuPy's compiled kernels.

    python -m pip install --no-deps "nvidia-cuda-sanitizer-api==13.0.*"  # if there is none
    SNFNP_DATA_DIR=mnist python scripts/gpu_hour.py --out runs/gpu-hour    # MNIST's files

From a machine that is lent for minutes it is taken along in parts that fit through a narrow door,
without the best checkpoints, which a run that goes on can do without, and the last ones of finished
runs:

    (cd runs && find * -name summary.json -printf "%h/last.safetensors\\n") > parts/done
    tar -c -C runs --exclude=best.safetensors -X parts/done gpu-hour | split -b 15M - parts/part-
    mkdir -p runs && cat parts/part-* | tar -x -C runs

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
OUT = "{out}"  # in a command: the folder of the output
PASSED, FAILED, STOPPED, SKIPPED = "passed", "failed", "stopped at its limit", "skipped"
_SHORTEST = 30  # seconds that a step which continues is started for

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
    """command, dry: the arguments with and without a GPU, with OUT for the folder of the output.

    limit: seconds in a piece. needs: says why the step cannot run, or None. continues: stopped and
    run again it goes on. beside: it runs while later ones do, until one that is to be alone.
    """

    name: str
    limit: int
    command: list[str]
    dry: list[str]
    needs: Callable[[], str | None] = lambda: None
    continues: bool = False
    beside: bool = False
    alone: bool = False

    def is_open(self, state: dict[str, str]) -> bool:
        """True if the step is still to be done; what was missing may be there now."""
        status = state.get(self.name, SKIPPED)
        return status == SKIPPED or (status == STOPPED and self.continues)


def _python(*arguments) -> list[str]:
    return [sys.executable, *map(str, arguments)]


def _script(name: str, limit: int, script: str, *arguments, **options) -> Step:
    command = _python(f"scripts/{script}.py", *arguments, "--backend", "cupy")
    return Step(name, limit, command, _python(command[1], "--help"), **options)


def _pytest(name: str, limit: int, *arguments) -> Step:
    """-v: what was running when it was stopped, and what had failed, is in the log."""
    pytest = _python("-m", "pytest", "-v", "--tb=short", "-p", "no:cacheprovider")
    return Step(name, limit, [*pytest, *arguments], [*pytest, _ONE_TEST])


def _sanitizer() -> str | None:
    """The path of compute-sanitizer, from the PATH or from its wheel."""
    wheels = map(str, Path(sysconfig.get_path("purelib")).glob("nvidia/*/bin"))
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), *wheels])
    return shutil.which("compute-sanitizer", path=path)


def _sanitised(tool: str, limit: int) -> Step:
    options = ["--tool", tool, "--error-exitcode", "9", "--print-limit", "20"]
    command = [str(_sanitizer()), *options, *_python("-c", _KERNELS, 1000)]
    missing = None if _sanitizer() else "no compute-sanitizer: see the head of this script"
    return Step(tool, limit, command, _python("-c", _KERNELS, 3), lambda: missing)


def _no_mnist() -> str | None:
    """Without its files, and without a network, training takes the sample of the package."""
    sys.path.insert(0, str(ROOT))
    from snfnp.data import load_dataset

    try:
        sample = load_dataset("mnist").is_sample
    except Exception as error:  # whatever it is, other steps can do without
        return f"{type(error).__name__}: {error}"
    return "no MNIST but the package's sample: set SNFNP_DATA_DIR" if sample else None


_ONE_TEST = "tests/gpu/test_graph.py::test_constants_are_not_in_a_graphs_pool"
# Most tests are of these. What the others hold a GPU alone can say: so they come first, and of them
# the second branch, which no stand-in has recorded.
_MOST = ("tests/gpu/test_ops.py", "tests/gpu/test_own_layer.py")
_FILES = {str(path.relative_to(ROOT)) for path in ROOT.glob("tests/gpu/test_*.py")}
_FIRST = sorted(_FILES.difference(_MOST), key=lambda name: ("overlap" not in name, name))
# Of Table 1, in order of value. An exact evaluation takes as long as the steps of some epochs: so
# one in 20. What a piece leaves goes on in the next, if the folder is kept.
_ROWS, _RUNS = ("conv-snf", "fc-snf"), ("--runs", f"{OUT}/reproduction")
_PAPER = ("table1", "--scale", "paper", "--eval-every", 20, *_RUNS, "--rows", *_ROWS, "--seeds")
_WHITE = ("conv-white", "fc-white")
_MNIST = {"needs": _no_mnist, "continues": True}

# fmt: off
STEPS = (
    Step("environment", 20, ["nvidia-smi"], _python("-c", "print('no nvidia-smi here')")),
    _script("train", 60, "train_mnist", "--epochs", 2, "--out", f"{OUT}/train"),
    _script("two streams", 60, "train_mnist", "--epochs", 2, "--out", f"{OUT}/two", "--overlap"),
    _pytest("tests", 150, *_FIRST),
    _script("device", 120, "benchmark", "device", "--json", f"{OUT}/device.json"),
    _sanitised("memcheck", 150),
    _script("table 1, one seed", PIECE, "reproduce", *_PAPER, 0, beside=True, **_MNIST),
    _pytest("more tests", 300, *_MOST),
    _sanitised("racecheck", 110),
    _sanitised("initcheck", 110),
    _script("recipe", 300, "reproduce", "white", *_RUNS, "--rows", *_WHITE, **_MNIST),
    _script("pytorch", 150, "benchmark", "pytorch", "--json", f"{OUT}/pytorch.json", alone=True),
    _script("compiled", 300, "benchmark", "compiled", "--json", f"{OUT}/compiled.json", alone=True),
    _script("sweep", 110, "reproduce", "figure4", *_RUNS, alone=True),
    _script("table 1", PIECE, "reproduce", *_PAPER, 0, 1, 2, alone=True, **_MNIST),
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

    def keep(step: Step, status: str, why: str = "") -> None:
        state[step.name] = status
        _say(f"== {step.name}: {status}{why}", log)
        unfinished = file.with_suffix(".part")
        unfinished.write_text(json.dumps(state, indent=2), encoding="utf-8")
        unfinished.replace(file)

    with (
        open(out / "log.txt", "a", encoding="utf-8") as log,
        open(out / "beside.txt", "a", encoding="utf-8") as other,
        contextlib.ExitStack() as started,
    ):
        beside = None  # the step that runs beside the others, and its process
        for step in (step for step in STEPS if step.is_open(state)):
            room = end - time.monotonic()
            if missing := None if args.dry_run else step.needs():
                keep(step, SKIPPED, f" ({missing})")
            elif room >= (_SHORTEST if step.continues else step.limit):
                if beside and step.alone:
                    beside = keep(beside[0], _status(beside[1], 0))
                _say(f"== {step.name}, at most {min(step.limit, room):.0f} s", log)
                process = _start(step, out, args.dry_run, other if step.beside else log)
                started.callback(_end, process)
                if step.beside:
                    beside = step, process
                else:
                    keep(step, _status(process, min(step.limit, room)))
        if beside:
            keep(beside[0], _status(beside[1], max(0, end - time.monotonic())))
        rest = [step for step in STEPS if state.get(step.name) not in (PASSED, SKIPPED)]
        left = [step.name for step in rest if step.is_open(state)]
        failed = [step.name for step in rest if step.name not in left]
        _say(f"failed: {', '.join(failed) or 'none'}", log)
        _say(f"left: {', '.join(left)}: run it again" if left else "nothing is left", log)
    return 3 if left else 1 if failed else 0


def _start(step: Step, out: Path, dry: bool, log) -> subprocess.Popen | None:
    """The step's command in a process and session of its own; None, and a line, if it has none."""
    command = [word.replace(OUT, str(out)) for word in (step.dry if dry else step.command)]
    # the package need not be installed, and on a GPU no test may be skipped for want of one
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "PYTHONUNBUFFERED": "1",
        "SNFNP_DEVICE": "standin" if dry else "gpu",
        "SNFNP_REQUIRE": "device" if dry else "device,real_gpu",
        "CUPY_CACHE_DIR": str(out / "kernels"),  # what is compiled goes along with the folder
    }
    options = {"cwd": ROOT, "env": environment, "start_new_session": True}
    try:
        return subprocess.Popen(command, stdout=log, stderr=log, **options)
    except OSError as error:
        return _say(f"{command[0]}: {error.strerror}", log)


def _status(process: subprocess.Popen | None, limit: float) -> str:
    """The status of a command, which is stopped, with what it started, at its limit."""
    try:
        return FAILED if process is None or process.wait(limit) else PASSED
    except subprocess.TimeoutExpired:
        _end(process)
        return STOPPED


def _end(process: subprocess.Popen | None) -> None:
    """Let nothing run on, after an interrupt either."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        if process and process.poll() is None:
            os.killpg(process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)


def _say(line: str, log) -> None:
    for where in (sys.stdout, log):
        print(line, file=where, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
