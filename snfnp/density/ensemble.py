"""A weighted average of densities: its exact density, and exact samples of it.

Derivation: derivations/25-an-average-of-densities.md.
"""

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import cast

import numpy as np
from numpy.random import Generator

from snfnp.data.ties import offsets
from snfnp.density.mixture import Mixture
from snfnp.density.training import Candidate
from snfnp.flow import Flow
from snfnp.layers.preprocess import Standardise
from snfnp.likelihood import Likelihood
from snfnp.ops import Ops, get_ops
from snfnp.training.options import TrainConfig

_LEAST = 0.01  # the smallest weight that is kept
_ITERATIONS = 1000  # of EM for weights
_ATTEMPTS = 20  # to draw a row within the values of its columns
_AT_ONCE = 20_000  # rows that go through all densities together


def stacked_weights(scores: np.ndarray) -> np.ndarray:
    """The weights of an average of densities at which held-out rows are most likely.

    Σ_n log Σ_m w_m p_m(x_n) is concave in w; EM climbs to its maximum over w ≥ 0, Σ w = 1
    (stacked density estimation, Smyth & Wolpert 1999). Weights below 0.01 are set to 0.

    Args:
        scores: log p_m(x_n) of M densities and N rows that none of them was trained on, (M, N).

    Returns:
        w, (M,).
    """
    weights = np.full(len(scores), 1 / len(scores))
    # finite if no p_m(x_n) is
    highest = scores.max(axis=0, initial=np.finfo(float).min)
    relative = np.exp(scores - highest) + np.finfo(float).tiny
    for _ in range(_ITERATIONS):
        weights *= (relative / (weights @ relative)).mean(axis=1)
    weights[weights < min(_LEAST, weights.max())] = 0.0
    return weights / weights.sum()


@dataclass(frozen=True)
class FlowMember:
    """A trained flow and its parameters, flat."""

    ops: Ops
    flow: Flow
    p: np.ndarray

    @cached_property
    def likelihood(self) -> Likelihood:
        """The likelihood that was trained: with noise in columns that have a step."""
        return Likelihood(self.ops, self.flow, self.p)

    @cached_property
    def without_noise(self) -> Likelihood:
        """The density of the noisy rows, at a row as it is."""
        noisy = cast(Standardise, self.flow.preprocess)
        flow = replace(self.flow, preprocess=Standardise(noisy.mean, noisy.spread))
        return Likelihood(self.ops, flow, self.p)

    def log_prob(self, rows: np.ndarray) -> np.ndarray:
        return self.without_noise.log_prob(rows)

    def sample(self, count: int, rng: Generator, exact: bool) -> np.ndarray:
        return self.without_noise.sample(count, int(rng.integers(2**31)), exact=exact)


@dataclass(frozen=True)
class MixtureMember:
    """A mixture of standardised rows."""

    preprocess: Standardise
    mixture: Mixture

    def log_prob(self, rows: np.ndarray) -> np.ndarray:
        z = (rows - self.preprocess.mean) / self.preprocess.spread
        return self.mixture.log_prob(z) - np.log(self.preprocess.spread).sum()

    def sample(self, count: int, rng: Generator, exact: bool) -> np.ndarray:
        z = self.mixture.sample(count, rng)
        return z * self.preprocess.spread + self.preprocess.mean


@dataclass(frozen=True)
class Ensemble:
    """p(x) = Σ_m w_m p_m(x), exact as each p_m is. weights: w; members: p_m.

    In columns with a step, p is averaged over 16 points of a cell around x: the same points for
    every x, so that p still integrates to 1.
    """

    weights: np.ndarray
    members: tuple[FlowMember | MixtureMember, ...]
    preprocess: Standardise

    def log_prob(self, rows: np.ndarray) -> np.ndarray:
        """log p(x) of rows (N, D), in nats: (N,); -inf where it is too small to be computed."""
        step = self.preprocess.step
        points = offsets(np.array(step)) if step else [0.0]
        scores = []
        for part in np.array_split(rows, math.ceil(len(rows) / _AT_ONCE)):
            # -inf instead of NaN: so far out numbers overflow on their way
            terms = [
                math.log(weight) + np.fmax(member.log_prob(part + point), -np.inf)
                for weight, member in zip(self.weights, self.members, strict=True)
                for point in points
            ]
            total = np.logaddexp.reduce(terms)
            scores.append(total - math.log(len(points)))
        return np.concatenate(scores)

    def sample(self, count: int, rng: Generator, exact: bool) -> np.ndarray:
        """Rows (count, D), with the values of columns that have a step: a row beyond their least or
        greatest value is drawn again, and after some attempts takes that value."""
        ops = get_ops("numpy")
        rows, within = self.preprocess.rounded(ops, self._drawn(count, rng, exact))
        for _ in range(_ATTEMPTS):
            beyond = np.flatnonzero(~within)
            if not len(beyond):
                break
            again = self._drawn(len(beyond), rng, exact)
            rows[beyond], within[beyond] = self.preprocess.rounded(ops, again)
        return rows

    def _drawn(self, count: int, rng: Generator, exact: bool) -> np.ndarray:
        """Rows (count, D): of each member as many as a draw from w says, in random order."""
        counts = rng.multinomial(count, self.weights)
        parts = [
            member.sample(int(part), rng, exact)
            for part, member in zip(counts, self.members, strict=True)
            if part
        ]
        return rng.permutation(np.concatenate(parts)) if len(parts) > 1 else parts[0]


@dataclass(frozen=True)
class Fit:
    """The result of a fit.

    config, flow: of all flows; kept: candidates and their weights; best: the best flows.
    """

    config: TrainConfig
    flow: Flow
    kept: list[tuple[Candidate, float]]
    best: Candidate

    @property
    def preprocess(self) -> Standardise:
        return cast(Standardise, self.flow.preprocess)

    @cached_property
    def best_flow(self) -> FlowMember:
        return FlowMember(get_ops(self.config.backend), self.flow, self.best.members[0])

    @cached_property
    def ensemble(self) -> Ensemble:
        """The average; within a candidate, all members have equal weights."""
        ops = get_ops(self.config.backend)
        pairs = [
            (
                weight / len(candidate.members),
                MixtureMember(self.preprocess, member)
                if isinstance(member, Mixture)
                else FlowMember(ops, self.flow, member),
            )
            for candidate, weight in self.kept
            for member in candidate.members
        ]
        weights, members = zip(*pairs, strict=True)
        return Ensemble(np.array(weights), members, self.preprocess)
