"""The linear layer (paper, section 4). Derivation: derivations/04-dense.md, 07-convolutions.md."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from snfnp.context import BackwardContext
from snfnp.errors import UsageError, require_instance, require_real
from snfnp.layers.base import Forward, Layer, Params, Shape
from snfnp.maps import Map
from snfnp.ops import Array, Ops
from snfnp.rules import Rule, SelfNormalizing


@dataclass(frozen=True)
class Linear(Layer):
    """f(x) = T(W) x + b and its learned inverse g(z) = T(R)(z − b).

    Parameters: W, R (only if the rule learns an inverse; initially flip(W)), b.

    Args:
        map: the structure of T: `Dense` or `Conv2d`.
        rule: how the gradient of log|det T(W)| is computed or replaced.
        bias: whether there is a b.
        init_kind: the initial W. "paper": the identity plus Xavier normal noise (A.3); "identity"
            (the authors' code, for dense layers); "orthogonal": a random rotation or reflection of
            the features or channels (Glow), plus that noise if the kernel has more than one tap.
        gain: the gain of the noise.
        inverse_map: the structure of R if it is not W's: a larger kernel (A.4).
        bias_init: b is initially 0 ("zero"), or gives the first batch mean 0 ("data").
    """

    map: Map
    rule: Rule = SelfNormalizing()
    bias: bool = True
    init_kind: str = "paper"
    gain: float = 0.01
    inverse_map: Map | None = None
    bias_init: str = "zero"

    def __post_init__(self):
        require_instance(self, Map, map=self.map)
        require_instance(self, Rule, rule=self.rule)
        require_real(self, math.inf, or_zero=True, gain=self.gain)
        if self.init_kind not in ("paper", "identity", "orthogonal"):
            raise UsageError(
                f"init_kind is {self.init_kind!r}: choose paper, identity or orthogonal"
            )
        if self.bias_init not in ("zero", "data"):
            raise UsageError(f"bias_init is {self.bias_init!r}: choose zero or data")
        if self.bias_init == "data" and not self.bias:
            raise UsageError(
                "bias_init is 'data', but the layer has no bias: leave it out"
            )
        if self.inverse_map is not None:
            require_instance(self, Map, inverse_map=self.inverse_map)
            if not self.learns_inverse:
                raise UsageError("an inverse_map needs a rule that learns an inverse")
        self.rule.check_maps(*self.maps)

    @property
    def learns_inverse(self) -> bool:
        return self.rule.learns_inverse

    @cached_property
    def maps(self) -> tuple[Map, Map]:
        """(f, g): the map that W is a weight of, and the map that R is a weight of."""
        return self.map, self.inverse_map or self.map

    def parameter_shapes(self, shape: Shape) -> dict:
        f, g = self.maps
        shapes = {"W": f.weight_shape}
        if self.learns_inverse:
            shapes["R"] = g.weight_shape
        if self.bias:
            shapes["b"] = self.output_shape(shape)[-1:]
        return shapes

    def init(self, rng: np.random.Generator, shape: Shape) -> dict:
        f, g = self.maps
        w = f.identity()
        noisy = self.init_kind == "paper"
        if self.init_kind == "orthogonal":
            noisy = w.size != w.shape[-1] ** 2  # more than one tap
            # rotates the identity's only tap
            w = w @ _random_orthogonal(rng, w.shape[-1])
        if noisy:
            w = w + rng.normal(scale=xavier(w.shape, self.gain), size=w.shape)
        params = super().init(rng, shape) | {"W": w}
        if self.learns_inverse:
            params["R"] = g.pad_or_crop(f.flip(w)).copy()  # T(R) = T(W)ᵀ (A.3)
        return params

    def init_from_data(self, ops: Ops, p: Params, x: Array) -> dict:
        """With bias_init "data": b = −mean of T(W) x, over samples and pixels, in float64."""
        if self.bias_init == "zero":
            return {}
        z0 = self.map.apply(ops, p["W"], x)
        rows = z0.reshape(-1, z0.shape[-1]).astype(ops.xp.float64)
        return {"b": (-rows.mean(axis=0)).astype(p["b"].dtype)}

    def output_shape(self, shape: Shape) -> Shape:
        f, g = self.maps
        output = f.output_shape(shape)
        back = g.output_shape(output) if self.inverse_map else shape
        if back != shape:
            raise UsageError(
                f"inverse_map leads from {output} to {back}: "
                f"let it lead back to {shape}"
            )
        return output

    def forward(self, ops: Ops, p: Params, x: Array) -> Forward:
        """ldj is 0: see `log_det`."""
        z0 = self.map.apply(ops, p["W"], x)
        z = ops.channels.shift(z0, p["b"]) if self.bias else z0
        return z, 0, {"x": x, "z0": z0}

    def inverse(self, ops: Ops, p: Params, z: Array) -> Array:
        """x ≈ T(R)(z − b), or exact if no R is learned."""
        if not self.learns_inverse:
            return self.exact_inverse(ops, p, z)
        return self.maps[1].apply(ops, p["R"], z - p["b"] if self.bias else z)

    def exact_inverse(self, ops: Ops, p: Params, z: Array) -> Array:
        """x = T(W)⁻¹(z − b)."""
        return self.map.solve(ops, p["W"], z - p["b"] if self.bias else z)

    def backward(
        self, ctx: BackwardContext, p: Params, cache: dict, dz: Array, grads: Params
    ) -> Any:
        """G_b = Σ δ_z over samples and pixels; the rule computes the other gradients, and δ_x."""
        if self.bias:  # both densities contain b, and ½ + ½ = 1
            ctx.ops.channels.sum(dz, out=grads["b"])
        return self.rule.backward(ctx, self.maps, p, cache, dz, grads)

    def log_det(self, ops: Ops, p: Params, shape: Shape) -> float:
        """log|det T(W)| of Eq. 7."""
        return self.map.log_det(ops, p["W"], shape)


def xavier(shape: Shape, gain: float) -> float:
    """The standard deviation of Xavier normal noise in a weight (*taps, I, O): fan-in and fan-out
    are I and O times the number of taps, and (1, 1) for a vector."""
    *taps, inputs, outputs = shape if len(shape) > 1 else (1, 1)
    return gain * math.sqrt(2 / (math.prod(taps) * (inputs + outputs)))


def _random_orthogonal(rng: np.random.Generator, size: int) -> np.ndarray:
    """A uniform (Haar) random orthogonal matrix: Q of a Gaussian G = QR with R's diagonal positive,
    so that the factors are unique, and rotating G rotates Q alike."""
    q, r = np.linalg.qr(rng.standard_normal((size, size)))
    return q * np.where(np.diagonal(r) < 0, -1.0, 1.0)
