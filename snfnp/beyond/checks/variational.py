"""Checking the variational rule (`snfnp.beyond.variational`) in a linear layer, noise and all.

Derivation: derivations/19-variational.md.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from snfnp.beyond.variational import perturbed
from snfnp.context import BackwardContext
from snfnp.gradcheck.differences import GradientError, Measured, measure_gradient, tolerance
from snfnp.gradcheck.layers import Report, as_matrix
from snfnp.layers import Linear
from snfnp.ops import RandomKey, get_ops


def check_variational(
    rule,
    linear_map,
    shape,
    *,
    inverse_map=None,
    inverted=False,
    ops=None,
    batch=5,
    seed=0,
    rtol=None,
    dtype=np.float64,
) -> Report:
    """Check the gradients of a layer whose rule adds noise, for the noise that it drew. Raises
    GradientError.

    Every matrix is written out and every sample's noise is followed by itself: with x̃ = x + σε and
    random covectors δ of z, v = Σ ∂𝓛/∂ldj,

        ⟨δ, T(W) x̃ + b⟩ + v · l(W) − Σ ‖T(R) T(W) x − x‖² / (2σ²N) − Σ ‖T(R) T(W) ν‖² / (2P)

    is differentiated numerically with respect to x̃, W, R and b. l(W) is ⟨T(W), T(R̄)ᵀ⟩ with R̄ held
    as it is; inverted: R = W⁻¹ (a dense map, or a 1×1 kernel), and l(W) is log|det T(W)|, so that
    nothing is left of the approximation. Also that z is T(W) x̃ + b. inverse_map: R's if it is
    not W's; ops, rtol, dtype: as in `check_layer`. O(D³).
    """
    ops = ops or get_ops("numpy")
    rtol = tolerance(dtype) if rtol is None else rtol
    layer = Linear(linear_map, rule, inverse_map=inverse_map)
    case = _Case(layer, tuple(shape), ops, batch, np.random.default_rng(seed), inverted)
    z, nu, found = case.pass_once(RandomKey(seed, 16), dtype)
    noisy = case.follow(nu)
    report = Report()
    expected = case.linear(case.params, noisy)
    without = case.linear(case.params, case.x.reshape(noisy.shape))
    typical = np.max(np.abs(expected))
    error, control = (np.max(np.abs(other - expected)) / typical for other in (z, without))
    report.add("z", Measured(float(error), float(control)))
    if not error <= rtol:
        raise GradientError(f"z is not f(x + σε) with the noise of its cache: off by {error:.2e}")
    for name, point in {"x": noisy, **case.params}.items():
        scalar = partial(case.scalar, nu, noisy, name)
        gradient = found[name].reshape(point.shape)
        report.add(
            name, measure_gradient(scalar, point, gradient, rng=case.rng, rtol=rtol, name=name)
        )
    return report


class _Case:
    """One layer at a random point, with covectors of its outputs."""

    def __init__(self, layer, shape, ops, batch, rng, inverted):
        self.layer, self.shape, self.ops, self.rng = layer, shape, ops, rng
        self.inverted = inverted
        self.params = {
            name: value + 0.3 * rng.standard_normal(value.shape)
            for name, value in layer.init(rng, shape).items()
        }
        if inverted:
            self.params["R"] = np.linalg.inv(self.params["W"])
        self.x, self.dz = rng.standard_normal((2, batch, *shape))
        self.dldj = rng.standard_normal(batch)
        self.r_bar = as_matrix(layer.maps[1], ops, self.params["R"], shape)

    def pass_once(self, key, dtype):
        """Forward with noise, and backward: z (N, D), ν (P, D) and {name: gradient}, on the host.

        "x" is the name of δ_x."""
        ops, layer = self.ops, self.layer

        def put(array):
            return ops.asarray(np.array(array, dtype))

        p = {name: put(value) for name, value in self.params.items()}
        grads = {name: put(np.full_like(value, np.nan)) for name, value in self.params.items()}
        z, _, cache = layer.forward(ops, p, put(self.x))
        z = perturbed(layer, ops, p, z, cache, key)
        ctx = BackwardContext.of(ops, put(self.dldj), layer.rule.lam)
        dx, _ = layer.backward(ctx, p, cache, put(self.dz), grads)
        gradients = {name: ops.to_host(array) for name, array in {**grads, "x": dx}.items()}
        rows = [ops.to_host(array) for array in (z, cache["noise"].nu)]
        return *(row.reshape(len(row), -1).astype(np.float64) for row in rows), gradients

    def follow(self, nu):
        """x̃ (N, D): every sample with the noise that is its own, the odd ones with the other
        sign."""
        samples = np.arange(len(self.x))
        signs = self.layer.rule.sigma * (-1.0) ** samples
        return self.x.reshape(len(self.x), -1) + signs[:, None] * nu[samples // 2 % len(nu)]

    def linear(self, p, rows):
        """T(W) x + b for the rows x."""
        w = as_matrix(self.layer.map, self.ops, p["W"], self.shape)
        return rows @ w.T + np.broadcast_to(p["b"], self.shape).reshape(-1)

    def scalar(self, nu, noisy, name, value) -> float:
        """The scalar of `check_variational`, with one of x̃, W, R and b at another value."""
        p, rule, rows = {**self.params, name: value}, self.layer.rule, self.x.reshape(noisy.shape)
        f, g = self.layer.maps
        w, r = (
            as_matrix(f, self.ops, p["W"], self.shape),
            as_matrix(g, self.ops, p["R"], self.shape),
        )
        z = self.linear(p, value if name == "x" else noisy)
        log_det = np.linalg.slogdet(w)[1] if self.inverted else np.sum(w * self.r_bar.T)
        error, moved = rows @ (r @ w).T - rows, nu @ (r @ w).T
        return float(
            np.sum(self.dz.reshape(z.shape) * z)
            + np.sum(self.dldj) * log_det
            - np.sum(error * error) / (2 * rule.sigma**2 * len(rows))
            - np.sum(moved * moved) / (2 * len(nu))
        )
