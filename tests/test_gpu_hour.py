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
from gpu_hour import PIECE, STEPS, Step
from reproduction.rows import TABLES


def test_every_step_fits_into_a_piece():
    *limited, last = STEPS
    assert max(step.limit for step in limited) < PIECE == last.limit and last.continues
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
    monkeypatch.setattr(gpu_hour, "_SHORTEST", 1)

    def run(*steps, seconds=100):
        monkeypatch.setattr(gpu_hour, "STEPS", steps)
        status = gpu_hour.main(["--out", str(tmp_path / "out"), "--seconds", str(seconds)])
        states = json.loads((tmp_path / "out/state.json").read_text())
        return status, states, tmp_path / "out"

    return run


def test_a_step_is_done_once_and_its_failure_stops_no_other(run):
    steps = (
        step("a", "raise SystemExit('no such thing')"),
        step("b", NOTE),
        step("c", "import time; time.sleep(60)", 1),
        step("d", NOTE, needs=lambda: "it is not there yet"),
    )
    for _ in range(2):
        status, states, out = run(*steps)
        assert list(states.values()) == ["failed", "passed", "stopped at its limit", "skipped"]
        assert status == 1 and (out / "b").read_text() == "x"
    log = (out / "log.txt").read_text()
    assert log.count("no such thing") == 1 and "d: skipped (it is not there yet)" in log
    assert run(step("d", NOTE))[1]["d"] == "passed"


def test_what_does_not_fit_into_a_piece_is_left_for_the_next(run, capsys):
    steps = (step("long", NOTE, limit=15), step("short", NOTE, limit=5))
    assert run(*steps, seconds=10)[:2] == (3, {"short": "passed"})
    assert "left: long" in capsys.readouterr().out
    assert run(*steps)[:2] == (0, {"short": "passed", "long": "passed"})


ONLY_FAST_AGAIN = """
import sys, time
open(sys.argv[1], "a").write("x")
time.sleep(60 if len(open(sys.argv[1]).read()) < 2 else 0)
"""


def test_a_step_that_continues_is_stopped_and_run_again(run):
    steps = (step("table", ONLY_FAST_AGAIN, limit=40, continues=True),)
    assert run(*steps, seconds=2)[:2] == (3, {"table": "stopped at its limit"})
    status, states, out = run(*steps)
    assert (status, states) == (0, {"table": "passed"})
    assert (out / "table").read_text() == "xx"


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
    assert run(step("a", WAITS))[:2] == (0, {"a": "passed"})


@pytest.mark.device
def test_a_dry_run_on_the_stand_in(tmp_path):
    status = gpu_hour.main(["--out", str(tmp_path), "--dry-run"])
    assert status == 0, (tmp_path / "log.txt").read_text()
    states = json.loads((tmp_path / "state.json").read_text())
    assert set(states) == {step.name for step in STEPS} and set(states.values()) == {"passed"}
