"""E = I − T(R) T(W), the error of a learned inverse R of a linear layer's W.

If ρ = ‖E‖₂ is below 1, both maps are invertible, and x ← x + T(R)(z − T(W) x) converges to
T(W)⁻¹ z: it is a contraction.
Derivation: derivations/23-monitors-and-certificates.md.
"""

import math

import numpy as np

from snfnp.errors import SnfnpError, UsageError

_BLOCK, _STEPS = 8, 10  # vectors that E is applied to at once, and how often EᵀE is
_RESIDUAL = 1e-10  # of an inverse that is refined, as a part of z
_MOST = 1000  # refinements: what ρ = 0.977 takes


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


def solve(ops, f, g, w, r, z):
    """T(w)⁻¹ z for a batch z (N, ...), in double precision, by refining T(r) z until ‖z − T(w) x‖
    is 1e-10 of ‖z‖: two products a refinement.

    Raises:
        UsageError: if ρ is not below 1.
        SnfnpError: after 1000 refinements.
    """
    found = rho(ops, f, g, w, r, z.shape[1:])
    if not found < 1:
        why = f"ρ = ‖I − RW‖₂ is at least {found:.3g}, and only below 1 can the learned inverse be"
        raise UsageError(f"{why} refined: use `exact=True`")
    x, residual, scale = g.apply(ops, r, z), math.nan, 1.0
    for _ in range(_MOST):
        left = z - f.apply(ops, w, x)
        residual, scale = ops.linalg.norms(left, z)
        if residual <= _RESIDUAL * scale:
            return x
        x = x + g.apply(ops, r, left)
    rest = f"{residual / scale:.1e} of z is still left (ρ ≥ {found:.5f})"
    why = f"after {_MOST} refinements of the learned inverse, {rest}"
    raise SnfnpError(f"{why}: use `exact=True`")
