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


def _splits(layer) -> bool:
    return hasattr(layer, "latent_shape")


@dataclass(frozen=True)
class _Dropped:
    """What is kept of a layer whose input and cache the backward pass computes again.

    output: the layer's, or None where the layer after it is such a layer too: its input is it.
    latent: what a split prior split off.
    """

    output: object
    latent: object


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

    A flow with split priors has several latents, a tuple: one per split, in the order in which x
    meets them, then z, the output of the last layer. Without them the tuple has z alone.
    """

    shape: tuple[int, ...]
    layers: tuple[tuple[str, object], ...]
    preprocess: Preprocess = Preprocess()

    @property
    def dimension(self) -> int:
        """D, the number of values in one sample."""
        return math.prod(self.shape)

    @property
    def latent_shapes(self) -> tuple[tuple[int, ...], ...]:
        """The shape of every latent of one sample: those of the splits, then z's."""
        shape, shapes = self.shape, []
        for _, layer in self.layers:
            if _splits(layer):
                shapes.append(layer.latent_shape(shape))
            shape = layer.output_shape(shape)
        return (*shapes, shape)

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """z's shape: `shape` after every layer (squeezes and splits change it)."""
        return self.latent_shapes[-1]

    @property
    def splits(self) -> tuple[str, ...]:
        """The names of the split priors."""
        return tuple(name for name, layer in self.layers if _splits(layer))

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

    @property
    def initialises_from_data(self) -> bool:
        """Whether `init_from_data` changes anything."""
        return any(hasattr(layer, "init_from_data") for _, layer in self.layers)

    def init_from_data(self, ops, params, x) -> None:
        """Let a first batch x (N, ...) decide the parameters that depend on data (actnorm's).

        Every such layer gets the batch as the layers before it, already decided, hand it on; its
        arrays in `params` are overwritten. One forward pass.
        """
        _require_shape(x, self.shape)
        for name, layer in self.layers:
            if hasattr(layer, "init_from_data"):
                for parameter, value in layer.init_from_data(ops, params[name], x).items():
                    params[name][parameter][...] = value
            x = layer.forward(ops, params[name], x)[0]

    def forward(self, ops, params, x, recompute: bool = False):
        """x (N, ...) -> z, ldj (N,) of the data-dependent layers (Eq. 6), and all caches.

        ldj contains the log-density of what split priors split off (see `latents`). recompute:
        drop the caches of layers with a `cheap_exact_inverse`. `backward` then computes their
        inputs from their outputs, and the caches from those, layer by layer: about two more passes
        through these layers, and no memory for them. Layers that keep their caches (linear ones
        do) end a chain of inverses, so that rounding errors do not pile up with depth.
        """
        _require_shape(x, self.shape)
        ldj, caches = 0, []
        for name, layer in self.layers:
            x, layer_ldj, cache = layer.forward(ops, params[name], x)
            if not isinstance(layer_ldj, int):  # 0: the layer's does not depend on x
                ldj = layer_ldj if isinstance(ldj, int) else ldj + layer_ldj
            if recompute and getattr(layer, "cheap_exact_inverse", False):
                if caches and isinstance(caches[-1], _Dropped):
                    caches[-1] = _Dropped(None, caches[-1].latent)
                cache = _Dropped(x, cache["latent"] if _splits(layer) else None)
            caches.append(cache)
            del cache  # a dropped one must not live on beside the next layer's
        return x, ldj, caches

    def latents(self, z, caches) -> tuple:
        """All latents of a forward pass, from its z and caches."""
        split_off = [
            cache.latent if isinstance(cache, _Dropped) else cache["latent"]
            for (_, layer), cache in zip(self.layers, caches, strict=True)
            if _splits(layer)
        ]
        return (*split_off, z)

    def inverse(self, ops, params, latents, exact: bool = False):
        """latents -> x, through the learned inverses (one pass) or the exact ones (`exact`).

        latents: the tuple, or z alone for a flow without splits.
        """
        if not exact and not self.has_learned_inverse:
            raise UsageError("this flow learned no inverse: use the exact one (--inverse exact)")
        latents = latents if isinstance(latents, tuple) else (latents,)
        shapes = self.latent_shapes
        if len(latents) != len(shapes):
            raise ValueError(f"expected {len(shapes)} latents, found {len(latents)}")
        for latent, shape in zip(latents, shapes, strict=True):
            _require_shape(latent, shape)
        *split_off, z = latents
        for name, layer in reversed(self.layers):
            with _naming(name):
                invert = exact and getattr(layer, "exact_inverse", None) or layer.inverse
                missing = (split_off.pop(),) if _splits(layer) else ()
                z = invert(ops, params[name], z, *missing)
        return z

    def reconstruct(self, ops, params, x, exact: bool = False):
        """x (N, ...) -> x, forward to all latents and back again."""
        z, _, caches = self.forward(ops, params, x, recompute=True)
        return self.inverse(ops, params, self.latents(z, caches), exact)

    def backward(self, ops, params, caches, dz, dldj, grads, recon):
        """δ_z (N, ...) -> δ_x; every layer writes its parameters' gradients into `grads`.

        Where `forward` dropped a cache, the layer's input is computed from its output, and the
        cache from this input.
        """
        x = None  # what the layer before put out, if the one at hand computed its input again
        for (name, layer), cache in zip(reversed(self.layers), reversed(caches), strict=True):
            with _naming(name):
                if isinstance(cache, _Dropped):
                    z = x if cache.output is None else cache.output
                    missing = (cache.latent,) if _splits(layer) else ()
                    x = layer.inverse(ops, params[name], z, *missing)
                    cache = layer.forward(ops, params[name], x)[2]
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
