"""The script for the first hours on a GPU: its limits, and that it goes on where it stopped."""

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
from gpu_hour import PIECE, STEPS, TOTAL, Step
from reproduction.rows import TABLES


def test_all_steps_fit_into_the_time_that_a_session_is_lent():
    assert PIECE <= 9 * 60 and TOTAL <= 25 * 60
    *limited, last = STEPS  # which takes what the others leave
    assert sum(step.limit for step in limited) <= TOTAL
    assert max(step.limit for step in limited) < PIECE
    assert last.limit is None and last.continues
    assert len({step.name for step in STEPS}) == len(STEPS)


SCRIPTS = {"scripts/benchmark.py": benchmark, "scripts/reproduce.py": reproduce}


@pytest.mark.parametrize(
    "path, step",
    [(path, each) for each in STEPS for path in SCRIPTS if path in each.command(Path("out"))],
)
def test_a_step_on_a_gpu_gives_options_that_its_script_has(path, step):
    """The dry run gives fewer, and a wrong one would cost the step its place in the hour."""
    command, said = step.command(Path("out")), io.StringIO()
    with contextlib.redirect_stdout(said), pytest.raises(SystemExit):
        SCRIPTS[path].main(["--help"])
    options = {word for word in command[command.index(path) :] if word.startswith("--")}
    assert options and options <= set(re.findall(r"--[\w-]+", said.getvalue()))


def test_the_rows_of_table_1_are_trained_in_order_of_value():
    rows = [row.name for row in TABLES["table1"].rows]
    first, named = gpu_hour._FIRST, gpu_hour._ROWS
    assert named[: len(first)] == first  # what its own step leaves is gone on with
    assert set(named) <= set(rows) and len(set(named)) == len(named)


def test_training_waits_for_all_of_mnist(monkeypatch, tmp_path):
    monkeypatch.setenv("SNFNP_OFFLINE", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("SNFNP_DATA_DIR", raising=False)
    assert "set SNFNP_DATA_DIR" in gpu_hour._no_mnist()
    waiting = [step.name for step in STEPS if step.needs is gpu_hour._no_mnist]
    assert waiting == ["table 1, convolution", "table 1"]


def step(name, code, limit=20, **options):
    def command(out):
        return [sys.executable, "-c", code, str(out / name)]

    return Step(name, limit, command, command, **options)


NOTE = "import sys; open(sys.argv[1], 'a').write('x')"


@pytest.fixture
def run(monkeypatch, tmp_path):
    """The script in this process, whose own way to end at SIGTERM it leaves alone."""
    monkeypatch.setattr(gpu_hour.signal, "signal", lambda *of: None)

    def run(*steps, options=()):
        monkeypatch.setattr(gpu_hour, "STEPS", steps)
        status = gpu_hour.main(["--out", str(tmp_path / "out"), *options])
        state = json.loads((tmp_path / "out/state.json").read_text())
        statuses = {name: each["status"] for name, each in state["steps"].items()}
        return status, statuses, tmp_path / "out"

    return run


def test_a_step_is_done_once(run):
    steps = (step("a", NOTE), step("b", NOTE))
    for _ in range(2):
        status, states, out = run(*steps)
        assert (status, states) == (0, {"a": "passed", "b": "passed"})
        assert [(out / name).read_text() for name in "ab"] == ["x", "x"]
    run(*steps, options=("--again", "b"))
    assert [(out / name).read_text() for name in "ab"] == ["x", "xx"]


def test_a_failure_stops_no_other_step(run):
    status, states, out = run(
        step("a", "raise SystemExit('no such thing')"),
        step("b", NOTE),
        step("c", "import time; time.sleep(60)", 1),
    )
    assert (status, states) == (1, {"a": "failed", "b": "passed", "c": "stopped at its limit"})
    assert "no such thing" in (out / "log.txt").read_text()


def test_what_does_not_fit_into_a_piece_is_left_for_the_next(run, capsys):
    steps = (step("long", NOTE, limit=30), step("short", NOTE, limit=5))
    status, states, out = run(*steps, options=("--seconds", "10"))
    assert (status, states) == (3, {"short": "passed"})
    assert "left: long" in capsys.readouterr().out
    status, states, out = run(*steps)
    assert (status, states["long"]) == (0, "passed")


ONLY_FAST_AGAIN = """
import sys, time
open(sys.argv[1], "a").write("x")
time.sleep(60 if len(open(sys.argv[1]).read()) < 2 else 0)
"""


def test_a_step_that_continues_is_stopped_and_run_again(run, monkeypatch):
    monkeypatch.setattr(gpu_hour, "_SHORTEST", 1)
    steps = (step("table", ONLY_FAST_AGAIN, limit=40, continues=True),)
    status, states, _ = run(*steps, options=("--seconds", "2"))
    assert states == {"table": "stopped at its limit"}
    status, states, out = run(*steps)
    assert (status, states) == (0, {"table": "passed"})
    assert (out / "table").read_text() == "xx"


def test_a_step_without_a_limit_takes_what_is_left(run, monkeypatch):
    monkeypatch.setattr(gpu_hour, "_SHORTEST", 1)
    monkeypatch.setattr(gpu_hour, "TOTAL", 100)  # far more than it takes to stop a command
    steps = (step("table", ONLY_FAST_AGAIN, limit=None, continues=True),)
    status, states, out = run(*steps, options=("--seconds", "2"))
    assert states == {"table": "stopped at its limit"}
    state = gpu_hour.State(out / "state.json")
    assert state.is_open(steps[0]) and state.left(steps[0]) == 100 - state.used


def test_time_that_is_used_up_comes_back_with_a_new_session_only(run, monkeypatch, capsys):
    monkeypatch.setattr(gpu_hour, "_SHORTEST", 1)
    monkeypatch.setattr(gpu_hour, "TOTAL", 3)
    table = step("table", ONLY_FAST_AGAIN, limit=None, continues=True)
    steps = (step("a", NOTE, 2), table)
    run(*steps)
    capsys.readouterr()
    status, states, _ = run(*steps)
    assert states == {"a": "passed", "table": "stopped at its limit"} and status == 1
    status, *_ = run(*steps, options=("--again", "a"))  # that its seconds were spent remains so
    assert status == 3 and "left: a" in capsys.readouterr().out
    status, states, _ = run(*steps, options=("--new-session",))
    assert (status, states) == (0, {"a": "passed", "table": "passed"})


WAITS = """
import os, sys, time
with open(sys.argv[1], "a") as file:
    print(os.getpid(), file=file)
time.sleep(60 if len(open(sys.argv[1]).readlines()) < 2 else 0)
"""
ONE_STEP = """
import sys
sys.path[:0] = ["scripts", "tests"]
import gpu_hour, test_gpu_hour
gpu_hour.STEPS = (test_gpu_hour.step("a", test_gpu_hour.WAITS),)
raise SystemExit(gpu_hour.main(["--out", sys.argv[1]]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_what_stops_the_script_stops_its_step_which_is_done_again(run, tmp_path):
    root = Path(__file__).resolve().parents[1]
    out = tmp_path / "out"
    process = subprocess.Popen([sys.executable, "-c", ONE_STEP, str(out)], cwd=root)
    until = time.monotonic() + 60
    while not (out / "a").exists() or not (out / "a").read_text().endswith("\n"):
        assert time.monotonic() < until and process.poll() is None
        time.sleep(0.02)
    process.terminate()
    assert process.wait(20) == 128 + signal.SIGTERM
    assert not Path("/proc", (out / "a").read_text().strip()).exists()
    state = json.loads((out / "state.json").read_text())
    assert state["steps"]["a"]["status"] == "interrupted" and state["used"] > 0
    assert run(step("a", WAITS))[:2] == (0, {"a": "passed"})


def test_a_step_whose_script_is_missing_is_skipped_with_a_line(run, capsys):
    status, states, _ = run(step("a", NOTE, needs=lambda: "reproduce.py is not there yet"))
    assert (status, states) == (0, {"a": "skipped"})
    assert "a: skipped (reproduce.py is not there yet)" in capsys.readouterr().out
    assert run(step("a", NOTE))[1] == {"a": "passed"}


@pytest.mark.device
def test_a_dry_run_on_the_stand_in(tmp_path):
    assert gpu_hour.main(["--out", str(tmp_path), "--dry-run"]) == 0, (
        tmp_path / "log.txt"
    ).read_text()
    states = json.loads((tmp_path / "state.json").read_text())["steps"]
    assert set(states) == {step.name for step in STEPS}
    assert {each["status"] for each in states.values()} <= {"passed", "skipped"}
    assert states["tests"]["status"] == states["memcheck"]["status"] == "passed"
