"""Checking a layer's Jacobian-vector products, and their gradients, on any backend.

Derivation: derivations/18-jacobian-vector-products.md.
"""

from __future__ import annotations

import math

import numpy as np

from snfnp.beyond.differentiable import derivatives
from snfnp.errors import UsageError
from snfnp.gradcheck.differences import GradientError, measure_gradient, tolerance
from snfnp.gradcheck.layers import Report
from snfnp.ops import get_ops


def check_jvp(
    layer,
    shape,
    *,
    ops=None,
    batch=3,
    seed=0,
    rtol=None,
    x=None,
    params=None,
    dtype=np.float64,
) -> Report:
    """Check a layer's `derivatives` at a random point. Raises GradientError.

    * Jᵀ δ against central differences of ⟨δ, f(x)⟩, and J ẋ as the gradient of ⟨δ, J ẋ⟩ by δ;
    * the gradient of ⟨δ, J ẋ⟩ by x, ẋ and each parameter, against central differences of it: the
      second derivatives of f;
    * J⁻¹ J ẋ = ẋ and J⁻ᵀ Jᵀ δ = δ, if the layer has them.

    Arguments as in `check_layer`; `jvp_backward` computes in `dtype`, differences are of float64.
    """
    ops, of = ops or get_ops("numpy"), derivatives(layer)
    rng = np.random.default_rng(seed)
    if x is None:
        x = rng.standard_normal((batch, *shape))
    if params is None:
        initial = layer.init(rng, shape)
        params = {k: v + 0.1 * rng.standard_normal(v.shape) for k, v in initial.items()}
    rtol = tolerance(dtype) if rtol is None else rtol
    dx = rng.standard_normal(x.shape)
    delta = rng.standard_normal((len(x), *layer.output_shape(tuple(shape))))

    def at(x_, p_, dtype=np.float64):
        """The parameters and the cache on the device."""
        p = {name: ops.asarray(value.astype(dtype)) for name, value in p_.items()}
        return p, layer.forward(ops, p, ops.asarray(x_.astype(dtype)))

    def value(x_, p_, dx_) -> float:
        """⟨δ, J ẋ⟩."""
        p, (_, _, cache) = at(x_, p_)
        return float(np.sum(delta * ops.to_host(of.jvp(ops, p, cache, ops.asarray(dx_)))))

    def output(x_) -> float:
        return float(np.sum(delta * ops.to_host(at(x_, params)[1][0])))

    p, (_, _, cache) = at(x, params, dtype)
    before = {name: rng.standard_normal(v.shape).astype(dtype) for name, v in params.items()}
    grads = {name: ops.asarray(value.copy()) for name, value in before.items()}
    dx_, delta_ = (ops.asarray(each.astype(dtype)) for each in (dx, delta))
    of_x, of_dx = of.jvp_backward(ops, p, cache, dx_, delta_, grads)
    of_x = np.zeros(x.shape) if isinstance(of_x, int) else ops.to_host(of_x)
    found = {"x": of_x, "direction": ops.to_host(of_dx)}
    found |= {
        name: ops.to_host(array) - before[name].astype(float) for name, array in grads.items()
    }
    scalars = {"x": (lambda v: value(v, params, dx), x)}
    scalars["direction"] = (lambda v: value(x, params, v), dx)
    for name in params:
        scalars[name] = (lambda v, name=name: value(x, {**params, name: v}, dx), params[name])
    report = Report()
    for name, (scalar, point) in scalars.items():
        measured = measure_gradient(scalar, point, found[name], rng=rng, rtol=rtol, name=name)
        report.errors[name] = measured.error
        if not math.isnan(measured.control):  # if nothing depends on it there is none
            report.controls[name] = measured.control
    transposed = found["direction"]
    report.add("Jᵀ", measure_gradient(output, x, transposed, rng=rng, rtol=rtol, name="Jᵀ"))
    try:
        back = of.jvp_solve(ops, p, cache, of.jvp(ops, p, cache, dx_))
        delta_back = of.jvp_solve(ops, p, cache, of_dx, transposed=True)
    except UsageError:
        return report
    for name, again, expected in (("J⁻¹", back, dx), ("J⁻ᵀ", delta_back, delta)):
        report.errors[name] = _difference(ops.to_host(again), expected, rtol, name)
    return report


def _difference(found, expected, rtol, name) -> float:
    """The largest difference of arrays, relative to the largest value."""
    error = float(np.max(np.abs(found - expected)) / np.max(np.abs(expected)))
    if not error <= rtol:
        raise GradientError(f"{name} J is off by {error:.2e} > {rtol:.0e}")
    return error
