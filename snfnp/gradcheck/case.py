"""The case that a check takes: a layer at a random point, with random covectors.

Derivation: derivations/07-convolutions.md.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import wraps
from typing import Any, ParamSpec

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from snfnp.context import BackwardContext
from snfnp.errors import UsageError, require_whole
from snfnp.flow import layer_key
from snfnp.gradcheck.differences import (
    GradientError,
    check_gradient,
    relative,
    tolerance,
)
from snfnp.gradcheck.members import require
from snfnp.layers import Layer, Whiten
from snfnp.maps import Map
from snfnp.ops import Array, Ops, RandomKey, Shape, cpu_backends, get_ops
from snfnp.parameters import order_of

Arrays = dict[str, np.ndarray]
_P = ParamSpec("_P")
KEY = RandomKey(0, 0)  # of the random numbers in the checks' backward passes


@dataclass
class Report:
    """The relative error of each check, and that of its negative control, by name."""

    errors: dict[str, float] = field(default_factory=dict)
    controls: dict[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        width = max(map(len, self.errors), default=0)
        return "\n".join(
            f"{name:<{width}}  {error:.1e}" for name, error in self.errors.items()
        )


def on_cpu_backends(check: Callable[_P, Report]) -> Callable[_P, Report]:
    """`check` on every backend of CPUs, or on `ops` alone if that is given. The report has the
    largest of each error, and the smallest of each control."""

    @wraps(check)
    def check_all(*arguments: _P.args, **settings: _P.kwargs) -> Report:
        run: Any = check  # called with other `ops`, which its type cannot express
        if settings.get("ops"):
            return run(*arguments, **settings)
        reports = []
        for ops in cpu_backends():
            try:
                reports.append(run(*arguments, **settings | {"ops": ops}))
            except GradientError as error:
                if not reports:
                    raise
                raise GradientError(
                    f"on the backend {ops.name}, and not on numpy: {error}"
                ) from None
        first, *_ = reports
        return Report(
            {name: max(each.errors[name] for each in reports) for name in first.errors},
            {
                name: min(each.controls[name] for each in reports)
                for name in first.controls
            },
        )

    return check_all


class Case:
    """A layer at random points x and parameters, in double precision on the host, with random
    covectors: `c`, one for each output (z, and the latent if one splits off), and `a`, for ldj.

    `backward` must return the gradient of the scalar ⟨c, outputs⟩ + ⟨a, ldj + log_det⟩.

    Args:
        layer, shape: those of `check_layer`.
        ops: the backend, or its name; default: NumPy. (`check_layer`, `check_map` and `check_rule`
            then check on every backend of CPUs.)
        batch: the number of samples.
        seed: of the random numbers.
        dtype: of the gradients; differences are always in double precision.
        rtol: the largest relative error; default 1e-8, or 2e-5 in float32.
        x: the points (N, *shape), on the host, away from kinks; default: standard normal.
        params: {name: host array}; default: those of `init` with noise, since a special point may
            hide an error.
        lam: λ of a layer that learns its inverse.
        noise: the standard deviation of that noise.

    Raises:
        UsageError: if `layer` is no layer or lacks a member, or there is no sample.
    """

    def __init__(
        self,
        layer: Any,
        shape: Shape,
        *,
        ops: Any = None,
        batch: int = 3,
        seed: int = 0,
        dtype: DTypeLike = np.float64,
        rtol: float | None = None,
        x: np.ndarray | None = None,
        params: Arrays | None = None,
        lam: float = 0.7,
        noise: float = 0.1,
    ):
        require(
            layer, Layer, " (check_gradient compares the gradients of any function)"
        )
        if not isinstance(shape, (tuple, list)):
            raise UsageError(
                f"shape is {shape!r}: give one sample's, as (6,) or (8, 8, 3)"
            )
        require_whole(None, 1, batch=batch)
        self.layer = layer
        self.shape = tuple(shape)
        self.ops = ops if isinstance(ops, Ops) else get_ops(ops or "numpy")
        self.dtype = dtype
        self.lam = lam
        self.report = Report()
        self.rtol = tolerance(dtype) if rtol is None else rtol
        self.rng = rng = np.random.default_rng(seed)
        self.x = rng.standard_normal((batch, *self.shape)) if x is None else x
        self.initial = layer.init(rng, self.shape)
        self.params = params or {
            name: value + noise * rng.standard_normal(value.shape)
            for name, value in self.initial.items()
        }
        # the parameters that have gradients: those of a `Whiten` layer have none
        self.learned = () if isinstance(layer, Whiten) else tuple(self.params)
        shapes = [layer.output_shape(self.shape), layer.latent_shape(self.shape)]
        self.c = [
            rng.standard_normal((len(self.x), *each))
            for each in shapes
            if each is not None
        ]
        self.a = rng.standard_normal(len(self.x))

    def put(self, arrays: Any, dtype: DTypeLike = np.float64, name: str = "") -> Any:
        """Copies of a host array, or of a dict or list of them, on the device. `name`, a
        parameter's, fixes the memory order, as in training (`order_of`)."""
        if isinstance(arrays, dict):
            return {key: self.put(array, dtype, key) for key, array in arrays.items()}
        if isinstance(arrays, list):
            return [self.put(array, dtype) for array in arrays]
        array = np.array(arrays, dtype)
        if order_of(name, array.shape) == "F":
            return self.ops.asarray(array.T).T
        return self.ops.asarray(array)

    def matrix(self, linear_map: Map, w: np.ndarray) -> np.ndarray:
        """T(w) written out for one sample."""
        return as_matrix(linear_map, self.ops, w, self.shape)

    def forward(
        self, x: np.ndarray, params: Arrays, dtype: DTypeLike = np.float64
    ) -> tuple[Arrays, np.ndarray]:
        """The outputs by name, z and the latent if there is one; and ldj."""
        result = self.layer.forward(
            self.ops, self.put(params, dtype), self.put(x, dtype)
        )
        z, ldj, cache = require_values(result, "forward", "z, ldj, cache")
        outputs = {"z": self.ops.to_host(z)}
        if len(self.c) == 2:
            outputs["latent"] = self.ops.to_host(cache["latent"])
        return outputs, self.ops.to_host(require_values(ldj, "forward", "ldj"))

    def objective(self, x: np.ndarray, params: Arrays) -> float:
        """⟨c, outputs⟩ + ⟨a, ldj + log_det⟩."""
        outputs, ldj = self.forward(x, params)
        total = sum(
            np.sum(c * output)
            for c, output in zip(self.c, outputs.values(), strict=True)
        )
        return float(total + np.sum(self.a * (ldj + self.log_det(params))))

    def log_det(self, params: Arrays) -> float:
        """The layer's log-determinant that does not depend on x; 0 if there is none."""
        return self.layer.log_det(self.ops, self.put(params), self.shape) or 0.0

    def gradients(self, dtype: DTypeLike | None = None) -> Arrays:
        """{parameter: gradient, "x": δ_x} at the case's points, from a backward pass in this
        precision (default: the case's). Raises GradientError if the pass changes an argument or
        the cache, or leaves a gradient unwritten."""
        ops = self.ops
        dtype = dtype or self.dtype
        host = {
            "x": self.x,
            "dldj": self.a,
            **dict(zip(("dz", "dlatent"), self.c, strict=False)),
        }
        device = self.put(host, dtype)
        p = self.put(self.params, dtype)
        x, dldj, dz, *dlatent = device.values()
        _, _, cache = self.layer.forward(ops, p, x)
        ctx = BackwardContext.of(ops, dldj, self.lam, key=layer_key(KEY, 0))
        grads = self.put(self.params, dtype)
        # a dict for all passes, as in training: backward must write into the arrays in it, not
        # replace them
        given = dict(grads)
        passes = []
        for _ in range(2):  # the second time from the cache that the first one left
            for g in grads.values():
                g[...] = np.nan
            dx = self.layer.backward(ctx, p, cache, dz, given, *dlatent)
            require_values(
                dx,
                "backward",
                "δ_x, a Measured" if self.layer.learns_inverse else "δ_x",
            )
            if self.layer.learns_inverse:
                dx, _ = dx
            passes.append(
                {name: ops.to_host(g).copy() for name, g in {**grads, "x": dx}.items()}
            )
        self.require_unchanged({**host, **self.params}, {**device, **p})
        first, second = passes
        for name in (*self.learned, "x"):
            if np.isnan([first[name], second[name]]).any():
                raise GradientError(
                    f"{name}: backward left its gradient (partly) unwritten or NaN"
                )
        if not all(np.allclose(first[k], second[k], equal_nan=True) for k in first):
            raise GradientError(
                "backward changed the cache: a second call gives another result"
            )
        return first

    def require_unchanged(self, host: Arrays, device: dict[str, Array]) -> None:
        """Raises GradientError unless device arrays are what they were made from."""
        for name, array in device.items():
            expected = host[name].astype(array.dtype)
            if not np.array_equal(self.ops.to_host(array), expected, equal_nan=True):
                raise GradientError(f"the layer changed its argument {name}")

    def measure(
        self,
        name: str,
        scalar: Callable[[np.ndarray], float],
        point: np.ndarray,
        gradient: np.ndarray,
    ) -> None:
        """Compare a gradient with differences of a scalar (`check_gradient`), and report it."""
        result = check_gradient(
            scalar, point, gradient, rng=self.rng, rtol=self.rtol, name=name
        )
        self.report.errors[name] = result.error
        self.report.controls[name] = result.control

    def compare(
        self,
        name: str,
        value: ArrayLike,
        expected: ArrayLike,
        wrong: np.ndarray | None = None,
    ) -> None:
        """Compare arrays, and report it; wrong: the negative control, by default off by 1 %."""
        value = np.asarray(value)
        expected = np.asarray(expected)
        if wrong is None:
            wrong = 1.01 * expected
        typical = float(np.max(np.abs(expected)))
        pairs = zip(value.flat, expected.flat, strict=True)
        # np.max, unlike max, gives NaN if any of the errors is NaN
        error = float(np.max([relative(a, b, typical) for a, b in pairs]))
        control = float(np.max(np.abs(wrong - expected)) / typical)
        self.report.errors[name] = error
        self.report.controls[name] = control
        if not error <= self.rtol:
            raise GradientError(f"{name} is off by {error:.2e} > {self.rtol:.0e}")
        if control <= self.rtol:
            raise GradientError(f"{name}: the negative control was not caught")


def as_matrix(f: Map, ops: Ops, w: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """T(w) written out on the host, for one sample of this shape: column i is T(w) e_i (Eq. 12).

    Args:
        f: the map T.
        ops: the backend that applies it.
        w: its weight, on the host.
        shape: one sample's, with D values.

    Returns:
        A matrix (D', D), for D' values of a sample of outputs. O(D) applications.
    """
    dimension = int(np.prod(shape))
    basis = ops.asarray(np.eye(dimension).reshape(dimension, *shape))
    return ops.to_host(f.apply(ops, ops.asarray(w), basis)).reshape(dimension, -1).T


def require_values(value: Any, method: str, expected: str) -> Any:
    """A method's result. Raises GradientError unless it has as many values as `expected` names,
    such as "z, ldj, cache"."""
    count = len(value) if isinstance(value, tuple) else int(value is not None)
    if count != len(expected.split(", ")):
        actual = f"{count} of them" if count else "None"
        raise GradientError(f"{method} must return {expected}, and returns {actual}")
    return value
