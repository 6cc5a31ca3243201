"""Mixtures of Gaussians, candidates beside flows: few parameters, for tables of few rows.

Derivation: derivations/25-an-average-of-densities.md.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.random import Generator

from snfnp import threads

_ITERATIONS = 100  # of EM, at most
# Nats per row that an iteration has to gain for another one. From _MANY rows on it is ten times as
# much: stopping early regularises many components, and is three times as fast.
_GAIN = 1e-4
_MANY = 1000
# A mixture of more rows than _FIRST is fitted to so many of them first, and then to all of them for
# at most _ON_ALL iterations.
_FIRST = 20_000
_ON_ALL = 12
# numbers in an array at a time, about: rows times a row's responsibilities and features
_NUMBERS = 2**18
# the rounding error of a covariance, in units of its second moments
_ROUNDING = 16 * np.finfo(float).eps
_TINY = 1e-300  # in place of a count of 0, which is divided by


@dataclass(frozen=True)
class Mixture:
    """Σ_k π_k N(x; μ_k, Σ_k) for rows x (N, D).

    weights: π (K,); means: μ (K, D); roots: the Cholesky factors L_k of Σ_k = L_k L_kᵀ (K, D, D).
    """

    weights: np.ndarray
    means: np.ndarray
    roots: np.ndarray

    @classmethod
    def fit(
        cls,
        rows: np.ndarray,
        components: int,
        kind: str,
        prior: float,
        seed: int | tuple[int, int],
    ) -> "Mixture":
        """Fit by EM, with a prior that keeps every covariance regular. O(K N D²) an iteration.

        Args:
            rows: (N, D), at least `components` of them; in random order if there are many.
            components: K.
            kind: of the covariances, "full", "diagonal" or "tied": one for all components.
            prior: rows that the prior of each covariance counts as.
            seed: of the start, K rows far apart (k-means++, Arthur & Vassilvitskii 2007).
        """
        columns = rows.shape[1]
        covariance = np.cov(rows.T, bias=True).reshape(columns, columns)
        usual = covariance / components ** (2 / columns)
        usual += 1e-6 * np.trace(usual) / columns * np.eye(columns)
        first = rows[:_FIRST]
        labels = _start(first, components, np.random.default_rng(seed))
        width = _width(components, columns)
        parts = zip(_parts(first, width), _parts(labels, width), strict=True)
        sums: Any = sum(
            np.eye(components)[nearest].T @ _features(part) for part, nearest in parts
        )
        gain = _GAIN if len(rows) < _MANY else 10 * _GAIN

        def climbed(sums, some, iterations):
            """The mixture after EM on rows (N, D), at most so many steps, and its sums (K, F)."""
            mean = -math.inf
            features = _features(some) if len(some) * width <= _NUMBERS else None
            while True:
                mixture = cls._maximised(sums, usual, kind, prior)
                before = mean
                mean, sums = mixture._expected(some, features)
                iterations -= 1
                if mean - before < gain or not iterations:
                    return mixture, sums

        mixture, sums = climbed(sums, first, _ITERATIONS)
        if len(rows) > len(first):
            mixture, _ = climbed(sums, rows, _ON_ALL)
        return mixture

    @classmethod
    def _maximised(
        cls, sums: np.ndarray, usual: np.ndarray, kind: str, prior: float
    ) -> "Mixture":
        """The M-step: π, μ and Σ from the sums of `_features` over rows, weighted by the
        responsibilities, (K, F). usual: C K^(−2/D), the mean of the prior, (D, D)."""
        columns = len(usual)
        upper, lower = _pairs(columns)
        counts = sums[:, 0]
        some = np.maximum(counts, _TINY)[:, None]
        means = sums[:, 1 : 1 + columns] / some
        squares = np.empty((len(sums), columns, columns))
        squares[:, upper, lower] = squares[:, lower, upper] = sums[:, 1 + columns :]
        scatter = squares - (counts[:, None] * means)[:, :, None] * means[:, None]
        if kind == "tied":
            scatter = scatter.sum(axis=0, keepdims=True)
            some = counts.sum().reshape(1, 1)
        some = some[:, :, None]
        covariances = (scatter + prior * usual) / (some + prior)
        largest = squares.diagonal(0, 1, 2).max(axis=1)
        rounding = _ROUNDING * (largest / np.maximum(counts, _TINY))
        covariances = covariances + rounding[:, None, None] * np.eye(columns)
        if kind == "diagonal":
            covariances *= np.eye(columns)
        return cls(
            (counts + 1) / (counts + 1).sum(), means, np.linalg.cholesky(covariances)
        )

    def _expected(
        self, rows: np.ndarray, features: np.ndarray | None = None
    ) -> tuple[float, np.ndarray]:
        """The E-step: the mean of log p(x) over rows (N, D), and the sums of `_features` for the
        M-step. features: those of all rows, if they are few.

        log π N(x; μ, Σ) is linear in the features of x, so that both are one product each.
        Rounding is Σ⁻¹ times that of x², some 1e-16: enough for responsibilities, not for
        `log_prob`.
        """
        with threads.blas:
            inverse = np.linalg.inv(self.roots)
            precision = inverse.transpose(0, 2, 1) @ inverse
        linear = np.einsum("kij,kj->ki", precision, self.means)
        constant = self._constants() - (linear * self.means).sum(axis=1) / 2
        upper, lower = _pairs(self.means.shape[1])
        quadratic = precision[:, upper, lower] * np.where(upper == lower, -0.5, -1.0)
        coefficients = np.concatenate([constant[:, None], linear, quadratic], axis=1)
        total = 0.0
        sums = np.zeros_like(coefficients)
        for part in _parts(rows, _width(*self.means.shape)):
            known = _features(part) if features is None else features
            with threads.blas:
                responsibilities = coefficients @ known.T
            highest = responsibilities.max(axis=0)
            responsibilities -= highest
            np.exp(responsibilities, out=responsibilities)
            scale = responsibilities.sum(axis=0)
            responsibilities /= scale
            total += float((highest + np.log(scale)).sum())
            with threads.blas:
                sums += responsibilities @ known
        return total / len(rows), sums

    def _constants(self) -> np.ndarray:
        """log π − log det(2πΣ)/2 of each component, (K,)."""
        logs = np.log(self.roots.diagonal(0, 1, 2)).sum(axis=1)
        return (
            np.log(self.weights)
            - self.means.shape[1] / 2 * math.log(2 * math.pi)
            - logs
        )

    def log_prob(self, rows: np.ndarray) -> np.ndarray:
        """log p(x) of rows (N, D), in nats: (N,)."""
        components, columns = self.means.shape
        with threads.blas:
            inverse = np.linalg.inv(self.roots)
        shift = np.einsum("kij,kj->ki", inverse, self.means).reshape(-1, 1)
        constant = self._constants()[:, None]
        scores = []
        for part in _parts(rows, components * columns):
            with threads.blas:
                z = inverse.reshape(-1, columns) @ part.T - shift
            z *= z
            joint = constant - z.reshape(components, columns, -1).sum(axis=1) / 2
            highest = joint.max(axis=0)
            scores.append(highest + np.log(np.exp(joint - highest).sum(axis=0)))
        return np.concatenate(scores)

    def sample(self, count: int, rng: Generator) -> np.ndarray:
        """Rows (count, D)."""
        components = rng.choice(len(self.weights), count, p=self.weights)
        noise = rng.standard_normal((count, self.means.shape[1]))
        steps = np.einsum("nij,nj->ni", self.roots[components], noise)
        return self.means[components] + steps


def _width(components: int, columns: int) -> int:
    """Responsibilities and features of a row, K + F."""
    return components + 1 + columns + columns * (columns + 1) // 2


def _parts(rows: np.ndarray, width: int) -> Iterator[np.ndarray]:
    """Consecutive parts of rows: an array of `width` numbers for each of their rows is small."""
    many = max(1, _NUMBERS // width)
    for first in range(0, len(rows), many):
        yield rows[first : first + many]


def _features(rows: np.ndarray) -> np.ndarray:
    """1, x_i and x_i x_j (i ≤ j) of rows (N, D): (N, F)."""
    upper, lower = _pairs(rows.shape[1])
    return np.concatenate(
        [np.ones((len(rows), 1)), rows, rows[:, upper] * rows[:, lower]], axis=1
    )


_pairs = cache(np.triu_indices)  # of D columns: all i and all j of the pairs with i ≤ j


def _start(rows: np.ndarray, components: int, rng: Generator) -> np.ndarray:
    """For each row, the nearest of K rows drawn far apart: (N,)."""
    nearest = np.full(len(rows), math.inf)
    labels = np.zeros(len(rows), int)
    index = rng.integers(len(rows))
    for component in range(components):
        distances = ((rows - rows[index]) ** 2).sum(axis=1)
        labels[distances < nearest] = component
        nearest = np.minimum(nearest, distances)
        if not nearest.any():  # no row is left that was not drawn
            break
        ends = nearest.cumsum()
        index = int(np.searchsorted(ends, rng.random() * ends[-1], side="right"))
        index = min(index, len(rows) - 1)
    return labels
