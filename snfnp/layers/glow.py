"""Glow's layers (Kingma & Dhariwal 2018): actnorm, affine coupling, and the squeeze and split of
flows with several scales (Dinh et al. 2016).

Derivation: derivations/13-actnorm-and-1x1.md, 14-coupling.md, 15-split-prior-and-recomputation.md.
"""

from dataclasses import dataclass

import numpy as np

from snfnp.context import BackwardContext
from snfnp.errors import UsageError, require_whole
from snfnp.layers.base import Forward, Layer, Params, Shape
from snfnp.ops import Array, Ops

# added to a standard deviation before its logarithm: e^{−s} is at most 1e8
_FLOOR = 1e-8
# a channel is constant if its std is at most so many eps of its root mean square
_CONSTANT = 16
_KERNEL = (3, 3)  # of the first and last convolution of a coupling's network


@dataclass(frozen=True)
class ActNorm(Layer):
    """z = (x − t) e^{−s} with one t and one s per channel, the last axis. O(N D).

    Parameters: t, s (C,), initially 0; `init_from_data` gives a batch mean 0 and variance 1. The
    log-determinant costs nothing, so `forward` returns it as ldj.
    """

    cheap_exact_inverse = True

    def parameter_shapes(self, shape: Shape) -> dict:
        return {"t": shape[-1:], "s": shape[-1:]}

    def init_from_data(self, ops: Ops, p: Params, x: Array) -> dict:
        """Parameters for the batch x (N, ..., C): t = mean, s = log(std + 1e-8) per channel.

        A channel whose std is rounding (16 eps of its root mean square or less) keeps s = 0: 1/std
        would turn its rounding errors, and any later input, into the largest values of the flow.
        """
        xp = ops.xp
        rows = x.reshape(-1, x.shape[-1]).astype(xp.float64)
        first = rows[0]
        rows = rows - first  # exactly 0 for a constant
        mean = first + rows.mean(axis=0)
        std = rows.std(axis=0)
        constant = std <= _CONSTANT * xp.finfo(x.dtype).eps * xp.sqrt(mean**2 + std**2)
        s = xp.where(constant, 0, xp.log(std + _FLOOR))
        return {"t": mean.astype(p["t"].dtype), "s": s.astype(p["s"].dtype)}

    def forward(self, ops: Ops, p: Params, x: Array) -> Forward:
        """z, and ldj (N,) = −H W Σ s for images. The sign of t and the factor of s are −1."""
        z, ldj = ops.channels.shift_scale(x, -1.0, p["t"], -1.0, p["s"])
        return z, ldj, {"z": z}

    def inverse(self, ops: Ops, p: Params, z: Array) -> Array:
        """x = z eˢ + t, exact."""
        return ops.channels.scale_shift(z, p["s"], p["t"])

    def backward(
        self, ctx: BackwardContext, p: Params, cache: dict, dz: Array, grads: Params
    ) -> Array:
        """δ_x = δ_z e^{−s}; G_t = −Σ δ_x; G_s = −Σ δ_z z − H W Σ ∂𝓛/∂ldj."""
        out = (grads["t"], grads["s"])
        return ctx.ops.channels.shift_scale_backward(
            dz, cache["z"], -1.0, -1.0, p["s"], ctx.dldj, out
        )


@dataclass(frozen=True)
class AffineCoupling(Layer):
    """z₁ = x₁, z₂ = x₂ eˢ + h₁ with s = 2 tanh(h₀/2) and (h₀, h₁) = net(x₁).

    Images (H, W, C). x₁ is the first half of the channels, x₂ the second; h₀ are the network's even
    channels 0, 2, …, h₁ the odd ones. |s| < 2, as in the authors' code (Glow has a sigmoid in place
    of eˢ): a coupling scales by no more than e².

    net: 3×3 convolution C/2 -> width, bias, ReLU; 1×1 convolution width -> width, bias, ReLU; 3×3
    convolution width -> C, bias; times e^{3 logs}. Zero padding, no normalisation inside.
    Parameters and their initial values: w1 (3, 3, C/2, width) and w2 (width, width; inputs first)
    normal of standard deviation 0.05 as in Glow; b1, b2 (width,), w3 (3, 3, width, C), b3 and
    logs (C,) zero, so that the layer starts at the identity.

    2 N H W (width² + 13.5 C width) operations in `forward` and `inverse`, twice that in `backward`.
    The cache keeps one hidden activation (N H W, width), on a GPU both.

    Args:
        channels: C, even.
        width: of the network's hidden layers.
    """

    channels: int
    width: int = 512
    cheap_exact_inverse = True

    def __post_init__(self):
        require_whole(self, 1, width=self.width)
        require_whole(self, 2, channels=self.channels)
        if self.channels % 2:
            raise UsageError(
                f"an affine coupling of {self.channels} channels: "
                "they cannot split into halves"
            )

    def parameter_shapes(self, shape: Shape) -> dict:
        channels = self.channels
        width = self.width
        return {
            "w1": (*_KERNEL, channels // 2, width),
            "b1": (width,),
            "w2": (width, width),
            "b2": (width,),
            "w3": (*_KERNEL, width, channels),
            "b3": (channels,),
            "logs": (channels,),
        }

    def init(self, rng: np.random.Generator, shape: Shape) -> dict:
        params = super().init(rng, shape)
        for name in ("w1", "w2"):
            params[name] = rng.normal(scale=0.05, size=params[name].shape)
        return params

    def output_shape(self, shape: Shape) -> Shape:
        if len(shape) != 3 or shape[2] != self.channels:
            raise UsageError(
                f"a coupling of {self.channels} channels cannot take {shape}: "
                f"give it images (H, W, {self.channels})"
            )
        return shape

    def forward(self, ops: Ops, p: Params, x: Array) -> Forward:
        """z, and ldj (N,) = Σ s."""
        h, hidden = ops.coupling.network(x, p, keep=True)
        z, ldj, s = ops.coupling.forward(x, h)
        return z, ldj, {"x": x, "h": h, "s": s} | hidden

    def inverse(self, ops: Ops, p: Params, z: Array) -> Array:
        """x₁ = z₁, x₂ = (z₂ − h₁) e^{−s}: z₁ is all that the network needs. Exact."""
        h, _ = ops.coupling.network(z, p, keep=False)
        return ops.coupling.inverse(z, h)

    def backward(
        self, ctx: BackwardContext, p: Params, cache: dict, dz: Array, grads: Params
    ) -> Array:
        """Backwards through the coupling, for δ_x₂, a part of δ_x₁, and δ_h; then through the
        network, which adds the rest of δ_x₁, for the gradients of its parameters."""
        coupling = ctx.ops.coupling
        x = cache["x"]
        dx, dh = coupling.backward(x, cache["s"], dz, ctx.dldj)
        # the cache has the network's hidden layers, beside other arrays
        coupling.network_backward(x, cache, cache["h"], dh, p, dx, grads)
        return dx


@dataclass(frozen=True)
class Squeeze(Layer):
    """(H, W, C) -> (H/2, W/2, 4C), channel c·4 + dy·2 + dx: a permutation, so ldj is 0. O(N D)."""

    cheap_exact_inverse = True

    def output_shape(self, shape: Shape) -> Shape:
        if len(shape) != 3:
            raise UsageError(f"a squeeze cannot take {shape}: give it images (H, W, C)")
        height, width, channels = shape
        if height % 2 or width % 2:
            raise UsageError(
                f"a squeeze needs an even height and width, found {height} × {width}"
            )
        return height // 2, width // 2, 4 * channels

    def forward(self, ops: Ops, p: Params, x: Array) -> Forward:
        self.output_shape(x.shape[1:])  # raises for an odd height or width
        return ops.channels.squeeze(x), 0, {}

    def inverse(self, ops: Ops, p: Params, z: Array) -> Array:
        return ops.channels.unsqueeze(z)

    def backward(
        self, ctx: BackwardContext, p: Params, cache: dict, dz: Array, grads: Params
    ) -> Array:
        """The transpose of a permutation is its inverse."""
        return ctx.ops.channels.unsqueeze(dz)


@dataclass(frozen=True)
class Split(Layer):
    """(z₁, z₂) = x: z₁, the first half of the channels, goes on; z₂ leaves the flow as a latent.

    After a coupling it is Glow's split prior (Kingma & Dhariwal 2018): z₂ ~ N(0, I) is then an
    affine function of the coupling's input x₂, whose coefficients depend on x₁. So x₂ is Gaussian
    given x₁, with a learned mean and variance.
    """

    cheap_exact_inverse = True

    def output_shape(self, shape: Shape) -> Shape:
        *pixels, channels = shape
        if channels % 2:
            raise UsageError(
                f"a split halves the channels: {channels} is an odd number"
            )
        return (*pixels, channels // 2)

    latent_shape = output_shape  # halves are alike

    def forward(self, ops: Ops, p: Params, x: Array) -> Forward:
        """ldj is 0: the flow adds the density of the latent."""
        halves = ops.xp.split(x, 2, axis=-1)
        z, latent = map(ops.xp.ascontiguousarray, halves)
        return z, 0, {"latent": latent}

    def inverse(self, ops: Ops, p: Params, z: Array, latent: Array) -> Array:
        return ops.xp.concatenate([z, latent], axis=-1)

    def backward(
        self,
        ctx: BackwardContext,
        p: Params,
        cache: dict,
        dz: Array,
        grads: Params,
        dlatent: Array,
    ) -> Array:
        """δ_x = (δ_z₁, δ_z₂)."""
        return ctx.ops.xp.concatenate([dz, dlatent], axis=-1)
