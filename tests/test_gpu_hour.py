"""The script for the first hours on a GPU: its steps can be run, and what each of them comes to."""

import contextlib
import io
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import benchmark
import pytest
import reproduce
from gpu.alone import run_alone
from reproduction.rows import TABLES
from support.operation_cases import OVERRIDES

import snfnp.cli.train

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "scripts/gpu_hour.sh"
TEXT = SCRIPT.read_text(encoding="utf-8")
STEPS = re.findall(r"^    (\w+) ([\w-]+) (.*)$", TEXT[TEXT.index("\nsteps() {") :], re.M)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="GNU's timeout")


def test_a_step_gives_options_that_its_script_has():
    """A wrong one would cost the step its place in the hour."""
    mains = {"train": snfnp.cli.train, "reproduce": reproduce, "benchmark": benchmark}
    for kind, name, words in STEPS:
        main = mains.get(kind) or next((mains[own] for own in mains if f" {own} " in words), None)
        if main:
            said = io.StringIO()
            with contextlib.redirect_stdout(said), pytest.raises(SystemExit):
                main.main(["--help"])
            given = set(re.findall(r"--[\w-]+", words))
            assert given <= set(re.findall(r"--[\w-]+", said.getvalue())), name


def test_a_step_names_tests_and_rows_that_there_are():
    files = re.findall(r"tests/gpu/\w+\.py", TEXT)
    assert len(files) == 5 and all((ROOT / file).exists() for file in files)
    text = "".join((ROOT / file).read_text(encoding="utf-8") for file in files)
    for words in re.search('-k "(.*)"', TEXT)[1].split(" or "):
        assert words in text + " ".join(OVERRIDES), words
    rows = {row.name for table in TABLES.values() for row in table.rows}
    assert set(re.findall(r"--rows ([\w-]+)", TEXT)) <= rows
    names = [name for _, name, _ in STEPS]
    assert len(names) == len(set(names)) == 22 and names[3] == "same"


@pytest.fixture
def hour(tmp_path):
    """hour(steps, seconds): the exit status, and what was printed."""

    def run(steps, seconds=100):
        (tmp_path / "steps.sh").write_text(f"steps() {{\n{steps}\n}}\n")
        own = {"GPU_HOUR_STEPS": str(tmp_path / "steps.sh"), "PYTHON": sys.executable}
        command = ["bash", str(SCRIPT), str(tmp_path), str(seconds)]
        done = subprocess.run(command, env=os.environ | own, capture_output=True, text=True)
        assert not done.stderr
        return done.returncode, done.stdout

    return run


def test_a_step_is_done_once_and_its_line_has_its_figure(hour, tmp_path):
    steps = f"""
        step a 20 ".+" bash -c "echo no such thing; exit 1"
        step b 20 "min .*" bash -c "echo x >> {tmp_path}/b; echo took 3 ms, min 2 ms; echo end"
        step c 20 ".+" echo the step cannot be recorded as a CUDA graph
        step d 9 ".+" no-such-program"""
    status, said = hour(steps)
    assert status == 1 and said.endswith("nothing is left\n")
    for line in (
        "failed: a: no such thing (",
        "passed: b: min 2 ms (",
        "failed: c: the step cannot be recorded as a CUDA graph (",
        "failed: d: timeout: ",
    ):
        assert line in said
    assert hour(steps) == (1, "nothing is left\n") and (tmp_path / "b").read_text() == "x\n"


def test_what_is_stopped_or_does_not_fit_is_not_done(hour, tmp_path):
    slow = f"echo x >> {tmp_path}/a; [ $(wc -l < {tmp_path}/a) -gt 1 ] || sleep 60"
    steps = f"step a 2 '.+' bash -c '{slow}; echo end'\nstep long 15 '.+' echo long"
    assert hour(steps, 10) == (3, "stopped at its limit: a\nleft: a long: run it again\n")
    status, said = hour(steps)
    assert status == 0 and "passed: a: end" in said and "passed: long: long" in said


def test_what_stops_the_script_stops_its_step_which_is_not_done(tmp_path):
    code = f"echo $$ > {tmp_path}/a; sleep 60"
    (tmp_path / "steps.sh").write_text(f"steps() {{ step a 80 '.+' bash -c '{code}'; }}")
    own = {"GPU_HOUR_STEPS": str(tmp_path / "steps.sh"), "PYTHON": sys.executable}
    process = subprocess.Popen(["bash", str(SCRIPT), str(tmp_path)], env=os.environ | own)
    until = time.monotonic() + 60
    while not (tmp_path / "a").exists() or not (tmp_path / "a").read_text():
        assert time.monotonic() < until and process.poll() is None
        time.sleep(0.02)
    process.terminate()
    assert process.wait(20) == 128 + signal.SIGTERM
    time.sleep(0.5)
    assert not Path("/proc", (tmp_path / "a").read_text().strip()).exists()
    assert (tmp_path / "results.txt").read_text() == ""


@pytest.mark.device
def test_the_kernels_for_the_sanitizer_run_on_the_stand_in():
    out = run_alone("from gpu import sanitised; sanitised.main(3)")
    assert out.endswith("3 kernels are as defined\n")
