"""Finite-difference checks, public: check a layer of your own with `check_layer`.

    from snfnp.gradcheck import check_layer
    print(check_layer(MyLayer(), shape=(6,)))

runs, in float64, on random points and parameters:

* shapes and dtypes; inverse(forward(x)) = x;
* ldj (+ log_det) against slogdet of the Jacobian that `backward` assembles row by row;
* the gradient of x and of each parameter, separately, along random unit directions, against
  central differences; and, as a negative control, that the same gradient times 1.01, and zeroed,
  would have been caught.

A layer that learns its inverse has an approximate gradient by design. It is still checked to full
precision: it is the exact gradient of the frozen-bar scalar (`frozen_bar_scalar`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from snfnp.ops import get_ops
from snfnp.rules import Reconstruction, SelfNormalizing

# Weights of f(x + k h u) - f(x - k h u), k = 1, 2, …, over h: error O(h²), O(h⁴), O(h⁶).
STENCILS = {2: (1 / 2,), 4: (2 / 3, -1 / 12), 6: (3 / 4, -3 / 20, 1 / 60)}


class GradientError(AssertionError):
    """A check failed; the message shows everything that the check saw."""


@dataclass
class Report:
    """What was checked and how far off it was (relative errors)."""

    errors: dict[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        width = max(map(len, self.errors), default=0)
        return "\n".join(f"{name:<{width}}  {error:.1e}" for name, error in self.errors.items())


def central_difference(f: Callable, x, direction, h: float, order: int = 6) -> float:
    """The derivative of the scalar f at x along `direction`, by a central stencil.

    Truncation error O(h^order), rounding error about eps |f| / h.
    """
    return sum(
        weight * (f(x + k * h * direction) - f(x - k * h * direction)) / h
        for k, weight in enumerate(STENCILS[order], start=1)
    )


def convergence(f: Callable, x, gradient, direction, h: float = 0.05) -> float:
    """error(h) / error(h/2) of the second-order stencil: about 4 for the right gradient.

    For a wrong gradient it is about 1: its error does not depend on h. Meaningless (rounding)
    where f is quadratic or linear along `direction`.
    """
    analytic = float(np.sum(gradient * direction))
    errors = [abs(central_difference(f, x, direction, step, 2) - analytic) for step in (h, h / 2)]
    return errors[0] / errors[1]


def check_gradient(
    f: Callable, x, gradient, *, rng, rtol=1e-8, h=1e-2, directions=4, name="x"
) -> float:
    """Compare ⟨gradient, u⟩ with central differences of f along random unit directions u.

    f takes an array like x (float64) and returns a float. Each difference is relative to the
    larger of both values and of ‖gradient‖/√size, the typical size of such a product. Returns the
    largest; raises GradientError beyond `rtol`, or where a wrong gradient (times 1.01; zero) would
    have passed.
    """
    if gradient.shape != x.shape:
        raise GradientError(f"{name}: the gradient has shape {gradient.shape}, not {x.shape}")
    typical = np.linalg.norm(gradient) / np.sqrt(gradient.size)
    worst = 0.0
    slips = {"times 1.01": 0.0, "zeroed": 0.0}
    for index in range(directions):
        u = rng.standard_normal(x.shape)
        u /= np.linalg.norm(u)
        numeric = central_difference(f, x, u, h)
        analytic = float(np.sum(gradient * u))
        error = _relative(numeric, analytic, typical)
        if not error <= rtol:
            ladder = ", ".join(
                f"h={step:.0e}: {central_difference(f, x, u, step):.12g}"
                for step in (h, h / 4, h / 16)
            )
            raise GradientError(
                f"{name}, direction {index}: analytic {analytic:.12g}, numeric {numeric:.12g}, "
                f"relative error {error:.2e} > {rtol:.0e} (f = {f(x):.6g}; {ladder})"
            )
        worst = max(worst, error)
        slips["times 1.01"] = max(slips["times 1.01"], _relative(numeric, 1.01 * analytic, typical))
        slips["zeroed"] = max(slips["zeroed"], _relative(numeric, 0.0, typical))
    if typical > 0:
        for control, error in slips.items():
            if error <= rtol:
                raise GradientError(f"{name}: the negative control ({control}) was not caught")
    return worst


def check_layer(
    layer, shape, *, ops=None, batch=3, seed=0, rtol=1e-8, x=None, params=None, lam=0.7
) -> Report:
    """Run every check of this module's docstring on a layer, in float64.

    shape: one sample's shape; ops: a backend (default: plain NumPy); x: the points, default
    standard normal (keep them off kinks); params: {name: array}, default the layer's `init` with
    every parameter moved by noise, so that no gradient is checked at a special point; lam: λ for
    a layer that learns its inverse. Costs O(D) forward passes: keep D small.
    """
    ops = ops or get_ops("numpy")
    rng = np.random.default_rng(seed)
    if x is None:
        x = rng.standard_normal((batch, *shape))
    if params is None:
        initial = layer.init(rng, shape)
        params = {k: v + 0.1 * rng.standard_normal(v.shape) for k, v in initial.items()}
    case = _Case(layer, shape, ops, x, params, rng, lam)
    report = Report()
    case.check_shapes()
    report.errors["inverse(forward(x))"] = case.check_inverse(rtol)
    report.errors["log-determinant"] = case.check_log_det(rtol)
    dx, grads = case.gradients()
    f = case.objective
    report.errors["x"] = check_gradient(lambda v: f(v, params), x, dx, rng=rng, rtol=rtol, name="x")
    if isinstance(getattr(layer, "rule", None), SelfNormalizing):
        f = frozen_bar_scalar(layer, shape, ops, params, x, case.c, case.a, lam)
    for name in params:
        report.errors[name] = check_gradient(
            lambda v, name=name: f(x, {**params, name: v}),
            params[name],
            grads[name],
            rng=rng,
            rtol=rtol,
            name=name,
        )
    return report


def frozen_bar_scalar(layer, shape, ops, params, x, dz, dldj, lam) -> Callable:
    """The scalar whose exact gradient is the self-normalizing update (see derivations/04-dense.md).

    With barred quantities held at their present values, v = Σ dldj, (c, c') = (½, ½) for the
    mixture and (1, 0) for the forward objective, and D × D matrices T(·) written out:

        c ⟨δ̄_z, T(W) x⟩ + ⟨δ̄_z, b⟩ + c v ⟨T(W), T(R̄)ᵀ⟩
        − c' ⟨δ̄_x, T(R) z̄⟩ − c' v ⟨T(R), T(W̄)ᵀ⟩ − (λ/N) Σ ‖T(R) T(W) x − x‖²

    Returns f(x, params): only the parameters may vary (δ_x itself is passed on at full weight).
    """
    c_f, c_g = (0.5, 0.5) if layer.rule.objective == "mixture" else (1.0, 0.0)
    f, g = layer.maps  # their T differ where R has another kernel size than W
    volume = dldj.sum()
    w_bar, r_bar = as_matrix(f, ops, params["W"], shape), as_matrix(g, ops, params["R"], shape)
    z_bar = f.apply(ops, params["W"], x)
    dx_bar = f.adjoint(ops, params["W"], dz)

    def scalar(x, p) -> float:
        w, r = as_matrix(f, ops, p["W"], shape), as_matrix(g, ops, p["R"], shape)
        z = f.apply(ops, p["W"], x)
        error = g.apply(ops, p["R"], z) - x
        bias = np.sum(dz * p["b"]) if "b" in p else 0.0
        forward = c_f * (np.sum(dz * z) + volume * np.sum(w * r_bar.T))
        inverse = c_g * (
            np.sum(dx_bar * g.apply(ops, p["R"], z_bar)) + volume * np.sum(r * w_bar.T)
        )
        return float(bias + forward - inverse - lam / len(x) * np.sum(error * error))

    return scalar


def as_matrix(f, ops, w, shape) -> np.ndarray:
    """T(w) written out, D × D, for one sample's shape: column i is T(w) e_i (Eq. 12)."""
    dimension = int(np.prod(shape))
    basis = np.eye(dimension).reshape(dimension, *shape)
    return f.apply(ops, w, basis).reshape(dimension, dimension).T


@dataclass
class _Case:
    """One layer at one point, with the random covectors c of z and a of ldj that make a scalar."""

    layer: object
    shape: tuple
    ops: object
    x: np.ndarray
    params: dict
    rng: np.random.Generator
    lam: float

    def __post_init__(self):
        z, _, _ = self.layer.forward(self.ops, self.params, self.x)
        self.c = self.rng.standard_normal(z.shape)
        self.a = self.rng.standard_normal(len(z))

    def objective(self, x, params) -> float:
        """⟨c, z⟩ + ⟨a, ldj + log_det⟩: its gradient is what `backward` claims."""
        z, ldj, _ = self.layer.forward(self.ops, params, x)
        return float(np.sum(self.c * z) + np.sum(self.a * (ldj + self._log_det(params))))

    def gradients(self):
        _, _, cache = self.layer.forward(self.ops, self.params, self.x)
        grads = {name: np.full_like(value, np.nan) for name, value in self.params.items()}
        recon = Reconstruction(self.lam)
        # a copy of the dict: an array that backward puts in a buffer's place reaches nobody
        dx = self.layer.backward(
            self.ops, self.params, cache, self.c.copy(), self.a.copy(), dict(grads), recon
        )
        for name, gradient in grads.items():
            if np.isnan(gradient).any():
                raise GradientError(f"{name}: backward left its gradient (partly) unwritten or NaN")
        return dx, grads

    def check_shapes(self):
        z, ldj, _ = self.layer.forward(self.ops, self.params, self.x)
        expected = (len(self.x), *self.layer.output_shape(self.shape))
        if z.shape != expected:
            raise GradientError(f"z has shape {z.shape}, output_shape says {expected}")
        if z.dtype != self.x.dtype:
            raise GradientError(f"z has dtype {z.dtype}, x has {self.x.dtype}")
        if np.shape(ldj) not in ((), (len(self.x),)):
            raise GradientError(f"ldj has shape {np.shape(ldj)}, expected ({len(self.x)},) or 0")

    def check_inverse(self, rtol) -> float:
        z, _, _ = self.layer.forward(self.ops, self.params, self.x)
        invert = getattr(self.layer, "exact_inverse", self.layer.inverse)
        back = invert(self.ops, self.params, z)
        error = float(np.max(np.abs(back - self.x)) / max(1.0, np.max(np.abs(self.x))))
        if not error <= rtol:
            raise GradientError(f"inverse(forward(x)) differs from x by {error:.2e} > {rtol:.0e}")
        return error

    def check_log_det(self, rtol) -> float:
        """ldj + log_det against slogdet of the Jacobian; row i of it is backward(e_i)."""
        worst = 0.0
        for sample in self.x:
            dimension = sample.size
            copies = np.repeat(sample[None], dimension, axis=0)
            z, ldj, cache = self.layer.forward(self.ops, self.params, copies)
            rows = self.layer.backward(
                self.ops,
                self.params,
                cache,
                np.eye(dimension).reshape(z.shape),
                np.zeros(dimension),
                {name: np.empty_like(value) for name, value in self.params.items()},
                Reconstruction(self.lam),
            )
            expected = np.linalg.slogdet(rows.reshape(dimension, dimension))[1]
            found = float(np.broadcast_to(ldj, (dimension,))[0]) + self._log_det(self.params)
            error = abs(found - expected) / max(1.0, abs(expected))
            if not error <= rtol:
                raise GradientError(
                    f"log|det J| is {expected:.12g} from the Jacobian, {found:.12g} from the layer"
                )
            worst = max(worst, error)
        return worst

    def _log_det(self, params) -> float:
        log_det = getattr(self.layer, "log_det", None)
        return log_det(self.ops, params, self.shape) if log_det else 0.0


def _relative(numeric: float, analytic: float, typical: float) -> float:
    scale = max(abs(numeric), abs(analytic), typical)
    return 0.0 if scale == 0 else abs(numeric - analytic) / scale  # NaN stays NaN: it must fail
