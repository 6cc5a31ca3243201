"""Whole training steps on the device: parity with NumPy, launches, failures, data, likelihoods."""

from __future__ import annotations

import gc
import re
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from support import trainers
from support.arrays import assert_near, normal, orthogonal, pixels
from support.messages import one_line
from support.trainers import (
    BATCH,
    SMALL_MODELS,
    Given,
    batches_of,
    host,
    images_of,
    make_trainer,
    run_training,
)

from gpu.standin import run_alone
from snfnp.errors import BackendError, DivergedError, SingularMatrixError, UsageError
from snfnp.ops import get_ops
from snfnp.ops.gpu.launch import Launcher
from snfnp.ops.linalg.definition import LinearAlgebra
from snfnp.step.batches import Batches, Repeated, batch_of
from snfnp.training.options import TrainConfig

pytestmark = pytest.mark.slow

SELF_NORMALIZING = [
    (model, "self-normalizing") for model in ("fc", "conv", "glow-2l-4k")
]


def take_steps(trainer, steps, batch=BATCH):
    """Steps, and a look whether they went well."""
    trainers.take_steps(trainer, steps, batch)
    trainer.check(Given(lambda step: images_of(trainer, step, batch)))
    return trainer


def spent_by_a_step(trainer, standin) -> dict[str, int]:
    """Count the launches, waits and copies of a trainer's third step."""
    images = images_of(trainer, 2)
    gc.collect()  # a trainer of an earlier test waits for its graph when it goes
    before = standin.counts()
    trainer.training_step(Repeated(images))
    return {name: count - before[name] for name, count in standin.counts().items()}


# ---------------------------------------------------------------- parity with NumPy


def assert_matches_numpy(found, expected, tolerance):
    """Two steps have the numbers of NumPy, in double precision.

    Gradients are sums of at most a few thousand terms, through at most 19 layers.
    """
    for name in ("gradient", "m"):
        a = host(found, name)
        b = host(expected, name)
        assert np.abs(a - b).max() <= tolerance * np.abs(b).max(), name
    # Adam divides by the size of a gradient: where that is all rounding, so is the step
    gradient = host(expected, "gradient")
    p, other = (host(each, "p")[: len(gradient)] for each in (expected, found))
    large = np.abs(gradient) >= 1e-3 * np.abs(gradient).max()
    assert large.sum() > 5
    moves = 2 * expected.config.lr
    assert np.abs(other - p)[large].max() <= tolerance / 1e-3 * moves + 1e-15


@pytest.mark.parametrize("model, gradient", SELF_NORMALIZING)
def test_a_single_precision_step_matches_numpy(ops, model, gradient):
    """Against NumPy in double precision: the gradient of each parameter, by its largest entry.

    A gradient is a sum over batch and pixels of products of numbers that went through up to 20
    layers of sums of up to 72 terms: 20 · 72 roundings, each of which a layer may stretch; 1e-3
    is about 8000 of them. NumPy in single precision is held to the same.
    """
    reference = take_steps(
        make_trainer(get_ops("numpy"), model, gradient, dtype="float64"), [0]
    )
    for each in (ops, get_ops("numpy")):
        trainer = take_steps(make_trainer(each, model, gradient), [0])
        views = trainer.layout.views(host(trainer, "gradient"))
        for layer, named in reference.grads.items():
            for name, expected in named.items():
                difference = np.abs(views[layer][name] - expected).max()
                assert difference <= 1e-3 * max(np.abs(expected).max(), 1e-3), (
                    layer,
                    name,
                )


# ---------------------------------------------------------------- the host does not wait


def test_a_replay_costs_the_host_one_launch_and_a_graph(ops, standin, monkeypatch):
    """The batch is gathered in the recorded step. The time is printed: the CPU's in a step, with a
    graph that does nothing."""
    images = pixels(600, 4, 4, 1)
    trainer = make_trainer(ops, side=4)
    batches = Batches(ops, images, trainer.config, (16,))
    trainer.begin(batches)
    for _ in range(3):
        trainer.training_step(batches)
    replayed = []
    fake = SimpleNamespace(launch=replayed.append)
    monkeypatch.setattr(trainer._ascend._recording, "graph", fake)
    before = standin.counts()
    start = time.process_time()
    for _ in range(50):
        trainer.training_step(batches)
    print(f"{1e6 * (time.process_time() - start) / 50:.0f} µs of the host a step")
    spent = {name: count - before[name] for name, count in standin.counts().items()}
    assert len(replayed) == 50
    assert (spent["launches"], spent["h2d"], spent["d2h"], spent["syncs"]) == (
        50,
        0,
        0,
        0,
    )


@pytest.mark.parametrize("model", ["emerging", "conv-exponential"])
def test_exact_gradients_of_few_channels_are_recorded(ops, standin, model):
    """No inverse waits, and no addresses of arrays to be concatenated are uploaded."""
    eager, graph = (
        make_trainer(ops, model, "exact", side=4, graph=flag) for flag in (False, True)
    )
    for trainer in (eager, graph):
        take_steps(trainer, range(3))
    spent = spent_by_a_step(eager, standin)
    assert (spent["syncs"], spent["h2d"], spent["d2h"]) == (0, 0, 0)
    batches_of(graph)._images_of = lambda step: images_of(graph, 2)
    graph.training_step(batches_of(graph))
    assert graph._ascend._recording.graph
    assert_array_equal(host(graph, "p"), host(eager, "p"))
    graph.params[next(name for name in graph.grads if "W" in graph.grads[name])]["W"][
        ...
    ] = 0
    with pytest.raises(
        DivergedError, match=r"step 5: the gradient of \S+\.W is not finite"
    ):
        take_steps(graph, [5])


@pytest.mark.parametrize("model", ["fc", "conv"])
def test_the_memory_of_a_step_is_what_the_page_says(ops, monkeypatch, model):
    """MiB of 50 and of 100 images; launches that do nothing change no array's size."""
    monkeypatch.setattr(Launcher, "_start", lambda *of: None)
    monkeypatch.setattr(type(ops.device.cublas), "gemm", lambda *of, **more: None)
    found = {}
    for batch in (50, 100):
        trainer = make_trainer(ops, model, side=28, batch_size=batch)
        for _ in range(3):
            trainer.training_step(batches_of(trainer, batch))
        found[batch] = trainer._ascend._recording.pool.total_bytes() / 2**20
        print(f"{model}: {found[batch]:.1f} MiB for a recorded step of {batch} images")
    page = (Path(__file__).parents[2] / "scripts/gpu.md").read_text()
    small, large = re.search(rf"`{model}` \| \d+ \| (\d+) \| (\d+) ", page).groups()
    assert abs(int(small) - found[50]) <= 0.6 and abs(int(large) - found[100]) <= 0.6


def test_a_renewal_copies_no_matrix(ops, monkeypatch):
    """Neither way: the host reads norms, and the pivots of T and T⁻¹."""
    trainer = take_steps(
        make_trainer(ops, coordinates="white", epoch=16, side=4), range(2)
    )
    features = 16
    copied = []

    def note(name):
        copy = getattr(type(ops.device), name)

        def noted(device, array, *dtype):
            copied.append(np.size(array))
            return copy(device, array, *dtype)

        monkeypatch.setattr(type(ops.device), name, noted)

    note("to_host")
    note("asarray")
    batches = batches_of(trainer)
    before = ops.to_host(trainer.params["whiten2"]["U"])
    images = batch_of(batches, 20)
    batches._images_of = lambda step: images
    copied.clear()
    trainer.step = 20
    trainer.renew(batches)
    assert copied and max(copied) <= features < before.size
    monkeypatch.undo()
    assert np.abs(ops.to_host(trainer.params["whiten2"]["U"]) - before).max() > 1e-3


def test_a_root_needs_the_host_only_for_small_eigenvalues(ops, monkeypatch):
    """Of 1, 10⁻¹, …, 10⁻⁵: U has the inverse roots of these, or of the floor, to K κ roundings."""
    vectors = orthogonal(np.random.default_rng(0), 6)
    values = 0.1 ** np.arange(6)
    asked = []
    matrix = (vectors * values) @ vectors.T
    root = LinearAlgebra.inverse_root
    noted = lambda *of: asked.append(of) or root(*of)  # noqa: E731
    monkeypatch.setattr(LinearAlgebra, "inverse_root", noted)
    for floor, on_the_host in ((1e-7, False), (1e-4, True)):
        found = ops.to_host(ops.linalg.inverse_root(ops.asarray(matrix), floor))
        raised = np.maximum(values, floor)
        expected = (vectors * raised**-0.5) @ vectors.T
        tolerance = 20 * 6 * np.finfo(float).eps * raised.min() ** -1.5
        assert_near(found, expected, tolerance)
        assert bool(asked) == on_the_host


# ---------------------------------------------------------------- failures


def poison(trainer, layer, parameter, value):
    array = trainer.params[layer][parameter]
    array[(0,) * array.ndim] = value


@pytest.mark.parametrize("changes", [{}, {"lambda_control": "geco", "tolerance": 1e-5}])
@pytest.mark.parametrize("graph", [True, False])
def test_a_nan_is_found_later_and_traced_to_its_step_and_layer(ops, graph, changes):
    trainer = make_trainer(ops, graph=graph, **changes)
    take_steps(trainer, range(4))
    poison(trainer, "dense2", "b", np.nan)
    before = [host(trainer, name) for name in ("p", "m", "state")]
    for _ in range(4, 9):
        trainer.training_step(batches_of(trainer))
    with pytest.raises(
        DivergedError, match="step 5: the output of layer dense2 is not finite"
    ):
        trainer.check(Given(lambda step: images_of(trainer, step)))
    for name, array in zip(("p", "m", "state"), before, strict=True):
        assert_array_equal(host(trainer, name), array)  # nothing moved since


@pytest.mark.parametrize("graph", [True, False])
@pytest.mark.parametrize("later", [0, 3])
def test_an_infinite_gradient_is_traced_to_its_parameter(ops, graph, later):
    trainer = make_trainer(ops, graph=graph)
    take_steps(trainer, range(4))
    poison(trainer, "dense1", "R", np.inf)  # not in the forward pass
    for _ in range(4, 5 + later):
        trainer.training_step(batches_of(trainer))
    with pytest.raises(
        DivergedError, match=r"step 5: the gradient of dense1\.[WR] is not finite"
    ):
        trainer.check(Given(lambda step: images_of(trainer, step)))


def test_a_singular_matrix_raises_as_on_the_cpu(ops):
    trainer = make_trainer(ops, "conv", "exact")
    trainer.begin(batches_of(trainer))
    trainer.params["conv2.3"]["W"][...] = 0
    with pytest.raises(SingularMatrixError, match=r"layer conv2\.3: "):
        trainer.training_step(batches_of(trainer))
    with pytest.raises(SingularMatrixError, match=r"layer conv2\.3: "):
        trainer.likelihood()


_NAN_PIVOTS = """
import numpy as np
import pytest
from support.trainers import make_trainer
from snfnp.errors import SingularMatrixError
from snfnp.ops import get_ops
trainer = make_trainer(get_ops("cupy"), "fc", "exact")
trainer.params["dense2"]["W"][...] = np.nan
with pytest.raises(SingularMatrixError, match="layer dense2: "):
    trainer.likelihood()
print("raised")
"""


def test_a_matrix_that_is_not_finite_raises_as_on_the_cpu():
    assert run_alone(_NAN_PIVOTS) == "raised\n"


def test_images_may_take_half_of_the_free_memory(ops, monkeypatch):
    images = np.zeros((64, 4, 4, 1), np.uint8)
    for free, fits in ((2048, True), (2047, False)):
        monkeypatch.setattr(
            type(ops.device), "free_memory", lambda device, free=free: free
        )
        if fits:
            ops.images.source(images).stage(0, 4)
            continue
        with one_line(
            UsageError, "the training images", "free on the GPU", "train on fewer"
        ):
            ops.images.source(images)
    monkeypatch.undo()
    pool = ops.xp.get_default_memory_pool()
    before = ops.device.free_memory()
    assert before >= ops.xp.cuda.runtime.memGetInfo()[0] + pool.free_bytes() - 1 > 0


def test_rows_are_taken_by_a_recorded_step(ops):
    """As numbers of any type, whose order is on the device."""
    said = []
    trainers = []
    rows = normal(23, 3)
    for each in (ops, get_ops("numpy")):
        flow = TrainConfig(model="vector", depth=2).build_flow(
            (3,), (rows.mean(0), rows.std(0))
        )
        how = {"dtype": "float64", "batch_size": 5, "depth": 2, "report": said.append}
        trainers.append(make_trainer(each, "vector", flow=flow, **how))
        batches = Batches(each, rows, trainers[-1].config, (3,))
        trainers[-1].begin(batches)
        for _ in range(6):
            trainers[-1].training_step(batches)
        trainers[-1].check(batches)
    found, expected = trainers
    assert found._ascend._recording.graph and not said
    assert_allclose(host(found, "p"), host(expected, "p"), rtol=1e-9, atol=1e-12)


def test_an_evaluation_keeps_no_hidden_layer(ops):
    trainer = make_trainer(ops, "glow", dtype="float64")
    likelihood = trainer.likelihood()
    images = ops.to_host(images_of(trainer, 0))
    kept = []
    network = type(ops.coupling).network

    def noted(self, *arguments, keep):
        h, hidden = network(self, *arguments, keep=keep)
        kept.append(hidden)
        return h, hidden

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(type(ops.coupling), "network", noted)
        likelihood.log_prob(images)
    assert len(kept) == 3 and not any(kept)


# ---------------------------------------------------------------- likelihoods and runs


@pytest.mark.parametrize("model", dict(SMALL_MODELS))
def test_likelihoods_and_samples_match_numpy(ops, model):
    """Images come back as they were, up to values on the edge of two integers."""
    found, expected = (make_trainer(each, model) for each in (ops, get_ops("numpy")))
    images = ops.to_host(images_of(found, 0))
    found.begin(Repeated(ops.asarray(images)))
    expected.p[...] = host(found, "p")
    found, expected = (trainer.likelihood() for trainer in (found, expected))
    terms = [
        each.evaluate(images, seed=0, at_once=4).terms for each in (found, expected)
    ]
    assert list(terms[0]) == list(terms[1])
    for term, nats in terms[1].items():
        assert_allclose(terms[0][term], nats, rtol=1e-10, atol=1e-10, err_msg=term)
    assert_allclose(found.log_prob(images), expected.log_prob(images), rtol=1e-10)
    on_device = found.log_prob(ops.asarray(images))  # images there need not come back
    assert_array_equal(on_device, found.log_prob(images))
    for exact in {not found.flow.has_learned_inverse, True}:
        drawn = [each.sample(4, seed=1, exact=exact) for each in (found, expected)]
        assert isinstance(drawn[0], np.ndarray) and np.mean(drawn[0] != drawn[1]) < 0.01
    latents = found.latents(images, seed=0)
    again = found.sample(BATCH, 0, exact=True, latents=latents)
    assert np.mean(again.reshape(images.shape) != images) < 0.01


def test_a_run_is_the_same_run_on_another_backend(ops, tmp_path):
    run, found = run_training(tmp_path / "device", backend="cupy", dtype="float64")
    _, expected = run_training(tmp_path / "host", backend="numba", dtype="float64")
    for name in ("validation_nll_nats", "test_nll_nats", "reconstruction"):
        assert_allclose(found[name], expected[name], rtol=1e-9)
    assert run.summary_file.exists()


def test_the_hosts_libraries_get_the_cores_of_the_process(monkeypatch, ops):
    """LAPACK's and BLAS's for what runs there: as on a CPU."""
    calls = []
    monkeypatch.setattr("snfnp.threads.limit_to_cores", lambda: calls.append(1))
    get_ops("cupy")
    assert calls == [1]


def test_a_full_device_is_reported_when_the_backend_is_made(ops, monkeypatch):
    """Too little for cuBLAS's workspace is free."""
    monkeypatch.undo()  # of what is asked for
    pool = ops.xp.get_default_memory_pool()
    pool.free_all_blocks()
    pool.set_limit(size=pool.total_bytes() + (32 << 20))
    try:
        with one_line(
            BackendError, "cannot run a first kernel (Out of memory", "nvidia-smi"
        ):
            get_ops("cupy")
    finally:
        pool.set_limit(size=0)
