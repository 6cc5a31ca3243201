"""E = I − T(R) T(W), what a learned inverse R leaves over of a linear layer's W.

Where ρ = ‖E‖₂ is below 1, both maps are invertible, and x ← x + T(R)(z − T(W) x) converges to
T(W)⁻¹ z: it is a contraction.

Derivation: derivations/23-monitors-and-certificates.md.
"""

import math

import numpy as np

from snfnp.errors import SnfnpError, UsageError

_BLOCK, _STEPS = 8, 10  # vectors of a power iteration, and how often they are multiplied
_RESIDUAL = 1e-10  # of an inverse that is refined, as a part of z
_MOST = 1000  # refinements: what ρ = 0.977 takes


def error(ops, f, g, w, r, x):
    """E x = x − T(r) T(w) x for a batch x (N, ...)."""
    return x - g.apply(ops, r, f.apply(ops, w, x))


def error_adjoint(ops, f, g, w, r, x):
    """Eᵀ x = x − T(w)ᵀ T(r)ᵀ x for a batch x (N, ...)."""
    return x - f.adjoint(ops, w, g.adjoint(ops, r, x))


def rho(ops, f, g, w, r, shape) -> float:
    """ρ = ‖I − T(r) T(w)‖₂, from below: power iteration on EᵀE with a block of 8 vectors.

    f, g: the maps of w and r; shape: one sample's. The largest gain of E among the directions that
    the block, always the same at first, spans after 10 steps: never above ρ, and below it by less
    than 1% if 200 gains lie evenly between ρ and 0. NaN if E is not finite. 42 products with 8
    vectors: O(D²) for a dense layer.
    """
    size = math.prod(shape)
    block = np.random.default_rng(0).standard_normal((size, min(_BLOCK, size)))
    for step in range(_STEPS + 1):
        block, _ = np.linalg.qr(block)  # on the host: it has few columns
        columns = np.ascontiguousarray(block.T).reshape(-1, *shape)
        image = error(ops, f, g, w, r, ops.asarray(columns, w.dtype))
        if step < _STEPS:
            image = error_adjoint(ops, f, g, w, r, image)
        block = ops.to_host(image).reshape(len(image), size).T.astype(np.float64)
        if not np.isfinite(block).all():
            return math.nan
    return float(np.linalg.norm(block, 2))


def solve(ops, f, g, w, r, z):
    """T(w)⁻¹ z for a batch z (N, ...), in double precision, by refining T(r) z.

    x ← x + T(r)(z − T(w) x) multiplies the error by E: UsageError if ρ is not below 1. It ends at
    ‖z − T(w) x‖ <= 1e-10 ‖z‖; SnfnpError if that takes more than 1000 refinements, of two products
    each: O(N D²) for a dense layer.
    """
    found = rho(ops, f, g, w, r, z.shape[1:])
    if not found < 1:
        raise UsageError(
            f"ρ = ‖I − RW‖₂ is {found:.3g}, and only below 1 can the learned inverse be refined: "
            "use the exact one (--inverse exact)"
        )
    x, residual, scale = g.apply(ops, r, z), math.nan, 1.0
    for _ in range(_MOST):
        left = z - f.apply(ops, w, x)
        residual, scale = ops.linalg.norms(left, z)
        if residual <= _RESIDUAL * scale:
            return x
        x = x + g.apply(ops, r, left)
    raise SnfnpError(
        f"after {_MOST} refinements of the learned inverse, {residual / scale:.1e} of z is still "
        f"left (ρ = {found:.5f}): use the exact one (--inverse exact)"
    )
