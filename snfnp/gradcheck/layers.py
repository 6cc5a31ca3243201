"""Checking a layer against its contract (`snfnp.layers.Layer`) on any backend.

Derivation: derivations/04-dense.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from snfnp import registry
from snfnp.context import BackwardContext, layer_key
from snfnp.errors import UsageError
from snfnp.gradcheck.differences import GradientError, Measured, measure_gradient, tolerance
from snfnp.ops import RandomKey, get_ops

KEY = RandomKey(0, 0)  # of the random numbers in the checks' backward passes


@dataclass
class Report:
    """What was checked: the relative error of each check, and, for gradients, what the nearest
    negative control was off by (see `Measured`)."""

    errors: dict[str, float] = field(default_factory=dict)
    controls: dict[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        width = max(map(len, self.errors), default=0)
        return "\n".join(f"{name:<{width}}  {error:.1e}" for name, error in self.errors.items())

    def add(self, name: str, measured: Measured) -> None:
        self.errors[name], self.controls[name] = measured.error, measured.control


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
) -> Report:
    """Check a layer on random points and parameters. Raises GradientError.

    * shapes and dtypes; single precision is not widened; no argument is changed that must not be;
    * inverse(forward(x)) = x, by the exact inverse;
    * ldj (+ log_det) against slogdet of the Jacobian that `backward` assembles row by row;
    * the gradient of x and of each parameter, separately, along random unit directions, against
      central differences, with negative controls (`measure_gradient`).

    A layer that learns its inverse has an approximate gradient by design. It is still checked to
    full precision: it is the exact gradient of the frozen-bar scalar (`frozen_bar_scalar`).

    shape: one sample's shape; ops: a backend (default: plain NumPy), to which host arrays are
    moved as needed; x: the points (host), default standard normal (keep them off kinks); params:
    {name: host array}, default the layer's `init` with every parameter moved by noise, so that no
    gradient is checked at a special point; lam: λ for a layer that learns its inverse; dtype: what
    `backward` and `inverse` compute in (differences are always of float64 values); rtol: default
    1e-8, in float32 2e-5 (`snfnp.gradcheck.differences.tolerance`).
    Costs O(D) forward passes: keep D small.
    """
    if layer.learns_inverse and layer.rule.updates:
        raise UsageError(
            f"{', '.join(layer.rule.updates)} of this layer has no gradient, its rule finds it: "
            "check the rule with check_inverse_update"
        )
    ops = ops or get_ops("numpy")
    rng = np.random.default_rng(seed)
    if x is None:
        x = rng.standard_normal((batch, *shape))
    initial = layer.init(rng, shape)
    if params is None:
        params = {k: v + 0.1 * rng.standard_normal(v.shape) for k, v in initial.items()}
    rtol = tolerance(dtype) if rtol is None else rtol
    case = _Case(layer, tuple(shape), ops, x, params, rng, lam, dtype)
    report = Report()
    case.check_shapes(initial)
    case.check_single_precision()
    report.errors["inverse(forward(x))"] = case.check_inverse(rtol)
    report.errors["log-determinant"] = case.check_log_det(rtol)
    dx, grads = case.gradients()
    checks = [("x", lambda v: case.objective(v, params), x, dx)]
    f = case.objective
    if layer.learns_inverse:
        f = frozen_bar_scalar(layer, shape, ops, params, x, case.c[0], case.a, lam)
    checks += [
        (name, lambda v, name=name: f(x, {**params, name: v}), params[name], grads[name])
        for name in params
    ]
    for name, scalar, point, gradient in checks:
        measured = measure_gradient(scalar, point, gradient, rng=rng, rtol=rtol, name=name)
        report.add(name, measured)
    return report


def frozen_bar_scalar(layer, shape, ops, params, x, dz, dldj, lam) -> Callable:
    """The scalar whose exact gradient is the self-normalizing update (see derivations/04-dense.md).

    With barred quantities held at their present values, v = Σ dldj, (c, c') = (½, ½) for the
    mixture and (1, 0) for the forward objective, and D × D matrices T(·) written out:

        c ⟨δ̄_z, T(W) x⟩ + ⟨δ̄_z, b⟩ + c v ⟨T(W), P T(R̄)ᵀ⟩
        − c' ⟨δ̄_x, T(R) z̄⟩ − c' v ⟨T(R), T(W̄)ᵀ P⟩ − (λ/N) Σ ‖T(R) T(W) x − x‖²

    with P = I. Rules that look along probes have another P, or a term more
    (`snfnp.beyond.probes.frozen_bar_terms`).

    Arrays are the host's. Returns f(x, params): only the parameters may vary (δ_x itself is passed
    on at full weight).
    """
    c_f, c_g = (0.5, 0.5) if layer.rule.objective == "mixture" else (1.0, 0.0)
    f, g = layer.maps  # their T differ where R has another kernel size than W
    rows = len(x)
    x, dz = x.reshape(rows, -1), dz.reshape(rows, -1)
    volume = dldj.sum()
    w_bar, r_bar = as_matrix(f, ops, params["W"], shape), as_matrix(g, ops, params["R"], shape)
    z_bar, dx_bar = x @ w_bar.T, dz @ w_bar
    mixed, more = registry.find("frozen-bar-terms")(layer.rule, ops, shape, KEY)

    def scalar(x_, p) -> float:
        w, r = as_matrix(f, ops, p["W"], shape), as_matrix(g, ops, p["R"], shape)
        z = x_.reshape(rows, -1) @ w.T
        error = z @ r.T - x_.reshape(rows, -1)
        bias = np.sum(dz.reshape(-1, p["b"].size) @ p["b"]) if "b" in p else 0.0
        forward = c_f * (np.sum(dz * z) + volume * np.sum(w * (mixed @ r_bar.T)))
        inverse = c_g * (np.sum(dx_bar * (z_bar @ r.T)) + volume * np.sum(r * (w_bar.T @ mixed)))
        penalty = lam / rows * np.sum(error * error)
        if more is not None:
            penalty += more(r @ w)
        return float(bias + forward - inverse - penalty)

    return scalar


def as_matrix(f, ops, w, shape) -> np.ndarray:
    """T(w) written out on the host for one sample's shape: column i is T(w) e_i (Eq. 12).

    w: a host array. As many columns as x has values, as many rows as z has.
    """
    dimension = int(np.prod(shape))
    basis = ops.asarray(np.eye(dimension).reshape(dimension, *shape))
    return ops.to_host(f.apply(ops, ops.asarray(w), basis)).reshape(dimension, -1).T


@dataclass
class _Case:
    """One layer at one point, with random covectors c of its outputs and a of ldj: together they
    make the scalar ⟨c, z⟩ + ⟨a, ldj + log_det⟩, whose gradient is what `backward` claims.

    All arrays are the host's. The outputs are z and, where a latent leaves at the layer, that.
    """

    layer: object
    shape: tuple
    ops: object
    x: np.ndarray
    params: dict
    rng: np.random.Generator
    lam: float
    dtype: type

    def __post_init__(self):
        self.splits = self.layer.latent_shape(self.shape) is not None
        outputs, _ = self._forward(self.x, self.params)
        self.c = [self.rng.standard_normal(output.shape) for output in outputs]
        self.a = self.rng.standard_normal(len(self.x))

    def _on_device(self, params) -> dict:
        return {name: self.ops.asarray(value) for name, value in params.items()}

    def _forward(self, x, params):
        """The outputs, and ldj, on the host."""
        z, ldj, cache = self.layer.forward(self.ops, self._on_device(params), self.ops.asarray(x))
        outputs = (z, cache["latent"]) if self.splits else (z,)
        ldj = ldj if isinstance(ldj, int) else self.ops.to_host(ldj)
        return [self.ops.to_host(output) for output in outputs], ldj

    def _backward(self, x, params, deltas, dldj):
        """δ_x and the gradients on the host; checks that nothing else was written to."""
        ops, layer = self.ops, self.layer
        x_, p = ops.asarray(x.copy()), self._on_device({k: v.copy() for k, v in params.items()})
        _, _, cache = layer.forward(ops, p, x_)
        deltas_ = [ops.asarray(delta.copy()) for delta in deltas]
        dldj_, results = ops.asarray(dldj.copy()), []
        for _ in range(2):  # the second time from what the first left in the cache
            grads = self._on_device({k: np.full_like(v, np.nan) for k, v in params.items()})
            ctx = BackwardContext.of(ops, dldj_, self.lam, key=layer_key(KEY, 0))
            # a copy of the dict: an array that backward puts in a buffer's place reaches nobody
            dx = layer.backward(ctx, p, cache, deltas_[0], dict(grads), *deltas_[1:])
            if layer.learns_inverse:
                dx, _ = dx
            results.append({name: ops.to_host(array) for name, array in (("", dx), *grads.items())})
        unchanged = [("x", x_, x), *((name, p[name], params[name]) for name in params)]
        unchanged += [("dz", d_, d) for d_, d in zip(deltas_, deltas, strict=True)]
        unchanged += [("dldj", dldj_, dldj)]
        for name, now, then in unchanged:
            if not np.array_equal(ops.to_host(now), then, equal_nan=True):
                raise GradientError(f"the layer changed its argument {name}")
        first, second = results
        if not all(np.allclose(first[k], second[k], equal_nan=True) for k in first):
            raise GradientError("backward changed the cache: twice, it gives two results")
        return first.pop(""), first

    def objective(self, x, params) -> float:
        """⟨c, outputs⟩ + ⟨a, ldj + log_det⟩."""
        outputs, ldj = self._forward(x, params)
        total = sum(np.sum(c * output) for c, output in zip(self.c, outputs, strict=True))
        return float(total + np.sum(self.a * (ldj + self._log_det(params))))

    def _cast(self, *arrays):
        return [array.astype(self.dtype) for array in arrays]

    def _cast_params(self) -> dict:
        return {name: value.astype(self.dtype) for name, value in self.params.items()}

    def gradients(self):
        (x, a), params = self._cast(self.x, self.a), self._cast_params()
        dx, grads = self._backward(x, params, self._cast(*self.c), a)
        for name, gradient in grads.items():
            if np.isnan(gradient).any():
                raise GradientError(f"{name}: backward left its gradient (partly) unwritten or NaN")
        return dx, grads

    def check_shapes(self, initial):
        layer, count = self.layer, len(self.x)
        declared = {name: tuple(size) for name, size in layer.parameter_shapes(self.shape).items()}
        made = {name: value.shape for name, value in initial.items()}
        if list(declared.items()) != list(made.items()):
            raise GradientError(f"parameter_shapes says {declared}, init makes {made}")
        outputs, ldj = self._forward(self.x, self.params)
        expected = [(count, *layer.output_shape(self.shape))]
        if self.splits:
            expected.append((count, *layer.latent_shape(self.shape)))
        for name, output, size in zip(("z", "latent"), outputs, expected, strict=False):
            if output.shape != size:
                raise GradientError(f"{name} has shape {output.shape}, not the declared {size}")
            if output.dtype != self.x.dtype:
                raise GradientError(f"{name} has dtype {output.dtype}, x has {self.x.dtype}")
        if np.shape(ldj) not in ((), (count,)):
            raise GradientError(f"ldj has shape {np.shape(ldj)}, expected ({count},) or 0")

    def check_single_precision(self):
        """Training is in single precision: nothing may widen it, or time and memory double."""
        x, a = self.x.astype(np.float32), self.a.astype(np.float32)
        params = {name: value.astype(np.float32) for name, value in self.params.items()}
        outputs, ldj = self._forward(x, params)
        dx, _ = self._backward(x, params, [c.astype(np.float32) for c in self.c], a)
        found = {"z": outputs[0], "latent": outputs[-1], "dx": dx, "ldj": ldj}
        for name, array in found.items():
            if np.ndim(array) and array.dtype != np.float32:
                raise GradientError(f"{name} is {array.dtype} where all arguments are float32")

    def check_inverse(self, rtol) -> float:
        outputs, _ = self._forward(self.x, self.params)
        z = map(self.ops.asarray, self._cast(*outputs))
        back = self.layer.exact_inverse(self.ops, self._on_device(self._cast_params()), *z)
        difference = np.abs(self.ops.to_host(back) - self.x)
        error = float(np.max(difference) / max(1.0, np.max(np.abs(self.x))))
        if not error <= rtol:
            raise GradientError(f"inverse(forward(x)) differs from x by {error:.2e} > {rtol:.0e}")
        return error

    def check_log_det(self, rtol) -> float:
        """ldj + log_det against slogdet of the Jacobian; row i of it is backward(e_i)."""
        worst = 0.0
        for sample in self.x:
            dimension = sample.size
            copies = np.repeat(sample[None], dimension, axis=0)
            outputs, ldj = self._forward(copies, self.params)
            ends = np.cumsum([output[0].size for output in outputs])[:-1]
            parts = np.split(np.eye(dimension), ends, axis=1)
            deltas = [e.reshape(o.shape) for e, o in zip(parts, outputs, strict=True)]
            (x, a), params = self._cast(copies, np.zeros(dimension)), self._cast_params()
            rows, _ = self._backward(x, params, self._cast(*deltas), a)
            rows = rows.reshape(dimension, dimension).astype(np.float64)
            expected = np.linalg.slogdet(rows)[1]
            found = float(np.broadcast_to(ldj, (dimension,))[0]) + self._log_det(self.params)
            error = abs(found - expected) / max(1.0, abs(expected))
            if not error <= rtol:
                raise GradientError(
                    f"log|det J| is {expected:.12g} from the Jacobian, {found:.12g} from the layer"
                )
            worst = max(worst, error)
        return worst

    def _log_det(self, params) -> float:
        return self.layer.log_det(self.ops, self._on_device(params), self.shape) or 0.0
