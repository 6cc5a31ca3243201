"""Threads and forks: each case in a child process, since a fault ends or blocks the process.

A child prints the name of a case before it begins, and then what it computed: what aborted, or
hung, is the last name.
"""

import os
import sys
import threading
from contextlib import ExitStack
from types import SimpleNamespace

import numpy as np
import pytest
from support.arrays import pixels
from support.processes import python
from support.trainers import make_trainer

from snfnp import threads
from snfnp.errors import SnfnpError
from snfnp.processes.forked import forked
from snfnp.step.batches import Repeated

# Kernels of more values than `jit._SHORT`, in both precisions, and a product with threads of BLAS.
_START = """
import asyncio, hashlib, os, sys, tempfile, threading, time, warnings
{before}
import numpy as np
import snfnp
from snfnp import FlowDensity

warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 advises against forks
X = np.random.default_rng(0).standard_normal((2000, 16))


def digest(values):
    return hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()[:16]


def density():
    own = dict(members=1, mixtures=False, epochs=1, layers=2, noise=0.0, batch_size=500)
    return FlowDensity(random_state=0, verbose=False, **own)


def run():
    with tempfile.TemporaryDirectory() as folder:
        own = dict(out=folder + "/run", model="vector", depth=2, epochs=1, batch_size=500)
        found = snfnp.fit(X.astype("f4"), report=None, **own)
        return digest(found.likelihood.log_prob(X))


def scores():
    return digest(model.score_samples(X))


def fitted():
    return digest(density().fit(X).score_samples(X))


def pair(function):
    results = [None, None]

    def call(index):
        try:
            results[index] = function()
        except BaseException as error:
            results[index] = repr(error)

    both = [threading.Thread(target=call, args=(index,)) for index in range(2)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    return results


def case(name, expected, function):
    print(name, flush=True)
    results = function()
    print("ok" if set(results) == {{expected}} else f"{{results}}, not {{expected}}", flush=True)
"""

_THREADS = (
    _START
    + """
model = density().fit(X)
alone, trained = scores(), run()
case("the same again", alone, lambda: [fitted()])
case("score", alone, lambda: pair(lambda: [scores() for _ in range(10)][-1]))
case("fit", alone, lambda: pair(fitted))
case("snfnp.fit", trained, lambda: pair(run))


async def side_by_side():
    return await asyncio.gather(asyncio.to_thread(scores), asyncio.to_thread(fitted))


case("asyncio", alone, lambda: asyncio.run(side_by_side()))
from joblib import Parallel, delayed

case("joblib", alone, lambda: Parallel(2, "threading")(delayed(scores)() for _ in range(4)))
import joblib
from sklearn.model_selection import cross_val_score

case("score, scikit-learn loaded", alone, lambda: pair(scores))
split = lambda: [digest(cross_val_score(density(), X, cv=2))]
one = split()[0]
with joblib.parallel_config("threading", n_jobs=2):
    case("cross_val_score", one, split)
"""
)

_FORKS = (
    _START
    + """
import multiprocessing
from types import SimpleNamespace

import joblib
from joblib import Parallel, delayed
from snfnp.ops.linalg.definition import LinearAlgebra


def forked():
    reading, writing = os.pipe()
    if pid := os.fork():
        os.close(writing)
        with open(reading) as pipe:
            text = pipe.read()
        status = os.waitpid(pid, 0)[1]
        return text or f"status {{status}}"
    try:
        os.write(writing, scores().encode())
    finally:
        os._exit(0)


def pool(kind):
    with multiprocessing.get_context(kind).Pool(2) as workers:
        return [digest(each) for each in workers.map(model.score_samples, [X, X])]


def while_threads_work(function):
    end = threading.Event()

    def work():
        while not end.is_set():
            model.score_samples(X)

    others = [threading.Thread(target=work, daemon=True) for _ in range(2)]
    for thread in others:
        thread.start()
    try:
        return [function() for _ in range(8)]
    finally:
        end.set()
        for thread in others:
            thread.join()


# A fork waits until the product of another thread has ended: the child would wait for ever for a
# lock that OpenBLAS held in that thread.
def beside_a_product():
    begun, ended = threading.Event(), threading.Event()

    def product(*_, **others):
        begun.set()
        time.sleep(0.2)
        ended.set()

    linalg = LinearAlgebra(SimpleNamespace(xp=SimpleNamespace(matmul=product)))
    other = threading.Thread(target=linalg.matmul, args="ab")
    other.start()
    begun.wait()
    if not (child := os.fork()):
        os._exit(ended.is_set())
    other.join()
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])]


case("beside a product", 1, beside_a_product)
model = density().fit(X)
alone = scores()
case("fork", alone, lambda: [forked(), scores()])
case("a child's child", alone, lambda: [forked() for _ in range(2)])
case("Pool", alone, lambda: pool("fork"))
case("joblib", alone, lambda: Parallel(2, "multiprocessing")(delayed(scores)() for _ in range(4)))
case("while threads score", alone, lambda: while_threads_work(forked))
two_fits = lambda: Parallel(2, "multiprocessing")(delayed(fitted)() for _ in "ab")
case("fits of children", alone, two_fits)

case("threads after a fork", alone, lambda: pair(scores))
"""
)

_EARLY_FORK = (
    _START
    + """
from snfnp.ops import get_ops
get_ops("numba")
if not os.fork():
    model = density().fit(X)
    print(scores(), flush=True)
    os._exit(0)
print(os.wait()[1], flush=True)
model = density().fit(X)
print(scores(), flush=True)
"""
)

FIRST = {
    "alone": "",
    "scikit-learn first": "import sklearn.model_selection, sklearn.cluster",
}
needs_fork = pytest.mark.skipif(
    not hasattr(os, "fork"), reason="this system has no forks"
)


def child(script, before=""):
    """The lines of a child process."""
    done = python(
        script.format(before=before),
        timeout=400,
        PYTHONPATH=os.pathsep.join(sys.path),
    )
    assert done.returncode == 0, (
        f"{done.returncode}: {done.stdout}{done.stderr[-2000:]}"
    )
    return done.stdout.splitlines()


@pytest.mark.slow
@pytest.mark.parametrize("before", FIRST.values(), ids=FIRST)
@pytest.mark.parametrize(
    "script, cases",
    [(_THREADS, 8), pytest.param(_FORKS, 8, marks=needs_fork)],
    ids=["threads", "forks"],
)
def test_threads_and_children_compute_what_one_thread_computes(script, cases, before):
    """Numba's work queue, which is taken if another OpenMP is loaded, ends the process if two
    threads use it. GNU OpenMP ends the child of a process in which it has run."""
    pytest.importorskip("sklearn")
    lines = child(script, before)
    assert len(lines) == 2 * cases and set(lines[1::2]) == {"ok"}, lines


@needs_fork
@pytest.mark.slow
def test_a_fork_before_the_first_kernel_leaves_both_whole():
    in_child, status, in_parent = child(_EARLY_FORK)
    assert (status, in_child) == ("0", in_parent)


def test_a_glow_trains_while_another_thread_scores(ops, alone):
    """With the same operations, to the bits of each alone."""
    images = pixels(6, 8, 8, 1)
    batches = Repeated(images)

    def trained():
        trainer = make_trainer(ops, "glow")
        trainer.begin(batches)
        for _ in range(15):
            trainer.training_step(batches)
        return trainer.p.copy()

    trainer = make_trainer(ops, "glow")
    trainer.begin(batches)
    likelihood = trainer.likelihood()
    expected = trained()
    scores = likelihood.log_prob(images)
    end = threading.Event()
    result = []

    def score():
        while not end.is_set():
            result.append(likelihood.log_prob(images))

    thread = threading.Thread(target=score)
    thread.start()
    try:
        np.testing.assert_array_equal(trained(), expected)
    finally:
        end.set()
        thread.join()
    assert result
    for each in result:
        np.testing.assert_array_equal(each, scores)


def test_limits_of_several_threads_end_in_any_order(monkeypatch):
    """The number of BLAS's threads is the process's: the least that is asked for holds, and at the
    end it is what it was before the first."""
    pool = SimpleNamespace(filepath="blas", count=8)
    pool.get_num_threads = lambda: pool.count
    pool.set_num_threads = lambda count: setattr(pool, "count", count)
    monkeypatch.setattr(threads, "blas_libraries", lambda: [pool])
    with ExitStack() as first, ExitStack() as second, ExitStack() as third:
        first.enter_context(threads.limited(1))
        second.enter_context(threads.limited())
        third.enter_context(threads.blas_limited(3, [pool]))
        assert pool.count == 1
        first.close()
        assert pool.count == 3
        threads.limit(6)
        third.close()
        assert pool.count == 6
        third.enter_context(threads.blas_limited(2))
        second.close()
        assert pool.count == 2
    assert pool.count == 6
    with pytest.raises(KeyError), threads.limited(1):
        raise KeyError
    assert pool.count == 6


@pytest.mark.skipif(sys.platform != "linux", reason="forks are for Linux")
def test_a_fork_computes_values_in_order():
    """With one thread, some of them ahead; more than a pipe holds as they are read."""
    array = np.arange(100_000.0)
    values = ((k * array, os.getpid(), threads.most()) for k in range(3))
    with forked(values) as received:
        results = list(received)
    np.testing.assert_array_equal(
        [result[0] for result in results], np.arange(3)[:, None] * array
    )
    assert {result[2] for result in results} == {1}
    assert len({result[1] for result in results} - {os.getpid()}) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="forks are for Linux")
def test_a_fork_that_fails_says_why_and_one_that_is_left_ends():
    def failing(end):
        yield os.getpid()
        end()

    with forked(failing(lambda: 1 / 0)) as received:
        next(received)
        with pytest.raises(ZeroDivisionError):
            next(received)
    with forked(failing(lambda: os._exit(1))) as received:
        next(received)
        with pytest.raises(SnfnpError, match="was ended.*: set NUMBA_NUM_THREADS=1"):
            next(received)
    with forked(failing(threading.Event().wait)) as received:
        process = next(received)
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)
