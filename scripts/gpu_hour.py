"""Checks and measurements for a first run on a real GPU, the most valuable first.

    SNFNP_DATA_DIR=mnist python scripts/gpu_hour.py --out runs/gpu-hour    # MNIST's files

Every step prints a line: passed or failed, and its figure. Its output is in the folder --out, as is
state.json; a step whose line there is deleted runs again. A step is started only if its time
limit fits into --seconds; one that is stopped at its limit is not done, and the next command with
the same --out starts it again (training goes on from its checkpoint). Exit status: 0 all done, 1 a
step failed, 3 steps are left. The checks of memory need compute-sanitizer, of the CUDA toolkit or
by `python -m pip install --no-deps "nvidia-cuda-sanitizer-api==13.0.*"` (of the driver's CUDA).
"""

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
OUT = "{out}"  # in a command: the folder of the output
PASSED, FAILED, STOPPED = "passed", "failed", "stopped at its limit"
DONE = (PASSED, FAILED)

SAME = """
import json, sys
def evaluations(folder):
    lines = [json.loads(line) for line in open(f"{folder}/metrics.jsonl")]
    return [{k: v for k, v in line.items() if "second" not in k} for line in lines]
first, *others = map(evaluations, sys.argv[1:])
assert first and all(own == first for own in others), "the metrics differ"
print(f"{len(first)} evaluations are the same to the last digit")
"""


class Step(NamedTuple):
    """limit: seconds; figure: a pattern in its output, whose last match is printed; resumes: when
    started again, it continues where it was stopped."""

    name: str
    limit: int
    command: list[str]
    figure: str = r".+"
    resumes: bool = False


def _script(name: str, limit: int, script: str, *arguments, figure=r".+", resumes=False) -> Step:
    command = [sys.executable, f"scripts/{script}.py", *map(str, arguments), "--backend", "cupy"]
    return Step(name, limit, command, figure, resumes)


def _train(name: str, limit: int, *arguments) -> Step:
    out = ("--out", f"{OUT}/runs/{name}")
    return _script(
        name, limit, "train_mnist", *arguments, *out, figure=r"exact test NLL [\d.]+ nats.*"
    )


def _reproduce(name: str, *arguments) -> Step:
    runs = ("--runs", f"{OUT}/reproduction")  # an exact evaluation takes as long as some epochs
    own = (*arguments, "--eval-every", 20, *runs)
    return _script(name, 540, "reproduce", *own, figure=r"^\| .*", resumes=True)


def _pytest(name: str, limit: int, *arguments) -> Step:
    options = ["-m", "pytest", "-v", "--tb=short", "-n", "0", "-p", "no:cacheprovider"]
    return Step(name, limit, [sys.executable, *options, *arguments], r"\d+ (?:passed|failed).*")


def _sanitised(tool: str, limit: int) -> Step:
    wheels = map(str, Path(sysconfig.get_path("purelib")).glob("nvidia/*/bin"))
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), *wheels])
    program = shutil.which("compute-sanitizer", path=path) or "compute-sanitizer"
    command = [program, "--tool", tool, "--error-exitcode", "9", "--print-limit", "20"]
    return Step(
        tool, limit, [*command, sys.executable, "tests/gpu/sanitised.py"], "ERROR SUMMARY.*"
    )


_ALIKE = [f"{OUT}/runs/{name}" for name in ("plain", "two streams", "no graph")]
_CONV = ("table1", "--rows", "conv-snf", "--epochs", 1000, "--seeds")
_FC = ("table1", "--rows", "fc-snf", "--epochs", 6000, "--seeds")
_BARS = r".*(?:reached|MISSED)"
_FILES = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("tests/gpu/test_*.py"))
_SOME = ("tests/gpu/test_training.py", "tests/gpu/test_ops.py", "-k")
# fmt: off
CHECKS = (
    _train("plain", 60, "--epochs", 2),
    _train("two streams", 60, "--epochs", 2, "--overlap"),
    _train("no graph", 90, "--epochs", 2, "--no-graph"),
    Step("same", 10, [sys.executable, "-c", SAME, *_ALIKE]),
    _pytest("streams", 120, "tests/gpu/test_overlap.py"),
    _pytest("graphs", 120, "tests/gpu/test_graph.py"),
    _train("white", 120, "--model", "conv", "--recipe", "white", "--epochs", 3),
    _train("float32", 60, "--model", "conv", "--epochs", 1, "--eval-dtype", "float32"),
    _train("glow", 240, "--model", "glow", "--tf32", "--epochs", 1, "--eval-every", 1),
    _sanitised("memcheck", 180),
    _pytest("numbers", 240, *_SOME, "training or product_relu or conv or spline"),
    _script("device, quick", 120, "benchmark", "device", "--quick", figure=_BARS),
)
STEPS = (
    *CHECKS,
    _script("device", 150, "benchmark", "device", "--json", f"{OUT}/device.json", figure=_BARS),
    _pytest("all tests", 540, *_FILES),
    _reproduce("conv", *_CONV, 0),
    _reproduce("fc", *_FC, 0),
    _sanitised("racecheck", 150),
    _sanitised("initcheck", 150),
    _reproduce("recipe", "white", "--rows", "conv-white", "fc-white"),
    _script("sweep", 150, "reproduce", "figure4", "--runs", f"{OUT}/reproduction"),
    _reproduce("conv, three seeds", *_CONV, 0, 1, 2),
    _reproduce("fc, three seeds", *_FC, 0, 1, 2),
)
# fmt: on


def main(argv=None, steps=STEPS) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="the folder of all output")
    parser.add_argument("--seconds", type=float, default=3600, help="how long steps are started")
    args = parser.parse_args(argv)
    end, out = time.monotonic() + args.seconds, args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    file = out / "state.json"
    state = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    for step in steps:
        start = time.monotonic()
        if state.get(step.name) in DONE or end - start < (30 if step.resumes else step.limit):
            continue
        status, figure = run(step, out, min(step.limit, end - start))
        print(f"{status}: {step.name}: {figure} ({time.monotonic() - start:.0f} s)", flush=True)
        state[step.name] = status
        file.write_text(json.dumps(state, indent=2), encoding="utf-8")
    left = [step.name for step in steps if state.get(step.name) not in DONE]
    print(f"left: {', '.join(left)}: run it again" if left else "nothing is left")
    return 3 if left else int(FAILED in state.values())


def run(step: Step, out: Path, limit: float) -> tuple[str, str]:
    """A step's status and figure; its output goes to a file. The step and its children are ended at
    its limit, or if this program is interrupted."""
    # the package need not be installed, and on a GPU no test may be skipped for want of one
    own = {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "CUPY_CACHE_DIR": str(out / "kernels")}
    own |= {"SNFNP_DEVICE": "gpu", "SNFNP_REQUIRE": "device,real_gpu"}
    command, file = [word.replace(OUT, str(out)) for word in step.command], out / f"{step.name}.txt"
    how = {"cwd": ROOT, "env": os.environ | own, "start_new_session": True}
    with open(file, "w", encoding="utf-8") as log:
        try:
            process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, **how)
        except OSError as error:
            return FAILED, f"{command[0]}: {error.strerror}"
        try:
            status = FAILED if process.wait(limit) else PASSED
        except subprocess.TimeoutExpired:
            status = STOPPED
        finally:
            for number in (signal.SIGINT, signal.SIGKILL) if process.returncode is None else ():
                with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
                    os.killpg(process.pid, number)
                    process.wait(20)
    text = file.read_text(encoding="utf-8", errors="replace")
    refused = [line for line in text.splitlines() if "cannot be recorded" in line]
    if refused and status == PASSED:  # launch by launch: the figure would be another one
        return FAILED, refused[0]
    return status, (re.findall(step.figure, text, re.M) or text.splitlines() or ["no output"])[-1]


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    raise SystemExit(main())
