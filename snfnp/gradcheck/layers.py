"""Checking a layer against its contract (`snfnp.layers.Layer`) on any backend.

Derivation: derivations/04-dense.md.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from snfnp.errors import UsageError
from snfnp.gradcheck.case import Case, Report, as_matrix
from snfnp.gradcheck.differences import GradientError


def frozen_bar_scalar(layer, shape, ops, params, x, dz, dldj, lam) -> Callable:
    """The scalar whose exact gradient is the self-normalizing update (see derivations/04-dense.md).

    With barred quantities held at their present values, v = Σ dldj, (c, c') = (½, ½) for the
    mixture and (1, 0) for the forward objective, and D × D matrices T(·) written out:

        c ⟨δ̄_z, T(W) x⟩ + ⟨δ̄_z, b⟩ + c v ⟨T(W), T(R̄)ᵀ⟩
        − c' ⟨δ̄_x, T(R) z̄⟩ − c' v ⟨T(R), T(W̄)ᵀ⟩ − (λ/N) Σ ‖T(R) T(W) x − x‖²

    Arrays are the host's. Returns f(x, params): only the parameters may vary (δ_x itself is passed
    on at full weight).
    """
    c_f, c_g = (0.5, 0.5) if layer.rule.objective == "mixture" else (1.0, 0.0)
    f, g = layer.maps  # their T differ if R has another kernel size than W
    rows = len(x)
    x, dz = x.reshape(rows, -1), dz.reshape(rows, -1)
    volume = dldj.sum()
    w_bar, r_bar = as_matrix(f, ops, params["W"], shape), as_matrix(g, ops, params["R"], shape)
    z_bar, dx_bar = x @ w_bar.T, dz @ w_bar

    def scalar(x_, p) -> float:
        w, r = as_matrix(f, ops, p["W"], shape), as_matrix(g, ops, p["R"], shape)
        z = x_.reshape(rows, -1) @ w.T
        error = z @ r.T - x_.reshape(rows, -1)
        bias = np.sum(dz.reshape(-1, p["b"].size) @ p["b"]) if "b" in p else 0.0
        forward = c_f * (np.sum(dz * z) + volume * np.sum(w * r_bar.T))
        inverse = c_g * (np.sum(dx_bar * (z_bar @ r.T)) + volume * np.sum(r * w_bar.T))
        return float(bias + forward - inverse - lam / rows * np.sum(error * error))

    return scalar


def check_layer(
    layer,
    shape,
    *,
    ops=None,
    batch=3,
    seed=0,
    rtol=None,
    x=None,
    params=None,
    lam=0.7,
    dtype=np.float64,
    scalar=frozen_bar_scalar,
) -> Report:
    """Check a layer on random points and parameters. Raises GradientError.

    * shapes and dtypes; single precision is not widened; no argument is changed that must not be;
    * inverse(forward(x)) = x, by the exact inverse;
    * ldj (+ log_det) against slogdet of the Jacobian that `backward` assembles row by row;
    * the gradient of x and of each parameter, separately, along random unit directions, against
      central differences, with negative controls (`measure_gradient`).

    A layer that learns its inverse has an approximate gradient by design. It is still checked to
    full precision: it is the exact gradient of another scalar, by default `frozen_bar_scalar`.

    shape: one sample's shape; ops: a backend (default: plain NumPy), to which host arrays are
    moved as needed; x: the points (host), default standard normal (keep them off kinks); params:
    {name: host array}, default the layer's `init` with every parameter moved by noise, so that no
    gradient is checked at a special point; lam: λ for a layer that learns its inverse; dtype: what
    `backward` and `inverse` compute in (differences are always of float64 values); rtol: default
    1e-8, in float32 2e-5 (`snfnp.gradcheck.differences.tolerance`); scalar: the function that makes
    the scalar of a rule of your own, with the arguments of `frozen_bar_scalar`.
    Costs O(D) forward passes: keep D small.
    """
    if layer.learns_inverse and layer.rule.updates:
        raise UsageError(
            f"{', '.join(layer.rule.updates)} of this layer has no gradient, its rule finds it: "
            "check the rule with check_inverse_update"
        )
    settings = {"x": x, "params": params, "lam": lam, "dtype": dtype}
    case = Case(layer, shape, ops=ops, batch=batch, seed=seed, rtol=rtol, **settings)
    _check_shapes(case)
    _check_single_precision(case)
    case.report.errors["inverse(forward(x))"] = _inverse_error(case)
    case.report.errors["log-determinant"] = max(_log_det_error(case, sample) for sample in case.x)
    x, params, grads = case.x, case.params, case.gradients()
    case.measure("x", lambda value: case.objective(value, params), x, grads["x"])
    f = case.objective
    if layer.learns_inverse:
        f = scalar(layer, shape, case.ops, params, x, case.c[0], case.a, lam)
    for name in params:
        of_one = lambda value, name=name: f(x, {**params, name: value})  # noqa: E731
        case.measure(name, of_one, params[name], grads[name])
    return case.report


def _check_shapes(case: Case) -> None:
    layer, count = case.layer, len(case.x)
    declared = {name: tuple(size) for name, size in layer.parameter_shapes(case.shape).items()}
    made = {name: value.shape for name, value in case.initial.items()}
    if list(declared.items()) != list(made.items()):
        raise GradientError(f"parameter_shapes says {declared}, init makes {made}")
    outputs, ldj = case.forward(case.x, case.params)
    for name, output, c in zip(("z", "latent"), outputs, case.c, strict=False):
        if output.shape != c.shape:
            raise GradientError(f"{name} has shape {output.shape}, not the declared {c.shape}")
        if output.dtype != case.x.dtype:
            raise GradientError(f"{name} has dtype {output.dtype}, x has {case.x.dtype}")
    if np.shape(ldj) not in ((), (count,)):
        raise GradientError(f"ldj has shape {np.shape(ldj)}, expected ({count},) or 0")


def _check_single_precision(case: Case) -> None:
    """Training is in single precision: nothing may widen it, or time and memory double."""
    x, a, *c = (array.astype(np.float32) for array in (case.x, case.a, *case.c))
    params = {name: value.astype(np.float32) for name, value in case.params.items()}
    outputs, ldj = case.forward(x, params)
    dx = case.backward(x, params, c, a)["x"]
    arrays = {"z": outputs[0], "latent": outputs[-1], "dx": dx, "ldj": ldj}
    for name, array in arrays.items():
        if np.ndim(array) and array.dtype != np.float32:
            raise GradientError(f"{name} is {array.dtype}, but all arguments are float32")


def _inverse_error(case: Case) -> float:
    outputs, _ = case.forward(case.x, case.params)
    p = case.put_all(case.cast_all(case.params))
    z = map(case.put, case.cast(*outputs))
    back = case.ops.to_host(case.layer.exact_inverse(case.ops, p, *z))
    error = float(np.max(np.abs(back - case.x)) / max(1.0, np.max(np.abs(case.x))))
    if not error <= case.rtol:
        raise GradientError(f"inverse(forward(x)) differs from x by {error:.2e} > {case.rtol:.0e}")
    return error


def _log_det_error(case: Case, sample: np.ndarray) -> float:
    """ldj + log_det against slogdet of the Jacobian at one sample; row i of it is backward(e_i)."""
    dimension = sample.size
    copies = np.repeat(sample[None], dimension, axis=0)
    outputs, ldj = case.forward(copies, case.params)
    ends = np.cumsum([output[0].size for output in outputs])[:-1]
    parts = np.split(np.eye(dimension), ends, axis=1)
    deltas = [e.reshape(o.shape) for e, o in zip(parts, outputs, strict=True)]
    x, a, *deltas = case.cast(copies, np.zeros(dimension), *deltas)
    params = case.cast_all(case.params)
    rows = case.backward(x, params, deltas, a)["x"].reshape(dimension, dimension)
    expected = np.linalg.slogdet(rows.astype(np.float64))[1]
    declared = float(np.broadcast_to(ldj, (dimension,))[0]) + case.log_det(case.params)
    error = abs(declared - expected) / max(1.0, abs(expected))
    if not error <= case.rtol:
        raise GradientError(
            f"log|det J| is {expected:.12g} from the Jacobian, {declared:.12g} from the layer"
        )
    return error
