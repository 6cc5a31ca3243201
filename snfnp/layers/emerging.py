"""Emerging convolutions (Hoogeboom et al. 2019), a baseline of the paper's Table 1.

A causal convolution is triangular: its determinant is a product and its inverse a substitution.
Two of them in opposite directions see a pixel's whole neighbourhood, as a 3×3 convolution does.
Derivation: derivations/11-emerging.md.
"""

import math
from dataclasses import dataclass

import numpy as np

from snfnp.errors import SingularMatrixError
from snfnp.layers.base import Layer
from snfnp.layers.linear import Linear
from snfnp.maps import Conv2d
from snfnp.rules import Exact


def emerging_layers(name: str, channels: int, gain: float = 0.01) -> tuple:
    """The (name, layer) pairs of a 1×1 convolution and two causal 2×2 convolutions in opposite
    directions, with a bias after each of the latter, initially the identity plus Xavier normal
    noise of this gain (A.3; the authors' code starts the 1×1 convolution at a random orthogonal
    matrix, and the noise of the causal kernels at a standard deviation of 1/2C)."""
    return (
        (f"{name}_mix", Linear(Conv2d((1, 1), channels), Exact(), bias=False, gain=gain)),
        (f"{name}_causal", CausalConv2d(channels, gain=gain)),
        (f"{name}_anticausal", CausalConv2d(channels, gain=gain, reverse=True)),
    )


@dataclass(frozen=True)
class CausalConv2d(Layer):
    """z = T(W) x + b with a 2×2 kernel that sees the pixel and those above and on the left of it.

    W (2, 2, C, C), with zero padding on top and on the left. Its last tap, W[1, 1], is the pixel
    itself: there channel o sees channels i <= o alone, and W's other values are ignored (gradient
    0). So T(W) is triangular in raster order, with H W copies of W[1, 1]'s diagonal on its own.

    Args:
        channels: C.
        bias: whether there is a b (C,).
        gain: W is initially the identity plus Xavier normal noise of this gain.
        reverse: see the pixels below and on the right instead: the same convolution between two
            turns of the image by 180 degrees.
    """

    channels: int
    bias: bool = True
    gain: float = 0.01
    reverse: bool = False

    def parameter_shapes(self, shape) -> dict:
        c = self.channels
        return {"W": (2, 2, c, c), "b": (c,)} if self.bias else {"W": (2, 2, c, c)}

    def init(self, rng, shape) -> dict:
        c = self.channels
        w = rng.normal(scale=self.gain * math.sqrt(2 / (8 * c)), size=(2, 2, c, c))
        w[1, 1] = np.triu(w[1, 1]) + np.eye(c)
        return {"W": w, "b": np.zeros(c)} if self.bias else {"W": w}

    def output_shape(self, shape):
        return Conv2d((1, 1), self.channels).output_shape(shape)

    def forward(self, ops, p, x):
        """ldj is 0: see `log_det`. O(N H W C²)."""
        return ops.causal.correlate(x, p["W"], p.get("b"), self.reverse), 0, {"x": x}

    def inverse(self, ops, p, z):
        """Exact, by substitution from pixel to pixel. O(N H W C²). Rounding errors grow on the way
        if other taps are large against W[1, 1]."""
        self._diagonal(ops, p)
        return ops.causal.inverse(z - p["b"] if self.bias else z, p["W"], self.reverse)

    def backward(self, ctx, p, cache, dz, grads):
        """G_W = mask ⊙ (δ_z ⋆ x) + H W / diagonal, and δ_x = T(W)ᵀ δ_z."""
        ops, x = ctx.ops, cache["x"]
        self._diagonal(ops, p, wait=False)
        volume = ctx.log_det_weight * math.prod(x.shape[1:3])
        ops.causal.weight_grad(dz, x, p["W"], volume, grads["W"], self.reverse)
        if self.bias:
            ops.channels.sum(dz, out=grads["b"])
        return ops.causal.adjoint(dz, p["W"], self.reverse)

    def log_det(self, ops, p, shape) -> float:
        """log|det T(W)| = H W Σ_c log|W[1, 1, c, c]|. O(C)."""
        return shape[0] * shape[1] * float(ops.xp.log(abs(self._diagonal(ops, p))).sum())

    def _diagonal(self, ops, p, wait: bool = True):
        """The diagonal of W[1, 1] (C,). Raises SingularMatrixError; without `wait` only where the
        host need not wait for the device: a zero then becomes an infinite gradient."""
        diagonal = p["W"][1, 1].diagonal()
        invertible = (abs(diagonal) > 0).all()
        if (bool(invertible) if wait else ops.known_on_host(invertible)) is False:
            raise SingularMatrixError("a causal kernel has a zero or NaN on its diagonal")
        return diagonal
