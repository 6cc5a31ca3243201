"""E = I − T(R) T(W), the error of a learned inverse R of a linear layer's W.

E is a contraction if ρ = ‖E‖₂ is below 1; both maps are then invertible.
Derivation: derivations/23-monitors-and-certificates.md.
"""

import math

import numpy as np

_BLOCK, _STEPS = 8, 10  # vectors that E is applied to at once, and how often EᵀE is


def error(ops, f, g, w, r, x):
    """E x = x − T(r) T(w) x for a batch x (N, ...)."""
    return x - g.apply(ops, r, f.apply(ops, w, x))


def error_adjoint(ops, f, g, w, r, x):
    """Eᵀ x = x − T(w)ᵀ T(r)ᵀ x for a batch x (N, ...)."""
    return x - f.adjoint(ops, w, g.adjoint(ops, r, x))


def rho(ops, f, g, w, r, shape) -> float:
    """ρ = ‖I − T(r) T(w)‖₂, from below: the largest gain of E on a Krylov space of EᵀE.

    f, g: the maps of w and r; shape: one sample's. The space is that of 8 fixed random directions
    after 10 steps of block Lanczos: 88 dimensions, or all. NaN if E is not finite. 42 products with
    8 vectors.
    """
    size, most = math.prod(shape), _BLOCK * (_STEPS + 1)
    if size <= most:
        new = np.eye(size)
    else:
        new = np.linalg.qr(np.random.default_rng(0).standard_normal((size, _BLOCK)))[0]
    basis, images = new, np.empty((size, 0))
    while True:
        rows = np.ascontiguousarray(new.T).reshape(-1, *shape)
        image = error(ops, f, g, w, r, ops.asarray(rows, w.dtype))
        images = np.hstack([images, _columns(ops, image)])
        if not np.isfinite(images).all():
            return math.nan
        if basis.shape[1] >= min(most, size):
            return float(np.linalg.norm(images, 2))
        new = _columns(ops, error_adjoint(ops, f, g, w, r, image))
        if not np.isfinite(new).all():
            return math.nan
        for _ in range(2):  # a small remainder is re-orthogonalised
            new, _ = np.linalg.qr(new - basis @ (basis.T @ new))
        basis = np.hstack([basis, new])


def _columns(ops, batch):
    """A batch (k, ...) as the columns of a host array (D, k), in double precision."""
    return ops.to_host(batch).reshape(len(batch), -1).T.astype(np.float64)
