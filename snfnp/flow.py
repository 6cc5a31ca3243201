"""A flow: a chain of invertible layers between preprocessed images and a standard Gaussian."""

from __future__ import annotations

import math
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from snfnp.errors import SnfnpError, UsageError
from snfnp.layers import Preprocess


def _require_shape(array, shape) -> None:
    """Kernels trust their shapes, so they are checked once, at the flow's door."""
    if array.shape[1:] != shape:
        raise ValueError(f"expected (N, {', '.join(map(str, shape))}), found {array.shape}")


@contextmanager
def _naming(layer: str):
    """Errors raised inside name the layer in which they arose."""
    try:
        yield
    except SnfnpError as error:
        error.args = (f"layer {layer}: {error}",)
        raise


@dataclass(frozen=True)
class Flow:
    """f = f_K ∘ … ∘ f_0 (paper, section 3.1).

    shape: one sample's shape; layers: (name, layer) pairs, in the order in which x meets them.
    Parameters and gradients are {layer name: {parameter name: array}}.
    """

    shape: tuple[int, ...]
    layers: tuple[tuple[str, object], ...]
    preprocess: Preprocess = Preprocess()

    @property
    def dimension(self) -> int:
        """D, the number of values in one sample."""
        return math.prod(self.shape)

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """One latent's shape: `shape` after every layer (squeezes change it)."""
        shape = self.shape
        for _, layer in self.layers:
            shape = layer.output_shape(shape)
        return shape

    @property
    def has_learned_inverse(self) -> bool:
        """Whether `inverse` exists: every linear layer learned an R."""
        return all(getattr(layer, "learns_inverse", True) for _, layer in self.layers)

    def init(self, seed: int) -> dict:
        """Initial parameters (float64, host), the same on every backend."""
        rng, shape, params = np.random.default_rng(seed), self.shape, {}
        for name, layer in self.layers:
            params[name] = layer.init(rng, shape)
            shape = layer.output_shape(shape)
        return params

    def forward(self, ops, params, x):
        """x (N, ...) -> z, ldj (N,) of the data-dependent layers (Eq. 6), and all caches."""
        _require_shape(x, self.shape)
        ldj, caches = 0, []
        for name, layer in self.layers:
            x, layer_ldj, cache = layer.forward(ops, params[name], x)
            ldj = ldj + layer_ldj
            caches.append(cache)
        return x, ldj, caches

    def inverse(self, ops, params, z, exact: bool = False):
        """z -> x, through the learned inverses (one pass) or the exact ones (`exact`)."""
        if not exact and not self.has_learned_inverse:
            raise UsageError("this flow learned no inverse: use the exact one (--inverse exact)")
        _require_shape(z, self.latent_shape)
        for name, layer in reversed(self.layers):
            with _naming(name):
                invert = exact and getattr(layer, "exact_inverse", None) or layer.inverse
                z = invert(ops, params[name], z)
        return z

    def backward(self, ops, params, caches, dz, dldj, grads, recon):
        """δ_z (N, ...) -> δ_x; every layer writes its parameters' gradients into `grads`."""
        for (name, layer), cache in zip(reversed(self.layers), reversed(caches), strict=True):
            with _naming(name):
                dz = layer.backward(ops, params[name], cache, dz, dldj, grads[name], recon)
        return dz

    def log_dets(self, ops, params) -> dict[str, float]:
        """log|det| of every data-independent layer (the Σ log|W_k| of Eq. 7), exact, in nats."""
        shape, log_dets = self.shape, {}
        for name, layer in self.layers:
            if hasattr(layer, "log_det"):
                with _naming(name):
                    log_dets[name] = layer.log_det(ops, params[name], shape)
            shape = layer.output_shape(shape)
        return log_dets

    def first_nonfinite(self, ops, params, x) -> str | None:
        """The first layer with an output or ldj that is not finite, found by a forward pass."""
        if not bool(ops.xp.isfinite(x).all()):
            return "input"
        for name, layer in self.layers:
            x, ldj, _ = layer.forward(ops, params[name], x)
            if not bool(ops.xp.isfinite(x).all() & ops.xp.isfinite(ldj).all()):
                return name
        return None

    def first_nonfinite_gradient(self, ops, grads) -> str | None:
        """The layer and parameter whose gradient is not finite, nearest to the output."""
        for name, _ in reversed(self.layers):
            for parameter, gradient in grads[name].items():
                if not bool(ops.xp.isfinite(gradient).all()):
                    return f"{name}.{parameter}"
        return None
