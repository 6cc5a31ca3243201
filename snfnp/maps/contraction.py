"""E = I − T(R) T(W), the error of a learned inverse R of a linear layer's W.

E is a contraction if ρ = ‖E‖₂ is below 1; both maps are then invertible.
Derivation: derivations/23-monitors-and-certificates.md.
"""

import math

import numpy as np

from snfnp.maps.base import Map, Shape
from snfnp.ops import Array, Ops

_UNIT = 2.0**-53  # the largest relative error of one rounding
_BLOCK = 8
_STEPS = 10  # vectors that E is applied to at once, and how often EᵀE is
# of EᵀE's part outside of the space so far: rounding leaves some 1e-15
_EXHAUSTED = 1e-10


def error(ops: Ops, f: Map, g: Map, w: Array, r: Array, x: Array) -> Array:
    """E x = x − T(r) T(w) x for a batch x (N, ...)."""
    return x - g.apply(ops, r, f.apply(ops, w, x))


def rounding(ops: Ops, f: Map, g: Map, w: Array, r: Array, x: Array) -> float:
    """A bound on the rounding errors in double precision of `error` for a single x, in the
    Euclidean norm: in each value at most (n_W + n_R + 2) units of |x| + |T(r)| |T(w)| |x|, as a sum
    of n products has n units."""
    terms = 2 + sum(math.prod(weight.shape[:-1]) for weight in (w, r))
    x = abs(x)
    absolute = g.apply(ops, abs(r), f.apply(ops, abs(w), x))
    return 1.01 * terms * _UNIT * ops.linalg.norms(x + absolute)[0]


def rho(ops: Ops, f: Map, g: Map, w: Array, r: Array, shape: Shape) -> float:
    """A lower bound for ρ = ‖I − T(r) T(w)‖₂, rounding included: the gain of E on one direction,
    the best of a Krylov space of EᵀE. NaN if E is not finite.

    f, g: the maps of w and r, in double precision; shape: one sample's. The space is that of 8
    fixed random directions after 10 steps of block Lanczos: 88 dimensions, or all. At most 42
    products with 8 vectors, and 4 with one.
    """
    size = math.prod(shape)

    def batch(columns):
        return ops.asarray(np.ascontiguousarray(columns.T).reshape(-1, *shape), w.dtype)

    if size <= _BLOCK * (_STEPS + 1):
        new = np.eye(size)
        steps = 0
    else:
        rng = np.random.default_rng(0)
        new = np.linalg.qr(rng.standard_normal((size, _BLOCK)))[0]
        steps = _STEPS
    basis = new
    images = np.empty((size, 0))
    for step in range(steps + 1):
        image = error(ops, f, g, w, r, batch(new))
        images = np.hstack([images, _columns(ops, image)])
        if not np.isfinite(images).all():
            return math.nan
        if step == steps:
            break
        # Eᵀ = I − T(w)ᵀ T(r)ᵀ is the error of the flipped weights in the other order
        new = _columns(ops, error(ops, g, f, g.flip(r), f.flip(w), image))
        if not np.isfinite(new).all():
            return math.nan
        new = _remainder(basis, new)
        # EᵀE maps the space into itself: it has a direction of the largest gain
        if not new.size:
            break
        basis = np.hstack([basis, new])
    best = batch(basis @ np.linalg.svd(images, full_matrices=False)[2][:1].T)
    gained, length = ops.linalg.norms(error(ops, f, g, w, r, best), best)
    return max(0.0, gained - rounding(ops, f, g, w, r, best)) / length


def _remainder(basis: np.ndarray, new: np.ndarray) -> np.ndarray:
    """An orthonormal basis (D, k) of what columns (D, 8) add to an orthonormal one. Directions that
    rounding decides are left out: k may be 0."""
    least = _EXHAUSTED * np.linalg.norm(new)
    u, s, _ = np.linalg.svd(new - basis @ (basis.T @ new), full_matrices=False)
    new = u[:, s > least]
    # a small remainder was not orthogonal
    return np.linalg.qr(new - basis @ (basis.T @ new))[0]


def _columns(ops: Ops, batch: Array) -> np.ndarray:
    """A batch (k, ...) as the columns of a host array (D, k), in double precision."""
    return ops.to_host(batch).reshape(len(batch), -1).T.astype(np.float64)
