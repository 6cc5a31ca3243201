"""Checking a layer against its contract at random points (derivations/04-dense.md)."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import wraps
from typing import Any, ParamSpec

import numpy as np

from snfnp.context import BackwardContext
from snfnp.errors import UsageError
from snfnp.flow import layer_key
from snfnp.gradcheck import differences
from snfnp.gradcheck.differences import GradientError, central_difference, relative
from snfnp.gradcheck.members import require
from snfnp.layers import Layer, Linear, Whiten
from snfnp.maps import Map
from snfnp.ops import Ops, RandomKey, cpu_backends, get_ops
from snfnp.ops.group import flat
from snfnp.parameters import order_of
from snfnp.rules import SelfNormalizing

_P = ParamSpec("_P")
KEY = RandomKey(0, 0)  # of the random numbers in the checks' backward passes


@dataclass
class Report:
    """The relative error of each check, and that of its negative control, by name."""

    errors: dict[str, float] = field(default_factory=dict)
    controls: dict[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        width = max(map(len, self.errors), default=0)
        return "\n".join(f"{name:<{width}}  {error:.1e}" for name, error in self.errors.items())


def on_cpu_backends(check: Callable[_P, Report]) -> Callable[_P, Report]:
    """`check` on every backend of CPUs, or on `ops` alone if that is given. The report has the
    largest of each error, and the smallest of each control."""

    @wraps(check)
    def check_all(*arguments: _P.args, **settings: _P.kwargs) -> Report:
        run: Any = check
        if settings.get("ops"):
            return run(*arguments, **settings)
        reference, *others = cpu_backends()
        report = run(*arguments, **settings | {"ops": reference})
        for ops in others:
            try:
                other = run(*arguments, **settings | {"ops": ops})
            except GradientError as error:
                where = f"on the backend {ops.name}, and not on {reference.name}"
                raise GradientError(f"{where}: {error}") from None
            for name, error in other.errors.items():
                report.errors[name] = max(error, report.errors[name])
                if name in other.controls:
                    control = min(other.controls[name], report.controls[name])
                    report.controls[name] = control
        return report

    return check_all


class Case:
    """A layer at random points x and parameters, with random covectors c of its outputs (z, and the
    latent if one splits off) and a of ldj, in double precision on the host.

    `backward` must return the gradient of the scalar ⟨c, outputs⟩ + ⟨a, ldj + log_det⟩.

    Args:
        layer, shape: those of `check_layer`.
        ops: the backend; default: NumPy. (`check_layer`, `check_map` and `check_rule` then check on
            every backend of CPUs.)
        batch: the number of samples.
        seed: of the random numbers.
        dtype: of the gradients; differences are always in double precision.
        rtol: the largest relative error; default 1e-8, or 2e-5 in float32.
        x: the points (N, *shape), on the host, away from kinks; default: standard normal.
        params: {name: host array}; default: those of `init` with noise, since a special point may
            hide an error.
        lam: λ of a layer that learns its inverse.
        noise: the standard deviation of that noise.
    """

    def __init__(
        self,
        layer: Any,
        shape,
        *,
        ops: Any = None,
        batch=3,
        seed=0,
        dtype: Any = np.float64,
        rtol: float | None = None,
        x: Any = None,
        params: Any = None,
        lam=0.7,
        noise=0.1,
    ):
        require(layer, Layer, " (check_gradient compares the gradients of any function)")
        if not isinstance(shape, (tuple, list)):
            raise UsageError(f"shape is {shape!r}: give one sample's, as (6,) or (8, 8, 3)")
        self.layer, self.shape, self.ops = layer, tuple(shape), ops or get_ops("numpy")
        self.dtype, self.lam, self.report = dtype, lam, Report()
        self.rtol = differences.tolerance(dtype) if rtol is None else rtol
        self.rng = rng = np.random.default_rng(seed)
        self.x = rng.standard_normal((batch, *self.shape)) if x is None else x
        self.initial = layer.init(rng, self.shape)
        self.params: dict[str, Any] = params or {
            name: value + noise * rng.standard_normal(value.shape)
            for name, value in self.initial.items()
        }
        self.learned = () if isinstance(layer, Whiten) else tuple(self.params)  # have gradients
        shapes = [layer.output_shape(self.shape), layer.latent_shape(self.shape)]
        self.c = [rng.standard_normal((len(self.x), *each)) for each in shapes if each is not None]
        self.a = rng.standard_normal(len(self.x))

    def put(self, given, dtype: Any = np.float64, name="") -> Any:
        """Copies of a host array, or of a dict or list of them, on the device, and in the memory
        order that they have in training."""
        if isinstance(given, dict):
            return {name: self.put(array, dtype, name) for name, array in given.items()}
        if isinstance(given, list):
            return [self.put(array, dtype) for array in given]
        array = np.array(given, dtype)
        if order_of(name, array.shape) == "F":
            return self.ops.asarray(array.T).T
        return self.ops.asarray(array)

    def matrix(self, linear_map, w) -> np.ndarray:
        """T(w) written out for one sample."""
        return as_matrix(linear_map, self.ops, np.ascontiguousarray(w), self.shape)

    def forward(self, x, params, dtype: Any = np.float64) -> tuple[list, np.ndarray | int]:
        """The outputs, and ldj."""
        returned = self.layer.forward(self.ops, self.put(params, dtype), self.put(x, dtype))
        z, ldj, cache = _returned(returned, "forward", "z, ldj, cache")
        outputs = (z, cache["latent"]) if len(self.c) == 2 else (z,)
        ldj = ldj if isinstance(ldj, int) else self.ops.to_host(ldj)
        return [self.ops.to_host(output) for output in outputs], ldj

    def objective(self, x, params) -> float:
        """⟨c, outputs⟩ + ⟨a, ldj + log_det⟩."""
        outputs, ldj = self.forward(x, params)
        total = sum(np.sum(c * output) for c, output in zip(self.c, outputs, strict=True))
        return float(total + np.sum(self.a * (ldj + self.log_det(params))))

    def log_det(self, params) -> float:
        return self.layer.log_det(self.ops, self.put(params), self.shape) or 0.0

    def gradients(self, dtype=None) -> dict[str, np.ndarray]:
        """{parameter: gradient, "x": δ_x} at the case's points, of a backward pass in this
        precision (default: the case's), which must change no argument."""
        ops, dtype = self.ops, dtype or self.dtype
        host = {"x": self.x, "dldj": self.a, **dict(zip(("dz", "dlatent"), self.c, strict=False))}
        device, p = self.put(host, dtype), self.put(self.params, dtype)
        x, dldj, *deltas = device.values()
        _, _, cache = self.layer.forward(ops, p, x)
        passes, ctx = [], BackwardContext.of(ops, dldj, self.lam, key=layer_key(KEY, 0))
        for _ in range(2):  # the second time from the cache that the first one left
            grads = self.put({k: np.full_like(v, np.nan) for k, v in self.params.items()}, dtype)
            # a copy of the dict: an array that backward puts in a buffer's place is discarded
            dx = self.layer.backward(ctx, p, cache, deltas[0], dict(grads), *deltas[1:])
            _returned(dx, "backward", "δ_x, a Measured" if self.layer.learns_inverse else "δ_x")
            if self.layer.learns_inverse:
                dx, _ = dx
            passes.append({name: ops.to_host(g) for name, g in {**grads, "x": dx}.items()})
        self.require_unchanged({**host, **self.params}, {**device, **p})
        first, second = passes
        if not all(np.allclose(first[k], second[k], equal_nan=True) for k in first):
            raise GradientError("backward changed the cache: twice, it gives two results")
        for name in (*self.learned, "x"):
            if np.isnan(first[name]).any():
                raise GradientError(f"{name}: backward left its gradient (partly) unwritten or NaN")
        return first

    def require_unchanged(self, before: dict, now: dict) -> None:
        """Raises GradientError unless device arrays are what they were made from."""
        for name, array in now.items():
            then = before[name].astype(array.dtype)
            if not np.array_equal(self.ops.to_host(array), then, equal_nan=True):
                raise GradientError(f"the layer changed its argument {name}")

    def measure(self, name: str, scalar, point, gradient) -> None:
        """Compare a gradient with differences of a scalar (`check_gradient`), and report it."""
        how = {"rng": self.rng, "rtol": self.rtol, "name": name}
        error, control, _ = differences.check_gradient(scalar, point, gradient, **how)
        self.report.errors[name], self.report.controls[name] = error, control

    def compare(self, name: str, value, expected, wrong=None) -> None:
        """Compare arrays, and report it; wrong: the negative control, by default off by 1 %."""
        value, expected = np.asarray(value), np.asarray(expected)
        wrong = 1.01 * expected if wrong is None else wrong
        typical = float(np.max(np.abs(expected)))
        pairs = zip(value.flat, expected.flat, strict=True)
        error = float(np.max([relative(a, b, typical) for a, b in pairs]))  # NaN if one of them is
        control = float(np.max(np.abs(wrong - expected)) / typical)
        self.report.errors[name], self.report.controls[name] = error, control
        if not error <= self.rtol:
            raise GradientError(f"{name} is off by {error:.2e} > {self.rtol:.0e}")
        if control <= self.rtol:
            raise GradientError(f"{name}: the negative control was not caught")


def as_matrix(f: Map, ops: Ops, w: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """T(w) written out on the host, for one sample of this shape: column i is T(w) e_i (Eq. 12)."""
    dimension = int(np.prod(shape))
    basis = ops.asarray(np.eye(dimension).reshape(dimension, *shape))
    return ops.to_host(f.apply(ops, ops.asarray(w), basis)).reshape(dimension, -1).T


def _returned(value, method: str, expected: str):
    """A method's result, if it is as many values as expected."""
    count = len(value) if isinstance(value, tuple) else int(value is not None)
    if count != len(expected.split(", ")):
        found = f"{count} of them" if count else "None"
        raise GradientError(f"{method} must return {expected}, and returns {found}")
    return value


def stop_gradient_objective(
    layer: Any, shape, ops: Ops, params: dict, x, dz, dldj, lam: float
) -> Callable[[np.ndarray, dict], float]:
    """The scalar whose exact gradient is the self-normalizing update (derivations/04-dense.md).

    Barred quantities are constants: the gradient stops there. With v = Σ dldj, (c, c') = (½, ½) for
    the mixture and (1, 0) for the forward objective, and the matrices T(·) written out:

        c ⟨δ̄_z, T(W) x⟩ + ⟨δ̄_z, b⟩ + c v ⟨T(W), T(R̄)ᵀ⟩
        − c' ⟨δ̄_x, T(R) z̄⟩ − c' v ⟨T(R), T(W̄)ᵀ⟩ − (λ/N) Σ ‖T(R) T(W) x − x‖²

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
        f(x, params). Its gradient in x is not δ_x, which is passed on at full weight.
    """
    c_f, c_g = (0.5, 0.5) if layer.rule.objective == "mixture" else (1.0, 0.0)
    f, g = layer.maps  # their T differ if R has another kernel size than W
    x, dz, volume = flat(x), flat(dz), dldj.sum()
    w_bar, r_bar = as_matrix(f, ops, params["W"], shape), as_matrix(g, ops, params["R"], shape)
    z_bar, dx_bar = x @ w_bar.T, dz @ w_bar

    def scalar(x_, p) -> float:
        w, r = as_matrix(f, ops, p["W"], shape), as_matrix(g, ops, p["R"], shape)
        z = flat(x_) @ w.T
        error = z @ r.T - flat(x_)
        bias = np.sum(dz.reshape(-1, p["b"].size) @ p["b"]) if "b" in p else 0.0
        forward = c_f * (np.sum(dz * z) + volume * np.sum(w * r_bar.T))
        inverse = c_g * (np.sum(dx_bar * (z_bar @ r.T)) + volume * np.sum(r * w_bar.T))
        return float(bias + forward - inverse - lam / len(x) * np.sum(error * error))

    return scalar


@on_cpu_backends
def check_layer(
    layer: Layer,
    shape: tuple[int, ...],
    *,
    scalar: Callable | None = None,
    **settings,
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
        scalar: makes the scalar of a rule of your own from the arguments of
            `stop_gradient_objective`, which is that of `SelfNormalizing`
            (derivations/18-write-your-own-rule.md).
        **settings: keywords of `snfnp.gradcheck.layers.Case`.

    Returns:
        The relative error of each check, and the smallest error of its negative controls.

    Raises:
        GradientError: a line for each failed check; arrays of a wrong shape or dtype, unwritten or
            changed, are an error by themselves.
        UsageError: if a rule with an inverse needs a scalar of its own.
    """
    case = Case(layer, shape, **settings)
    usual = isinstance(layer, Linear) and type(layer.rule) is SelfNormalizing
    if layer.learns_inverse and not (scalar or usual):
        raise UsageError("the rule of this layer has a gradient of its own: give its `scalar`")
    _check_arrays(case)
    x, params, errors, wrong = case.x, case.params, case.report.errors, []

    def attempt(check: Callable, *arguments) -> Any:
        try:
            return check(*arguments)
        except GradientError as error:
            wrong.append(str(error))

    errors["inverse(forward(x))"] = attempt(_inverse_error, case)
    of_samples = range(len(x))
    errors["log-determinant"] = attempt(lambda: max(_log_det_error(case, n) for n in of_samples))
    grads = case.gradients()
    attempt(case.measure, "x", lambda value: case.objective(value, params), x, grads["x"])
    f = case.objective
    if scalar or layer.learns_inverse:
        make = scalar or stop_gradient_objective
        f = make(layer, case.shape, case.ops, params, x, case.c[0], case.a, case.lam)
    for name in case.learned:
        of_one = lambda value, name=name: f(x, {**params, name: value})  # noqa: E731
        attempt(case.measure, name, of_one, params[name], grads[name])
    if wrong:
        head = f"{len(wrong)} of {3 + len(case.learned)} checks failed:\n" if len(wrong) > 1 else ""
        raise GradientError(head + "\n".join(wrong))
    return case.report


def _check_arrays(case: Case) -> None:
    """Shapes, and dtypes: nothing may widen single precision."""
    declared = [(k, tuple(size)) for k, size in case.layer.parameter_shapes(case.shape).items()]
    made = [(name, value.shape) for name, value in case.initial.items()]
    if declared != made:
        raise GradientError(f"parameter_shapes says {declared}, init makes {made}")
    for dtype in (np.float64, np.float32):
        outputs, ldj = case.forward(case.x, case.params, dtype)
        for name, z, dz in zip(("z", "latent"), outputs, case.c, strict=False):
            if z.shape != dz.shape:
                raise GradientError(f"{name} has shape {z.shape}, not the declared {dz.shape}")
        if np.shape(ldj) not in ((), (len(case.x),)):
            raise GradientError(f"ldj has shape {np.shape(ldj)}, expected ({len(case.x)},) or 0")
        dx = case.gradients(dtype)["x"]
        arrays = {"z": outputs[0], "latent": outputs[-1], "dx": dx, "ldj": ldj}
        for name, array in arrays.items():
            if np.ndim(array) and array.dtype != dtype:
                found = f"{name} is {array.dtype}, but all arguments are {np.dtype(dtype)}"
                raise GradientError(found)


def _inverse_error(case: Case) -> float:
    layer, ops, error = case.layer, case.ops, 0.0
    outputs = dict(zip(("z", "latent"), case.forward(case.x, case.params)[0], strict=False))
    for invert in (layer.exact_inverse, layer.inverse):
        p, z = case.put(case.params, case.dtype), case.put(outputs, case.dtype)
        back = ops.to_host(_returned(invert(ops, p, *z.values()), "inverse", "x"))
        case.require_unchanged({**outputs, **case.params}, {**z, **p})
        if invert == layer.exact_inverse or not layer.learns_inverse:
            off = np.max(np.abs(back - case.x)) / max(1.0, np.max(np.abs(case.x)))
            error = float(np.maximum(error, off))  # NaN if one of them is
    if not error <= case.rtol:
        raise GradientError(f"inverse(forward(x)) differs from x by {error:.2e} > {case.rtol:.0e}")
    return error


def _log_det_error(case: Case, n: int) -> float:
    """ldj + log_det of sample n of the batch against slogdet of its Jacobian, by differences."""

    def rows(x):
        return np.concatenate([flat(z) for z in case.forward(x, case.params)[0]], axis=1)

    copies = np.repeat(case.x[n : n + 1], case.x[n].size, axis=0)
    units = np.eye(len(copies)).reshape(copies.shape)
    _, ldj = case.forward(case.x, case.params)
    declared = float(np.broadcast_to(ldj, len(case.x))[n]) + case.log_det(case.params)
    for step in differences.STEPS:
        jacobian = central_difference(rows, copies, units, step)
        expected = float(np.linalg.slogdet(jacobian)[1])
        error = abs(declared - expected) / max(1.0, abs(expected))
        if error <= case.rtol:
            return error
    found = f"{expected:.12g} by differences of forward, {declared:.12g} by ldj and log_det"
    raise GradientError(f"log|det J| is {found}")
