"""Checking what goes beyond the paper's gradients: rules of probes, with noise, or that find R by
themselves, and Jacobian-vector products. Every matrix is written out.

Derivations: derivations/18-jacobian-vector-products.md, 19-variational.md and
21-learning-the-inverse.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from snfnp.beyond.chain import Chain
from snfnp.beyond.differentiable import derivatives
from snfnp.beyond.inverse_updates import LeastSquares, Projection
from snfnp.beyond.probes import JacobianPenalty, Probe, draw_probes
from snfnp.beyond.variational import Variational, perturbed
from snfnp.context import layer_key
from snfnp.errors import UsageError
from snfnp.gradcheck.catalogue import Check, catalogue, spline_points
from snfnp.gradcheck.layers import (
    KEY,
    Case,
    Report,
    as_matrix,
    check_layer,
    flat,
    frozen_bar_scalar,
)
from snfnp.layers import ActNorm, Linear, RationalQuadraticSpline, SmoothLeakyReLU, Squeeze
from snfnp.maps import Conv2d, Dense
from snfnp.ops import RandomKey

_NOISE_KEY = RandomKey(0, 16)


def probed_scalar(layer, shape, ops, params, x, dz, dldj, lam) -> Callable:
    """The frozen-bar scalar of a rule of n probes ν (`frozen_bar_scalar` has the arguments).

    `Probe` puts P = Σ ννᵀ/n between the factors of the volume terms, ⟨T(W), P T(R̄)ᵀ⟩ and
    ⟨T(R), T(W̄)ᵀ P⟩; `JacobianPenalty` adds −(μ/n) Σ ‖T(R) T(W) ν − ν‖².
    """
    rule, (f, g) = layer.rule, layer.maps
    plain = frozen_bar_scalar(layer, shape, ops, params, x, dz, dldj, lam)
    nu = _probes(ops, rule.probes, shape)
    w_bar, r_bar = as_matrix(f, ops, params["W"], shape), as_matrix(g, ops, params["R"], shape)
    c_f, c_g = (0.5, 0.5) if rule.objective == "mixture" else (1.0, 0.0)
    more = nu.T @ nu / len(nu) - np.eye(len(w_bar))  # P − I

    def scalar(x_, p) -> float:
        w, r = as_matrix(f, ops, p["W"], shape), as_matrix(g, ops, p["R"], shape)
        if isinstance(rule, JacobianPenalty):
            penalty = rule.weight / len(nu) * np.sum((nu @ w.T @ r.T - nu) ** 2)
            return plain(x_, p) - float(penalty)
        volume = c_f * np.sum(w * (more @ r_bar.T)) - c_g * np.sum(r * (w_bar.T @ more))
        return plain(x_, p) + float(dldj.sum() * volume)

    return scalar


def _probes(ops, count: int, shape) -> np.ndarray:
    """The probes (n, D) that a rule draws at `KEY`."""
    like = ops.xp.empty((1, *shape))
    return flat(ops.to_host(draw_probes(ops, layer_key(KEY, 0), count, like)))


def check_inverse_update(
    rule, linear_map, shape, *, inverse_map=None, noise=0.15, **settings
) -> Report:
    """Check a rule that finds R by itself (`Rule.updates`). Raises GradientError.

    R must be what its definition says, written out with dense matrices. With it, and with the
    probes that the generator gives, M is the matrix in place of T(W)⁻¹, and

        ⟨δ, T(W) x + b⟩ + v ⟨T(W), M̄ᵀ⟩ − stiffness · excess¯ · ‖T(R̄) T(W) − I‖²_F

    (the last term: least squares only) is differentiated numerically with respect to x, W and b;
    barred quantities are held. noise: how far W and R are from where a layer starts; inverse_map:
    R's if it is not W's; settings: ops, batch, seed, rtol, dtype as in `check_layer`.
    O(D³ + D² kH kW C²).
    """
    layer = Linear(linear_map, rule, inverse_map=inverse_map)
    case = Case(layer, shape, noise=noise, **settings)
    grads = case.gradients()
    expected = _projected(case) if isinstance(rule, Projection) else _nearest(case)
    case.compare("R", grads["R"], expected)
    inverse, excess = _in_place_of_the_inverse(case, expected)
    target, (dz,), volume = case.matrix(layer.maps[1], expected), case.c, case.a.sum()

    def scalar(name, value) -> float:
        p = {**case.params, "x": case.x, name: value}
        w = case.matrix(linear_map, p["W"])
        linear = np.sum(flat(dz) * (flat(p["x"]) @ w.T)) + np.sum(dz * p["b"])
        pull = excess * np.sum((target @ w - np.eye(len(w))) ** 2)
        return float(linear + volume * np.sum(w * inverse.T) - pull)

    for name, point in {"x": case.x, "W": case.params["W"], "b": case.params["b"]}.items():
        case.measure(name, partial(scalar, name), point, grads[name])
    return case.report


def _in_place_of_the_inverse(case: Case, r):
    """M for the next R, and the weight of the last term."""
    (f, g), rule = case.layer.maps, case.layer.rule
    w, m = case.matrix(f, case.params["W"]), case.matrix(g, r)
    if not isinstance(rule, LeastSquares):
        return m, 0.0
    nu = _probes(case.ops, rule.probes, case.shape)
    error, term, series = np.eye(len(w)) - m @ w, m, m
    for k in range(1, rule.terms + 1):
        term = error @ term
        if k == 1 or not f.inverts_in_kind:
            series = series + (term if k == 1 else term @ nu.T @ nu / len(nu))
    excess = max(0.0, np.sum(error**2) / len(w) - rule.tolerance)
    return series, 0.0 if f.inverts_in_kind else rule.stiffness * excess


def _projected(case: Case) -> np.ndarray:
    """R + (X − Z0 Rᵀ)ᵀ (Z0 Z0ᵀ + ε I)⁻¹ Z0."""
    r, x = case.params["R"], case.x
    z = x @ case.params["W"].T
    gram = z @ z.T
    ridge = case.layer.rule.ridge * np.trace(gram) / len(gram)
    return r + (x - z @ r.T).T @ np.linalg.solve(gram + ridge * np.eye(len(gram)), z)


def _nearest(case: Case) -> np.ndarray:
    """argmin ‖T(r) T(W) − I‖²_F with a column for each element of r."""
    f, g = case.layer.maps
    w, shape = case.matrix(f, case.params["W"]), g.weight_shape
    indicators = np.eye(np.prod(shape)).reshape(-1, *shape)
    columns = [(case.matrix(g, indicator) @ w).ravel() for indicator in indicators]
    identity = np.eye(len(w)).ravel()
    return np.linalg.lstsq(np.array(columns).T, identity, rcond=None)[0].reshape(shape)


@dataclass(frozen=True)
class _Noisy(Linear):
    """A linear layer that is always in training: its rule adds the noise of `_NOISE_KEY`."""

    def forward(self, ops, p, x):
        z, ldj, cache = super().forward(ops, p, x)
        return perturbed(self, ops, p, z, cache, _NOISE_KEY), ldj, cache


def check_variational(
    rule, linear_map, shape, *, inverse_map=None, inverted=False, batch=5, **settings
) -> Report:
    """Check the gradients of a layer whose rule adds noise, for the noise that it drew. Raises
    GradientError.

    Every sample's noise is followed by itself: with x̃ = x + σε and random covectors δ of z,
    v = Σ ∂𝓛/∂ldj,

        ⟨δ, T(W) x̃ + b⟩ + v · l(W) − Σ ‖T(R) T(W) x − x‖² / (2σ²N) − Σ ‖T(R) T(W) ν‖² / (2P)

    is differentiated numerically with respect to x̃, W, R and b. l(W) is ⟨T(W), T(R̄)ᵀ⟩ with R̄ held
    as it is; inverted: R = W⁻¹ (a dense map, or a 1×1 kernel), and l(W) is log|det T(W)|, so that
    nothing is left of the approximation. Also that z is T(W) x̃ + b. inverse_map: R's if it is not
    W's; settings: ops, seed, rtol, dtype as in `check_layer`. O(D³).
    """
    layer = _Noisy(linear_map, rule, inverse_map=inverse_map)
    case = Case(layer, shape, batch=batch, lam=rule.lam, noise=0.3, **settings)
    if inverted:
        case.params["R"] = np.linalg.inv(case.params["W"])
    (f, g), ops, params, rows = layer.maps, case.ops, case.params, flat(case.x)
    z, _, cache = layer.forward(ops, case.put(case.cast(params)), case.put(case.cast(case.x)))
    nu = flat(ops.to_host(cache["noise"].nu)).astype(np.float64)
    # every sample's noise is its own, with the other sign for odd ones
    samples = np.arange(batch)
    signs = rule.sigma * (-1.0) ** samples
    noisy = rows + signs[:, None] * nu[samples // 2 % len(nu)]
    r_bar = case.matrix(g, params["R"])

    def linear(p, rows):
        """T(W) x + b for the rows x."""
        bias = np.broadcast_to(p["b"], layer.output_shape(case.shape)).reshape(-1)
        return rows @ case.matrix(f, p["W"]).T + bias

    def scalar(name, value) -> float:
        p = {**params, name: value}
        w, r = case.matrix(f, p["W"]), case.matrix(g, p["R"])
        z = linear(p, value if name == "x" else noisy)
        log_det = np.linalg.slogdet(w)[1] if inverted else np.sum(w * r_bar.T)
        error, moved = rows @ (r @ w).T - rows, nu @ (r @ w).T
        return float(
            np.sum(flat(case.c[0]) * z)
            + np.sum(case.a) * log_det
            - np.sum(error * error) / (2 * rule.sigma**2 * batch)
            - np.sum(moved * moved) / (2 * len(nu))
        )

    case.compare("z", flat(ops.to_host(z)), linear(params, noisy), linear(params, rows))
    grads = case.gradients()
    for name, point in {"x": noisy, **params}.items():
        case.measure(name, partial(scalar, name), point, grads[name].reshape(point.shape))
    return case.report


def check_jvp(layer, shape, **settings) -> Report:
    """Check a layer's `derivatives` at a random point. Raises GradientError.

    * Jᵀ δ against central differences of ⟨δ, f(x)⟩, and J ẋ as the gradient of ⟨δ, J ẋ⟩ by δ;
    * the gradient of ⟨δ, J ẋ⟩ by x, ẋ and each parameter, against central differences of it: the
      second derivatives of f;
    * J⁻¹ J ẋ = ẋ and J⁻ᵀ Jᵀ δ = δ, of a layer that has them.

    settings: ops, batch, seed, rtol, x, params, dtype as in `check_layer`; `jvp_backward` computes
    in `dtype`, differences are of float64.
    """
    case, of = Case(layer, shape, **settings), derivatives(layer)
    ops, x, params, (delta,) = case.ops, case.x, case.params, case.c
    dx = case.rng.standard_normal(x.shape)

    def passed(x_, p_):
        """The parameters and the cache on the device."""
        p = case.put(p_)
        return p, layer.forward(ops, p, case.put(x_))[2]

    def value(name, changed) -> float:
        """⟨δ, J ẋ⟩ with one of x, ẋ and the parameters at another value."""
        at = {**params, "x": x, "direction": dx, name: changed}
        p, cache = passed(at.pop("x"), {key: at[key] for key in params})
        return float(np.sum(delta * ops.to_host(of.jvp(ops, p, cache, case.put(at["direction"])))))

    low = case.cast(params)
    x_, dx_, delta_ = case.cast([x, dx, delta])
    p, cache = passed(x_, low)
    dx_, delta_ = case.put(dx_), case.put(delta_)
    before = {name: case.rng.standard_normal(v.shape).astype(case.dtype) for name, v in low.items()}
    sums = case.put(before)
    of_x, of_dx = of.jvp_backward(ops, p, cache, dx_, delta_, sums)
    gradients = {"x": np.zeros(x.shape) if isinstance(of_x, int) else ops.to_host(of_x)}
    gradients["direction"] = ops.to_host(of_dx)
    gradients |= {name: ops.to_host(sums[name]) - old.astype(float) for name, old in before.items()}
    for name, point in {"x": x, "direction": dx, **params}.items():
        case.measure(name, partial(value, name), point, gradients[name])
        if math.isnan(case.report.controls[name]):  # nothing depends on it: there is no control
            del case.report.controls[name]
    of_output = lambda v: float(np.sum(delta * case.forward(v, params)[0][0]))  # noqa: E731
    case.measure("Jᵀ", of_output, x, gradients["direction"])
    try:
        back = of.jvp_solve(ops, p, cache, of.jvp(ops, p, cache, dx_))
        delta_back = of.jvp_solve(ops, p, cache, of_dx, transposed=True)
    except UsageError:
        return case.report
    case.compare("J⁻¹", ops.to_host(back), dx)
    case.compare("J⁻ᵀ", ops.to_host(delta_back), delta)
    return case.report


def beyond() -> list[Check]:
    """Examples of what goes beyond the paper, like those of `snfnp.gradcheck.catalogue`."""
    dense, conv, larger = (Dense(5), (5,)), (Conv2d((3, 3), 2), (3, 4, 2)), Conv2d((5, 5), 2)
    pointwise, spline = (Conv2d((1, 1), 3), (2, 3, 3)), RationalQuadraticSpline(bound=4.0)
    to_larger, to_chain = {"inverse_map": larger}, {"inverse_map": Chain(conv[0], 2)}
    penalty, probe = JacobianPenalty(weight=0.4, probes=2), Probe(probes=2)
    layers = [
        ("dense, Eq. 31", Linear(dense[0], penalty), dense[1]),
        ("dense, probes", Linear(dense[0], probe), dense[1]),
        ("conv 3x3, Eq. 31", Linear(conv[0], penalty), conv[1]),
        ("conv 3x3, probes, inverse 5x5", Linear(conv[0], probe, **to_larger), conv[1]),
    ]
    points = {"x": spline_points(spline, (2, 1, 2))}
    jvps = [
        ("dense, J ν", Linear(dense[0]), dense[1], {}),
        ("conv 3x3, J ν", Linear(conv[0]), conv[1], {}),
        ("smooth leaky ReLU, J ν", SmoothLeakyReLU(), (6,), {}),
        ("spline, J ν", spline, (2, 1, 2), points),
        ("actnorm, J ν", ActNorm(), (3, 2, 4), {}),
        ("squeeze, J ν", Squeeze(), (4, 2, 3), {}),
    ]
    small, pulled = {"inverse_map": Conv2d((3, 5), 2)}, LeastSquares(tolerance=1e-4)
    updates = [
        ("projection, dense", Projection(), dense, {}),
        ("least squares, conv 1x1", LeastSquares(), pointwise, {}),
        ("least squares, conv 3x3", LeastSquares(), conv, {}),
        ("least squares, 5x5", LeastSquares(), (conv[0], (4, 3, 2)), to_larger),
        ("least squares, pulled", pulled, conv, small),
    ]
    noisy = [
        ("dense", dense, {}),
        ("dense, R = W⁻¹", dense, {"inverted": True}),
        ("conv 1x1, R = W⁻¹", pointwise, {"inverted": True}),
        ("conv 3x3", (conv[0], (4, 3, 2)), {}),
        ("conv 3x3, inverse 5x5", conv, to_larger),
        ("conv 3x3, inverse of two 3x3", conv, to_chain),
    ]
    variational = Variational(0.6, vectors=2)
    probed = partial(check_layer, scalar=probed_scalar)
    return [
        *(Check("layer", name, partial(probed, *rest)) for name, *rest in layers),
        *(Check("jvp", name, partial(check_jvp, *rest, **more)) for name, *rest, more in jvps),
        *(
            Check("rule", name, partial(check_inverse_update, rule, *of, **more))
            for name, rule, of, more in updates
        ),
        *(
            Check(
                "rule", f"variational, {name}", partial(check_variational, variational, *of, **more)
            )
            for name, of, more in noisy
        ),
    ]


ALL_CHECKS = [*catalogue(), *beyond()]
