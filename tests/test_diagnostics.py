"""The angles of Fig. 3."""

import numpy as np
import pytest
from support.gradients import moved
from support.trainers import make_trainer, run_training

from snfnp import diagnostics
from snfnp.context import Slice
from snfnp.diagnostics import gradient_angles
from snfnp.errors import UsageError
from snfnp.flow import Flow
from snfnp.gradcheck import GradientError, as_matrix, check_gradient
from snfnp.layers import Linear
from snfnp.maps import Conv2d
from snfnp.models import PRESETS, Choices
from snfnp.ops import get_ops
from snfnp.rules import Exact, SelfNormalizing
from snfnp.training.monitors import Monitors

OPS = get_ops("numpy")


def setting(rule=None):
    flow = PRESETS["fc"].build(Choices(**({"rule": rule} if rule else {})), (4, 4, 1))
    rng = np.random.default_rng(0)
    params = moved(flow.init(0), rng)
    return OPS, flow, params, rng.standard_normal((20, *flow.shape))


def test_no_angle_where_the_inverses_are_exact():
    ops, flow, params, x = setting()
    for name in ("dense1", "dense2"):
        params[name]["R"] = np.linalg.inv(params[name]["W"])
    for found in gradient_angles(ops, flow, params, x, lam=1.0):
        assert found.angle < 1e-5 and found.inverse_angle < 1e-5
        assert found.reconstruction < 1e-9 < found.likelihood
    params["dense1"]["R"] *= 1.5
    assert gradient_angles(ops, flow, params, x, lam=1.0)[0].inverse_angle > 0.1


def test_the_angle_by_its_definition():
    ops, flow, params, x = setting()
    (last,) = (f for f in gradient_angles(ops, flow, params, x, 1.0) if f.layer == "dense2")
    h = flow.layers[0][1].forward(ops, params["dense1"], x)[0]
    h = flow.layers[1][1].forward(ops, {}, h)[0]
    w, r, b = (params["dense2"][name] for name in ("W", "R", "b"))
    data = -(h @ w.T + b).T @ h / len(x)
    learned, exact = data + r.T, data + np.linalg.inv(w).T
    cosine = np.sum(learned * exact) / np.linalg.norm(learned) / np.linalg.norm(exact)
    assert abs(last.angle - np.degrees(np.arccos(cosine))) < 1e-6


def test_without_learned_inverses_there_is_none():
    with pytest.raises(UsageError, match="no angle"):
        gradient_angles(*setting(rule=Exact()), lam=0.0)


# ---------------------------------------------------------------- the angle of R


def log_p_g(ops, flow, params, x):
    """The mean log-density of x under the generative direction, from inverses written out."""
    h, log_det = x.reshape(len(x), -1), 0.0
    for name, layer in flow.layers:
        if layer.learns_inverse:
            shape = flow.shape if len(flow.shape) == 3 else (h.shape[1],)
            r = as_matrix(layer.maps[1], ops, params[name]["R"], shape)
            h = np.linalg.solve(r, h.T).T
            h = (h.reshape(len(x), *shape) + params[name]["b"]).reshape(len(x), -1)
            log_det = log_det - np.linalg.slogdet(r)[1]
        else:
            h, ldj, _ = layer.forward(ops, {}, h)
            log_det = log_det + ldj
    return float((ops.channels.gaussian_log_density(h) + log_det).mean())


@pytest.mark.parametrize("kind", ["fc", "conv"])
def test_the_exact_gradient_of_r_by_central_differences(kind):
    ops, rng = get_ops("numpy"), np.random.default_rng(3)
    if kind == "fc":
        flow = PRESETS["fc"].build(Choices(), (2, 2, 1))
    else:
        linear = Linear(Conv2d((3, 3), 2), inverse_map=Conv2d((5, 5), 2))
        flow = Flow((3, 4, 2), (("dense1", linear), ("dense2", linear)))
    params = moved(flow.init(0), rng, 0.05)
    x = rng.standard_normal((5, *flow.shape))
    exact = diagnostics._exact_of_r(ops, flow, params, x)
    for name in ("dense1", "dense2"):

        def of_r(r, name=name):
            return log_p_g(ops, flow, {**params, name: {**params[name], "R": r}}, x)

        found = exact[name]["R"]
        assert check_gradient(of_r, params[name]["R"], found, rng=rng) < 1e-8
        with pytest.raises(GradientError):
            check_gradient(of_r, params[name]["R"], 1.01 * found, rng=rng)


def test_r_has_an_angle_only_where_it_climbs_a_likelihood_that_it_has():
    ops, flow, params, x = setting(rule=SelfNormalizing("forward"))
    assert all(f.inverse_angle is None for f in gradient_angles(ops, flow, params, x, 1.0))
    ops, flow, params, x = setting()
    params["dense1"]["R"][0] = 0
    assert all(f.inverse_angle is None for f in gradient_angles(ops, flow, params, x, 1.0))


def test_a_run_records_angles_where_it_is_asked_to(tmp_path):
    whole, _ = run_training(tmp_path / "whole", track_angle=2)
    for record in whole.read_metrics():
        for own in record["layers"].values():
            assert 0 < own["angle"] < 60 and 0 < own["inverse_angle"] < 60
    plain, _ = run_training(tmp_path / "plain", epochs=1)
    assert "angle" not in plain.read_metrics()[0]["layers"]["dense1"]


def test_the_batches_are_those_of_the_next_steps():
    """Their mean gradient is what the angle is of."""
    trainer = make_trainer(get_ops("numpy"), "fc", dtype="float64", track_angle=2)
    batches = [
        np.random.default_rng(step).integers(0, 256, (6, *trainer.flow.shape)).astype(np.uint8)
        for step in range(3)
    ]
    inspection, params = Monitors(trainer, batches.__getitem__), trainer.params
    trainer.step = 1
    found = inspection._angles(params, {"dense1": 1.0, "dense2": 1.0})
    whole = Slice(0, 6, 6)
    x = np.concatenate([trainer.encode(batches[step], step, whole)[0] for step in (1, 2)])
    for own in gradient_angles(trainer.ops, trainer.flow, params, x, 1.0):
        assert found[own.layer]["angle"] == pytest.approx(own.angle, rel=1e-9)
        assert found[own.layer]["inverse_angle"] == pytest.approx(own.inverse_angle, rel=1e-9)
