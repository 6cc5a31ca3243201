"""Checking the rules that find R without a gradient, against matrices written out.

Derivation: derivations/21-learning-the-inverse.md.
"""

from __future__ import annotations

import numpy as np

from snfnp.beyond.least_squares import LeastSquares
from snfnp.beyond.projection import Projection
from snfnp.context import BackwardContext, layer_key
from snfnp.gradcheck.differences import GradientError, Measured, measure_gradient, tolerance
from snfnp.gradcheck.layers import Report, as_matrix
from snfnp.layers import Linear
from snfnp.ops import RandomKey, get_ops


def check_inverse_update(
    rule,
    linear_map,
    shape,
    *,
    inverse_map=None,
    ops=None,
    batch=3,
    seed=0,
    noise=0.15,
    rtol=None,
    dtype=np.float64,
) -> Report:
    """Check a rule that finds R by itself (`Rule.updates`). Raises GradientError.

    R must be what its definition says, written out with dense matrices. With it, and with the
    probes that the generator gives, M is the matrix in place of T(W)⁻¹, and

        ⟨δ, T(W) x + b⟩ + v ⟨T(W), M̄ᵀ⟩ − stiffness · excess¯ · ‖T(R̄) T(W) − I‖²_F

    (the last term: least squares only) is differentiated numerically with respect to x, W and b;
    barred quantities are held. noise: how far W and R are from where a layer starts; inverse_map:
    R's if it is not W's; ops, rtol, dtype: as in `check_layer`. O(D³ + D² kH kW C²).
    """
    ops = ops or get_ops("numpy")
    rtol = tolerance(dtype) if rtol is None else rtol
    layer = Linear(linear_map, rule, inverse_map=inverse_map)
    case = _Case(layer, tuple(shape), ops, batch, np.random.default_rng(seed), noise)
    nu, found = case.backward(RandomKey(seed, 0, 3), dtype)
    expected = next(r for kind, r in _EXPECTED.items() if isinstance(rule, kind))(case)
    report, typical = Report(), np.max(np.abs(expected))
    error = float(np.max(np.abs(found["R"] - expected)) / typical)
    report.add("R", Measured(error, 0.01))  # the control: an R that is off by 1 %
    if not error <= rtol:
        raise GradientError(f"R is off by {error:.2e} > {rtol:.0e}")
    inverse, excess = case.in_place_of_the_inverse(expected, nu)
    target = case.matrix(layer.maps[1], expected)

    def scalar(name, value) -> float:
        p = {**case.params, "x": case.x, name: value}
        w, rows = case.matrix(linear_map, p["W"]), p["x"].reshape(batch, -1)
        linear = np.sum(case.dz * (rows @ w.T).reshape(case.dz.shape)) + np.sum(case.dz * p["b"])
        pull = excess * np.sum((target @ w - np.eye(len(w))) ** 2)
        return float(linear + case.volume * np.sum(w * inverse.T) - pull)

    for name in ("x", "W", "b"):
        point = case.x if name == "x" else case.params[name]
        measured = measure_gradient(
            lambda value, name=name: scalar(name, value),
            point,
            found[name],
            rng=case.rng,
            rtol=rtol,
            name=name,
        )
        report.add(name, measured)
    return report


class _Case:
    """One linear layer at a random point, with a random covector of its output."""

    def __init__(self, layer, shape, ops, batch, rng, noise):
        self.layer, self.shape, self.ops, self.rng = layer, shape, ops, rng
        self.params = {
            name: value + noise * rng.standard_normal(value.shape)
            for name, value in layer.init(rng, shape).items()
        }
        self.x, self.dz = rng.standard_normal((2, batch, *shape))
        self.dldj = rng.standard_normal(batch)
        self.volume = self.dldj.sum()

    def backward(self, key, dtype):
        """ν (P, D) as the rule draws it, and {name: gradient, next R, or δ_x as "x"}, on the
        host."""
        ops, layer = self.ops, self.layer

        def put(array):
            return ops.asarray(np.array(array, dtype))

        p = {name: put(value) for name, value in self.params.items()}
        grads = {name: put(np.full_like(value, np.nan)) for name, value in self.params.items()}
        ctx = BackwardContext.of(ops, put(self.dldj), key=layer_key(key, 0))
        _, _, cache = layer.forward(ops, p, put(self.x))
        dx, measured = layer.backward(ctx, p, cache, put(self.dz), grads)
        grads |= measured.updates
        count = layer.rule.probes if isinstance(layer.rule, LeastSquares) else 0
        nu = ops.to_host(ops.random.rademacher(ctx.key, (count, *self.shape), np.float64))
        found = {name: ops.to_host(array) for name, array in {**grads, "x": dx}.items()}
        return nu.reshape(count, self.x[0].size), found

    def matrix(self, linear_map, weight):
        return as_matrix(linear_map, self.ops, np.ascontiguousarray(weight), self.shape)

    def in_place_of_the_inverse(self, r, nu):
        """M for the next R, and the weight of the pull."""
        (f, g), rule = self.layer.maps, self.layer.rule
        w, m = self.matrix(f, self.params["W"]), self.matrix(g, r)
        if not isinstance(rule, LeastSquares):
            return m, 0.0
        error, term, series = np.eye(len(w)) - m @ w, m, m
        for k in range(1, rule.terms + 1):
            term = error @ term
            if k == 1 or not f.inverts_in_kind:
                series = series + (term if k == 1 else term @ nu.T @ nu / len(nu))
        excess = max(0.0, np.sum(error**2) / len(w) - rule.tolerance)
        return series, 0.0 if f.inverts_in_kind else rule.stiffness * excess


def _projected(case) -> np.ndarray:
    """R + (X − Z0 Rᵀ)ᵀ (Z0 Z0ᵀ + ε I)⁻¹ Z0."""
    r, x = case.params["R"], case.x
    z = x @ case.params["W"].T
    gram = z @ z.T
    ridge = case.layer.rule.ridge * np.trace(gram) / len(gram)
    return r + (x - z @ r.T).T @ np.linalg.solve(gram + ridge * np.eye(len(gram)), z)


def _nearest(case) -> np.ndarray:
    """argmin ‖T(r) T(W) − I‖²_F with a column for each element of r."""
    f, g = case.layer.maps
    w, shape = case.matrix(f, case.params["W"]), g.weight_shape
    indicators = np.eye(np.prod(shape)).reshape(-1, *shape)
    columns = [(case.matrix(g, indicator) @ w).ravel() for indicator in indicators]
    identity = np.eye(len(w)).ravel()
    return np.linalg.lstsq(np.array(columns).T, identity, rcond=None)[0].reshape(shape)


# What the next R must be, by rule.
_EXPECTED = {Projection: _projected, LeastSquares: _nearest}
