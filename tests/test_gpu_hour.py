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
from gpu_hour import OUT, PIECE, STEPS, Step
from reproduction.rows import TABLES

import snfnp.cli.train


def test_every_step_fits_into_a_piece():
    *limited, last = STEPS
    assert all(each.limit < PIECE or each.beside for each in limited)
    assert last.limit == PIECE and last.continues and last.alone
    assert len({step.name for step in STEPS}) == len(STEPS)


SCRIPTS = {"benchmark": benchmark, "reproduce": reproduce, "train_mnist": snfnp.cli.train}


@pytest.mark.parametrize(
    "name, step",
    [(n, each) for each in STEPS for n in SCRIPTS if f"scripts/{n}.py" in each.command],
)
def test_a_step_on_a_gpu_gives_options_that_its_script_has(name, step):
    """The dry run gives fewer, and a wrong one would cost the step its place in the hour."""
    command, said = step.command, io.StringIO()
    with contextlib.redirect_stdout(said), pytest.raises(SystemExit):
        SCRIPTS[name].main(["--help"])
    given = command[command.index(f"scripts/{name}.py") :]
    options = {word for word in given if word.startswith("--")}
    assert options <= set(re.findall(r"--[\w-]+", said.getvalue()))
    assert given[-2:] == ["--backend", "cupy"]


def test_the_order_is_that_of_value():
    """What people run first; our figures before PyTorch's; nothing that is timed beside training,
    and no two that train the same runs at once."""
    names = [step.name for step in STEPS]
    beside = [step.beside for step in STEPS].index(True)
    assert "scripts/train_mnist.py" in STEPS[1].command and "--overlap" in STEPS[2].command
    timed = [step for step in STEPS if {*step.command} & {"figure4", "scripts/benchmark.py"}]
    assert [each.name for each in timed] == ["device", "pytorch", "compiled", "sweep"]
    trains = [step for step in STEPS if "table1" in step.command]
    assert set(gpu_hour._ROWS) <= {row.name for row in TABLES["table1"].rows}
    for each in (*timed, *trains[1:]):
        assert each.alone or names.index(each.name) < beside


def test_every_test_of_a_device_is_in_one_step_and_the_second_branch_comes_first():
    ran = [word for each in STEPS for word in each.command if word.startswith("tests/")]
    files = (Path(__file__).parent / "gpu").glob("test_*.py")
    assert sorted(ran) == sorted(f"tests/gpu/{path.name}" for path in files)
    assert ran[0] == "tests/gpu/test_overlap.py"


def test_training_waits_for_all_of_mnist(monkeypatch, tmp_path):
    monkeypatch.setenv("SNFNP_OFFLINE", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("SNFNP_DATA_DIR", raising=False)
    assert "set SNFNP_DATA_DIR" in gpu_hour._no_mnist()
    monkeypatch.setattr("snfnp.data.load_dataset", lambda name: {}["pooch"])
    assert gpu_hour._no_mnist() == "KeyError: 'pooch'"
    waiting = [step.name for step in STEPS if step.needs is gpu_hour._no_mnist]
    assert waiting == ["table 1, one seed", "recipe", "table 1"]


def step(name, code, limit=20, **options):
    """Of a program that ends at SIGINT, which a shell may have ignored."""
    code = f"import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n{code}"
    command = [sys.executable, "-c", code, f"{OUT}/{name}"]
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


@pytest.mark.parametrize("beside", [False, True])
def test_a_step_that_continues_is_stopped_and_run_again(run, beside):
    steps = (step("table", ONLY_FAST_AGAIN, limit=40, continues=True, beside=beside),)
    assert run(*steps, seconds=2)[:2] == (3, {"table": "stopped at its limit"})
    status, states, out = run(*steps)
    assert (status, states) == (0, {"table": "passed"})
    assert (out / "table").read_text() == "xx"


MEETS = """
import pathlib, time
while not pathlib.Path(sys.argv[1]).with_name("training").exists():
    time.sleep(0.02)
"""


def test_training_runs_beside_other_steps_until_one_is_to_be_alone(run):
    training = step("training", f"{NOTE}; import time; time.sleep(60)", continues=True, beside=True)
    meets = step("a", NOTE + MEETS)
    began = time.monotonic()
    status, states, _ = run(training, meets, step("timed", NOTE, alone=True), step("b", NOTE))
    assert list(states) == ["a", "training", "timed", "b"] and status == 3
    assert list(states.values()) == ["passed", "stopped at its limit", "passed", "passed"]
    assert time.monotonic() - began < 50


def test_what_is_compiled_stays_in_the_folder(run):
    """A lent machine starts without CuPy's cache."""
    code = "import os, sys; open(sys.argv[1], 'w').write(os.environ['CUPY_CACHE_DIR'])"
    out = run(step("a", code))[2]
    assert (out / "a").read_text() == str(out / "kernels")


@pytest.mark.skipif(sys.platform != "linux", reason="GNU's tar and split")
def test_the_folder_is_taken_along_in_parts_that_fit(tmp_path):
    """By the commands of the head: a checkpoint of the fully connected model has 28 MiB, and of its
    four runs one goes on."""
    *pack, unpack = re.findall(r"^    (\(cd .*|tar .*|mkdir .*)$", gpu_hour.__doc__, re.M)
    runs, parts = tmp_path / "runs/gpu-hour/reproduction", tmp_path / "parts"
    parts.mkdir()
    for run in "abcd":
        (runs / run).mkdir(parents=True)
        for name in ("last", "best"):
            (runs / run / f"{name}.safetensors").write_bytes(name.encode() * (28 << 18))
        if run != "c":
            (runs / run / "summary.json").write_text("{}")
    for command in pack:
        subprocess.run(command, shell=True, cwd=tmp_path, check=True)
    sizes = [path.stat().st_size for path in parts.iterdir()]
    assert len(sizes) <= 8 and max(sizes) <= 16 << 20 and sum(sizes) <= 40 << 20
    (tmp_path / "runs").rename(tmp_path / "before")
    subprocess.run(unpack, shell=True, cwd=tmp_path, check=True)
    left = sorted(path.relative_to(runs).as_posix() for path in runs.glob("*/*"))
    assert left == ["a/summary.json", "b/summary.json", "c/last.safetensors", "d/summary.json"]
    assert (runs / "c/last.safetensors").read_bytes() == b"last" * (28 << 18)


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
    assert status == 0, "".join(map(Path.read_text, tmp_path.glob("*.txt")))
    states = json.loads((tmp_path / "state.json").read_text())
    assert set(states) == {step.name for step in STEPS} and set(states.values()) == {"passed"}
