"""A flow: a chain of invertible layers between images and standard Gaussian latents.

Derivation: derivations/03-change-of-variables.md and 15-split-prior-and-recomputation.md.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from snfnp.context import BackwardContext, Measured
from snfnp.errors import SnfnpError, UsageError
from snfnp.images import fault
from snfnp.layers import Layer, Linear, Preprocess, Whiten
from snfnp.layers.chain import named, of_layer, require_chain, require_ends
from snfnp.layers.preprocess import Standardise
from snfnp.ops import Array, Ops, RandomKey, Scalar, Shape
from snfnp.parameters import Layout

Params = dict[str, dict[str, Array]]  # {layer: {name: array}}

# Each layer draws from _STREAMS of the random generator's streams, from _FIRST_STREAM on; those
# below are drawn from once for a batch (`snfnp.likelihood`).
_FIRST_STREAM = 16
_STREAMS = 16


def layer_key(key: RandomKey, index: int) -> RandomKey:
    """The key of the random numbers of layer `index` of a flow, which all samples share."""
    return RandomKey(key.seed, _FIRST_STREAM + _STREAMS * index, key.step)


def _require_shape(array: Array, shape: Shape) -> None:
    """Raises UsageError for another shape: kernels trust theirs, so arrays are checked on entry."""
    if array.shape[1:] != shape:
        raise UsageError(
            f"found an array of shape {array.shape}: give (N, {', '.join(map(str, shape))})"
        )


@dataclass(frozen=True)
class _Recomputed:
    """Stands for a cache that `backward` rebuilds.

    output: the layer's, or None if the next layer's recomputed input is it; latent: what leaves at
    the layer, if anything.
    """

    output: Array | None
    latent: tuple[Array, ...]


@dataclass(frozen=True)
class Flow:
    """A chain of layers, f = f_K ∘ … ∘ f_0 (paper, section 3.1).

    Methods take `ops`, the backend of their arrays, and `params`, {layer name: {parameter name:
    array}}, as gradients are. The latents of a batch are a tuple: one per split prior, in the order
    of the forward pass, then z, the output of the last layer. All are standard Gaussian under the
    model.

    Args:
        shape: one sample's.
        layers: (name, layer) pairs, in the order of the forward pass.
        preprocess: from images or rows to x, and back.
        image_shape: an image's, if it is not `shape`.

    Raises:
        UsageError: if a layer does not fit its input, which the message names; if `shape` and
            `image_shape` or `preprocess` do not fit each other; if a layer has the name of another,
            or of another term of the likelihood.
    """

    shape: Shape
    layers: tuple[tuple[str, Layer], ...] = field(repr=False)
    preprocess: Preprocess | Standardise = Preprocess()
    image_shape: Shape | None = None

    def __post_init__(self) -> None:
        require_ends(self.shape, self.image_shape, self.preprocess)
        require_chain(self.shape, self.layers)

    @property
    def dimension(self) -> int:
        """D, the number of values in one sample."""
        return math.prod(self.shape)

    def with_shapes(self) -> Iterator[tuple[str, Layer, Shape]]:
        """(name, layer, the shape of one sample of its input), from x to z."""
        shape = self.shape
        for name, layer in self.layers:
            yield name, layer, shape
            shape = layer.output_shape(shape)

    def learned_inverses(self) -> dict[str, tuple[Linear, Shape]]:
        """{name: (layer, the shape of one sample of its input)} of the linear layers with an R."""
        return {
            name: (layer, shape)
            for name, layer, shape in self.with_shapes()
            if isinstance(layer, Linear) and layer.learns_inverse
        }

    @cached_property
    def latent_shapes(self) -> dict[str, Shape]:
        """{name: the shape of one sample} of the latents: split priors' by layer, then z."""
        shapes = {}
        output = self.shape
        for name, layer, shape in self.with_shapes():
            latent = layer.latent_shape(shape)
            if latent is not None:
                shapes[name] = latent
            output = layer.output_shape(shape)
        return shapes | {"z": output}

    @property
    def has_learned_inverse(self) -> bool:
        """True if each linear layer learned an R: then every layer has an `inverse`."""
        return all(
            layer.learns_inverse
            for _, layer in self.layers
            if isinstance(layer, Linear)
        )

    def parameter_shapes(self) -> dict[str, dict[str, Shape]]:
        """{layer name: {parameter name: shape}}."""
        return {
            name: layer.parameter_shapes(shape)
            for name, layer, shape in self.with_shapes()
        }

    @cached_property
    def layout(self) -> Layout:
        """The position of each parameter in a flat buffer."""
        constant = tuple(
            name for name, layer in self.layers if isinstance(layer, Whiten)
        )
        return Layout.of(self.parameter_shapes(), constant)

    @cached_property
    def first_trainable(self) -> int:
        """The index of the first layer with parameters to learn: below it no gradient is needed."""
        learned = {entry.layer for entry in self.layout.optimised.entries}
        return next(
            (index for index, (name, _) in enumerate(self.layers) if name in learned), 0
        )

    def init(self, seed: int) -> Params:
        """Initial parameters, float64 on the host, the same for every backend."""
        rng = np.random.default_rng(seed)
        return {
            name: layer.init(rng, shape) for name, layer, shape in self.with_shapes()
        }

    def init_from_data(
        self,
        ops: Ops,
        params: Params,
        x: Array,
        statistics: Callable[[int], dict[str, Array]] = lambda index: {},
    ) -> None:
        """Set the parameters that depend on data (as actnorm's) in one forward pass: each layer's
        before the next layer gets its input.

        Args:
            params: overwritten.
            x: a first batch (N, *shape).
            statistics: statistics(index) returns {name: value} of the parameters of layer `index`
                that come from more than a batch.

        Raises:
            UsageError: for samples of another shape.
        """
        _require_shape(x, self.shape)
        for index, (name, layer) in enumerate(self.layers):
            p = params[name]
            values = layer.init_from_data(ops, p, x) | statistics(index)
            for parameter, value in values.items():
                p[parameter][...] = value
            x = layer.forward(ops, p, x)[0]

    def encode(
        self, ops: Ops, images: Array, key: RandomKey, dtype: DTypeLike
    ) -> tuple[Array, Array]:
        """Preprocess images or rows.

        Args:
            images: device images (N, *image_shape) or (N, *shape), uint8 or other integers below
                `Preprocess.levels`, or rows of numbers (N, D).
            key: of the dequantisation noise.
            dtype: of the results.

        Returns:
            x (N, *shape), and its log-Jacobian (N,) in nats.

        Raises:
            UsageError: for other images (`require_images`).
        """
        self.require_images(images)
        return self.preprocessed(ops, images, key, dtype)

    def preprocessed(
        self, ops: Ops, images: Array, key: RandomKey, dtype: DTypeLike
    ) -> tuple[Array, Array]:
        """The results of `encode` for images that were checked before."""
        return self.preprocess.forward(ops, images.reshape(-1, *self.shape), key, dtype)

    def decode(self, ops: Ops, x: Array) -> Array:
        """x (N, *shape) -> images (N, *image_shape), uint8, or rows, float64, on the device."""
        return self.preprocess.inverse(ops, x).reshape(
            -1, *(self.image_shape or self.shape)
        )

    def require_images(self, images: Array) -> None:
        """Raises UsageError for images that `encode` does not take. O(1) for uint8."""
        is_rows = getattr(images, "shape", ())[1:] == self.shape
        shape = self.shape if is_rows else self.image_shape or self.shape
        if problem := fault(images, shape, self.preprocess.levels):
            raise UsageError(f"the {self.preprocess.noun}: {problem}")

    def log_density(self, ops: Ops, latents: Sequence[Array]) -> Array:
        """Σ log N(latent; 0, I) over all latents of each sample, in nats: (N,)."""
        return ops.channels.total(
            [ops.channels.gaussian_log_density(each) for each in reversed(latents)]
        )

    def forward(
        self,
        ops: Ops,
        params: Params,
        x: Array,
        recompute: bool = False,
        noise: Callable[[int, Array, dict], Array] | None = None,
    ) -> tuple[tuple[Array, ...], Scalar, list]:
        """Map x to its latents.

        Args:
            x: (N, *shape).
            recompute: keep no cache of layers with a `cheap_exact_inverse`. `backward` recomputes
                their inputs from their outputs, and the caches from those: this costs two more
                passes through these layers, and none of their memory.
            noise: noise(index, z, cache) returns the next layer's input in place of z, the output
                of layer `index`, and puts what `backward` needs of it into the cache.

        Returns:
            The latents; ldj (N,) in nats of the data-dependent layers (Eq. 6), or 0; the caches.

        Raises:
            UsageError: for samples of another shape.
        """
        _require_shape(x, self.shape)
        latents = []
        ldjs = []
        caches = []
        for index, (name, layer) in enumerate(self.layers):
            x, layer_ldj, cache = layer.forward(ops, params[name], x)
            if noise is not None:
                x = noise(index, x, cache)
            if not isinstance(layer_ldj, int):  # 0: it does not depend on x
                ldjs.append(layer_ldj)
            latent = (cache["latent"],) if name in self.latent_shapes else ()
            latents += latent
            if recompute and layer.cheap_exact_inverse:
                if caches and isinstance(caches[-1], _Recomputed):
                    caches[-1] = _Recomputed(None, caches[-1].latent)
                cache = _Recomputed(x, latent)
            caches.append(cache)
            # frees it, if it is recomputed, before the next layer makes its own
            del cache
        return (*latents, x), ops.channels.total(ldjs) if ldjs else 0, caches  # Eq. 6

    def inverse(
        self, ops: Ops, params: Params, latents: tuple[Array, ...], exact: bool = False
    ) -> Array:
        """Map latents to x (N, *shape): in one pass through the learned inverses, by default.

        Args:
            latents: a device array (N, ...) for each of `latent_shapes`.
            exact: use the exact inverses, at the cost of a solve for each linear layer.

        Raises:
            UsageError: if no inverse was learned and `exact` is False, or for other latents.
        """
        if not exact and not self.has_learned_inverse:
            raise UsageError("this flow learned no inverse: use `exact=True`")
        self.require_latents(latents)
        *split_off, z = latents
        for name, layer in reversed(self.layers):
            invert = layer.exact_inverse if exact else layer.inverse
            latent = (split_off.pop(),) if name in self.latent_shapes else ()
            with named(name):
                z = invert(ops, params[name], z, *latent)
        return z

    def require_latents(self, latents: Any, count: int | None = None) -> None:
        """Raises UsageError unless there is an array (count, *shape) for each of `latent_shapes`;
        None: of any number of samples."""
        shapes = self.latent_shapes
        is_sequence = isinstance(latents, (tuple, list))
        number = len(latents) if is_sequence else type(latents).__name__
        if number != len(shapes):
            raise UsageError(
                f"found {number} as latents: give a tuple of {len(shapes)}, "
                f"for {', '.join(shapes)}"
            )
        for latent, (name, shape) in zip(latents, shapes.items(), strict=True):
            actual = getattr(latent, "shape", None)
            fits = actual and actual[1:] == shape and count in (None, actual[0])
            if not fits:
                expected = ", ".join(map(str, (count or "N", *shape)))
                raise UsageError(
                    f"latent {name} has shape {actual}: give an array of shape ({expected})"
                )

    def latent_gradients(self, latents: tuple[Array, ...]) -> tuple[Array, ...]:
        """δ of every latent: the gradient of its log-density averaged over N samples, −latent/N."""
        return tuple([latent * (-1 / len(latent)) for latent in latents])

    def backward(
        self,
        ctx: BackwardContext,
        params: Params,
        caches: list,
        dlatents: tuple[Array, ...],
        grads: Params,
        error_factors: dict[str, Scalar] | None = None,
        first: int = 0,
    ) -> tuple[Array, dict[str, Measured]]:
        """Compute the gradients of all parameters, from the last layer to the first.

        Args:
            ctx: the step, with the backend.
            caches: those of `forward`. Where it kept none, the layer's input is recomputed from its
                output, and the cache from this input.
            dlatents: δ of every latent (`latent_gradients`).
            grads: arrays like the parameters, to be written.
            error_factors: {layer: −2λ/N} of layers with a λ of their own.
            first: the index of the layer to stop at, with the δ of its input.

        Returns:
            δ_x, and the measurements by layer of those that learn their inverse.
        """
        *split_off, delta = dlatents
        factors = error_factors or {}
        measured = {}
        x = None  # the current layer's output, if the one after it recomputed its input
        for index in reversed(range(first, len(self.layers))):
            name, layer = self.layers[index]
            cache = caches[index]
            context = BackwardContext(
                ctx.ops,
                ctx.dldj,
                ctx.log_det_weight,
                factors.get(name, ctx.error_factor),
                ctx.key and layer_key(ctx.key, index),
            )
            dlatent = (split_off.pop(),) if name in self.latent_shapes else ()
            try:  # no context manager: a step calls few functions
                if isinstance(cache, _Recomputed):
                    z = x if cache.output is None else cache.output
                    x = layer.inverse(ctx.ops, params[name], z, *cache.latent)
                    cache = layer.forward(ctx.ops, params[name], x)[2]
                result = layer.backward(
                    context, params[name], cache, delta, grads[name], *dlatent
                )
            except SnfnpError as error:
                raise of_layer(name, error) from error
            if isinstance(result, tuple):  # the layer learns its inverse
                delta, measured[name] = result
            else:
                delta = result
        return delta, measured

    def log_dets(self, ops: Ops, params: Params) -> dict[str, float]:
        """log|det| of every data-independent layer (the Σ log|W_k| of Eq. 7), exact, in nats."""
        log_dets = {}
        for name, layer, shape in self.with_shapes():
            with named(name):
                log_det = layer.log_det(ops, params[name], shape)
            if log_det is not None:
                log_dets[name] = log_det
        return log_dets

    def first_nonfinite(self, ops: Ops, params: Params, x: Array) -> str | None:
        """The first of a forward pass that is not finite: the input, or a layer's output or ldj."""
        if not ops.channels.is_finite(x):
            return "the input"
        for name, layer in self.layers:
            x, ldj, cache = layer.forward(ops, params[name], x)
            results = [x, ops.xp.asarray(ldj)]
            if name in self.latent_shapes:
                results.append(cache["latent"])
            if not all(map(ops.channels.is_finite, results)):
                return f"the output of layer {name}"
        return None

    def first_nonfinite_gradient(self, ops: Ops, grads: Params) -> str | None:
        """The `layer.parameter` whose gradient is not finite, nearest to the output."""
        for entry in reversed(self.layout.optimised.entries):
            if not ops.channels.is_finite(grads[entry.layer][entry.name]):
                return entry.key
        return None
