"""Exact likelihoods. Nothing else in this package is called a likelihood.

`Likelihood` takes a snapshot of the parameters, in double precision unless told otherwise, and
computes the expensive, data-independent log-determinants once (section 3.3, Eq. 7): after a
training step, make a new one.
Derivation: derivations/03-change-of-variables.md.
"""

import math
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from snfnp.errors import DivergedError, require_real, require_whole
from snfnp.flow import Flow
from snfnp.images import with_channels
from snfnp.layers import Linear
from snfnp.maps.condition import condition
from snfnp.ops import Array, Ops, RandomKey

# The streams of the counter-based generator, one per purpose; `snfnp.flow` has those of layers.
(
    TRAINING_NOISE,
    EVALUATION_NOISE,
    SAMPLE_LATENTS,
    AUGMENTATION,
    WHITENING_NOISE,
    SMOOTHING,
) = range(6)
_THREE_DIGITS = 1e-3
_BATCH = 1000  # images whose noise is drawn together
# No floating-point warnings, on any backend and whatever the caller's `np.errstate` is.
_quiet = np.errstate(all="ignore")


@dataclass(frozen=True)
class Evaluation:
    """The mean log-likelihood of a set of images, or rows, term by term.

    Attributes:
        terms: nats by the name of the term: base densities, preprocessing, layers. Their sum is the
            mean log p(x); its mean over the noise of dequantisation is a lower bound on the
            log-probability of the integer images.
        dimension: D, the number of values in one sample.
    """

    terms: dict[str, float]
    dimension: int

    @property
    def nll(self) -> float:
        """Negative log-likelihood in nats per image."""
        return -sum(self.terms.values())

    @property
    def bits_per_dimension(self) -> float:
        """Negative log-likelihood in bits per dimension: nats / (D log 2)."""
        return self.nll / (self.dimension * math.log(2))


class Likelihood:
    """The exact density of a flow at fixed parameters.

    Constructing one costs every layer's exact determinant: O(D³) for a dense layer. Determinants,
    and sums over images, are in double precision.

    Args:
        ops: the backend.
        flow: the flow.
        flat: the parameters in the flow's layout, a device array of any precision, which is copied.
        dtype: of the copy, and of all that depends on x.

    Raises:
        SingularMatrixError: if a layer is singular; the message names it.
    """

    @_quiet
    def __init__(
        self, ops: Ops, flow: Flow, flat: Array, dtype: DTypeLike = np.float64
    ):
        self.ops = ops
        self.flow = flow
        self._dtype: Any = np.dtype(dtype)
        self.params = flow.layout.views(flat.astype(self._dtype))  # not to be changed
        # log|det| of each data-independent layer, in nats
        self.log_dets = flow.log_dets(ops, flow.layout.views(flat.astype(np.float64)))

    @_quiet
    def log_prob(
        self, images: Array, seed: int = 0, at_once: int = _BATCH
    ) -> np.ndarray:
        """log p(x) of each image in nats (Eq. 1), (N,) on the host; the arguments of `evaluate`."""
        # Eq. 7: the expensive terms, the same for every x, are added to those that depend on x
        expensive = sum(self.log_dets.values())
        densities = [
            self.ops.to_host(sum(self._terms(x, ldj).values()) + expensive)
            for _, x, ldj in self._encoded(images, seed, at_once)
        ]
        return np.concatenate(densities)

    @_quiet
    def evaluate(
        self,
        images: Array,
        seed: int = 0,
        at_once: int = _BATCH,
        watch: Callable[..., None] | None = None,
    ) -> Evaluation:
        """The mean log-likelihood of images or rows. O(N D²) beyond the determinants.

        Args:
            images: (N, H, W, C), uint8, or rows (N, D), as `Flow.encode` takes them, on the host or
                the device.
            seed: of the dequantisation noise.
            at_once: images, at most 1000, that go through the flow together: it bounds the memory,
                and changes no result.
            watch: watch(layer name, x, first) gets every input of every layer, and the index of
                its first image among all.

        Raises:
            UsageError: if the images or a number do not fit, before any image reaches a device.
        """
        totals = defaultdict(float)
        for first, x, ldj in self._encoded(images, seed, at_once):
            watch_part = watch and partial(watch, first=first)
            for term, values in self._terms(x, ldj, watch_part).items():
                totals[term] += float(values.sum(dtype=np.float64))
        means = {term: total / len(images) for term, total in totals.items()}
        return Evaluation(self._in_order(means), self.flow.dimension)

    def _encoded(
        self, images: Array, seed: int, at_once: int
    ) -> Iterator[tuple[int, Array, Array]]:
        """For each pass through the flow, in order, once all images were checked: the index of its
        first image among all, x and its log-Jacobian."""
        images = with_channels(images, self.flow.image_shape or self.flow.shape)
        self.flow.require_images(images)
        require_whole(None, 0, seed=seed)
        require_whole(None, 1, at_once=at_once)
        # The noise depends on the batch and on the image's index in it, not on `at_once`.
        for batch, start in enumerate(range(0, len(images), _BATCH)):
            together = images[start : start + _BATCH]
            for first in range(0, len(together), at_once):
                key = RandomKey(seed, EVALUATION_NOISE, batch, first)
                part = self._on_device(together[first : first + at_once])
                encoded = self.flow.preprocessed(self.ops, part, key, self._dtype)
                yield start + first, *encoded

    def _on_device(self, array: Array) -> Array:
        return self.ops.asarray(array) if isinstance(array, np.ndarray) else array

    def _terms(
        self, x: Array, ldj: Array, watch: Callable[..., None] | None = None
    ) -> dict[str, Array]:
        """The data-dependent terms of Eq. 7 per image: preprocessing, layers, base densities."""
        ops = self.ops.forward_only
        flow = self.flow
        terms = {"preprocess": ldj}
        latents = []
        for name, layer in flow.layers:
            if watch is not None:
                watch(name, x)
            x, layer_ldj, cache = layer.forward(ops, self.params[name], x)
            if name in flow.latent_shapes:
                latents.append(cache["latent"])
            del cache  # frees it before the next layer makes its own
            # a layer's ldj may be the number 0: make it (N,), in double precision
            terms[name] = layer_ldj + ops.xp.zeros(len(x))
        for name, latent in zip(flow.latent_shapes, (*latents, x), strict=True):
            terms[_density_row(name)] = flow.log_density(ops, (latent,))
        return terms

    def _in_order(self, means: dict[str, float]) -> dict[str, float]:
        """The terms: base densities first, then every layer in the order of the forward pass."""
        flow = self.flow
        *splits, z = map(_density_row, flow.latent_shapes)
        terms = {row: means[row] for row in (z, *splits)}
        terms |= flow.preprocess.terms(means["preprocess"], flow.dimension)
        for name, _ in flow.layers:
            terms[name] = means[name] + self.log_dets.get(name, 0.0)
        return terms

    @_quiet
    def latents(
        self, images: Array, seed: int = 0, at_once: int = _BATCH
    ) -> tuple[Array, ...]:
        """All latents of images, device arrays (N, ...) as `sample` takes them; the arguments of
        `evaluate`."""
        # recompute: caches are not needed here
        latents = [
            self.flow.forward(self.ops, self.params, x, recompute=True)[0]
            for _, x, _ in self._encoded(images, seed, at_once)
        ]
        return tuple(map(self.ops.xp.concatenate, zip(*latents, strict=True)))

    @_quiet
    def sample(
        self,
        count: int,
        seed: int = 0,
        temperature: float = 1.0,
        exact: bool = False,
        latents: tuple[Array, ...] | None = None,
        at_once: int = _BATCH,
    ) -> np.ndarray:
        """Draw samples, from latents that `seed` determines.

        Args:
            count: how many.
            seed: of the latents.
            temperature: scales the standard deviation of the latents that are drawn.
            exact: use the exact inverses, not the learned ones.
            latents: for each of `Flow.latent_shapes` an array (count, *shape); None: they are
                drawn.
            at_once: samples that go through the flow together: it changes the memory only.

        Returns:
            Images (count, H, W, C), uint8, or rows (count, D), float64, on the host.

        Warns:
            UserWarning: if exact inverses have fewer than three digits.

        Raises:
            DivergedError: if a sample is not finite.
            UsageError: if a number or `latents` do not fit, or if `exact` is False and the flow
                learned no inverse.
        """
        require_whole(None, 0, seed=seed)
        require_whole(None, 1, count=count, at_once=at_once)
        require_real(None, math.inf, or_zero=True, temperature=temperature)
        if latents is not None:
            self.flow.require_latents(latents, count)
        samples = []
        for first in range(0, count, at_once):
            part = slice(first, min(first + at_once, count))
            if latents is None:
                part_of_each = self._draw(part, seed, temperature)
            else:
                part_of_each = tuple(
                    self._on_device(z[part]).astype(self._dtype) for z in latents
                )
            x = self.flow.inverse(self.ops, self.params, part_of_each, exact=exact)
            if not self.ops.channels.is_finite(x):
                advice = "try" if exact else "try `exact=True`, or"
                raise DivergedError(
                    f"samples are not finite: {advice} another checkpoint"
                )
            samples.append(self.ops.to_host(self.flow.decode(self.ops, x)))
        if exact and self._loss_of_digits:
            # level 1 is this line, 2 the wrapper that `_quiet` makes, 3 the caller
            warnings.warn(self._loss_of_digits, stacklevel=3)
        return np.concatenate(samples)

    def _draw(self, part: slice, seed: int, temperature: float) -> tuple[Array, ...]:
        """The latents of the samples `part`."""
        drawn = []
        for index, shape in enumerate(self.flow.latent_shapes.values()):
            # each latent has random numbers of its own: its index takes the place of a step
            key = RandomKey(seed, SAMPLE_LATENTS, index, part.start)
            size = (part.stop - part.start, *shape)
            normal = self.ops.random.normal(key, size, self._dtype)
            drawn.append(float(temperature) * normal)
        return tuple(drawn)

    @cached_property
    def _loss_of_digits(self) -> str:
        """The warning for weights whose rounding moves exact samples by more than a thousandth of
        themselves, or "". Costs what an exact sample does."""
        conditions = {
            name: condition(self.ops, layer.map, self.params[name]["W"], shape)
            for name, layer, shape in self.flow.with_shapes()
            if isinstance(layer, Linear)
        }
        name = max(conditions, key=lambda layer: conditions[layer], default="")
        epsilon = np.finfo(self._dtype).eps
        if not name or epsilon * conditions[name] <= _THREE_DIGITS:
            return ""
        return (
            "exact samples have fewer than three digits, as the condition number of layer "
            f"{name} is about {conditions[name]:.0e}"
        )


def _density_row(latent: str) -> str:
    """The name of the term for the density of a latent (`Flow.latent_shapes`)."""
    return "base density" if latent == "z" else f"{latent} base density"
