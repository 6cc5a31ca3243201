"""The angles of Fig. 3."""

import numpy as np
import pytest
from support.gradients import moved

from snfnp.diagnostics import gradient_angles
from snfnp.errors import UsageError
from snfnp.models import PRESETS, Choices
from snfnp.ops import get_ops
from snfnp.rules import Exact


def setting(model="fc", rule=None):
    flow = PRESETS[model].build(Choices(**({"rule": rule} if rule else {})), (4, 4, 1))
    rng = np.random.default_rng(0)
    params = moved(flow.init(0), rng)
    return get_ops("numpy"), flow, params, rng.standard_normal((20, *flow.shape))


def test_no_angle_where_the_inverse_is_exact():
    ops, flow, params, x = setting()
    for name in ("dense1", "dense2"):
        params[name]["R"] = np.linalg.inv(params[name]["W"])
    for found in gradient_angles(ops, flow, params, x, lam=1.0):
        assert found.angle < 1e-5 and found.reconstruction < 1e-9 < found.likelihood


@pytest.mark.parametrize("model, layers", [("fc", 2), ("conv", 9)])
def test_an_angle_where_it_is_not(model, layers):
    found = gradient_angles(*setting(model), lam=1.0)
    assert len(found) == layers
    assert all(layer.angle > 0.01 and layer.reconstruction > 0 for layer in found)


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
