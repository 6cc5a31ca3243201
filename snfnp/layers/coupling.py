"""The affine coupling of Glow (Kingma & Dhariwal 2018). Derivation: derivations/14-coupling.md."""

from dataclasses import dataclass

from snfnp.errors import UsageError
from snfnp.layers.base import Layer

_KERNEL = (3, 3)  # of the network's first and last convolution
_SCALE = 3  # in the output's scale exp(3 logs): as in Glow, the factor makes `logs` learn faster


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
        if self.channels < 2 or self.channels % 2:
            found = f"an affine coupling of {self.channels} channels"
            raise UsageError(f"{found}: they cannot split into halves")
        if self.width < 1:
            raise UsageError(f"width of a coupling's network is {self.width}: it must be positive")

    def parameter_shapes(self, shape) -> dict:
        channels, width = self.channels, self.width
        first, last = (*_KERNEL, channels // 2, width), (*_KERNEL, width, channels)
        hidden = {"w1": first, "b1": (width,), "w2": (width, width), "b2": (width,)}
        return hidden | {"w3": last, "b3": (channels,), "logs": (channels,)}

    def init(self, rng, shape) -> dict:
        params = super().init(rng, shape)
        for name in ("w1", "w2"):
            params[name] = rng.normal(scale=0.05, size=params[name].shape)
        return params

    def output_shape(self, shape):
        if len(shape) != 3 or shape[2] != self.channels:
            raise ValueError(f"a coupling of {self.channels} channels cannot take {shape}")
        return shape

    def forward(self, ops, p, x):
        """z, and ldj (N,) = Σ s."""
        h, hidden = ops.coupling.network(x, p, _SCALE, keep=True)
        z, ldj, s = ops.coupling.forward(x, h)
        return z, ldj, {"x": x, "h": h, "s": s} | hidden

    def inverse(self, ops, p, z):
        """x₁ = z₁, x₂ = (z₂ − h₁) e^{−s}: z₁ is all that the network needs. Exact."""
        h, _ = ops.coupling.network(z, p, _SCALE, keep=False)
        return ops.coupling.inverse(z, h)

    def backward(self, ctx, p, cache, dz, grads):
        """δ_x₂, the direct part of δ_x₁, and δ_h; then through the network to its parameters and
        the rest of δ_x₁."""
        coupling, x = ctx.ops.coupling, cache["x"]
        dx, dh = coupling.backward(x, cache["s"], dz, ctx.dldj)
        coupling.network_backward(x, cache, cache["h"], dh, p, _SCALE, dx, grads)
        return dx
