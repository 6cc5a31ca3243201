"""Exact likelihoods. Nothing else in this package is called a likelihood.

`Likelihood` takes a snapshot of the parameters in double precision and computes the expensive,
data-independent log-determinants once (section 3.3, Eq. 7): after a training step, make a new one.
Derivation: derivations/02-change-of-variables.md.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from snfnp.errors import DivergedError
from snfnp.flow import Flow
from snfnp.ops import SINGLE_PROCESS, Communicator, RandomKey, shares
from snfnp.parameters import Layout

# The streams of the counter-based generator, one per purpose; for layers' see `snfnp.context`.
TRAINING_NOISE, EVALUATION_NOISE, SAMPLE_LATENTS, AUGMENTATION, WHITENING_NOISE = range(5)


@dataclass(frozen=True)
class Evaluation:
    """Mean log-likelihood of a set of images as a ledger of terms, in nats per image.

    ledger: term -> nats; their sum is the mean log p(x), with noise from `dequantisation_seed`. Its
    mean over the noise is a lower bound on the log-probability of the integer images.
    """

    ledger: dict[str, float]
    dimension: int
    images: int
    dequantisation_seed: int

    @property
    def nll(self) -> float:
        """Negative log-likelihood in nats per image."""
        return -sum(self.ledger.values())

    @property
    def bits_per_dimension(self) -> float:
        """Negative log-likelihood in bits per dimension: nats / (D log 2)."""
        return self.nll / (self.dimension * math.log(2))


class Likelihood:
    """Exact density of a flow at fixed parameters.

    flat: the parameter buffer (any precision; a double-precision copy is kept).
    Constructing one costs every layer's exact determinant: O(D³) for a dense layer.
    """

    def __init__(self, ops, flow: Flow, layout: Layout, flat):
        self._ops, self._flow = ops, flow
        self.params = layout.views(flat.astype(np.float64))  # not to be changed
        self._log_dets = flow.log_dets(ops, self.params)

    @property
    def log_dets(self) -> dict[str, float]:
        """log|det| of each data-independent layer, in nats."""
        return dict(self._log_dets)

    def log_prob(self, images, key: RandomKey):
        """log p(x) per image (N,), in nats (Eq. 1): device images (N, ...), one draw of noise."""
        terms = self._terms(*self._encode(images, key))
        # Eq. 7: what depends on x, and the expensive terms, which are the same for every x
        return sum(terms.values()) + sum(self._log_dets.values())

    def evaluate(
        self,
        images,
        seed: int,
        batch_size: int = 1000,
        at_once: int | None = None,
        watch: Callable | None = None,
        world: Communicator = SINGLE_PROCESS,
    ) -> Evaluation:
        """The mean over host images (N, ...), as a ledger. O(N D²) beyond the determinants.

        batch_size: images whose noise is drawn together; at_once: how many of them go through the
        flow together (default: all), which changes the memory only. watch(layer, x): gets every
        input of every layer. world: the ranks, which all call this, share the images and get one
        result; rank 0 shows the first images to `watch` as long as it is `watch.wants_more()`.
        """
        at_once = min(at_once or batch_size, batch_size)
        parts = [
            (index, start, range(first, min(first + at_once, batch_size, len(images) - start)))
            for index, start in enumerate(range(0, len(images), batch_size))
            for first in range(0, min(batch_size, len(images) - start), at_once)
        ]
        mine = shares(len(parts), world.size)[world.rank]
        totals: dict[str, float] = {}
        for place, (index, start, part) in enumerate(parts):
            watching = watch
            if world.size > 1 and (world.rank or not watch or not watch.wants_more()):
                watching = None
            if place not in mine and not watching:
                continue
            batch = self._ops.asarray(images[start + part.start : start + part.stop])
            x, ldj = self._encode(batch, RandomKey(seed, EVALUATION_NOISE, index, part.start))
            for term, values in self._terms(x, ldj, watching).items():
                total = float(values.sum()) if place in mine else 0.0
                totals[term] = totals.get(term, 0.0) + total
        means: dict[str, float] = {}
        for of_rank in world.gather(totals):
            for term, total in of_rank.items():
                means[term] = means.get(term, 0.0) + total
        means = {term: total / len(images) for term, total in means.items()}
        return Evaluation(self._in_order(means), self._flow.dimension, len(images), seed)

    def _encode(self, images, key) -> tuple:
        return self._flow.encode(self._ops, images, key, np.float64)

    def _terms(self, x, ldj, watch=None) -> dict:
        """The data-dependent terms of Eq. 7 per image, preprocessing to base density."""
        ops, flow = self._ops, self._flow
        terms, latents = {"preprocess": ldj}, []
        for name, layer in flow.layers:
            if watch is not None:
                watch(name, x)
            x, layer_ldj, cache = layer.forward(ops, self.params[name], x)
            if name in flow.latent_names:
                latents.append(cache["latent"])
            del cache  # frees it before the next layer makes its own
            if name not in self._log_dets:
                terms[name] = layer_ldj + ops.xp.zeros(len(x))  # an ldj may be the number 0
        for name, latent in zip(flow.latent_names, (*latents, x), strict=True):
            terms[_density_row(name)] = flow.log_density(ops, (latent,))
        return terms

    def _in_order(self, means: dict[str, float]) -> dict[str, float]:
        """The ledger: base densities first, then every layer in the order of the forward pass."""
        flow = self._flow
        *splits, z = map(_density_row, flow.latent_names)
        ledger = {row: means[row] for row in (z, *splits)}
        ledger |= flow.preprocess.terms(means["preprocess"], flow.dimension)
        for name, _ in flow.layers:
            ledger[name] = self._log_dets.get(name, means.get(name, 0.0))
        return ledger

    def latents(self, images, key: RandomKey) -> tuple:
        """All latents of device images (N, ...), one draw of noise: what `sample` can be given."""
        x, _ = self._encode(images, key)
        # recompute: caches are not needed here
        return self._flow.forward(self._ops, self.params, x, recompute=True)[0]

    def sample(
        self,
        count: int,
        seed: int,
        temperature: float = 1.0,
        exact: bool = False,
        latents: tuple | None = None,
        part: int = 0,
        refined: bool = False,
    ):
        """`count` images (count, *shape), uint8 on the host, from latents that `seed` fixes.

        temperature scales the standard deviation of the latents that are drawn; exact, refined: as
        in `Flow.inverse`. latents: for each of `Flow.latent_shapes` a device array (count, *latent
        shape), or None if it is to be drawn; what is drawn does not depend on what is given.
        part: 0, 1, … for calls that together make more images than fit at once, all different.
        """
        ops, flow = self._ops, self._flow
        shapes = flow.latent_shapes
        given = (None,) * len(shapes) if latents is None else latents
        filled = []
        for index, (latent, shape) in enumerate(zip(given, shapes, strict=True)):
            if latent is None:
                key = RandomKey(seed, SAMPLE_LATENTS, part * len(shapes) + index)
                latent = temperature * ops.random.normal(key, (count, *shape), np.float64)
            elif len(latent) != count:
                raise ValueError(f"expected {count} latents of shape {shape}, found {len(latent)}")
            filled.append(latent)
        x = flow.inverse(ops, self.params, tuple(filled), exact=exact, refined=refined)
        if not bool(ops.xp.isfinite(x).all()):
            raise DivergedError(
                "samples are not finite: the inverse of this flow is not to be used at this "
                "checkpoint; try --inverse exact, or another checkpoint"
            )
        return ops.to_host(flow.decode(ops, x))


def _density_row(latent: str) -> str:
    """The ledger's row for the density of a latent (`Flow.latent_names`)."""
    return "base density" if latent == "z" else f"{latent} base density"
