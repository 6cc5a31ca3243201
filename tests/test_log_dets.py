"""The running log-determinant: its formula, in steps and runs, from checkpoints, and as refused."""

import numpy as np
import pytest
from support.strict_arrays import no_waiting
from support.strict_ops import strict_ops
from support.trainers import BATCH, host, make_trainer, run_training, small_config, without_time

from snfnp.beyond.chain import Chain
from snfnp.errors import UsageError
from snfnp.flow import Flow
from snfnp.gradcheck import as_matrix
from snfnp.layers import Linear
from snfnp.maps import Conv2d, Dense
from snfnp.ops import get_ops
from snfnp.parameters import Layout
from snfnp.training import progress
from snfnp.training.log_dets import STATE, RunningLogDets

OPS = get_ops("numpy")


def following(layer, shape):
    flow = Flow(shape, (("a", layer),))
    layout = Layout.of(flow.parameter_shapes())
    running = RunningLogDets(OPS, flow, layout)
    values = {STATE: {"values": np.zeros(1)}}
    flat = np.zeros(layout.size)
    running.attach(values, flat)
    return running, layout.views(flat), flat, values[STATE]["values"]


def test_with_exact_inverses_the_error_is_of_third_order():
    rng = np.random.default_rng(0)
    running, params, flat, values = following(Linear(Dense(6), bias=False), (6,))
    w, direction = np.eye(6) + 0.2 * rng.standard_normal((6, 6)), rng.standard_normal((6, 6))
    errors = []
    for step in (0.04, 0.02, 0.01):
        params["a"]["W"][...], params["a"]["R"][...] = w, np.linalg.inv(w)
        running.before(flat)
        params["a"]["W"] += step * direction
        params["a"]["R"][...] = np.linalg.inv(params["a"]["W"])
        values[...] = 0
        running.after(params)
        exact = np.linalg.slogdet(params["a"]["W"])[1] - np.linalg.slogdet(w)[1]
        errors.append(abs(values[0] - exact))
    assert errors[0] < 0.02 * abs(exact) * 4
    for coarse, fine in zip(errors, errors[1:], strict=False):
        assert 6 < coarse / fine < 10  # 8 where half a step has an eighth of the error


MAPS = [
    (Dense(7), None, (7,)),
    (Conv2d((1, 1), 3), None, (4, 5, 3)),
    (Conv2d((3, 3), 2), None, (4, 5, 2)),
    (Conv2d((3, 3), 2), Conv2d((5, 5), 2), (4, 5, 2)),
    (Conv2d((3, 3), 2), Chain(Conv2d((3, 3), 2), 2), (4, 5, 2)),
]


@pytest.mark.parametrize("f, g, shape", MAPS)
def test_every_map_by_its_matrices(f, g, shape):
    """tr of ½ (T(R_t) + T(R_{t+1})) times T(W_{t+1}) − T(W_t), written out."""
    rng = np.random.default_rng(1)
    layer = Linear(f, inverse_map=g)
    running, params, flat, values = following(layer, shape)
    f, g = layer.maps
    flat[...] = rng.standard_normal(flat.size)
    running.before(flat)
    then = [as_matrix(m, OPS, params["a"][name], shape) for m, name in ((f, "W"), (g, "R"))]
    flat += 0.1 * rng.standard_normal(flat.size)
    now = [as_matrix(m, OPS, params["a"][name], shape) for m, name in ((f, "W"), (g, "R"))]
    running.after(params)
    expected = 0.5 * np.trace((then[1] + now[1]) @ (now[0] - then[0]))
    assert values[0] == pytest.approx(expected, rel=1e-11)


def test_an_anchor_says_how_far_values_had_drifted():
    running, _, _, values = following(Linear(Dense(2)), (2,))
    values[0] = 3.5
    assert running.anchor({"a": 3.0}) == {"a": 0.5}
    assert running.total() == 3.0 and running.anchor({"a": 3.0}) == {"a": 0.0}


# ---------------------------------------------------------------- in steps


def images_of(trainer, step):
    images = np.random.default_rng(step).integers(0, 256, (BATCH, *trainer.flow.shape))
    return trainer.ops.asarray(images.astype(np.uint8))


def take(trainer, steps):
    for step in steps:
        trainer.training_step(images_of(trainer, step))


@pytest.mark.parametrize(
    "model, backend", [("fc", "numba"), ("fc", "numpy"), ("conv", "numpy"), ("glow", "numpy")]
)
def test_steps_are_followed_and_are_what_they_were(model, backend):
    ops = get_ops(backend)
    plain, followed = (make_trainer(ops, model, track_log_det=track) for track in (False, True))
    for trainer in (plain, followed):
        take(trainer, range(1))
    start = followed.likelihood().log_dets
    followed.log_dets.anchor(start)
    for trainer in (plain, followed):
        take(trainer, range(1, 25))
    assert np.array_equal(host(plain, "p"), host(followed, "p"))
    exact = followed.likelihood().log_dets
    moved = sum(exact.values()) - sum(start.values())
    drift = sum(followed.log_dets.anchor(exact).values())
    assert abs(drift) < 0.2 * abs(moved)


def test_a_new_run_starts_from_exact_ones():
    trainer = make_trainer(OPS, "fc", track_log_det=True, dtype="float64")
    exact = trainer.likelihood().log_dets
    assert trainer.log_dets.anchor(exact) == dict.fromkeys(exact, 0.0)


def test_the_estimate_is_a_density_and_the_determinants():
    trainer = make_trainer(OPS, "fc", track_log_det=True, dtype="float64", lr=1e-12)
    take(trainer, range(1))
    figures, total = trainer.metrics(), sum(trainer.likelihood().log_dets.values())
    expected = -(figures.surrogate + trainer.lam * figures.reconstruction + total)
    assert trainer.estimated_nll() == pytest.approx(expected, rel=1e-9)
    assert make_trainer(OPS, "fc").estimated_nll() is None


@pytest.mark.parametrize("model", ["fc", "conv", "glow"])
def test_a_step_waits_for_nothing(model):
    expected = make_trainer(OPS, model, track_log_det=True, dtype="float64")
    trainer = make_trainer(strict_ops(), model, track_log_det=True, dtype="float64")
    take(expected, range(3))
    take(trainer, range(1))
    following = [images_of(trainer, step) for step in (1, 2)]
    with no_waiting():
        for images in following:
            trainer.training_step(images)
    np.testing.assert_allclose(host(trainer, "state"), host(expected, "state"), rtol=1e-9)


# ---------------------------------------------------------------- in runs


def test_a_run_records_the_drift_and_goes_on_alike(tmp_path):
    make = {"track_log_det": True}
    whole, _ = run_training(tmp_path / "whole", **make)
    part, _ = run_training(tmp_path / "part", epochs=2, **make)
    run_training(tmp_path / "part", resume=True, **make)
    records = whole.read_metrics()
    assert without_time(part.read_metrics()) == without_time(records)
    plain, _ = run_training(tmp_path / "plain")
    for record, bare in zip(records, plain.read_metrics(), strict=True):
        own = [figures["log_det_drift"] for figures in record["layers"].values()]
        assert record["log_det_drift"] == pytest.approx(sum(own), rel=1e-12)
        assert record["log_det_drift"] != 0
        assert record["validation_nll_nats"] == bare["validation_nll_nats"]
        assert "log_det_drift" not in bare and "log_det_drift" not in bare["layers"]["dense1"]


def test_it_goes_on_in_the_middle_of_an_epoch(tmp_path):
    """From a checkpoint: the values that were not anchored yet."""
    from snfnp.training.runs.checkpoint import load_checkpoint, save_checkpoint

    whole, part = (make_trainer(OPS, "fc", track_log_det=True) for _ in range(2))
    take(whole, range(7))
    take(part, range(3))
    save_checkpoint(tmp_path / "a.safetensors", part.checkpoint({}))
    again = make_trainer(OPS, "fc", track_log_det=True)
    again.restore(load_checkpoint(tmp_path / "a.safetensors", again.layout))
    take(again, range(3, 7))
    assert np.array_equal(host(again, "state"), host(whole, "state"))
    assert again.log_dets.total() == whole.log_dets.total()


def test_without_a_learned_inverse_it_is_refused():
    for gradient in ("exact", "relative"):
        with pytest.raises(UsageError, match="^--track-log-det only has an effect with "):
            small_config(gradient=gradient, track_log_det=True)


@pytest.mark.parametrize("track", [False, True])
def test_the_progress_line_shows_the_estimate_in_the_surrogates_place(track, monkeypatch):
    trainer = make_trainer(OPS, "fc", track_log_det=track)
    take(trainer, range(1))
    monkeypatch.setattr(progress, "_SHOW_EVERY", 0)
    clock, shown = progress.Clock(trainer, lambda step: images_of(trainer, step)), []
    with progress.ProgressLine(trainer.config, trainer, clock, 10) as line:
        monkeypatch.setattr(line._bar, "set_postfix_str", shown.append)
        line.advance()
        assert line.due()
        line.show()
    start = shown[0].partition(",")[0]
    if track:
        assert start == f"estimated NLL {trainer.estimated_nll():.1f}"
    else:
        assert start == f"surrogate {trainer.metrics().surrogate:.1f}"
