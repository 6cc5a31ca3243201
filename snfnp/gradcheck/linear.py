"""Checking maps T(w) and rules against T(w) written out (derivations/18-write-your-own-rule.md)."""

from typing import Any

import numpy as np

from snfnp.errors import UsageError
from snfnp.gradcheck.case import Case, Report, as_matrix, on_cpu_backends
from snfnp.gradcheck.members import require
from snfnp.layers import Linear
from snfnp.maps import Map
from snfnp.ops import Shape
from snfnp.ops.group import flat
from snfnp.rules import Exact, Relative, Rule, SelfNormalizing


@on_cpu_backends
def check_map(linear_map: Map, shape: Shape, **settings: Any) -> Report:
    """Check every member of a map at a random weight, in O(D³).

    * apply is linear in x; adjoint: ⟨T(w) x, δ⟩ = ⟨x, T(w)ᵀ δ⟩;
    * weight_grad, written and added: ⟨δ ⋆ x, v⟩ = ⟨δ, T(v) x⟩ for any v;
    * flip: T(flip w) = T(w)ᵀ; multiplicity: m counts the positions of each element in T (Eq. 24);
    * pad_or_crop of a w of the map's own size; identity, of a map that keeps the shape;
    * log_det, log_det_grad and solve, of a map that keeps the shape, against T(w) written out.

    Negative controls: T(w) for T(w)ᵀ, w for flip w, 1 for m, else an error of 1 %.

    Args:
        linear_map: the map.
        shape: one sample's.
        **settings: keywords of `snfnp.gradcheck.case.Case`.

    Returns:
        The relative error of each check, and the smallest error of its negative controls.

    Raises:
        GradientError: at the first member that is wrong.
    """
    require(linear_map, Map)
    layer = Linear(linear_map, Exact(), bias=False, init_kind="identity")
    case = Case(layer, shape, noise=0.15, **settings)
    ops = case.ops
    shape = case.shape
    w = case.params["W"]
    x = case.x
    dz = case.c[0]
    t = case.matrix(linear_map, w)
    rows = flat(x)
    deltas = flat(dz)
    # whether T(w) has the shape of its transpose, and is another matrix
    mistakable = t.shape == t.T.shape and not np.array_equal(t, t.T)

    def host(method, *arrays, **keywords):
        """A method of the map on host arrays."""
        return ops.to_host(method(ops, *case.put([*arrays], case.dtype), **keywords))

    z = host(linear_map.apply, w, x)
    case.compare("apply", flat(z), rows @ t.T)
    case.compare(
        "adjoint",
        flat(host(linear_map.adjoint, w, dz)),
        deltas @ t,
        deltas @ t.T if mistakable else None,
    )
    v = case.rng.standard_normal(w.shape)
    delta, inputs, out = case.put([dz, x, np.full(w.shape, np.nan)], case.dtype)
    slopes = []
    for add in (False, True):
        linear_map.weight_grad(ops, delta, inputs, out=out, add=add)
        slopes.append(np.sum(ops.to_host(out) * v))
    slope = np.sum(dz * host(linear_map.apply, v, x))
    case.compare("weight_grad", slopes, [slope, 2 * slope])
    transpose = as_matrix(linear_map, ops, linear_map.flip(w), dz.shape[1:])
    case.compare("flip", transpose, t.T, t if mistakable else None)
    indicators = np.eye(w.size).reshape(-1, *w.shape)
    counts = [np.count_nonzero(case.matrix(linear_map, one)) for one in indicators]
    counts = np.reshape(counts, w.shape).astype(float)
    multiplicity = np.broadcast_to(linear_map.multiplicity(shape), w.shape)
    case.compare(
        "multiplicity",
        multiplicity,
        counts,
        np.ones(w.shape) if np.any(counts > 1) else None,
    )
    case.compare("pad_or_crop", linear_map.pad_or_crop(w), w)
    if dz.shape != x.shape:
        return case.report
    case.compare(
        "identity", case.matrix(linear_map, linear_map.identity()), np.eye(len(t))
    )
    log_det = linear_map.log_det(ops, case.put(w, case.dtype), shape)
    case.compare("log_det", log_det, np.linalg.slogdet(t)[1])
    case.compare("solve", host(linear_map.solve, w, z), x, z)
    case.measure(
        "log_det_grad",
        lambda w: float(np.linalg.slogdet(case.matrix(linear_map, w))[1]),
        w,
        host(linear_map.log_det_grad, w, shape=shape),
    )
    return case.report


@on_cpu_backends
def check_rule(rule: Rule, linear_map: Map, shape: Shape, **settings: Any) -> Report:
    """Check a rule where it must agree with the likelihood, differentiated numerically, in O(D³).

    A rule that learns an inverse is checked at R = W⁻¹, where Eqs. 10 and 11 become Eqs. 8 and 9
    and the reconstruction error is 0 (`check_layer` checks what λ scales); a relative one must be
    the exact gradient times WᵀW.

    Args:
        rule: the rule.
        linear_map: the map of W; for a rule that learns an inverse, one with
            `inverse_is_same_map`: dense, or a 1×1 convolution.
        shape: one sample's.
        **settings: keywords of `snfnp.gradcheck.case.Case`.

    Returns:
        The relative error of each check, and the smallest error of its negative controls.

    Raises:
        GradientError: at the first gradient that is wrong.
        UsageError: the rule learns an inverse that the map has not.
    """
    require(rule, Rule)
    require(linear_map, Map)
    case = Case(
        Linear(linear_map, rule, init_kind="identity"), shape, noise=0.3, **settings
    )
    params = case.params = {**case.params}
    v = case.a.sum()
    w = params["W"]
    mixture = isinstance(rule, SelfNormalizing) and rule.objective == "mixture"
    if rule.learns_inverse:
        if not linear_map.inverse_is_same_map:
            raise UsageError(
                f"the inverse of {linear_map} is no such map: give a dense one or a 1x1 convolution"
            )
        # w.shape[-2:] is the matrix of a dense map (transposed in a kernel, as its inverse is)
        params["R"] = np.linalg.inv(w)
    grads = case.gradients()
    t = case.matrix(linear_map, w)
    rows = flat(case.x)
    deltas = flat(case.c[0])

    def density(weight, inputs, delta):
        """⟨δ, T(weight) inputs⟩ + v log|det T(weight)|: what depends on one weight in Eq. 3."""
        matrix = case.matrix(linear_map, weight)
        return float(
            np.sum(delta * (inputs @ matrix.T)) + v * np.linalg.slogdet(matrix)[1]
        )

    case.measure(
        "x", lambda x: float(np.sum(deltas * (x @ t.T))), rows, flat(grads["x"])
    )
    if isinstance(rule, Relative):
        exact = deltas.T @ rows + v * np.linalg.inv(w).T
        case.compare("W", grads["W"], exact @ w.T @ w)
        case.compare("b", grads["b"], deltas.sum(axis=0))
        return case.report
    factor = 0.5 if mixture else 1.0
    case.measure("W", lambda w: factor * density(w, rows, deltas), w, grads["W"])
    case.measure("b", lambda b: float(np.sum(case.c[0] * b)), params["b"], grads["b"])
    if mixture:  # Eq. 11: R has a density of its own
        inputs = rows @ t.T
        dx = deltas @ t
        case.measure(
            "R", lambda r: -0.5 * density(r, inputs, dx), params["R"], grads["R"]
        )
    return case.report
