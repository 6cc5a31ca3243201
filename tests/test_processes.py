"""Training in several processes: the numbers of one, and how errors, signals and kills end all."""

import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from support import processes
from support.messages import cases
from support.runs import assert_same_run, state
from support.trainers import OWN, SMALL_GLOW, small_dataset

from snfnp.errors import UsageError
from snfnp.training import session

pytestmark = pytest.mark.slow

# The training script on 96 random images of 8 by 8; rank RANK does ACTION right before step STEP.
COMMAND = """
import os, signal, sys, time
from pathlib import Path
from snfnp.cli import run_script, train as command
from snfnp.processes.mpi import world
from snfnp.training import session
from snfnp.step.trainer import Trainer
from support.trainers import small_dataset

def load(name, folder):
    if "WARN" in os.environ:
        print("only a sample", file=sys.stderr)
    return small_dataset(images=96, side=8)

session.load_dataset = load
command._draw = lambda *of: None
original = Trainer.training_step

def step(trainer, images):
    if "PIDS" in os.environ:
        Path(os.environ["PIDS"], str(world().rank)).write_text(f"{os.getpid()} {trainer.step}")
    if world().rank == int(os.environ.get("RANK", -1)) and trainer.step == int(os.environ["STEP"]):
        exec(os.environ["ACTION"])
    time.sleep(float(os.environ.get("SLEEP", 0)))
    return original(trainer, images)

Trainer.training_step = step
run_script(command.main)
"""
# Every command of a list, one after another in one process: most of the time such a process starts.
IN_TURN = """
for sys.argv[1:] in eval(sys.argv[1]):
    try:
        run_script(command.main)
    except SystemExit as end:
        print("status", end.code)
"""
SEVERAL = COMMAND.replace("run_script(command.main)", IN_TURN)
OPTIONS = "--backend numpy --batch-size 12 --warmup-epochs 1 --lr 1e-3"
SMALL = OPTIONS.split()
GLOW = " ".join(f"--{name} {value}" for name, value in SMALL_GLOW.items())
LIMIT = 60  # seconds in which all processes have ended after one of them has
TIGHT = 1e-12


def train(size, path, *arguments, limit=180, **environment):
    """(exit status, output, errors) of a small run in so many processes."""
    return processes.finish(launch(size, path, *arguments, **environment), limit)


def launch(size, path, *arguments, **environment):
    words = ["-c", COMMAND, *SMALL, "--out", path, *arguments]
    return processes.start(size, words, **environment)


def ended(*words, **environment):
    """The finished process of a command."""
    environment = processes.environment(**environment)
    return subprocess.run(
        words, env=environment, capture_output=True, text=True, timeout=60
    )


def all_trained(size, runs):
    """What so many processes print that train one run after another: (folder, arguments …)."""
    words = [
        [*SMALL, "--out", str(path), *map(str, arguments)] for path, *arguments in runs
    ]
    status, output, errors = processes.finish(
        processes.start(size, ["-c", SEVERAL, repr(words)])
    )
    assert status == 0 and "status" not in output, errors[-2000:]
    return output


@pytest.fixture
def alone(snfnp_train, monkeypatch):
    """The same runs in this process."""
    monkeypatch.setattr(
        session, "load_dataset", lambda *of: small_dataset(images=96, side=8)
    )

    def run(path, *arguments):
        until = time.monotonic() + 60
        while True:
            try:
                return snfnp_train("", *SMALL, "--out", path, *arguments)
            except UsageError as error:  # a rank may end a moment after its launcher
                if "is in use by" not in str(error) or time.monotonic() > until:
                    raise
                time.sleep(0.1)

    return run


def assert_close(first, second):
    """Compare runs that differ in the order alone in which the samples' shares were added."""
    a = state(first)
    b = state(second)
    assert a.step == b.step
    for name in ("p", "m", "v"):
        one = getattr(a, name)
        other = getattr(b, name)
        assert np.abs(one - other).max() <= TIGHT * np.abs(one).max()


MODELS = {
    "fc whitened": "--model fc --coordinates white --clip-norm 5",
    # Adam divides a gradient by its size, or by 1e-8 where it is smaller: where the terms of one
    # cancel, as those of a coupling's scale do at the start, a rounding of 1e-14 moves a parameter
    # by 1e-6 of the learning rate. With a small one, m and v still tell of every gradient.
    "glow": f"--model glow {GLOW} --epochs 1 --lr 1e-7",
}


@pytest.mark.mpi
def test_the_numbers_do_not_depend_on_how_many_processes_there_are(tmp_path, alone):
    """And the same number gives the same bits. In threads, tests/test_slices.py has every model."""
    paths = []
    runs = []
    for name, options in MODELS.items():
        words = f"--dtype float64 --epochs 2 {options}".split()
        one, two, again = (
            tmp_path / f"{name}-{copy}" for copy in ("one", "two", "again")
        )
        alone(one, *words)
        runs += [(two, *words), (again, *words)]
        paths.append((one, two, again))
    output = all_trained(2, runs)
    assert output.count("run folder") == len(runs)  # rank 0's
    for one, two, again in paths:
        assert_close(one, two)
        assert_same_run(two, again)


def pids(folder, size):
    """The process of each rank, once all have taken a step."""
    until = time.monotonic() + 120
    while time.monotonic() < until:
        texts = [(folder / str(rank)) for rank in range(size)]
        result = [path.read_text().split() for path in texts if path.exists()]
        if len(result) == size and all(
            len(words) == 2 and words[1] != "0" for words in result
        ):
            return [int(process) for process, _ in result]
        time.sleep(0.02)
    raise AssertionError("the processes have not started")


def gone(process):
    """True once a process has ended, or only waits for its parent to notice."""
    try:
        with open(f"/proc/{process}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def seconds_until_gone(ranks):
    """After a process was killed."""
    killed = time.monotonic()
    while not all(map(gone, ranks)):
        assert time.monotonic() - killed < LIMIT
        time.sleep(0.02)
    return time.monotonic() - killed


@pytest.mark.mpi
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_killed_rank_ends_the_others_and_the_run_goes_on(tmp_path):
    """At random moments, as often as SNFNP_KILLS says; killed with no warning, as kill -9 does."""
    kills = int(os.environ.get("SNFNP_KILLS", 1))
    rng = np.random.default_rng(int(os.environ.get("SNFNP_SEED", 0)))
    whole = tmp_path / "whole"
    part = tmp_path / "part"
    options = ("--epochs", "4", "--resume", "auto")
    longest = 0.0
    for _ in range(kills):
        environment = {"PIDS": str(tmp_path), "SLEEP": "0.05"}
        words = (*options, "--checkpoint-every", "2")
        process = launch(2, part, *words, **environment)
        ranks = pids(tmp_path, 2)
        time.sleep(rng.uniform(0, 1))
        victim = int(rng.integers(2))
        os.kill(ranks[victim], signal.SIGKILL)
        longest = max(longest, seconds_until_gone(ranks))
        status, *_ = processes.finish(process, LIMIT)
        assert status != 0
        for file in tmp_path.glob("[01]"):
            file.unlink()
    print(f"{kills} kills: the other process ended within {longest:.2f} s")
    all_trained(2, [(whole, *options), (part, *options)])
    assert_same_run(whole, part)


@pytest.mark.mpi
def test_ranks_resume_a_model_of_the_users_own_without_sending_its_code(tmp_path):
    whole = tmp_path / "whole"
    part = tmp_path / "part"
    own = ("--model", "support.trainers:OWN", "--epochs")
    runs = [(whole, *own, 2), (part, *own, 1), (part, *own, 2, "--resume")]
    all_trained(2, runs)
    assert_same_run(whole, part, flow=OWN)


FULL = "out of memory: 4 GiB: choose a smaller"
FAILURES = {
    "memory": (
        "raise MemoryError('4 GiB')",
        1,
        f"rank 1: {FULL} --batch-size than 12\n",
    ),
    # which all ranks find in the same sum, and tell once
    "divergence": ("trainer.p[:] = float('nan')", 1, "training diverged at step 10"),
    "interrupt": ("raise KeyboardInterrupt", 130, ""),
    "mistake": ("1 / 0", 1, "rank 1:\nTraceback"),
}


@pytest.mark.mpi
@pytest.mark.parametrize("failure", FAILURES)
def test_one_rank_that_fails_ends_all_with_its_own_line(tmp_path, failure, alone):
    """The other one waits for it in a sum. What was saved before is whole."""
    action, status, said = FAILURES[failure]
    at_once = "from snfnp.processes import launching; launching._FAIL_TIMEOUT = 0.1"
    environment = {"RANK": "1", "STEP": "9", "ACTION": f"{at_once}; {action}"}
    result, _, errors = train(2, tmp_path / "run", "--epochs", "2", **environment)
    assert result == status and errors.removeprefix("error: ").startswith(said)
    assert ("Traceback" in errors) == (failure == "mistake")
    assert errors.count("\n") == bool(said) or failure == "mistake"
    assert state(tmp_path / "run").step == 8
    alone(tmp_path / "run", "--epochs", "2", "--resume")


@pytest.mark.mpi
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_killed_launcher_stops_the_run_with_a_checkpoint(tmp_path, alone):
    """MPICH's own process between mpiexec and the ranks; nobody reads their output any more."""
    options = ["--epochs", "9999", "--checkpoint-every", "999999"]
    process = launch(2, tmp_path / "run", *options, PIDS=str(tmp_path), SLEEP="0.02")
    ranks = pids(tmp_path, 2)
    with open(f"/proc/{ranks[0]}/status") as status:
        launcher = int(re.search(r"PPid:\s+(\d+)", status.read())[1])
    assert launcher not in (1, os.getpid())
    os.kill(launcher, signal.SIGKILL)
    seconds_until_gone(ranks)
    assert processes.finish(process, LIMIT)[0] != 0
    step = state(tmp_path / "run").step
    assert step > 0
    alone(tmp_path / "run", "--resume", "--epochs", step // 8 + 1)


@pytest.mark.mpi
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_mpiexec_writes_a_checkpoint_first(tmp_path, number):
    options = ["--epochs", "50", "--checkpoint-every", "1000"]
    process = launch(2, tmp_path / "run", *options, PIDS=str(tmp_path), SLEEP="0.02")
    pids(tmp_path, 2)
    process.send_signal(number)
    status, output, errors = processes.finish(process, 30)
    step = state(tmp_path / "run").step
    assert status == 130 and f"interrupted at step {step}:" in output
    assert errors == "\nstopping after this step …\n"


AT_START = """
import os
from snfnp.cli import run_script, train
from snfnp.processes.mpi import Mpi
def begin(mpi, MPI):
    os.kill(os.getpid(), 15) if MPI.COMM_WORLD.rank else MPI.COMM_WORLD.Barrier()
Mpi.__init__ = begin
run_script(train.main)
"""


@pytest.mark.mpi
def test_a_signal_before_the_ranks_know_each_other_ends_them():
    assert processes.finish(processes.start(2, ["-c", AT_START]), LIMIT)[0] != 0


WRONG = cases("""
--nonsense | unrecognized arguments: --nonsense
--batch-size 1 | is not a multiple of 2 processes
--batch-size 21 | is not a multiple of 2 processes
--resume | is no run folder
""")


@pytest.mark.mpi
def test_wrong_use_is_one_line(tmp_path):
    """All ranks fail alike, and none of them ends the others."""
    words = [
        [*SMALL, "--out", str(tmp_path / "run"), *options.split()] for options in WRONG
    ]
    status, output, errors = processes.finish(
        processes.start(2, ["-c", SEVERAL, repr(words)])
    )
    assert (status, output) == (0, 2 * len(WRONG) * "status 2\n"), errors
    for line, said in zip(errors.splitlines(), WRONG.values(), strict=True):
        assert re.fullmatch(f"error: .*{re.escape(said)}.*", line), errors
    assert not (tmp_path / "run").exists()


@pytest.mark.mpi
def test_ranks_with_different_options_are_refused(tmp_path):
    words = [
        sys.executable,
        "-c",
        COMMAND,
        *SMALL,
        "--out",
        str(tmp_path / "run"),
        "--seed",
    ]
    done = ended(
        processes.mpiexec(), "-n", "1", *words, "1", ":", "-n", "1", *words, "2"
    )
    line = (
        "error: --seed is 1 for rank 0 and 2 for rank 1: give all processes the same\n"
    )
    assert (done.returncode, done.stderr) == (2, line)
