"""Actnorm (Kingma & Dhariwal 2018). Derivation: derivations/13-actnorm-and-1x1.md."""

from dataclasses import dataclass

from snfnp.layers.base import Layer

_FLOOR = 1e-8  # added to a standard deviation before its logarithm: e^{−s} is at most 1e8
_CONSTANT = 16  # times eps: a channel whose std / root mean square is no more is constant


@dataclass(frozen=True)
class ActNorm(Layer):
    """z = (x − t) e^{−s} with one t and one s per channel, the last axis. O(N D).

    Parameters: t, s (C,), initially 0; `init_from_data` gives a batch mean 0 and variance 1. The
    log-determinant costs nothing, so `forward` returns it as ldj.
    """

    cheap_exact_inverse = True

    def parameter_shapes(self, shape) -> dict:
        return {"t": shape[-1:], "s": shape[-1:]}

    def init_from_data(self, ops, p, x) -> dict:
        """Parameters for the batch x (N, ..., C): t = mean, s = log(std + 1e-8) per channel.

        A channel whose std is rounding (16 eps of its root mean square or less) keeps s = 0: 1/std
        would turn its rounding errors, and any later input, into the largest values of the flow.
        """
        xp = ops.xp
        rows = x.reshape(-1, x.shape[-1]).astype(xp.float64)
        rows, first = rows - rows[0], rows[0]  # exactly 0 for a constant
        offset = rows.mean(axis=0)
        mean, std = first + offset, xp.sqrt(((rows - offset) ** 2).mean(axis=0))
        constant = std <= _CONSTANT * xp.finfo(x.dtype).eps * xp.sqrt(mean**2 + std**2)
        s = xp.where(constant, 0, xp.log(std + _FLOOR))
        return {"t": mean.astype(p["t"].dtype), "s": s.astype(p["s"].dtype)}

    def forward(self, ops, p, x):
        """z, and ldj (N,) = −H W Σ s for images."""
        z, ldj = ops.channels.actnorm(x, p["t"], p["s"])
        return z, ldj, {"z": z}

    def inverse(self, ops, p, z):
        """x = z eˢ + t, exact."""
        return ops.channels.actnorm_inverse(z, p["t"], p["s"])

    def backward(self, ctx, p, cache, dz, grads):
        """δ_x = δ_z e^{−s}; G_t = −Σ δ_x; G_s = −Σ δ_z z − H W Σ ∂𝓛/∂ldj."""
        out = (grads["t"], grads["s"])
        return ctx.ops.channels.actnorm_backward(dz, cache["z"], p["s"], ctx.dldj, out)
