"""Checking a layer against its contract at random points (derivations/04-dense.md)."""

from collections.abc import Callable
from typing import Any

import numpy as np

from snfnp.errors import UsageError
from snfnp.gradcheck.case import (
    Arrays,
    Case,
    Report,
    as_matrix,
    on_cpu_backends,
    require_values,
)
from snfnp.gradcheck.differences import STEPS, GradientError, central_difference
from snfnp.layers import Layer, Linear
from snfnp.ops import Ops, Shape
from snfnp.ops.group import flat
from snfnp.rules import SelfNormalizing

Scalar = Callable[[np.ndarray, Arrays], float]


def stop_gradient_objective(
    layer: Any,
    shape: Shape,
    ops: Ops,
    params: Arrays,
    x: np.ndarray,
    dz: np.ndarray,
    dldj: np.ndarray,
    lam: float,
) -> Scalar:
    """The scalar whose exact gradient is the self-normalizing update (derivations/04-dense.md).

    Barred quantities are constants: the gradient stops there. With v = Σ dldj, (c_f, c_g) = (½, ½)
    for the mixture and (1, 0) for the forward objective, and the matrices T(·) written out:

        c_f ⟨δ̄_z, T(W) x⟩ + ⟨δ̄_z, b⟩ + c_f v ⟨T(W), T(R̄)ᵀ⟩
        − c_g ⟨δ̄_x, T(R) z̄⟩ − c_g v ⟨T(R), T(W̄)ᵀ⟩ − (λ/N) Σ ‖T(R) T(W) x − x‖²

    Args:
        layer: a `Linear` with an R.
        shape: one sample's.
        ops: the backend that applies the maps.
        params: {name: host array}, from which the barred quantities are computed.
        x: the inputs (N, *shape), on the host.
        dz: δ_z, like the outputs.
        dldj: the gradient of ldj, (N,).
        lam: λ.

    Returns:
        f(x, params), to be differentiated in the parameters only: δ_x = T(W)ᵀ δ_z, which the layer
        passes on, has no factor c_f.
    """
    c_g = 0.5 if layer.rule.objective == "mixture" else 0.0
    c_f = 1 - c_g
    f, g = layer.maps  # their T differ if R has another kernel size than W
    x = flat(x)
    dz = flat(dz)
    v = dldj.sum()
    w_bar = as_matrix(f, ops, params["W"], shape)
    r_bar = as_matrix(g, ops, params["R"], shape)
    z_bar = x @ w_bar.T
    dx_bar = dz @ w_bar

    def scalar(x, p):
        w = as_matrix(f, ops, p["W"], shape)
        r = as_matrix(g, ops, p["R"], shape)
        x = flat(x)
        z = x @ w.T
        error = z @ r.T - x
        bias = np.sum(dz.reshape(-1, p["b"].size) @ p["b"]) if "b" in p else 0.0
        forward = c_f * (np.sum(dz * z) + v * np.sum(w * r_bar.T))
        inverse = c_g * (np.sum(dx_bar * (z_bar @ r.T)) + v * np.sum(r * w_bar.T))
        return float(bias + forward - inverse - lam / len(x) * np.sum(error * error))

    return scalar


@on_cpu_backends
def check_layer(
    layer: Layer,
    shape: Shape,
    *,
    scalar: Callable[..., Scalar] | None = None,
    **settings: Any,
) -> Report:
    """Check a layer against its contract on random points and parameters, in O(D) forward passes.

    * shapes and dtypes; no argument is changed;
    * inverse(forward(x)) = x, by the exact inverse, and by `inverse` if none is learned;
    * ldj + log_det against slogdet of the Jacobian, by central differences;
    * the gradients of x and of each parameter against central differences along random
      directions, with negative controls (`check_gradient`).

    The approximate gradient of a learned inverse is checked to full precision all the same, as the
    exact gradient of another scalar.

    Args:
        layer: the layer.
        shape: one sample's, with few values.
        scalar: for a rule of your own, a function that takes the arguments of
            `stop_gradient_objective` (the one for `SelfNormalizing`) and returns the rule's scalar
            (derivations/18-write-your-own-rule.md).
        **settings: keywords of `snfnp.gradcheck.case.Case`.

    Returns:
        The relative error of each check, and the smallest error of its negative controls.

    Raises:
        GradientError: with a line for each failed check; or at once, if an array has a wrong shape
            or dtype, a gradient is left unwritten, or an argument is changed.
        UsageError: if a rule with an inverse needs a scalar of its own.
    """
    case = Case(layer, shape, **settings)
    if layer.learns_inverse and not scalar:
        if not (isinstance(layer, Linear) and type(layer.rule) is SelfNormalizing):
            raise UsageError(
                "the rule of this layer has a gradient of its own: give its `scalar`"
            )
        scalar = stop_gradient_objective
    _check_arrays(case)
    x = case.x
    params = case.params
    errors = case.report.errors
    messages = []

    def attempt(check, *arguments) -> Any:
        """The value of the check; None, and one more message, if it fails."""
        try:
            return check(*arguments)
        except GradientError as error:
            messages.append(str(error))

    errors["inverse(forward(x))"] = attempt(_inverse_error, case)
    errors["log-determinant"] = attempt(_log_det_error, case)
    grads = case.gradients()
    attempt(
        case.measure, "x", lambda value: case.objective(value, params), x, grads["x"]
    )
    f = case.objective
    if scalar:
        f = scalar(layer, case.shape, case.ops, params, x, case.c[0], case.a, case.lam)
    for name in case.learned:
        attempt(
            case.measure,
            name,
            lambda value, name=name: f(x, {**params, name: value}),
            params[name],
            grads[name],
        )
    if len(messages) > 1:
        messages.insert(0, f"{len(messages)} of {3 + len(case.learned)} checks failed:")
    if messages:
        raise GradientError("\n".join(messages))
    return case.report


def _check_arrays(case: Case) -> None:
    """Shapes, and dtypes: nothing may widen single precision."""
    shapes = case.layer.parameter_shapes(case.shape)
    declared = [(name, tuple(size)) for name, size in shapes.items()]
    made = [(name, value.shape) for name, value in case.initial.items()]
    if declared != made:
        raise GradientError(f"parameter_shapes says {declared}, init makes {made}")
    for dtype in (np.float64, np.float32):
        outputs, ldj = case.forward(case.x, case.params, dtype)
        for (name, z), dz in zip(outputs.items(), case.c, strict=True):
            if z.shape != dz.shape:
                raise GradientError(
                    f"{name} has shape {z.shape}, not the declared {dz.shape}"
                )
        if np.shape(ldj) not in ((), (len(case.x),)):
            raise GradientError(
                f"ldj has shape {np.shape(ldj)}, expected ({len(case.x)},) or 0"
            )
        dx = case.gradients(dtype)["x"]
        for name, array in {**outputs, "dx": dx, "ldj": ldj}.items():
            if np.ndim(array) and array.dtype != dtype:
                raise GradientError(
                    f"{name} is {array.dtype}, but all arguments are {np.dtype(dtype)}"
                )


def _inverse_error(case: Case) -> float:
    """The largest difference of inverse(forward(x)) from x, relative to the largest |x| or 1."""
    layer = case.layer
    ops = case.ops
    error = 0.0
    outputs, _ = case.forward(case.x, case.params)
    for invert in (layer.exact_inverse, layer.inverse):
        p = case.put(case.params, case.dtype)
        z = case.put(outputs, case.dtype)
        x = ops.to_host(require_values(invert(ops, p, *z.values()), "inverse", "x"))
        case.require_unchanged({**outputs, **case.params}, {**z, **p})
        if x.shape != case.x.shape:
            raise GradientError(
                f"inverse returns shape {x.shape}, expected {case.x.shape}"
            )
        # a learned inverse only approximates x: the check of its arguments above is all
        if invert == layer.exact_inverse or not layer.learns_inverse:
            difference = np.max(np.abs(x - case.x)) / max(1.0, np.max(np.abs(case.x)))
            error = float(np.maximum(error, difference))  # NaN if either is
    if not error <= case.rtol:
        raise GradientError(
            f"inverse(forward(x)) differs from x by {error:.2e} > {case.rtol:.0e}"
        )
    return error


def _log_det_error(case: Case) -> float:
    """The largest error of ldj + log_det against slogdet of a sample's Jacobian, by differences."""

    def flat_outputs(x):
        outputs, _ = case.forward(x, case.params)
        return np.concatenate([flat(z) for z in outputs.values()], axis=1)

    _, ldj = case.forward(case.x, case.params)
    log_dets = np.broadcast_to(ldj, len(case.x)) + case.log_det(case.params)
    errors = []
    for x, declared in zip(case.x, log_dets, strict=True):
        units = np.eye(x.size).reshape(-1, *x.shape)
        copies = np.repeat(x[None], x.size, axis=0)
        for step in STEPS:
            jacobian = central_difference(flat_outputs, copies, units, step)
            expected = float(np.linalg.slogdet(jacobian)[1])
            error = abs(float(declared) - expected) / max(1.0, abs(expected))
            if error <= case.rtol:
                break
        else:
            raise GradientError(
                f"log|det J| is {expected:.12g} by differences of forward, "
                f"{declared:.12g} by ldj and log_det"
            )
        errors.append(error)
    return max(errors)
