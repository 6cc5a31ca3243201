"""A layer at random points, passes through it on any backend, and a report of comparisons.

Derivation: derivations/07-convolutions.md (T(w) written out).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from snfnp.context import BackwardContext, layer_key
from snfnp.gradcheck.differences import (
    GradientError,
    Measured,
    measure_gradient,
    relative,
    tolerance,
)
from snfnp.ops import RandomKey, get_ops

KEY = RandomKey(0, 0)  # of the random numbers in the checks' backward passes


@dataclass
class Report:
    """The relative error of each check, and the smallest error of a wrong value in its place.

    Values that are off by 1 %, or by more, are the negative controls (see `Measured`).
    """

    errors: dict[str, float] = field(default_factory=dict)
    controls: dict[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        width = max(map(len, self.errors), default=0)
        return "\n".join(f"{name:<{width}}  {error:.1e}" for name, error in self.errors.items())

    def add(self, name: str, measured: Measured) -> None:
        self.errors[name], self.controls[name] = measured.error, measured.control


class Case:
    """A layer at random points x and parameters, with random covectors c of its outputs, a of ldj.

    They make the scalar ⟨c, outputs⟩ + ⟨a, ldj + log_det⟩, whose gradient is what `backward`
    claims. The outputs are z and, of a layer that splits off a latent, that. All arrays are the
    host's; `x`, `params`, `c` and `a` are in double precision.

    Arguments: those of `snfnp.gradcheck.check_layer`. noise: how far the parameters are moved from
    the layer's initial ones.
    """

    def __init__(
        self,
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
        noise=0.1,
    ):
        self.layer, self.shape, self.lam, self.dtype = layer, tuple(shape), lam, dtype
        self.ops = ops or get_ops("numpy")
        self.rtol = tolerance(dtype) if rtol is None else rtol
        self.rng = rng = np.random.default_rng(seed)
        self.report = Report()
        self.x = rng.standard_normal((batch, *shape)) if x is None else x
        self.initial = layer.init(rng, self.shape)
        if params is None:
            params = {
                name: value + noise * rng.standard_normal(value.shape)
                for name, value in self.initial.items()
            }
        self.params = params
        shapes = [layer.output_shape(self.shape), layer.latent_shape(self.shape)]
        shapes = [one for one in shapes if one is not None]
        self.c = [rng.standard_normal((len(self.x), *one)) for one in shapes]
        self.a = rng.standard_normal(len(self.x))

    def cast(self, *arrays):
        """Host arrays in the precision that is checked."""
        return [array.astype(self.dtype) for array in arrays]

    def cast_all(self, named: dict) -> dict:
        return {name: value.astype(self.dtype) for name, value in named.items()}

    def put(self, array):
        """A copy of a host array on the device."""
        return self.ops.asarray(np.array(array))

    def put_all(self, named: dict) -> dict:
        return {name: self.put(value) for name, value in named.items()}

    def matrix(self, linear_map, w) -> np.ndarray:
        """T(w) written out for one sample."""
        return as_matrix(linear_map, self.ops, np.ascontiguousarray(w), self.shape)

    def forward(self, x, params) -> tuple[list, np.ndarray | int]:
        """The outputs, and ldj."""
        z, ldj, cache = self.layer.forward(self.ops, self.put_all(params), self.put(x))
        outputs = (z, cache["latent"]) if len(self.c) == 2 else (z,)
        ldj = ldj if isinstance(ldj, int) else self.ops.to_host(ldj)
        return [self.ops.to_host(output) for output in outputs], ldj

    def objective(self, x, params) -> float:
        """⟨c, outputs⟩ + ⟨a, ldj + log_det⟩."""
        outputs, ldj = self.forward(x, params)
        total = sum(np.sum(c * output) for c, output in zip(self.c, outputs, strict=True))
        return float(total + np.sum(self.a * (ldj + self.log_det(params))))

    def log_det(self, params) -> float:
        return self.layer.log_det(self.ops, self.put_all(params), self.shape) or 0.0

    def backward(self, x, params, deltas, dldj, lam=None) -> dict[str, np.ndarray]:
        """{parameter: gradient or next value, "x": δ_x} of a backward pass.

        Raises GradientError if a gradient is not written, or anything else is written to.
        """
        ops, lam = self.ops, self.lam if lam is None else lam
        x_, p, dldj_ = self.put(x), self.put_all(params), self.put(dldj)
        deltas_ = [self.put(delta) for delta in deltas]
        _, _, cache = self.layer.forward(ops, p, x_)
        passes = []
        for _ in range(2):  # the second time from what the first left in the cache
            grads = self.put_all({k: np.full_like(v, np.nan) for k, v in params.items()})
            ctx = BackwardContext.of(ops, dldj_, lam, key=layer_key(KEY, 0))
            # a copy of the dict: an array that backward puts in a buffer's place reaches nobody
            dx = self.layer.backward(ctx, p, cache, deltas_[0], dict(grads), *deltas_[1:])
            if self.layer.learns_inverse:
                dx, measured = dx
                grads |= measured.updates
            passes.append({name: ops.to_host(g) for name, g in {**grads, "x": dx}.items()})
        unchanged = [("x", x_, x), *((name, p[name], params[name]) for name in params)]
        unchanged += [("dz", d_, d) for d_, d in zip(deltas_, deltas, strict=True)]
        for name, now, then in [*unchanged, ("dldj", dldj_, dldj)]:
            if not np.array_equal(ops.to_host(now), then, equal_nan=True):
                raise GradientError(f"the layer changed its argument {name}")
        first, second = passes
        if not all(np.allclose(first[k], second[k], equal_nan=True) for k in first):
            raise GradientError("backward changed the cache: twice, it gives two results")
        return first

    def gradients(self, params=None, lam=None) -> dict[str, np.ndarray]:
        """{parameter: gradient, "x": δ_x} at the case's points, in its precision."""
        params = self.cast_all(params or self.params)
        (x, a), c = self.cast(self.x, self.a), self.cast(*self.c)
        grads = self.backward(x, params, c, a, lam)
        for name in params:
            if np.isnan(grads[name]).any():
                raise GradientError(f"{name}: backward left its gradient (partly) unwritten or NaN")
        return grads

    def measure(self, name: str, scalar, point, gradient) -> None:
        """Compare a gradient with differences of a scalar (`measure_gradient`), and report it."""
        measured = measure_gradient(
            scalar, point, gradient, rng=self.rng, rtol=self.rtol, name=name
        )
        self.report.add(name, measured)

    def compare(self, name: str, value, expected, wrong=None) -> None:
        """Compare arrays, and report it; wrong: the negative control, by default off by 1 %.

        Raises GradientError if they differ, or if the control does not.
        """
        value, expected = np.asarray(value), np.asarray(expected)
        wrong = 1.01 * expected if wrong is None else wrong
        typical = float(np.max(np.abs(expected)))
        error = max(relative(a, b, typical) for a, b in zip(value.flat, expected.flat, strict=True))
        control = float(np.max(np.abs(wrong - expected)) / typical)
        self.report.add(name, Measured(error, control))
        if not error <= self.rtol:
            raise GradientError(f"{name} is off by {error:.2e} > {self.rtol:.0e}")
        if control <= self.rtol:
            raise GradientError(f"{name}: the negative control was not caught")


def as_matrix(f, ops, w, shape) -> np.ndarray:
    """T(w) written out on the host for one sample's shape: column i is T(w) e_i (Eq. 12).

    w: a host array. As many columns as x has values, as many rows as z has.
    """
    dimension = int(np.prod(shape))
    basis = ops.asarray(np.eye(dimension).reshape(dimension, *shape))
    return ops.to_host(f.apply(ops, ops.asarray(w), basis)).reshape(dimension, -1).T


def flat(array: np.ndarray) -> np.ndarray:
    """Samples as rows."""
    return array.reshape(len(array), -1)
