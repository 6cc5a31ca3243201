"""The package settles the thread pools: in a process of its own, since it happens once."""

import math
import os
import re
import sys
from functools import partial
from types import SimpleNamespace

import pytest
from support.arrays import normal
from support.processes import python

import snfnp
from snfnp import threads
from snfnp.data import own_data
from snfnp.ops import get_ops

pytestmark = pytest.mark.slow

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

NAMES = [
    "OPENBLAS_THREAD_TIMEOUT",
    "NUMBA_THREADING_LAYER",
    "OMP_WAIT_POLICY",
    "GOMP_SPINCOUNT",
]
SPINS = "5000" if sys.platform == "linux" else "None"


def printed(script, **environment):
    """The output of a script in a process of its own; a variable that is "" is left out."""
    done = python(
        script, PYTHONPATH=os.pathsep.join(filter(None, sys.path)), **environment
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "before, settings, result",
    [
        ("", {}, "(omp|workqueue) 4 True passive " + SPINS),
        ("import numpy", {}, "(omp|workqueue) 4 False passive " + SPINS),
        ("", {"OMP_WAIT_POLICY": "ACTIVE"}, "workqueue 4 True ACTIVE None"),
        ("", {NAMES[0]: "20", NAMES[1]: "workqueue"}, "workqueue 20 True None None"),
        ("", {"GOMP_SPINCOUNT": "7"}, "(omp|workqueue) 4 True passive 7"),
        ("", {"OMP_WAIT_POLICY": "passive"}, "(omp|workqueue) 4 True passive None"),
    ],
)
def test_idle_threads_sleep_and_the_environment_has_the_last_word(
    before, settings, result
):
    """NumPy before the package is recorded; OpenMP threads that are to spin are not used."""
    said = printed(_PRINT.format(before=before), **dict.fromkeys(NAMES, "") | settings)
    assert re.fullmatch(result, said.strip())


_STEPS = """
import hashlib
import numba
import numpy as np
from snfnp.ops import get_ops
from support.trainers import make_trainer
from snfnp.step.batches import Repeated
images = np.random.default_rng(0).integers(0, 256, (25, 28, 28, 1)).astype(np.uint8)
for threads in (1, 2):
    numba.set_num_threads(threads)
    trainer = make_trainer(get_ops("numba"), {model!r}, side=28)
    trainer.begin(Repeated(images))
    for _ in range(2):
        trainer.training_step(Repeated(images))
    assert numba.get_num_threads() == threads
    buffers = (trainer.p, trainer.gradient, np.array(trainer.metrics().surrogate))
    print(hashlib.sha256(b"".join(buffer.tobytes() for buffer in buffers)).hexdigest())
"""


def test_a_step_has_the_same_bits_on_any_number_of_threads():
    """Two threads, also where there is one core; 25 samples are in no kernel a whole number of
    tasks."""
    one, two = printed(_STEPS.format(model="conv"), NUMBA_NUM_THREADS="2").split()
    assert one == two


def test_a_backend_takes_a_thread_for_each_core_unless_the_environment_has_a_number(
    monkeypatch,
):
    """Of a container's quota whole cores count, and at least one."""
    limits = []
    monkeypatch.setattr(threads, "limit", limits.append)
    monkeypatch.setattr(threads, "cores", lambda: 4)
    for name in threads._NUMBERS:
        monkeypatch.delenv(name, raising=False)
    for quota in (math.inf, 2.5, 0.5):
        monkeypatch.setattr(threads, "quota", lambda quota=quota: quota)
        get_ops("numpy")
    assert limits == [4, 2, 1]
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    get_ops("numpy")
    assert limits == [4, 2, 1]


def test_what_is_said_of_blas_is_not_of_openmp(monkeypatch):
    """Numba's OpenMP library is loaded with its first kernel: what a process tells of BLAS would
    depend on what it had computed before."""
    pools = [
        {"user_api": "openmp", "num_threads": 4},
        {"user_api": "blas", "num_threads": 2},
    ]
    monkeypatch.setattr("threadpoolctl.threadpool_info", lambda: pools)
    assert [pool["num_threads"] for pool in threads.describe()["blas"]] == [2]


_SUMS = """
import hashlib
import math
import numba
import numpy as np
from snfnp.ops import get_ops
from snfnp.step.batches import Repeated
ops, rng = get_ops("numba"), np.random.default_rng(0)
values = [rng.normal(size=700_001).astype(np.float32) for _ in range(6)]
for threads in (1, 2, 3):
    numba.set_num_threads(threads)
    outs = [tuple(np.zeros_like(g) for _ in range(3)) for g in values]
    pairs = zip(values, outs, strict=True)
    settings = (0.1, 0.9, 0.999, 1e-8, 1.0, math.inf, 0.0)
    sums = [ops.step.adam(g, *settings, out=out) for g, out in pairs]
    print(hashlib.sha256(np.array(sums).tobytes()).hexdigest())
"""


def test_sums_over_blocks_have_the_same_bits_on_any_number_of_threads():
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
    for name, text in (
        files | ({"proc/self/cgroup": groups} if groups else {})
    ).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    assert threads.quota(tmp_path) == cores


def test_a_run_gives_its_threads_back_and_goes_on_with_as_many(monkeypatch, tmp_path):
    """The number is in config.json, since the rounding of BLAS depends on it."""
    pool = SimpleNamespace(count=4, filepath="blas")
    counts = []
    pool.get_num_threads = lambda: pool.count
    pool.set_num_threads = partial(setattr, pool, "count")
    monkeypatch.setattr(threads, "blas_libraries", lambda: [pool])
    monkeypatch.setattr(threads, "_numba", lambda: None)
    monkeypatch.setattr(threads, "cores", lambda: 4)
    data = own_data(normal(40, 2))
    options = {"model": "fc", "backend": "numpy", "batch_size": 10, "epochs": 1}
    keywords = {
        "callbacks": [lambda record: counts.append(pool.count)],
        "report": lambda line: None,
    }
    run = snfnp.fit(data, out=tmp_path / "run", **options, **keywords)
    assert set(counts) == {4} and run.config.threads == 4
    snfnp.fit(data, out=tmp_path / "other", threads=3, **options, **keywords)
    assert set(counts) == {4, 3} and pool.count == 4
    counts.clear()
    snfnp.resume(tmp_path / "other", dataset=data, epochs=2, **keywords)
    assert set(counts) == {3} and pool.count == 4
