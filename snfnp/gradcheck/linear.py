"""Checking maps T(w) and rules against T(w) written out, on any backend."""

from __future__ import annotations

from functools import partial

import numpy as np

from snfnp.context import BackwardContext
from snfnp.gradcheck.differences import (
    GradientError,
    Measured,
    measure_gradient,
    relative,
    tolerance,
)
from snfnp.gradcheck.layers import KEY, Report, as_matrix
from snfnp.ops import get_ops
from snfnp.rules import Relative, SelfNormalizing


def check_map(
    linear_map, shape, *, ops=None, batch=3, seed=0, rtol=None, dtype=np.float64
) -> Report:
    """Check every member of a map (`snfnp.maps`) at a random weight. Raises GradientError.

    * apply is linear in x; adjoint: ⟨T(w) x, δ⟩ = ⟨x, T(w)ᵀ δ⟩;
    * weight_grad, written and added: ⟨δ ⋆ x, v⟩ = ⟨δ, T(v) x⟩ for any v;
    * flip: T(flip w) = T(w)ᵀ; multiple: m counts the positions of each element in T (Eq. 24);
    * log_det, log_det_grad and solve, of a map that keeps the shape, against T(w) written out.

    The negative controls: T(w) in place of T(w)ᵀ, w in place of flip w, 1 in place of m, what is
    off by 1 %, and those of `measure_gradient`.
    shape: one sample's; ops, rtol, dtype: as in `check_layer`. O(D³).
    """
    case = _MapCase(linear_map, shape, ops or get_ops("numpy"), batch, seed, dtype)
    rtol = tolerance(dtype) if rtol is None else rtol
    report = Report()
    checks = [case.apply, case.adjoint, case.weight_grad, case.flip, case.multiple]
    keeps_shape = case.dz.shape == case.x.shape
    for check in checks + [case.log_det, case.solve] * keeps_shape:
        name, measured = check.__name__, check()
        report.add(name, measured)
        if not measured.error <= rtol:
            raise GradientError(f"{name} is off by {measured.error:.2e} > {rtol:.0e}")
        if measured.control <= rtol:
            raise GradientError(f"{name}: the negative control was not caught")
    if keeps_shape:
        report.add("log_det_grad", case.log_det_grad(rtol))
    return report


class _MapCase:
    def __init__(self, linear_map, shape, ops, batch, seed, dtype):
        self.map, self.shape, self.ops, self.dtype = linear_map, tuple(shape), ops, dtype
        self.rng = np.random.default_rng(seed)
        noise = 0.3 * self.rng.standard_normal(linear_map.weight_shape)
        self.w = linear_map.identity() + noise
        self.x = self.rng.standard_normal((batch, *shape))
        self.dz = self.rng.standard_normal((batch, *linear_map.output_shape(self.shape)))

    def _host(self, method, *arrays, **keywords):
        """A method of the map on host arrays."""
        return self.ops.to_host(method(self.ops, *map(self.put, arrays), **keywords))

    def put(self, array):
        """A copy of a host array on the device, in the precision that is checked."""
        return self.ops.asarray(np.array(array, self.dtype))

    def matrix(self, w):
        """T(w) written out, from the map's own `apply`."""
        return as_matrix(self.map, self.ops, w, self.shape)

    def _compared(self, found, expected, wrong=None) -> Measured:
        """The largest difference of arrays, and that of wrong ones: by default off by 1 %."""
        found, expected = np.asarray(found), np.asarray(expected)
        wrong = 1.01 * expected if wrong is None else wrong
        typical = float(np.max(np.abs(expected)))
        error = max(relative(a, b, typical) for a, b in zip(found.flat, expected.flat, strict=True))
        return Measured(error, float(np.max(np.abs(wrong - expected)) / typical))

    def _can_be_mistaken(self, matrix) -> bool:
        """Whether T(w) has the shape of its transpose, and is another matrix."""
        return matrix.shape == matrix.T.shape and not np.array_equal(matrix, matrix.T)

    def apply(self):
        matrix, rows = self.matrix(self.w), self.x.reshape(len(self.x), -1)
        z = self._host(self.map.apply, self.w, self.x)
        return self._compared(z.reshape(len(z), -1), rows @ matrix.T)

    def adjoint(self):
        dx = self._host(self.map.adjoint, self.w, self.dz)
        matrix, rows = self.matrix(self.w), self.dz.reshape(len(self.dz), -1)
        wrong = rows @ matrix.T if self._can_be_mistaken(matrix) else None
        return self._compared(dx.reshape(len(dx), -1), rows @ matrix, wrong)

    def weight_grad(self):
        v = self.rng.standard_normal(self.w.shape)
        out, found = self.put(np.full(self.w.shape, np.nan)), []
        for add in (False, True):
            self.map.weight_grad(self.ops, self.put(self.dz), self.put(self.x), out=out, add=add)
            found.append(np.sum(self.ops.to_host(out) * v))
        expected = np.sum(self.dz * self._host(self.map.apply, v, self.x))
        return self._compared(found, [expected, 2 * expected])

    def flip(self):
        matrix, flipped = self.matrix(self.w), np.ascontiguousarray(self.map.flip(self.w))
        found = as_matrix(self.map, self.ops, flipped, self.dz.shape[1:])
        wrong = matrix if self._can_be_mistaken(matrix) else None
        return self._compared(found, matrix.T, wrong)

    def multiple(self):
        counted = np.zeros(self.w.shape)
        for index in np.ndindex(self.w.shape):
            indicator = np.zeros(self.w.shape)
            indicator[index] = 1
            counted[index] = np.count_nonzero(self.matrix(indicator))
        found = np.broadcast_to(self.map.multiple(self.shape), self.w.shape)
        return self._compared(
            found, counted, np.ones(self.w.shape) if np.any(counted > 1) else None
        )

    def log_det(self):
        expected = np.linalg.slogdet(self.matrix(self.w))[1]
        found = self.map.log_det(self.ops, self.put(self.w), self.shape)
        return self._compared(found, expected)

    def log_det_grad(self, rtol):
        gradient = self._host(self.map.log_det_grad, self.w, shape=self.shape)
        return measure_gradient(
            lambda w: float(np.linalg.slogdet(self.matrix(w))[1]),
            self.w,
            gradient,
            rng=self.rng,
            rtol=rtol,
            name="log_det_grad",
        )

    def solve(self):
        z = self._host(self.map.apply, self.w, self.x)
        return self._compared(self._host(self.map.solve, self.w, z), self.x, z)


def check_rule(
    rule, linear_map, shape, *, ops=None, batch=3, seed=0, rtol=None, dtype=np.float64
) -> Report:
    """Check what a rule makes of a linear layer where that must be exact. Raises GradientError.

    This does not use the rule's own formula: it differentiates the likelihood, log|det T|
    included, numerically. A self-normalizing rule is put at R = W⁻¹, where Eqs. 10 and 11 become
    Eqs. 8 and 9 (so the map must be one whose inverse is of its own kind: dense, or 1×1), and
    elsewhere the part of its gradients that λ scales must be that of −λ/N Σ ‖T(R) T(W) x − x‖²;
    a relative one must be the exact gradient times WᵀW. ops, rtol, dtype: as in `check_layer`.
    O(D³).
    """
    case = _MapCase(linear_map, shape, ops or get_ops("numpy"), batch, seed, dtype)
    rtol = tolerance(dtype) if rtol is None else rtol
    ops, w, rng = case.ops, case.w, case.rng
    learns = isinstance(rule, SelfNormalizing)
    params = {"W": w, "b": rng.standard_normal(linear_map.output_shape(case.shape)[-1])}
    if learns:
        # w.shape[-2:] is the matrix of a dense map (transposed in a kernel, as its inverse is)
        params["R"] = np.linalg.inv(w)
    dldj, lam = rng.standard_normal(batch), 0.7

    def backward(params, lam) -> dict:
        """{name: gradient, "x": δ_x} on the host."""
        p = {name: case.put(value) for name, value in params.items()}
        grads = {name: case.put(np.full_like(value, np.nan)) for name, value in params.items()}
        x, dz = case.put(case.x), case.put(case.dz)
        z0 = linear_map.apply(ops, p["W"], x)
        ctx = BackwardContext.of(ops, case.put(dldj), lam, key=KEY)
        maps, cache = {"f": linear_map, "g": linear_map}, {"x": x, "z0": z0}
        dx = rule.backward(ctx, **maps, p=p, cache=cache, dz=dz, grads=grads)
        dx = dx[0] if learns else dx
        return {name: ops.to_host(array) for name, array in {**grads, "x": dx}.items()}

    found, t = backward(params, lam), case.matrix(w)
    volume, rows, deltas = dldj.sum(), case.x.reshape(batch, -1), case.dz.reshape(batch, -1)

    def density(weight, before, delta):
        """⟨δ, T(weight) before⟩ + v log|det T(weight)|: what depends on one weight in Eq. 3."""
        matrix = case.matrix(weight)
        return float(np.sum(delta * (before @ matrix.T)) + volume * np.linalg.slogdet(matrix)[1])

    dx = found["x"].reshape(rows.shape)
    checks = {"x": (lambda v: float(np.sum(deltas * (v @ t.T))), rows, dx)}
    if isinstance(rule, Relative):
        checks["W"] = _relative_scalar(rule, params, rows, deltas, volume, found)
    else:
        factor = 0.5 if learns and rule.objective == "mixture" else 1.0
        checks["W"] = (lambda v: factor * density(v, rows, deltas), w, found["W"])
    if learns:
        # Eq. 11 where R has a density of its own; and beside W⁻¹, what λ adds
        aside = {**params, "R": 1.2 * params["R"] + 0.1 * rng.standard_normal(w.shape)}
        whole, likelihood = backward(aside, lam), backward(aside, 0.0)
        if rule.objective == "mixture":
            checks["R"] = (
                lambda v: -0.5 * density(v, rows @ t.T, deltas @ t),
                params["R"],
                found["R"],
            )
        else:
            likelihood["R"] = 0.0  # it learns from its reconstruction error alone

        def reconstruction(name, v):
            both = {**aside, name: v}
            error = rows @ (case.matrix(both["R"]) @ case.matrix(both["W"])).T - rows
            return float(-lam / batch * np.sum(error * error))

        for name in ("W", "R"):
            gradient = whole[name] - likelihood[name]
            checks[f"reconstruction, {name}"] = partial(reconstruction, name), aside[name], gradient
    if not isinstance(rule, Relative) or rule.bias == "plain":  # else a column of W's matrix
        checks["b"] = (lambda v: float(np.sum(case.dz * v)), params["b"], found["b"])
    report = Report()
    for name, (scalar, point, gradient) in checks.items():
        measured = measure_gradient(scalar, point, gradient, rng=rng, rtol=rtol, name=name)
        report.add(name, measured)
    return report


def _relative_scalar(rule, params, rows, deltas, volume, found):
    """(scalar, point, gradient) that hold for a relative gradient in the place of a gradient.

    With A = W, or A = [W b; 0 1] for a bias inside an augmented matrix, the ascent direction is
    G AᵀA for the gradient G of L(A) = ⟨δ, A x⟩ + v log|det A|. So ⟨G AᵀA, U⟩ is the derivative of
    L(A + s U AᵀA) at s = 0, for every U that leaves the last row alone.
    """
    w, gradient = params["W"], found["W"]
    a, x, padded = w, rows, deltas
    if rule.bias != "plain":
        size = len(w)
        missing = volume * params["b"] if rule.bias == "gresele" else 0  # left out by its authors
        gradient = np.column_stack([gradient, found["b"] + missing])
        a = np.block([[w, params["b"][:, None]], [np.zeros((1, size)), np.ones((1, 1))]])
        x = np.column_stack([rows, np.ones(len(rows))])
        padded = np.column_stack([deltas, np.zeros(len(rows))])

    def scalar(u):
        full = np.zeros_like(a)
        full[: len(u)] = u
        moved = a + full @ a.T @ a
        return float(np.sum(padded * (x @ moved.T)) + volume * np.linalg.slogdet(moved)[1])

    return scalar, np.zeros_like(gradient), gradient
