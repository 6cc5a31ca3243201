"""Structured linear maps T(w): what a linear layer and its rule need to know about a structure.

A map has these members (`Dense` is the plainest example):

    weight_shape, identity(), fans, output_shape(shape)
    apply(ops, w, x)                    T(w) x
    adjoint(ops, w, dz)                 T(w)ᵀ δ
    weight_grad(ops, delta, x, out)     Σ_n δ_n ⋆ x_n
    flip(w), multiple(shape)            T(flip w) = T(w)ᵀ, and m (Eqs. 26, 27)
    fit(w)                              another map's weight at this one's size (Eq. 30)
    log_det, log_det_grad, solve        exact, and as expensive as that is
"""

from snfnp.maps.conv import Conv2d
from snfnp.maps.dense import Dense

__all__ = ["Conv2d", "Dense"]
