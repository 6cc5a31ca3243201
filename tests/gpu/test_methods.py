"""Every way to train, on the device: NumPy's numbers, no wait, and the same steps from a graph."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from support.trainers import SMALL_MODELS, host, images_of, make_trainer

from gpu.test_training import assert_matches_numpy, spent_by_a_step, take_steps
from snfnp.context import BackwardContext
from snfnp.ops import RandomKey, get_ops
from snfnp.training.monitors import Monitors
from snfnp.training.runs.checkpoint import Checkpoint

pytestmark = pytest.mark.slow

SNF = {"gradient": "self-normalizing"}
GECO = {"lambda_control": "geco", "tolerance": 1e-5, "lambda_rate": 20.0}
PENALTY = {"jvp_weight": 0.3, "jvp_probes": 2}
NOISE = {"objective": "variational", "lam": 3.125}
WHITE = {"coordinates": "white", "lr_schedule": "cosine", "clip_norm": 1.0}
KEPT = {"recompute": True, "clip_norm": 0.5}
# Options, and how many launches a step may take, one for every product.
WAYS = {
    "plain": ({"model": "fc", **SNF}, 36),
    "conv": ({"model": "conv", **SNF}, 165),
    "glow": ({"model": "glow", **SNF}, 125),
    "whitened": ({"model": "fc", "coordinates": "white", "epoch": 16}, 41),
    "geco": ({"model": "fc", **GECO, "constraint": "absolute"}, 71),
    "geco, relative": ({"model": "fc", **GECO, "constraint": "relative"}, 77),
    "geco, conv": ({"model": "conv", **GECO}, 213),
    "Eq. 31": ({"model": "fc", **PENALTY}, 60),
    "Eq. 31, conv": ({"model": "conv", **PENALTY}, 263),
    "Eq. 31, geco": ({"model": "fc", **PENALTY, **GECO}, 101),
    "variational": ({"model": "fc", **NOISE}, 58),
    "variational, conv": ({"model": "conv", **NOISE}, 282),
    "larger inverse": ({"model": "conv", "inverse_kernel": 5}, 192),
    "forward, recomputed": (
        {"model": "glow-2l-4k", "objective": "forward", **KEPT},
        188,
    ),
    "white, conv": ({"model": "conv", **WHITE}, 172),
    "white, glow": ({"model": "glow-2l-4k", **WHITE}, 132),
    "relative": ({"model": "fc", "gradient": "relative"}, 25),
}
each_way = pytest.mark.parametrize("way", WAYS)
SMALL = 4  # pixels a side; test_ops.py has operations of many shapes


ALL = {way: changes for way, (changes, _) in WAYS.items()}
OTHERS = [{"model": model, "gradient": gradient} for model, gradient in SMALL_MODELS]
ALL |= {", ".join(each.values()): each for each in OTHERS if each not in ALL.values()}


@pytest.mark.parametrize("way", ALL)
def test_steps_match_numpy(ops, way):
    found, expected = (
        take_steps(
            make_trainer(each, side=SMALL, **ALL[way], dtype="float64"), range(2)
        )
        for each in (ops, get_ops("numpy"))
    )
    assert_matches_numpy(found, expected, 1e-9)
    a = host(found, "state")
    b = host(expected, "state")
    # a step of Adam before the last errors, which are small differences of large numbers
    assert_allclose(a, b, rtol=1e-6, atol=1e-12)
    assert "lambda_control" not in ALL[way] or found.figures()["lam"] != 1.0
    metrics = [[*trainer.metrics()] for trainer in (found, expected)]
    assert_allclose(*metrics, rtol=1e-9, atol=1e-12)


PLAIN = {}  # {way: its trainer}, with which the next test goes on


def after_plain_steps(ops, way, count):
    """A way's trainer after so many steps without a graph."""
    if way not in PLAIN:
        PLAIN[way] = make_trainer(ops, graph=False, side=SMALL, **WAYS[way][0])
    return take_steps(PLAIN[way], range(PLAIN[way].step, count))


@each_way
def test_a_step_neither_waits_nor_launches_much(ops, standin, monkeypatch, way):
    """Arrays that depend on shapes alone were copied by the first step."""
    products = []
    gemm = ops.device.cublas.gemm
    count = lambda *args, **kw: products.append(gemm(*args, **kw))  # noqa: E731
    trainer = after_plain_steps(ops, way, 2)
    monkeypatch.setattr(ops.device.cublas, "gemm", count)
    spent = spent_by_a_step(trainer, standin)
    assert (spent["syncs"], spent["h2d"], spent["d2h"]) == (0, 0, 0)
    launches = spent["launches"] + len(products)
    print(f"{way}: {launches} launches, {len(products)} of them products")
    assert launches <= WAYS[way][1]


@each_way
def test_a_graph_does_what_plain_steps_do(ops, monkeypatch, way):
    """Noise, probes, λ and coordinates are new in every step, though it was recorded once. Arrays
    are made and dropped between the replays."""
    monkeypatch.setattr("snfnp.step.trainer._EVERY", 3)
    changes = WAYS[way][0]
    reports = []
    kept = []
    eager = after_plain_steps(ops, way, 5)
    graph = make_trainer(ops, report=reports.append, side=SMALL, **changes)
    for step in range(5):
        take_steps(graph, [step])
        kept.append(ops.asarray(np.full(1000 * (step + 1), np.nan)))
        ops.asarray(np.full(50_000, np.nan))
    assert graph._ascend._recording.graph and not reports
    assert_alike(graph, eager)
    for array in kept:  # no replay wrote to what was made after the capture
        assert np.isnan(ops.to_host(array)).all()
    if way in ("plain", "geco"):  # a checkpoint goes into a step that was captured
        checkpoint = Checkpoint.of(graph, {})
        take_steps(graph, range(5, 7))
        checkpoint.restore(graph)
        for trainer in (graph, eager):
            take_steps(trainer, range(5, 7))
        assert_alike(graph, eager)
    del PLAIN[way]


def assert_alike(found, expected):
    for name in ("p", "m", "v", "gradient", "state"):
        assert_array_equal(host(found, name), host(expected, name))
    assert (
        found.metrics() == expected.metrics()
        and found.averages() == expected.averages()
    )
    assert found.figures() == expected.figures()


@pytest.mark.parametrize("way", ALL)
def test_numbers_on_the_device_do_not_widen_single_precision(ops, way):
    """λ is a 0-d array of doubles, which would make doubles of what a plain number leaves alone."""
    trainer = make_trainer(ops, side=SMALL, **ALL[way])
    flow = trainer.flow
    params = trainer.params
    x, log_jacobian = flow.encode(
        ops, images_of(trainer, 0), RandomKey(0, 0), np.float32
    )
    latents, ldj, caches = flow.forward(ops, params, x, trainer.config.recompute)
    ctx = BackwardContext.of(
        ops, ops.xp.ones_like(ldj), ops.xp.ones(()), key=RandomKey(0, 0)
    )
    dx, _ = flow.backward(ctx, params, caches, latents, trainer.grads)
    arrays = (x, log_jacobian, *latents, ldj, flow.log_density(ops, latents), dx)
    assert {array.dtype for array in arrays} == {np.dtype(np.float32)}


def test_monitors_copy_weights_to_the_host_and_no_product(ops, monkeypatch):
    """W and R once for ρ, whose 42 products are the host's, and the norms of the ratios."""
    trainer = make_trainer(ops, dtype="float64")
    inspection = Monitors(trainer, lambda step: images_of(trainer, 0))
    copied = []
    original = type(ops.device).to_host

    def noted(device, array):
        copied.append(array.shape)
        return original(device, array)

    monkeypatch.setattr(type(ops.device), "to_host", noted)
    inspection.figures()
    layers = trainer.flow.learned_inverses()
    weights = [
        shape for name in layers for shape in 2 * [trainer.params[name]["W"].shape]
    ]
    assert sorted(shape for shape in copied if len(shape) > 1) == sorted(weights)


@pytest.mark.parametrize("model", ["fc", "conv", "glow"])
def test_monitors_match_numpy(ops, model):
    figures = []
    for each in (ops, get_ops("numpy")):
        trainer = make_trainer(each, model, dtype="float64")
        batch = images_of(trainer, 0)
        images = np.concatenate(
            [each.to_host(images_of(trainer, step)) for step in range(30)]
        )
        inspection = Monitors(trainer, lambda step, batch=batch: batch)
        likelihood = trainer.likelihood()
        likelihood.evaluate(images, 0, at_once=70, watch=inspection.watch(len(images)))
        figures.append(inspection.figures()["layers"])
    found, expected = figures
    for name, own in expected.items():
        assert found[name] == pytest.approx(own, rel=1e-6, abs=1e-12)
