"""E = I − R W: its norm by power iteration, and the inverse that a learned one is refined to."""

import numpy as np
import pytest
from PIL import Image

from snfnp.errors import SnfnpError, UsageError
from snfnp.flow import Flow
from snfnp.gradcheck import as_matrix
from snfnp.layers import Linear, SmoothLeakyReLU
from snfnp.maps import Conv2d, Dense, contraction
from snfnp.ops import get_ops

OPS = get_ops("numpy")


def near(rng, size, rho):
    """W and R (size, size) with ‖I − R W‖₂ = rho, singular values from there down to 0."""
    w = np.eye(size) + 0.2 * rng.standard_normal((size, size))
    left, right = (np.linalg.qr(rng.standard_normal((size, size)))[0] for _ in range(2))
    e = left * np.linspace(rho, 0, size) @ right
    return w, (np.eye(size) - e) @ np.linalg.inv(w), e


def convolutions(rng, scale=0.1):
    """(f, g, w, r, shape) of every kind of map, R near the inverse."""
    for f, g, shape in (
        (Dense(9), Dense(9), (9,)),
        (Conv2d((1, 1), 3), Conv2d((1, 1), 3), (4, 5, 3)),
        (Conv2d((3, 3), 2), Conv2d((3, 3), 2), (4, 5, 2)),
        (Conv2d((3, 3), 2), Conv2d((5, 5), 2), (4, 5, 2)),
        (Dense(3), Dense(3), (3,)),  # fewer directions than a block has
    ):
        w = f.identity() + scale * rng.standard_normal(f.weight_shape)
        r = g.identity() + scale * rng.standard_normal(g.weight_shape)
        yield f, g, w, r, shape


def written_out(f, g, w, r, shape):
    """I − T(R) T(W), a matrix."""
    w, r = as_matrix(f, OPS, w, shape), as_matrix(g, OPS, r, shape)
    return np.eye(len(w)) - r @ w


def test_error_and_its_adjoint_are_the_matrix_and_its_transpose():
    rng = np.random.default_rng(0)
    for f, g, w, r, shape in convolutions(rng):
        e = written_out(f, g, w, r, shape)
        x = rng.standard_normal((3, *shape))
        flat = x.reshape(3, -1)
        for function, matrix in ((contraction.error, e), (contraction.error_adjoint, e.T)):
            found = function(OPS, f, g, w, r, x).reshape(3, -1)
            np.testing.assert_allclose(found, flat @ matrix.T, rtol=0, atol=1e-13)


def test_rho_is_the_spectral_norm():
    for f, g, w, r, shape in convolutions(np.random.default_rng(1), 0.2):
        exact = np.linalg.norm(written_out(f, g, w, r, shape), 2)
        found = contraction.rho(OPS, f, g, w, r, shape)
        assert 0.99 * exact < found < (1 + 1e-12) * exact
        assert contraction.rho(OPS, f, g, w, r, shape) == found


@pytest.mark.parametrize("rho", [1e-9, 0.5, 1.0, 3.0])
def test_rho_of_a_large_matrix_is_from_below_and_close(rho):
    """Also where the largest gains lie close to each other: here 200 on a line."""
    w, r, _ = near(np.random.default_rng(2), 200, rho)
    found = contraction.rho(OPS, Dense(200), Dense(200), w, r, (200,))
    assert (1 - 2e-5) * rho < found < (1 + 1e-5) * rho


@pytest.mark.parametrize("largest, others", [(1.05, 0.95), (1.02, 0.98)])
def test_one_gain_above_one_is_found_among_many_that_are_not(largest, others):
    """The last block of a power iteration alone has 0.965 and 0.981 for these."""
    rng, size = np.random.default_rng(8), 784
    left, right = (np.linalg.qr(rng.standard_normal((size, size)))[0] for _ in range(2))
    gains = np.r_[largest, np.full(size - 1, others)]
    eye, dense = np.eye(size), Dense(size)
    found = contraction.rho(OPS, dense, dense, eye, eye - left * gains @ right, (size,))
    assert found == pytest.approx(largest, rel=1e-9)


def test_rho_of_an_exact_inverse_is_zero_and_of_nan_is_nan():
    w = 2.0 * np.eye(4)
    assert contraction.rho(OPS, Dense(4), Dense(4), w, 0.5 * np.eye(4), (4,)) == 0
    assert np.isnan(contraction.rho(OPS, Dense(4), Dense(4), np.nan * w, w, (4,)))


@pytest.mark.parametrize("rho", [0.1, 0.5, 0.9])
def test_a_refined_inverse_is_exact(rho):
    rng = np.random.default_rng(3)
    w, r, _ = near(rng, 20, rho)
    z = rng.standard_normal((6, 20))
    found = contraction.solve(OPS, Dense(20), Dense(20), w, r, z)
    exact = np.linalg.solve(w, z.T).T
    assert np.linalg.norm(found - exact) < 1e-10 * np.linalg.cond(w) * np.linalg.norm(exact)
    assert np.linalg.norm(z @ r.T - exact) > 1e-3 * np.linalg.norm(exact)  # what was learned


def test_it_is_exact_for_every_map():
    rng = np.random.default_rng(4)
    for f, g, w, r, shape in convolutions(rng, 0.04):
        x = rng.standard_normal((3, *shape))
        found = contraction.solve(OPS, f, g, w, r, f.apply(OPS, w, x))
        assert np.linalg.norm(found - x) < 1e-9 * np.linalg.norm(x)


def test_the_error_is_a_power_of_e():
    """After k refinements x_k − x = −E^{k+1} x: the number of products follows."""
    rng = np.random.default_rng(5)
    w, r, e = near(rng, 12, 0.5)
    x = rng.standard_normal((1, 12))
    calls = []

    class Counting(Dense):
        def apply(self, ops, w, x):
            calls.append(x.copy())
            return super().apply(ops, w, x)

    contraction.solve(OPS, Counting(12), Dense(12), w, r, x @ w.T)
    seen = calls[1:]  # the one before is of the search for ρ
    for k, estimate in enumerate(seen[:5]):
        expected = x - x @ np.linalg.matrix_power(e, k + 1).T
        np.testing.assert_allclose(estimate, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("order", [1, -1])
def test_it_goes_on_until_every_sample_is_there(order):
    """One sample is exact at the start, the other needs some 35 refinements."""
    e = np.diag([0.5, 0.0])
    z = np.eye(2)[::order].copy()
    found = contraction.solve(OPS, Dense(2), Dense(2), np.eye(2), np.eye(2) - e, z)
    assert np.abs(found - z).max() < 1e-9


def test_it_is_refused_where_it_does_not_converge():
    rng = np.random.default_rng(6)
    z = rng.standard_normal((2, 8))
    for rho in (1.0 + 1e-6, 2.0):
        w, r, _ = near(rng, 8, rho)
        with pytest.raises(UsageError, match="^ρ = ‖I − RW‖₂ is .*use `exact=True`"):
            contraction.solve(OPS, Dense(8), Dense(8), w, r, z)
    slow = np.eye(8) - 0.999 * np.eye(8)
    with pytest.raises(SnfnpError, match="after 1000 refinements .* is still left"):
        contraction.solve(OPS, Dense(8), Dense(8), np.eye(8), slow, z)


def test_a_flow_refines_its_linear_layers_and_names_the_one_that_it_cannot():
    rng = np.random.default_rng(7)
    linear = Linear(Dense(6))
    flow = Flow((6,), (("one", linear), ("bend", SmoothLeakyReLU(0.3)), ("two", linear)))
    params = flow.init(0)
    for name in ("one", "two"):
        params[name]["W"], params[name]["R"], _ = near(rng, 6, 0.6)
        params[name]["b"] = rng.standard_normal(6)
    x = rng.standard_normal((4, 6))
    z = flow.forward(OPS, params, x)[0]
    refined = flow.inverse(OPS, params, z, refined=True)
    assert np.abs(refined - x).max() < 1e-7 < np.abs(flow.inverse(OPS, params, z) - x).max()
    params["one"]["R"] *= 5
    with pytest.raises(UsageError, match="^layer one: ρ = "):
        flow.inverse(OPS, params, z, refined=True)


def test_the_command_draws_what_exact_solves_draw(finished, tmp_path):
    from snfnp.cli import sample

    pixels = {}
    for how in ("refined", "exact"):
        picture = tmp_path / f"{how}.png"
        sample.main([str(finished), "--inverse", how, "--count", "9", "--out", str(picture)])
        with Image.open(picture) as image:
            pixels[how] = np.asarray(image.convert("L"))[80:].astype(int)  # below the titles
    assert pixels["refined"].shape == pixels["exact"].shape and pixels["exact"].std() > 1
    assert np.mean(np.abs(pixels["refined"] - pixels["exact"]) > 1) < 0.01
