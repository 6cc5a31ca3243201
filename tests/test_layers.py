"""One contract for every layer on every backend, in double precision; a smoke test in single.

A new layer needs one line in CASES. The contract is `snfnp.gradcheck.check_layer`: shapes, the
inverse, ldj + log_det against the Jacobian, and central differences for x and for each parameter,
with negative controls.
"""

import inspect
from dataclasses import dataclass, field

import numpy as np
import pytest
from scipy.special import expit, logit

import snfnp.layers
from snfnp.errors import UsageError
from snfnp.gradcheck import check_gradient, check_layer, convergence
from snfnp.layers import (
    ActNorm,
    AffineCoupling,
    Bias,
    CausalConv2d,
    ConvExponential,
    Linear,
    Preprocess,
    RationalQuadraticSpline,
    SmoothLeakyReLU,
    SpatialFlip,
    SplitPrior,
    Squeeze,
)
from snfnp.maps import Conv2d, Dense
from snfnp.ops import NumpyOps, RandomKey
from snfnp.rules import Exact, Reconstruction, SelfNormalizing

RTOL = 1e-8


@dataclass(frozen=True)
class Case:
    """A layer and one sample's shape.

    curved: what z or ldj + log_det depends on neither linearly nor quadratically ("x" or a
    parameter with an exact gradient): there the difference quotient's error must fall with h².
    settings: further arguments of `check_layer`. roundings: what `test_single_precision` allows.
    """

    layer: object
    shape: tuple
    curved: tuple[str, ...] = ()
    settings: dict = field(default_factory=dict)
    # Inputs are rounded once; products of length < 20 and condition numbers up to 10 follow.
    roundings: int = 100

    def __str__(self):
        return f"{self.layer}-{self.shape}"


def dense(features, rule, curved=(), **options):
    return Case(Linear(Dense(features), rule, **options), (features,), curved)


def conv(kernel, shape, rule, curved=(), **options):
    return Case(Linear(Conv2d(kernel, shape[2]), rule, **options), shape, curved)


def spline(bins, bound, shape, **options):
    """Points in the middle of bins, and in both tails: a spline has kinks of ℓ at its knots."""
    rng = np.random.default_rng(7)
    width = 2 * bound / bins
    middles = -bound + width * (np.arange(-1, bins + 1) + 0.5)
    x = rng.permuted(np.broadcast_to(middles, (np.prod(shape, dtype=int), bins + 2)), axis=1).T
    x = x.reshape(bins + 2, *shape) + width / 16 * rng.uniform(-1, 1, (bins + 2, *shape))
    layer = RationalQuadraticSpline(bins, bound, **options)
    return Case(layer, shape, ("x", "widths", "heights", "slopes"), {"x": x}, roundings=400)


def coupling(channels, width, shape):
    """Points and parameters that keep every ReLU away from its kink, at pixels of either side.

    x₁ is about ±2 and w1 mostly its centre tap, so that the first layer is ±(1 to 2) and some
    noise; w2 is mostly ± one unit each, which is 0 or (1 to 2), and b2 = ∓1/2. The stencils move
    by 0.03 along random directions, what a ReLU sees by less than its distance; a crossed kink
    would be an error of about 1e-4, and could not hide.
    """
    rng = np.random.default_rng(14)
    layer, half, units = AffineCoupling(channels, width), channels // 2, np.arange(width)
    initial = layer.init(rng, shape)
    p = {k: 0.02 * rng.standard_normal(v.shape) for k, v in initial.items()}
    p["w1"][1, 1, units % half, units] += rng.choice([-1, 1], width) * rng.uniform(0.6, 0.9, width)
    signs = rng.choice([-1, 1], width)
    p["w2"][units, (units + 1) % width] += signs
    p["b2"] -= signs / 2
    for name in ("w3", "b3", "logs"):
        p[name] *= 10
    x = rng.standard_normal((3, *shape))
    x[..., :half] = 2 * np.sign(x[..., :half]) + 0.1 * x[..., :half]
    settings = {"x": x, "params": p}
    return Case(layer, (*shape,), ("w3", "b3", "logs"), settings, roundings=200)


# Relative is no gradient of anything by design: its own tests are in test_rules.py.
CASES = {
    Linear: [
        dense(1, SelfNormalizing()),
        dense(5, SelfNormalizing()),
        dense(5, SelfNormalizing(), bias=False),
        dense(4, SelfNormalizing("forward")),
        dense(4, SelfNormalizing("forward"), bias=False, init_kind="identity"),
        dense(4, SelfNormalizing(), init_kind="identity"),
        dense(5, Exact(), curved=("W",)),
        dense(5, Exact(), curved=("W",), bias=False),
        dense(4, Exact(), curved=("W",), init_kind="identity"),
        conv((3, 3), (4, 3, 1), SelfNormalizing()),
        conv((3, 3), (3, 3, 2), SelfNormalizing("forward"), bias=False),
        conv((1, 1), (2, 3, 3), SelfNormalizing()),
        conv((3, 3), (4, 3, 1), SelfNormalizing(), inverse_map=Conv2d((7, 7), 1)),
        conv((3, 5), (3, 3, 2), SelfNormalizing(), inverse_map=Conv2d((5, 3), 2)),
        conv((3, 3), (3, 3, 2), Exact(), curved=("W",)),
        conv((1, 1), (2, 2, 3), Exact(), curved=("W",)),
        # the 1×1 convolutions of Glow, plain and self-normalizing, and Table 5's larger kernel
        conv((1, 1), (2, 3, 4), Exact(), ("W",), bias=False, init_kind="orthogonal"),
        conv((1, 1), (2, 3, 4), SelfNormalizing(), init_kind="orthogonal"),
        conv((5, 5), (3, 4, 2), SelfNormalizing(), init_kind="orthogonal"),
        dense(4, SelfNormalizing(), init_kind="orthogonal"),
    ],
    RationalQuadraticSpline: [
        # 5 bins each: Numba compiles its kernels anew for every other number
        spline(5, 10.0, (3,)),
        spline(5, 2.0, (1,)),
        spline(5, 4.0, (2, 1, 2), eps=0.01),
    ],
    ActNorm: [
        Case(ActNorm(), (3, 2, 4), curved=("s",)),
        Case(ActNorm(), (5,), curved=("s",)),
        Case(ActNorm(), (1, 2, 1), curved=("s",)),
    ],
    AffineCoupling: [
        coupling(2, 8, (2, 3, 2)),
        coupling(4, 8, (3, 2, 4)),
        coupling(6, 5, (1, 2, 6)),
    ],
    Squeeze: [Case(Squeeze(), (4, 2, 3)), Case(Squeeze(), (2, 2, 1))],
    CausalConv2d: [
        Case(CausalConv2d(1), (5, 4, 1), curved=("W",)),
        Case(CausalConv2d(3), (3, 2, 3), curved=("W",)),
        Case(CausalConv2d(2, bias=False), (1, 5, 2), curved=("W",)),
    ],
    SpatialFlip: [Case(SpatialFlip(), (3, 4, 2)), Case(SpatialFlip(), (2, 1, 1))],
    Bias: [Case(Bias(), (3, 4, 2)), Case(Bias(), (5,))],
    ConvExponential: [
        Case(ConvExponential(1), (5, 4, 1), curved=("W",)),
        # beyond the bound, where the norm's gradient counts
        Case(ConvExponential(2, gain=4, terms=(13, 13)), (3, 4, 2), curved=("W",)),
        Case(ConvExponential(3, (1, 3), gain=2, iterations=1), (2, 2, 3), curved=("W",)),
    ],
    SmoothLeakyReLU: [
        Case(SmoothLeakyReLU(), (6,), curved=("x",)),
        Case(SmoothLeakyReLU(0.05), (4,), curved=("x",)),
        Case(SmoothLeakyReLU(0.95), (1,), curved=("x",)),
        Case(SmoothLeakyReLU(0.3), (2, 3, 2), curved=("x",)),
    ],
}
# Another signature: the first argument of one is an image, the inverse of the other needs a latent.
APART = {Preprocess, SplitPrior}
EVERY_CASE = [pytest.param(c, id=str(c)) for cases in CASES.values() for c in cases]
EVERY_CURVE = [
    pytest.param(c, name, id=f"{c}-{name}")
    for cases in CASES.values()
    for c in cases
    for name in c.curved
]


def test_every_exported_layer_has_a_case():
    exported = {getattr(snfnp.layers, name) for name in snfnp.layers.__all__}
    assert {layer for layer in exported if inspect.isclass(layer)} == set(CASES) | APART


@pytest.mark.parametrize("case", EVERY_CASE)
def test_contract(case, ops):
    report = check_layer(case.layer, case.shape, ops=ops, rtol=RTOL, **case.settings)
    checked = {"inverse(forward(x))", "log-determinant", "x", *moved_parameters(case)}
    assert set(report.errors) == checked
    assert max(report.errors.values()) <= RTOL


def moved_parameters(case, seed=1):
    """Initial parameters, each moved by noise: no gradient is checked at a special point."""
    rng = np.random.default_rng(seed)
    initial = case.layer.init(rng, case.shape)
    return {k: v + 0.1 * rng.standard_normal(v.shape) for k, v in initial.items()}


@pytest.mark.parametrize("case, name", EVERY_CURVE)
def test_error_falls_with_the_square_of_h(case, name, ops):
    """A second-order quotient is 4 times nearer at half the step, if the gradient is right."""
    layer, params = case.layer, moved_parameters(case)
    rng = np.random.default_rng(2)
    x = case.settings.get("x", rng.standard_normal((3, *case.shape)))
    z, ldj, cache = layer.forward(ops, params, x)
    c, a = rng.standard_normal(z.shape), rng.standard_normal(len(x))
    log_det = getattr(layer, "log_det", lambda ops, p, shape: 0.0)

    def objective(value):
        x_, p = (value, params) if name == "x" else (x, {**params, name: value})
        z, ldj, _ = layer.forward(ops, p, x_)
        return float(np.sum(c * z) + np.sum(a * (ldj + log_det(ops, p, case.shape))))

    grads = {k: np.empty_like(v) for k, v in params.items()}
    dx = layer.backward(ops, params, cache, c.copy(), a.copy(), grads, Reconstruction(0.7))
    point, gradient = (x, dx) if name == "x" else (params[name], grads[name])
    ratios, wrong = [], []
    for _ in range(5):
        u = rng.standard_normal(point.shape)
        u /= np.linalg.norm(u)
        ratios.append(convergence(objective, point, gradient, u))
        wrong.append(convergence(objective, point, 1.01 * gradient, u))
    # 4 + O(h²) with h = 0.05, away from the directions where the third derivative vanishes
    assert abs(np.median(ratios) - 4) < 0.2, ratios
    assert np.median(wrong) < 2, wrong


# ---------------------------------------------------------------- single precision


@pytest.mark.parametrize("case", EVERY_CASE)
def test_single_precision(case, ops):
    """float32 in, float32 out, as close to float64 as a few dozen roundings allow."""
    layer, params = case.layer, moved_parameters(case)
    rng = np.random.default_rng(3)
    x = case.settings.get("x", rng.standard_normal((5, *case.shape)))
    dz = rng.standard_normal((len(x), *layer.output_shape(case.shape)))
    dldj = rng.standard_normal(len(x))

    def everything(dtype):
        p = {k: v.astype(dtype) for k, v in params.items()}
        z, ldj, cache = layer.forward(ops, p, x.astype(dtype))
        grads = {k: np.full(v.shape, np.nan, dtype) for k, v in p.items()}
        recon = Reconstruction(0.7)
        dx = layer.backward(ops, p, cache, dz.astype(dtype), dldj.astype(dtype), grads, recon)
        found = {"z": z, "dx": dx, **grads}
        if np.ndim(ldj):
            found["ldj"] = ldj
        if getattr(layer, "learns_inverse", True):
            found["inverse"] = layer.inverse(ops, p, z)
        if hasattr(layer, "exact_inverse"):
            found["exact inverse"] = layer.exact_inverse(ops, p, z)
        return found

    single, double = everything(np.float32), everything(np.float64)
    for name, expected in double.items():
        assert np.asarray(expected).dtype == np.float64, name
        assert np.asarray(single[name]).dtype == np.float32, name
        scale = max(1.0, np.max(np.abs(expected)))
        error = np.max(np.abs(single[name] - expected)) / scale
        assert error <= case.roundings * np.finfo(np.float32).eps, (name, error)
        assert np.any(single[name] != expected), f"{name} was not computed in single precision"


# ---------------------------------------------------------------- linear layers


@pytest.mark.parametrize("bias", [True, False])
def test_the_learned_inverse_inverts_where_r_is_the_inverse_of_w(ops, bias):
    layer = Linear(Dense(6), SelfNormalizing(), bias=bias)
    params = moved_parameters(Case(layer, (6,)))
    params["R"] = np.linalg.inv(params["W"])
    x = np.random.default_rng(0).standard_normal((4, 6))
    z, _, _ = layer.forward(ops, params, x)
    np.testing.assert_allclose(layer.inverse(ops, params, z), x, rtol=0, atol=1e-13)
    params["R"] = params["R"] + 0.1  # what the exact inverse must not read
    np.testing.assert_allclose(layer.exact_inverse(ops, params, z), x, rtol=0, atol=1e-13)
    assert np.max(np.abs(layer.inverse(ops, params, z) - x)) > 1e-2


def test_initial_parameters():
    rng = np.random.default_rng(0)
    features, gain = 300, 0.01
    params = Linear(Dense(features), SelfNormalizing()).init(rng, (features,))
    assert {k: v.dtype for k, v in params.items()} == dict.fromkeys("WRb", np.dtype(np.float64))
    noise = params["W"] - np.eye(features)
    xavier = gain * np.sqrt(2 / (2 * features))
    # the standard error of a standard deviation is about σ / √(2n)
    assert abs(noise.std() - xavier) < 5 * xavier / np.sqrt(2 * noise.size)
    np.testing.assert_array_equal(params["R"], params["W"].T)
    assert not np.shares_memory(params["R"], params["W"])
    np.testing.assert_array_equal(params["b"], np.zeros(features))
    plain = Linear(Dense(3), Exact(), bias=False, init_kind="identity").init(rng, (3,))
    assert list(plain) == ["W"]
    np.testing.assert_array_equal(plain["W"], np.eye(3))


@pytest.mark.parametrize("rule", [SelfNormalizing(), Exact()], ids=str)
@pytest.mark.parametrize("map", [Dense(6), Conv2d((1, 1), 6)], ids=str)
def test_an_orthogonal_start_is_exactly_invertible(map, rule, ops):
    layer = Linear(map, rule, init_kind="orthogonal")
    shape = (6,) if isinstance(map, Dense) else (3, 2, 6)
    params = layer.init(np.random.default_rng(0), shape)
    q = params["W"].reshape(6, 6)
    rounding = 6 * 10 * np.finfo(float).eps  # sums of 6 products of columns known to a few eps
    np.testing.assert_allclose(q @ q.T, np.eye(6), rtol=0, atol=rounding)
    assert abs(layer.log_det(ops, params, shape)) < 6 * rounding
    if layer.learns_inverse:  # R = flip(W) is W⁻¹
        x = np.random.default_rng(1).standard_normal((4, *shape))
        z, _, _ = layer.forward(ops, params, x)
        np.testing.assert_allclose(layer.inverse(ops, params, z), x, rtol=0, atol=4 * rounding)
        params["R"] = params["W"]  # the transpose matters
        assert np.max(np.abs(layer.inverse(ops, params, z) - x)) > 0.1


def test_an_orthogonal_start_is_random_and_uniform():
    """Of the Haar measure: E Q = 0 and E Q² = 1/C for each entry, and both determinants. The signs
    that `qr` chooses are not: with Householder's reflections the diagonal has one sign."""
    size, draws = 3, 4000
    layer = Linear(Conv2d((1, 1), size), Exact(), init_kind="orthogonal")
    rng = np.random.default_rng(0)
    q = np.array([layer.init(rng, (1, 1, size))["W"][0, 0] for _ in range(draws)])
    # E q⁴ = 3/(C(C + 2)) bounds the variance of q²; five standard errors each
    variance = 3 / (size * (size + 2)) - 1 / size**2
    assert np.max(np.abs(q.mean(axis=0))) < 5 * np.sqrt(1 / size / draws)
    assert np.max(np.abs((q**2).mean(axis=0) - 1 / size)) < 5 * np.sqrt(variance / draws)
    assert abs(np.linalg.det(q).mean()) < 5 / np.sqrt(draws)
    unfixed = np.array([np.linalg.qr(rng.standard_normal((size, size)))[0] for _ in range(draws)])
    assert np.max(np.abs(unfixed.mean(axis=0))) > 5 * np.sqrt(1 / size / draws)


def test_a_larger_kernel_starts_at_a_rotation_plus_noise():
    size, gain = 16, 0.01
    layer = Linear(Conv2d((5, 5), size), SelfNormalizing(), init_kind="orthogonal", gain=gain)
    params = layer.init(np.random.default_rng(0), (8, 8, size))
    w = params["W"]
    xavier = gain * np.sqrt(2 / (2 * 25 * size))
    others = np.delete(w.reshape(25, size, size), 12, axis=0)
    assert abs(others.std() - xavier) < 5 * xavier / np.sqrt(2 * others.size)
    # Q + noise: Q Qᵀ moves by the noise twice, a sum of C products of standard deviation σ/√C each
    centre = w[2, 2]
    assert np.max(np.abs(centre @ centre.T - np.eye(size))) < 2 * 5 * xavier
    np.testing.assert_array_equal(params["R"], layer.map.flip(w))
    quiet = Linear(Conv2d((5, 5), size), SelfNormalizing(), init_kind="orthogonal", gain=0.0)
    taps = quiet.init(np.random.default_rng(0), (8, 8, size))["W"].reshape(25, size, size)
    assert np.count_nonzero(np.delete(taps, 12, axis=0)) == 0
    np.testing.assert_allclose(taps[12] @ taps[12].T, np.eye(size), rtol=0, atol=1e-14)


def test_an_unknown_initialisation_is_a_usage_error():
    with pytest.raises(UsageError, match="'papr'.*paper.*identity.*orthogonal"):
        Linear(Dense(3), init_kind="papr")


@pytest.mark.parametrize("alpha", [0.0, 1.0, -0.3, np.nan])
def test_the_activation_refuses_slopes_that_do_not_increase(alpha):
    with pytest.raises(UsageError, match=r"must be in \(0, 1\)"):
        SmoothLeakyReLU(alpha)


def test_the_activation_is_what_it_says(ops):
    x = np.linspace(-5, 5, 11)[:, None]
    y, _, _ = SmoothLeakyReLU(0.2).forward(ops, {}, x)
    np.testing.assert_allclose(y, 0.2 * x + 0.8 * np.log(1 + np.exp(x)), rtol=1e-14)


# ---------------------------------------------------------------- preprocessing

PREPROCESSORS = [Preprocess(), Preprocess(alpha=0.05), Preprocess(alpha=0.01, levels=32)]
KEY = RandomKey(4, 1, 2)


@pytest.fixture(params=PREPROCESSORS, ids=str)
def preprocess(request):
    return request.param


def some_images(preprocess, shape=(5, 3, 2, 1)):
    images = np.random.default_rng(0).integers(0, preprocess.levels, shape).astype(np.uint8)
    images.flat[0], images.flat[-1] = 0, preprocess.levels - 1
    return images


def test_preprocess_is_dequantise_scale_logit(preprocess, ops):
    images = some_images(preprocess)
    x, ldj = preprocess.forward(ops, images, KEY, np.float64)
    u = NumpyOps().uniform(KEY, images.shape, np.float64)
    s = preprocess.alpha + (1 - 2 * preprocess.alpha) * (images + u) / preprocess.levels
    np.testing.assert_allclose(x, logit(s), rtol=1e-9, atol=1e-12)  # 1 - s cancels in this form
    per_pixel = np.log((1 - 2 * preprocess.alpha) / preprocess.levels) - np.log(s) - np.log1p(-s)
    np.testing.assert_allclose(ldj, per_pixel.reshape(5, -1).sum(axis=1), rtol=1e-9)


def test_preprocess_inverse_gives_the_images_back(preprocess, ops):
    images = some_images(preprocess, (40, 28))
    x, _ = preprocess.forward(ops, images, KEY, np.float64)
    back = preprocess.inverse(ops, x)
    assert back.dtype == np.uint8
    np.testing.assert_array_equal(back, images)
    noisy = preprocess.continuous_inverse(ops, x)
    u = NumpyOps().uniform(KEY, images.shape, np.float64)
    np.testing.assert_allclose(noisy, images + u, rtol=0, atol=1e-9)


def test_preprocess_inverse_clips_what_lies_outside(preprocess, ops):
    x = np.array([[-100.0, 100.0]])
    np.testing.assert_array_equal(preprocess.inverse(ops, x), [[0, preprocess.levels - 1]])


def test_preprocess_log_determinant_and_gradient(preprocess, ops):
    """Central differences in a continuous image: the noise of a key does not depend on it."""
    rng = np.random.default_rng(1)
    shape = (3, 2, 2)
    # between the levels' ends, where the logit's higher derivatives are of moderate size
    images = rng.uniform(0.2, 0.8, shape) * preprocess.levels
    unit = preprocess.levels / 256  # the length over which the function changes
    c, a = rng.standard_normal(shape), rng.standard_normal(len(images))
    x, ldj = preprocess.forward(ops, images, KEY, np.float64)
    dx = preprocess.backward(ops, x, c, a)

    def objective(v):
        x, ldj = preprocess.forward(ops, v, KEY, np.float64)
        return float(np.sum(c * x) + np.sum(a * ldj))

    check_gradient(objective, images, dx, rng=rng, rtol=RTOL, h=unit, name="images")

    u = rng.standard_normal(shape)
    u /= np.linalg.norm(u)
    assert abs(convergence(objective, images, dx, u, h=4 * unit) - 4) < 0.2

    # elementwise, so its Jacobian is the diagonal that backward gives for a delta of ones
    slopes = preprocess.backward(ops, x, np.ones(shape), np.zeros(len(images)))
    np.testing.assert_allclose(ldj, np.log(slopes).reshape(len(images), -1).sum(axis=1), rtol=1e-12)


def test_preprocess_terms_sum_to_its_log_determinant(preprocess, ops):
    _, ldj = preprocess.forward(ops, some_images(preprocess), KEY, np.float64)
    terms = preprocess.terms(float(ldj.mean()), 6)
    assert list(terms) == ["dequantisation", "scale", "logit"]
    np.testing.assert_allclose(sum(terms.values()), ldj.mean(), rtol=1e-14)
    scale = 6 * np.log((1 - 2 * preprocess.alpha) / preprocess.levels)
    np.testing.assert_allclose(terms["scale"], scale, rtol=1e-14)


def test_preprocess_in_single_precision(preprocess, ops):
    """Computed in double precision and rounded once."""
    images = some_images(preprocess)
    x, ldj = preprocess.forward(ops, images, KEY, np.float64)
    x32, ldj32 = preprocess.forward(ops, images, KEY, np.float32)
    assert x32.dtype == ldj32.dtype == np.float32
    eps = np.finfo(np.float32).eps
    np.testing.assert_allclose(x32, x, rtol=eps)
    np.testing.assert_allclose(ldj32, ldj, rtol=eps)
    # and so is the way back: it rounds nothing that single precision would
    back = preprocess.continuous_inverse(ops, x32)
    np.testing.assert_array_equal(back, preprocess.continuous_inverse(ops, x32.astype(np.float64)))
    dz, dldj = np.ones_like(x32), np.ones(len(x32), np.float32)
    delta = preprocess.backward(ops, x32, dz, dldj)
    assert delta.dtype == np.float32
    expected = preprocess.backward(ops, x, np.ones_like(x), np.ones(len(x)))
    # an error of eps in x, up to 14, is a relative error of 14 eps in eˣ; tanh adds less
    largest = np.max(np.abs(expected))
    np.testing.assert_allclose(delta, expected, rtol=16 * eps, atol=16 * eps * largest)


def test_preprocess_takes_its_noise_from_the_key(preprocess, ops):
    images = some_images(preprocess)
    first, _ = preprocess.forward(ops, images, KEY, np.float64)
    again, _ = preprocess.forward(ops, images, KEY, np.float64)
    other, _ = preprocess.forward(ops, images, KEY._replace(step=3), np.float64)
    np.testing.assert_array_equal(first, again)
    assert not np.any(first == other)


@pytest.mark.parametrize("alpha", [0.0, 0.5, -1e-6, np.nan])
def test_preprocess_refuses_an_alpha_outside_its_range(alpha):
    with pytest.raises(UsageError, match=r"must be in \(0, 0\.5\)"):
        Preprocess(alpha=alpha)


def test_sigmoid_of_the_output_is_the_scaled_pixel(preprocess, ops):
    x, _ = preprocess.forward(ops, some_images(preprocess), KEY, np.float64)
    s = expit(x)
    assert s.min() >= preprocess.alpha * (1 - 1e-12)
    assert s.max() <= (1 - preprocess.alpha) * (1 + 1e-12)
