"""What can be proved of a learned inverse without a determinant: that W and R are invertible, and
by how much their log-determinants can differ.

Derivation: derivations/23-monitors-and-certificates.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from snfnp.beyond import contraction
from snfnp.errors import UsageError
from snfnp.flow import Flow
from snfnp.maps import Conv2d

_UNIT = 2.0**-53  # the largest relative error of one rounding
_SQUARINGS = 8
_NOISE = 0.1  # of a power: beyond, it is rounding
_CLOSE = 1.02  # a bound within so much of what is found from below need not be tightened
_AT_ONCE = 1024  # columns of E


@dataclass(frozen=True)
class Certificate:
    """What is known of E = I − T(R) T(W) of one layer.

    lower, upper: bounds on ρ = ‖E‖₂; trace: tr E, off by at most `rounding`; frobenius: ‖E‖_F, and
    like `upper` not below the true one, rounding included.
    """

    layer: str
    lower: float
    upper: float
    trace: float
    frobenius: float
    rounding: float

    @property
    def holds(self) -> bool:
        """Whether ρ < 1 is proved: W and R are then invertible."""
        return self.upper < 1

    @property
    def slack(self) -> float | None:
        """The bound on |log|W| + log|R| + tr E|: ‖E‖²_F / (2 (1 − ρ)), and rounding. None where
        ρ < 1 is not proved."""
        if not self.holds:
            return None
        return self.frobenius**2 / (2 * (1 - self.upper)) + self.rounding

    @property
    def difference(self) -> float | None:
        """The bound on |log|W| + log|R||, in nats: at the same z, the log-densities log p^f and
        log p^g of Eq. 3 differ by no more at this layer. None where ρ < 1 is not proved."""
        return abs(self.trace) + self.slack if self.holds else None


def certificates(ops, flow: Flow, params) -> list[Certificate]:
    """Of every linear layer that learned its inverse, at float64 parameters.

    Costs O(D³) a layer, for 1×1 convolutions O(C³): E is written out, and squared until ρ is known
    well enough. Raises UsageError where no layer learned an inverse.
    """
    learned = flow.learned_inverses()
    if not learned:
        raise UsageError("this flow was trained without learned inverses: nothing to certify")
    return [
        certify(ops, name, *layer.maps, params[name]["W"], params[name]["R"], shape)
        for name, (layer, shape) in learned.items()
    ]


def certify(ops, name: str, f, g, w, r, shape) -> Certificate:
    """The certificate of one layer: f, g, the maps of w and r; shape, one sample's."""
    shape, copies = _smallest(f, g, shape)
    e = _written_out(ops, f, g, w, r, shape)
    size = len(e)
    trace, (norm,) = float(ops.xp.trace(e)), ops.linalg.norms(e)
    off = _rounding(ops, f, g, w, r, shape)
    lower = max(0.0, contraction.rho(ops, f, g, w, r, shape) - off)
    upper = _above(ops, e, norm, off, lower)
    return Certificate(
        name,
        lower,
        upper,
        copies * trace,
        math.sqrt(copies) * (norm * (1 + size * _UNIT) + off),
        copies * math.sqrt(size) * (off + size * _UNIT * norm),
    )


def _smallest(f, g, shape) -> tuple[tuple[int, ...], int]:
    """(the shape of the smallest sample that shows all of E, how often E is repeated in the
    layer's own): 1×1 convolutions do the same at every pixel."""
    pointwise = all(isinstance(m, Conv2d) and m.kernel == (1, 1) for m in (f, g))
    return ((1, 1, shape[2]), shape[0] * shape[1]) if pointwise else (shape, 1)


def _written_out(ops, f, g, w, r, shape):
    """E, (D, D): column i is E e_i."""
    size = math.prod(shape)
    e = ops.xp.empty((size, size))
    for start in range(0, size, _AT_ONCE):
        basis = np.eye(min(_AT_ONCE, size - start), size, start).reshape(-1, *shape)
        columns = contraction.error(ops, f, g, w, r, ops.asarray(basis))
        e[start : start + len(basis)] = columns.reshape(len(basis), size)
    return e.T


def _rounding(ops, f, g, w, r, shape) -> float:
    """By how much E as it is computed may be off, in the Frobenius norm.

    A sum of n products is off by at most about n units of the sum of their absolute values, in
    whatever order it is added. So E is off, entry by entry, by at most (n_W + n_R + 2) units of
    I + |T(R)| |T(W)|, and the sums of the latter's rows, which one pass of absolute weights
    computes, have at least its Frobenius norm.
    """
    terms = 2 + sum(math.prod(weight.shape[:-1]) for weight in (w, r))
    rows = g.apply(ops, abs(r), f.apply(ops, abs(w), ops.xp.ones((1, *shape))))
    return 1.01 * terms * _UNIT * ops.linalg.norms(1 + rows)[0]


def _above(ops, e, norm: float, off: float, lower: float) -> float:
    """A bound on ‖E‖₂ from above, rounding included.

    ‖E‖₂ ≤ ‖E‖_F, and with S_0 = EᵀE and S_{j+1} = S_j² also ‖E‖₂ ≤ ‖S_j‖_F^(1/2^(j+1)), which comes
    down to ‖E‖₂ as the largest singular value outgrows the others. Every square is divided by its
    norm, which is kept as a logarithm; what rounding adds is carried along.
    """
    bound = norm * (1 + len(e) * _UNIT) + off
    if not 0 < lower < math.inf or bound == 0 or not math.isfinite(bound):
        return bound if math.isfinite(bound) else math.inf
    # s is S_j / exp(log), but for an error of at most `error` in the Frobenius norm
    one = 1 + 2 * len(e) * _UNIT  # what norms and products are off by, as a factor
    s, error, log = e / norm, (off / norm + _UNIT) * one, math.log(norm)
    left = s.T
    for j in range(_SQUARINGS):
        if lower >= 1 or bound <= _CLOSE * lower or error > _NOISE:
            break
        s = ops.linalg.matmul(left, s)
        error = (2 * error + error**2 + len(e) * _UNIT) * one**2
        log *= 2
        size = ops.linalg.norms(s)[0] * one
        bound = min(bound, math.exp((math.log(size + error) + log) / 2 ** (j + 1)) * (1 + 1e-12))
        left = s = s / size
        error, log = (error / size + _UNIT) * one, log + math.log(size)
    return bound
