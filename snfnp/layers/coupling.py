"""The affine coupling of Glow (Kingma & Dhariwal 2018), with its network.

Derivation: derivations/14-coupling.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from snfnp.errors import UsageError
from snfnp.maps import Conv2d

_KERNEL = (3, 3)  # of the network's first and last convolution
_SCALE = 3  # of logs in the output's scale exp(3 logs): Glow's, so that it learns faster


@dataclass(frozen=True)
class AffineCoupling:
    """z₁ = x₁, z₂ = x₂ eˢ + h₁ with s = 2 tanh(h₀/2) and (h₀, h₁) = net(x₁).

    Images (H, W, channels), channels even. x₁ is the first half of the channels, x₂ the second;
    h₀ are the network's even channels 0, 2, …, h₁ the odd ones. |s| < 2: a coupling scales by
    no more than e² and is always invertible.

    net: 3×3 convolution C/2 -> width, bias, ReLU; 1×1 convolution width -> width, bias, ReLU; 3×3
    convolution width -> C, bias; times e^{3 logs}. Zero padding, no normalisation inside.
    Parameters, and what they start at: w1 (3, 3, C/2, width) and w2 (width, width; inputs first)
    normal of standard deviation 0.05 as in Glow; b1, b2 (width,), w3 (3, 3, width, C), b3 and
    logs (C,) zero, so that the layer starts at the identity.

    Cost of the forward pass and of the inverse: 2 N H W (width² + 13.5 C width) operations, of
    the backward pass twice that. Memory: the cache keeps one hidden activation (N H W, width).
    """

    channels: int
    width: int = 512

    # The inverse is exact and costs what the forward pass costs: whoever wants to save memory may
    # drop the cache and recompute the layer's input from its output.
    cheap_exact_inverse: ClassVar[bool] = True

    def __post_init__(self):
        if self.channels < 2 or self.channels % 2:
            raise UsageError(
                f"an affine coupling of {self.channels} channels: a channel count that cannot "
                "split into halves (it must be even and positive)"
            )
        if self.width < 1:
            raise UsageError(f"width of a coupling's network is {self.width}: it must be positive")

    def init(self, rng, shape) -> dict:
        """Initial parameters (float64, host) from a NumPy generator."""
        channels, width = self.channels, self.width
        return {
            "w1": rng.normal(scale=0.05, size=(*_KERNEL, channels // 2, width)),
            "b1": np.zeros(width),
            "w2": rng.normal(scale=0.05, size=(width, width)),
            "b2": np.zeros(width),
            "w3": np.zeros((*_KERNEL, width, channels)),
            "b3": np.zeros(channels),
            "logs": np.zeros(channels),
        }

    def output_shape(self, shape):
        if len(shape) != 3 or shape[2] != self.channels:
            raise ValueError(f"a coupling of {self.channels} channels cannot take {shape}")
        return shape

    def forward(self, ops, p, x):
        """x (N, H, W, C) -> z, ldj (N,) = Σ s."""
        h, a2 = self._network(ops, p, x, keep=True)
        z, ldj, s = ops.affine_coupling(x, h)
        return z, ldj, {"x": x, "a2": a2, "h": h, "s": s}

    def inverse(self, ops, p, z):
        """x₁ = z₁, x₂ = (z₂ − h₁) e^{−s}: z₁ is all that the network needs. Exact."""
        h, _ = self._network(ops, p, z, keep=False)
        return ops.affine_coupling_inverse(z, h)

    def backward(self, ops, p, cache, dz, dldj, g, recon=None):
        """δ_z, δ_ldj -> δ_h, and from there through the network, in blocks of samples.

        The first hidden activation is computed again: 1 % of the layer's operations, and about
        what writing it in the forward pass and reading it here would take.
        """
        xp, a2 = ops.xp, cache["a2"]
        dx, dh = ops.affine_coupling_backward(cache["x"], cache["s"], dz, dldj)
        # h = (w3 ⋆ a₂ + b3) e^{3 logs}
        out = (g["b3"], g["logs"])
        dh = ops.bias_scale_backward(dh, cache["h"], _SCALE, p["logs"], out=out)

        samples, height, columns, _ = dx.shape
        half, width = self.channels // 2, self.width
        w1_adjoint, w3_adjoint = Conv2d.flip(p["w1"]), Conv2d.flip(p["w3"]).reshape(-1, width)
        patches_1, patches_3 = self._patches(ops, cache["x"]), ops.patches(dh, _KERNEL)
        # (width, taps): BLAS is faster this way round. patches_3 are those of flip(w3).
        g_w1, g_w3 = (xp.empty((width, q.shape[1]), dx.dtype) for q in (patches_1, patches_3))
        blocks, most = _blocks(ops, samples, height * columns)
        a1, d1, d2 = (xp.empty((most, width), dx.dtype) for _ in range(3))
        for block, rows in blocks:
            size, add = rows.stop - rows.start, block.start > 0  # the first block writes
            a1_, d1_, d2_, a2_ = a1[:size], d1[:size], d2[:size], a2[rows]

            _product(ops, a2_.T, patches_3[rows], g_w3, add)
            ops.matmul(patches_3[rows], w3_adjoint, out=d2_)
            _put(ops.bias_relu_backward(d2_, a2_), g["b2"], add)

            self._first(ops, p, patches_1[rows], a1_)
            _product(ops, a1_.T, d2_, g["w2"], add)
            ops.matmul(d2_, p["w2"].T, out=d1_)
            _put(ops.bias_relu_backward(d1_, a1_), g["b1"], add)

            _product(ops, d1_.T, patches_1[rows], g_w1, add)
            images = d1_.reshape(-1, height, columns, width)
            dx[block][..., :half] += ops.conv(images, w1_adjoint)
        g["w1"][...] = g_w1.T.reshape(p["w1"].shape)
        g["w3"][...] = Conv2d.flip(g_w3.T.reshape(*_KERNEL, self.channels, width))
        return dx

    def _network(self, ops, p, x, keep):
        """x (N, H, W, C) -> h (N, H, W, C) and, if asked to keep it, a₂ (N H W, width)."""
        xp, width = ops.xp, self.width
        samples, height, columns, _ = x.shape
        h = xp.empty(x.shape, x.dtype)
        blocks, most = _blocks(ops, samples, height * columns)
        patches = self._patches(ops, x)
        a1 = xp.empty((most, width), x.dtype)
        a2 = xp.empty((samples * height * columns if keep else most, width), x.dtype)
        for block, rows in blocks:
            size = rows.stop - rows.start
            a1_, a2_ = a1[:size], a2[rows] if keep else a2[:size]
            self._first(ops, p, patches[rows], a1_)
            ops.matmul(a1_, p["w2"], out=a2_)
            ops.bias_relu(a2_, p["b2"])
            v = ops.conv(a2_.reshape(-1, height, columns, width), p["w3"])
            ops.bias_scale(v, p["b3"], _SCALE, p["logs"], out=h[block])
        return h, a2

    def _patches(self, ops, x):
        """What the first convolution sees of x (N, H, W, C), or rather of x₁."""
        return ops.patches(x[..., : self.channels // 2], _KERNEL)

    def _first(self, ops, p, patches, a1):
        """Rows of patches -> the same rows of the first activation, into a1 (rows, width)."""
        ops.matmul(patches, p["w1"].reshape(-1, self.width), out=a1)
        ops.bias_relu(a1, p["b1"])


def _put(value, out, add) -> None:
    """out = value, or out += value."""
    if add:
        out += value
    else:
        out[...] = value


def _product(ops, a, b, out, add) -> None:
    """out = a b, or out += a b (by ops.matmul_add a step takes 1 % longer on a CPU)."""
    if add:
        out += ops.matmul(a, b)
    else:
        ops.matmul(a, b, out=out)


def _blocks(ops, samples, pixels):
    """[(slice of the samples, slice of their rows), …] of about equal size, and the most rows.

    An empty batch is one empty block.
    """
    most = max(1, ops.network_rows // pixels)
    step = math.ceil(samples / max(1, math.ceil(samples / most)))
    starts = range(0, samples, step) if samples else [0]
    blocks = [slice(start, min(start + step, samples)) for start in starts]
    return [(b, slice(b.start * pixels, b.stop * pixels)) for b in blocks], step * pixels
