"""The package settles the thread pools: in a process of its own, since it happens once."""

import math
import os
import re
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest
from support.ranks import on_ranks

from snfnp import threads
from snfnp.errors import UsageError
from snfnp.ops.host import HostDevice, ranks_on_shared_cores

_PRINT = """
{before}
import snfnp
from snfnp import threads
from snfnp.ops import RandomKey, get_ops
get_ops("numba").random.uniform(RandomKey(0, 0), (10,), "float32")
import numba
found = threads.describe()
blas = (found["blas_thread_timeout"], found["blas_timeout_in_time"])
print(numba.threading_layer(), *blas, found["omp_wait_policy"], found["gomp_spincount"])
"""

NAMES = ["OPENBLAS_THREAD_TIMEOUT", "NUMBA_THREADING_LAYER", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT"]


def printed(script, **environment):
    """The output of a script in a process of its own; a variable that is "" is left out."""
    variables = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))} | environment
    variables = {name: value for name, value in variables.items() if value}
    command = [sys.executable, "-c", script]
    return subprocess.check_output(command, env=variables, text=True, timeout=300)


SPINS = "5000" if sys.platform == "linux" else "None"


@pytest.mark.parametrize(
    "before, settings, found",
    [
        ("", {}, "(omp|workqueue) 4 True passive " + SPINS),
        ("import numpy", {}, "(omp|workqueue) 4 False passive " + SPINS),
        ("", {"OMP_WAIT_POLICY": "ACTIVE"}, "workqueue 4 True ACTIVE None"),
        ("", {NAMES[0]: "20", NAMES[1]: "workqueue"}, "workqueue 20 True None None"),
        ("", {"GOMP_SPINCOUNT": "7"}, "(omp|workqueue) 4 True passive 7"),
        ("", {"OMP_WAIT_POLICY": "passive"}, "(omp|workqueue) 4 True passive None"),
    ],
)
def test_idle_threads_sleep_and_the_environment_has_the_last_word(before, settings, found):
    """NumPy before the package is recorded; OpenMP threads that are to spin are not used."""
    said = printed(_PRINT.format(before=before), **dict.fromkeys(NAMES, "") | settings)
    assert re.fullmatch(found, said.strip())


# ---------------------------------------------------------------- results

_STEPS = """
import hashlib
import numba
import numpy as np
from snfnp.ops import get_ops
from support.trainers import make_trainer
images = np.random.default_rng(0).integers(0, 256, (25, 28, 28, 1)).astype(np.uint8)
for threads in (1, 2):
    numba.set_num_threads(threads)
    trainer = make_trainer(get_ops("numba"), {model!r}, side=28)
    trainer.initialise_from_data(images)
    for _ in range(2):
        trainer.training_step(images)
    assert numba.get_num_threads() == threads
    buffers = (trainer.p, trainer.gradient, np.array(trainer.metrics().surrogate))
    print(hashlib.sha256(b"".join(buffer.tobytes() for buffer in buffers)).hexdigest())
"""


def test_a_step_has_the_same_bits_whatever_the_number_of_threads():
    """Two threads, also where there is one core; 25 samples are in no kernel a whole number of
    tasks."""
    one, two = printed(_STEPS.format(model="conv"), NUMBA_NUM_THREADS="2").split()
    assert one == two


_SHARED = """
import numba
import snfnp
from snfnp import threads
from snfnp.ops import get_ops
from support.ranks import on_ranks

threads.cores = lambda: frozenset(range(4))


def counts(world):
    get_ops("numba", world=world)
    blas = [each["num_threads"] for each in threads.describe()["blas"]]
    return numba.get_num_threads(), *blas


get_ops("numba")  # threads that import the same modules at once may see half of them
for ranks in (1, 2, 4):
    for found in on_ranks(ranks, counts):
        print(ranks, *found)
"""


def test_ranks_of_a_machine_share_its_cores():
    names = {f"{name}_NUM_THREADS": "4" for name in ("OMP", "OPENBLAS", "NUMBA")}
    lines = [[*map(int, line.split())] for line in printed(_SHARED, **names).splitlines()]
    assert [ranks for ranks, *_ in lines] == [1, 2, 2, 4, 4, 4, 4]
    for ranks, numba, *blas in lines:  # OpenBLAS has no more than there are cores here
        assert numba == 4 // ranks and blas and max(blas) <= numba


def test_cores_that_a_launcher_gave_to_one_rank_are_not_shared(monkeypatch):
    own = {}

    def count(world):
        own[threading.get_ident()] = frozenset([2 * world.rank, 2 * world.rank + 1])
        return ranks_on_shared_cores(world)

    monkeypatch.setattr(threads, "cores", lambda: own[threading.get_ident()])
    assert on_ranks(3, count) == [1, 1, 1]
    monkeypatch.setattr(threads, "cores", lambda: frozenset([0, 1]))
    assert on_ranks(3, ranks_on_shared_cores) == [3, 3, 3]


def test_what_is_said_of_blas_is_not_of_openmp(monkeypatch):
    """Numba's OpenMP library is loaded with its first kernel: what a process tells of BLAS would
    depend on what it had computed before."""
    pools = [{"user_api": "openmp", "num_threads": 4}, {"user_api": "blas", "num_threads": 2}]
    monkeypatch.setattr("threadpoolctl.threadpool_info", lambda: pools)
    assert [pool["num_threads"] for pool in threads.describe()["blas"]] == [2]


# ---------------------------------------------------------------- how many there are

_SUMS = """
import hashlib
import numba
import numpy as np
from snfnp.ops import get_ops
ops, rng = get_ops("numba"), np.random.default_rng(0)
values = [rng.normal(size=700_001).astype(np.float32) for _ in range(6)]
for threads in (1, 2, 3):
    numba.set_num_threads(threads)
    sums = []
    for g in values:
        out = tuple(np.zeros_like(g) for _ in range(3))
        sums.append(ops.step.adam(g, 0.1, 0.9, 0.999, 1e-8, 1.0, 1.0, 0.0, out=out))
        sums += [ops.linalg.sum_squares(g), ops.linalg.residual(g.copy(), values[0])]
    print(hashlib.sha256(np.array(sums).tobytes()).hexdigest())
"""


def test_sums_over_blocks_have_the_same_bits_whatever_the_number_of_threads():
    """Numba would add what the threads have added up."""
    assert len(set(printed(_SUMS, NUMBA_NUM_THREADS="3").split())) == 1


@pytest.mark.parametrize(
    "groups, files, cores",
    [
        ("0::/a/b", {"a/b/cpu.max": "max 100000", "a/cpu.max": "250000 100000"}, 2.5),
        ("0::/", {"cpu.max": "50000 100000"}, 0.5),
        ("0::/", {"cpu.max": "max 100000"}, math.inf),
        (
            "3:memory:/a\n2:cpu,cpuacct:/a",
            {"cpu/a/cpu.cfs_quota_us": "-1", "cpu/a/cpu.cfs_period_us": "100000"},
            math.inf,
        ),
        (
            "2:cpu,cpuacct:/elsewhere",
            {"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000"},
            3.0,
        ),
        (None, {}, math.inf),
    ],
)
def test_a_containers_share_of_the_cores_is_counted(tmp_path, groups, files, cores):
    files = {f"sys/fs/cgroup/{name}": text for name, text in files.items()}
    for name, text in (files | ({"proc/self/cgroup": groups} if groups else {})).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    assert threads.quota(tmp_path) == cores


@pytest.mark.parametrize(
    "slower, settings, chosen, line",
    [
        (3, {}, 1, "one thread: 4 take 3.0 times as long"),
        (1, {}, 4, ""),
        (3, {"OMP_NUM_THREADS": "4"}, None, ""),  # somebody has said how many
    ],
)
def test_a_few_steps_say_whether_one_thread_is_faster(monkeypatch, slower, settings, chosen, line):
    used, clock = [], [0.0]  # a clock of the test's own: it may run on a busy machine itself

    def work():
        clock[0] += 0.002 * (slower if used[-1] == 4 else 1)

    monkeypatch.setattr(threads, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    for name in threads._NUMBERS:
        monkeypatch.delenv(name, raising=False)
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(threads, "most", lambda: 4)
    monkeypatch.setattr(threads, "limit", lambda count, more: used.append(count))
    said = threads.choose(work)
    assert re.fullmatch(line, said.partition(" on ")[0]) and (used or [None])[-1] == chosen
    assert set(used) <= {1, 4}


@pytest.mark.parametrize("asked, limits", [([], [3]), ([2], [])])
def test_a_run_that_goes_on_has_its_threads_or_those_that_are_asked_for(monkeypatch, asked, limits):
    found = []
    monkeypatch.setattr(threads, "asked", asked)
    monkeypatch.setattr(threads, "limit", found.append)
    device = HostDevice("numpy")
    device.limit_threads({"blas": [{"num_threads": 3}], "numba_threads": 2})
    assert found == limits


def test_threads_are_as_many_as_were_asked_for(snfnp_train, monkeypatch):
    monkeypatch.setattr(threads, "asked", [])
    most = len(threads.cores())
    for count in (0, most + 1):
        with pytest.raises(UsageError, match=f"`threads` is {count}: choose from 1 to {most}, the"):
            snfnp_train("--threads", count)
    script = _PRINT.format(before="from snfnp import threads; threads.ask(1)")
    script += "print(found['numba_threads'], *(pool['num_threads'] for pool in found['blas']))"
    variables = {"NUMBA_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "2"}
    assert set(printed(script, **variables).splitlines()[-1].split()) == {"1"}
