"""The script for the first hours on a GPU: its steps can be run, and what each of them comes to."""

import contextlib
import io
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import benchmark
import gpu_hour
import pytest
import reproduce
from gpu.alone import run_alone
from gpu_hour import CHECKS, OUT, ROOT, SAME, STEPS, Step
from reproduction.rows import TABLES
from support.operation_cases import OVERRIDES

import snfnp.cli.train

SCRIPTS = {"benchmark": benchmark, "reproduce": reproduce, "train_mnist": snfnp.cli.train}


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_step_gives_options_that_its_script_has(name):
    """A wrong one would cost the step its place in the hour."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), pytest.raises(SystemExit):
        SCRIPTS[name].main(["--help"])
    steps = [step.command for step in STEPS if f"scripts/{name}.py" in step.command]
    given = {word for command in steps for word in command if word.startswith("--")}
    assert given <= set(re.findall(r"--[\w-]+", said.getvalue()))
    assert steps and all(command[-2:] == ["--backend", "cupy"] for command in steps)


def test_a_step_names_tests_and_rows_that_there_are():
    files = {path.name: path.read_text() for path in (ROOT / "tests/gpu").glob("test_*.py")}
    for step in STEPS:
        own = [files[Path(word).name] for word in step.command if word.startswith("tests/gpu/test")]
        if "-k" in step.command:
            for words in step.command[step.command.index("-k") + 1].split(" or "):
                assert words in "".join(own) + " ".join(OVERRIDES), words
    (whole,) = [step.command for step in STEPS if step.name == "all tests"]
    assert {f"tests/gpu/{name}" for name in files} <= set(whole)
    rows = {row.name for table in TABLES.values() for row in table.rows}
    assert {"conv-snf", "fc-snf", "conv-white", "fc-white"} <= rows


def test_the_checks_come_first_and_every_name_is_there_once():
    names = [step.name for step in STEPS]
    assert STEPS[: len(CHECKS)] == CHECKS and len(set(names)) == len(names)
    assert sum(step.limit for step in CHECKS) < 1800 and all(step.limit <= 540 for step in STEPS)


@pytest.fixture
def hour(tmp_path, capsys):
    """hour(step, …): the exit status, the states, and what was printed."""

    def run(*steps, seconds=100):
        status = gpu_hour.main(["--out", str(tmp_path), "--seconds", str(seconds)], steps)
        return status, json.loads((tmp_path / "state.json").read_text()), capsys.readouterr().out

    return run


def step(name, code, limit=20, **options):
    """Of a program that ends at SIGINT, which a shell may have ignored."""
    code = f"import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n{code}"
    return Step(name, limit, [sys.executable, "-c", code, f"{OUT}/{name}"], **options)


NOTE = "import sys; open(sys.argv[1], 'a').write('x')"


def test_a_step_is_done_once_and_its_line_has_its_figure(hour, tmp_path):
    steps = (
        step("a", "raise SystemExit('no such thing')"),
        step("b", f"{NOTE}; print('took 3 ms, min 2 ms'); print('end')", figure="min .*"),
        step("c", "print('the step cannot be recorded as a CUDA graph')"),
        Step("d", 9, ["no-such-program"]),
    )
    status, states, said = hour(*steps)
    assert (status, [*states.values()]) == (1, ["failed", "passed", "failed", "failed"])
    for line in (
        "failed: a: no such thing (",
        "passed: b: min 2 ms (",
        "failed: c: the step cannot be recorded as a CUDA graph (",
        "failed: d: no-such-program: No such file or directory (",
        "nothing is left",
    ):
        assert line in said
    assert hour(*steps)[2] == "nothing is left\n" and (tmp_path / "b").read_text() == "x"


def test_what_does_not_fit_is_left_for_the_next_time(hour):
    steps = (step("long", NOTE, limit=15), step("short", NOTE, limit=5))
    status, states, said = hour(*steps, seconds=10)
    assert (status, states) == (3, {"short": "passed"}) and "left: long: run it again" in said
    assert hour(*steps)[:2] == (0, {"short": "passed", "long": "passed"})


@pytest.mark.parametrize("resumes", [False, True])
def test_a_step_that_is_stopped_is_not_done(hour, tmp_path, resumes):
    code = f"{NOTE}; import time; time.sleep(60 if len(open(sys.argv[1]).read()) < 2 else 0)"
    steps = (step("a", code, limit=2 if not resumes else 40, resumes=resumes),)
    first, again = (hour(*steps, seconds=seconds)[:2] for seconds in (31 if resumes else 5, 100))
    if not resumes:
        assert first == (3, {"a": "stopped at its limit"})
    assert again == (0, {"a": "passed"}) and (tmp_path / "a").read_text() == "xx"


def test_runs_are_the_same_but_for_their_times(tmp_path):
    def found(*lines):
        for name, line in zip("abc", lines, strict=True):
            (tmp_path / name).mkdir(exist_ok=True)
            (tmp_path / name / "metrics.jsonl").write_text(json.dumps(line) + "\n")
        command = [sys.executable, "-c", SAME, *(str(tmp_path / name) for name in "abc")]
        return subprocess.run(command, capture_output=True, text=True).stdout

    one = {"epoch": 1, "nll": 5.0, "seconds": 1.0}
    assert found(one, one | {"seconds": 2.0}, one).startswith("1 evaluations are the same")
    assert found(one, one, one | {"nll": 5.1}) == ""


ONE_STEP = """
import sys
sys.path[:0] = ["scripts", "tests"]
import gpu_hour, signal, test_gpu_hour
signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
code = "import os, sys, time; open(sys.argv[1], 'w').write(f'{os.getpid()}.'); time.sleep(60)"
raise SystemExit(gpu_hour.main(["--out", sys.argv[1]], (test_gpu_hour.step("a", code, 80),)))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_what_stops_the_script_stops_its_step_which_is_not_done(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", ONE_STEP, str(tmp_path)], cwd=ROOT)
    until = time.monotonic() + 60
    while not (tmp_path / "a").exists() or not (tmp_path / "a").read_text().endswith("."):
        assert time.monotonic() < until and process.poll() is None
        time.sleep(0.02)
    process.terminate()
    assert process.wait(20) == 128 + signal.SIGTERM
    assert not Path("/proc", (tmp_path / "a").read_text().strip(".")).exists()
    assert not (tmp_path / "state.json").exists()


@pytest.mark.device
def test_the_kernels_for_the_sanitizer_run_on_the_stand_in():
    assert run_alone("from gpu import sanitised; sanitised.main(3)").endswith(
        "3 kernels are as defined\n"
    )
