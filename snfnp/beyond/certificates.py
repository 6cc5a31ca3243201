"""Proofs about a learned inverse without a determinant: W and R are invertible, and bounds on the
differences between log|W| and −log|R| and between the two densities of one latent.

Derivation: derivations/23-monitors-and-certificates.md.
"""

import math
from dataclasses import dataclass

import numpy as np

from snfnp.errors import UsageError
from snfnp.flow import Flow
from snfnp.maps import Conv2d, Map, contraction
from snfnp.maps.base import Shape
from snfnp.ops import Array, Ops
from snfnp.rules.base import Params

_UNIT = contraction.UNIT
_SURE = 1 + 1e-12  # for the few roundings of scalars


@dataclass(frozen=True)
class Certificate:
    """Bounds on E = I − T(R) T(W) of one layer.

    Attributes:
        layer: its name.
        lower, upper: bounds on ρ = ‖E‖₂, rounding included.
        trace, rounding: tr E, and a bound on its error.
        frobenius: a bound on ‖E‖_F from above, rounding included.
    """

    layer: str
    lower: float
    upper: float
    trace: float
    frobenius: float
    rounding: float

    @property
    def holds(self) -> bool:
        """True if ρ < 1 is proved: W and R are then invertible."""
        return self.upper < 1

    @property
    def slack(self) -> float | None:
        """The bound on |log|W| + log|R| + tr E|: ‖E‖²_F (−ln(1 − ρ) − ρ)/ρ², and rounding. None
        if ρ < 1 is not proved."""
        if not self.holds:
            return None
        return self.frobenius**2 * _series(self.upper) * _SURE + self.rounding

    @property
    def difference(self) -> float | None:
        """The bound in nats, for any x, on |log|W| + log|R||, the difference between W's term of
        log p^f and R's term of log p^g. None if ρ < 1 is not proved."""
        slack = self.slack
        return None if slack is None else abs(self.trace) + slack


def _series(rho: float) -> float:
    """A bound on Σ_{k ≥ 2} ρ^(k−2)/k = (−ln(1 − ρ) − ρ)/ρ²; near 0, where that loses its digits,
    ½ + (ρ + ρ² + …)/3, which is above it."""
    if rho < 0.01:
        return 1 / 2 + rho / (3 * (1 - rho))
    return (-math.log1p(-rho) - rho) / rho**2


def certificates(ops: Ops, flow: Flow, params: dict[str, Params]) -> list[Certificate]:
    """Certificates of all linear layers that learned their inverse, at float64 parameters. Raises
    UsageError if there are none. O(D³) a layer, for 1×1 convolutions O(C³): E is written out."""
    learned = flow.learned_inverses()
    if not learned:
        raise UsageError(
            "this flow was trained without learned inverses: nothing to certify"
        )
    return [
        certify(ops, name, *layer.maps, params[name]["W"], params[name]["R"], shape)
        for name, (layer, shape) in learned.items()
    ]


def activations_part(
    ops: Ops, flow: Flow, params: dict[str, Params], x: Array
) -> Array:
    """The difference of the data-dependent terms of log p^f and of log p^g at the same latents
    z = f(x), (N,) in nats; log p^f(x) − log p^g(g(z)) is within Σ_k d_k of it, with the
    certificates' differences d_k. x (N, *shape), preprocessed. Costs a pass through f and one
    through g, which evaluates activations and couplings at other points than f.
    """
    (*split_off, z), of_f, _ = flow.forward(ops, params, x, recompute=True)
    of_g = 0
    for name, layer in reversed(flow.layers):
        missing = (split_off.pop(),) if name in flow.latent_shapes else ()
        z = layer.inverse(ops, params[name], z, *missing)
        if not layer.learns_inverse:
            of_g = of_g + layer.forward(ops, params[name], z)[1]
    return of_f - of_g + ops.xp.zeros(len(x))


def certify(
    ops: Ops, name: str, f: Map, g: Map, w: Array, r: Array, shape: Shape
) -> Certificate:
    """The certificate of one layer: f, g, the maps of w and r; shape, one sample's."""
    shape, copies = _smallest(f, g, shape)
    e = _written_out(ops, f, g, w, r, shape)
    size = len(e)
    off = _rounding(ops, f, g, w, r, shape)
    trace = float(ops.xp.trace(e))
    norm = _norm(ops, e)
    lower, upper = _largest_gain(ops, e) if math.isfinite(norm) else (0.0, math.inf)
    frobenius = math.sqrt(copies) * (norm + off) * _SURE
    rounding = copies * math.sqrt(size) * (off + size * _UNIT * norm) * _SURE
    bounds = max(0.0, lower - off), upper + off
    return Certificate(name, *bounds, copies * trace, frobenius, rounding)


def _norm(ops: Ops, matrix: Array) -> float:
    """A bound on ‖matrix‖_F from above, rounding of its sum of squares included."""
    return ops.linalg.norms(matrix)[0] * (1 + matrix.size * _UNIT)


def _smallest(f: Map, g: Map, shape: Shape) -> tuple[Shape, int]:
    """(the shape of the smallest sample that determines E, the number of copies of this E in the
    layer's): 1×1 convolutions do the same at every pixel."""
    pointwise = all(isinstance(m, Conv2d) and m.kernel == (1, 1) for m in (f, g))
    return ((1, 1, shape[2]), shape[0] * shape[1]) if pointwise else (shape, 1)


def _written_out(ops: Ops, f: Map, g: Map, w: Array, r: Array, shape: Shape) -> Array:
    """E, (D, D): column i is E e_i."""
    size = math.prod(shape)
    basis = ops.asarray(np.eye(size).reshape(size, *shape))
    return contraction.error(ops, f, g, w, r, basis).reshape(size, size).T


def _rounding(ops: Ops, f: Map, g: Map, w: Array, r: Array, shape: Shape) -> float:
    """A bound on the error of E as it is computed, in the Frobenius norm: that of E 1, as the sums
    of the rows of a matrix of absolute values have at least its norm."""
    return contraction.rounding(ops, f, g, w, r, ops.xp.ones((1, *shape)))


def _largest_gain(ops: Ops, e: Array) -> tuple[float, float]:
    """Bounds on ‖E‖₂ from below and above, from its computed singular value decomposition.

    With E = U S Vᵀ + F, ‖UᵀU − I‖ ≤ a and ‖VᵀV − I‖ ≤ b, it is within ‖F‖ of
    s_1 √((1 ± a)(1 ± b)).
    """
    u, s, vt = ops.xp.linalg.svd(e)
    eye = ops.xp.eye(len(e))
    largest = float(s[0])
    a = _distance(ops, u.T, u, eye)
    b = _distance(ops, vt, vt.T, eye)
    rest = _distance(ops, u * s, vt, e)
    lower = largest * math.sqrt(max(0.0, 1 - a) * max(0.0, 1 - b)) - rest
    return lower / _SURE, (largest * math.sqrt((1 + a) * (1 + b)) + rest) * _SURE


def _distance(ops: Ops, left: Array, right: Array, matrix: Array) -> float:
    """A bound on ‖left right − matrix‖_F. Each term of the product's sums adds a rounding error of
    at most one unit times both factors' norms; u * s and the difference add one each."""
    rounding = (
        1.01 * (len(right) + 2) * _UNIT * math.prod(ops.linalg.norms(left, right))
    )
    return _norm(ops, ops.linalg.matmul(left, right) - matrix) * (1 + _UNIT) + rounding
