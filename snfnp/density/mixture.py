"""Mixtures of Gaussians, candidates beside flows: few parameters, for tables of few rows.

Derivation: derivations/25-an-average-of-densities.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

_ITERATIONS = 100  # of EM, at most
_GAIN = 1e-4  # nats per row that the next one has to gain; ten times as many from _MANY rows on:
_MANY = 1000  # stopping early smooths many components, and takes a third of the time
_FIRST = 20_000  # rows to which a mixture is fitted before all of them, for at most
_ON_ALL = 12  # iterations
_NUMBERS = 2**18  # in an array of components by rows at a time
_ROUNDING = 16 * np.finfo(float).eps  # of a covariance, in units of its second moments


@dataclass(frozen=True)
class Mixture:
    """Σ_k π_k N(x; μ_k, Σ_k) for rows x (N, D).

    weights: π (K,); means: μ (K, D); roots: the Cholesky factors L_k of Σ_k = L_k L_kᵀ (K, D, D).
    """

    weights: np.ndarray
    means: np.ndarray
    roots: np.ndarray

    @classmethod
    def fit(cls, rows: np.ndarray, components: int, kind: str, prior: float, seed) -> Mixture:
        """Fit by EM, with a prior that keeps every covariance regular. O(K N D²) an iteration.

        Args:
            rows: (N, D), at least `components` of them; in random order if there are many.
            components: K.
            kind: of the covariances, "full", "diagonal" or "tied": one for all components.
            prior: rows that the prior of each covariance counts as.
            seed: of the start, K rows far apart (k-means++, Arthur & Vassilvitskii 2007).
        """
        columns = rows.shape[1]
        usual = np.cov(rows.T, bias=True).reshape(columns, columns) / components ** (2 / columns)
        usual += 1e-6 * np.trace(usual) / columns * np.eye(columns)
        first = rows[:_FIRST]
        labels = _start(first, components, np.random.default_rng(seed))
        width = _width(components, columns)
        parts = zip(_parts(labels, width), _parts(first, width), strict=True)
        sums = sum(np.eye(components)[own].T @ _features(part) for own, part in parts)
        gain = _GAIN if len(rows) < _MANY else 10 * _GAIN
        for some in (first, rows) if len(rows) > len(first) else (rows,):
            before = -math.inf
            for _ in range(_ITERATIONS if some is first or len(rows) == len(first) else _ON_ALL):
                mixture = cls._maximised(sums, usual, kind, prior)
                now, sums = mixture._expected(some)
                if now - before < gain:
                    break
                before = now
        return mixture

    @classmethod
    def _maximised(cls, sums, usual, kind: str, prior: float) -> Mixture:
        """The M-step: π, μ and Σ from the sums of `_features` over rows, each by its shares in the
        components, (K, F)."""
        counts, (upper, lower) = sums[:, 0], np.triu_indices(len(usual))
        some = np.maximum(counts, 1e-300)[:, np.newaxis]
        means = sums[:, 1 : 1 + len(usual)] / some
        squares = np.empty((len(sums), *usual.shape))
        squares[:, upper, lower] = squares[:, lower, upper] = sums[:, 1 + len(usual) :]
        scatter = squares - (counts[:, np.newaxis] * means)[:, :, np.newaxis] * means[:, np.newaxis]
        if kind == "tied":
            scatter, some = scatter.sum(axis=0, keepdims=True), counts.sum().reshape(1, 1)
        some = some[:, :, np.newaxis]
        covariances = (scatter + prior * usual) / (some + prior)
        rounding = _ROUNDING * (squares.diagonal(0, 1, 2).max(axis=1) / np.maximum(counts, 1e-300))
        covariances = covariances + rounding[:, np.newaxis, np.newaxis] * np.eye(len(usual))
        if kind == "diagonal":
            covariances *= np.eye(len(usual))
        return cls((counts + 1) / (counts + 1).sum(), means, np.linalg.cholesky(covariances))

    def _expected(self, rows) -> tuple[float, np.ndarray]:
        """The E-step: the mean of log p(x) over rows (N, D), and the sums of `_features` for the
        M-step.

        log π N(x; μ, Σ) is linear in the features of x, so that both are one product each.
        Rounding is Σ⁻¹ times that of x², some 1e-16: enough for shares, not for `log_prob`.
        """
        components, columns = self.means.shape
        inverse = np.linalg.inv(self.roots)
        precision = inverse.transpose(0, 2, 1) @ inverse
        linear = np.einsum("kij,kj->ki", precision, self.means)
        constant = self._constants() - (linear * self.means).sum(axis=1) / 2
        upper, lower = np.triu_indices(columns)
        quadratic = precision[:, upper, lower] * np.where(upper == lower, -0.5, -1.0)
        coefficients = np.concatenate([constant[:, np.newaxis], linear, quadratic], axis=1)
        total, sums = 0.0, np.zeros_like(coefficients)
        for part in _parts(rows, _width(components, columns)):
            features = _features(part)
            shares = coefficients @ features.T
            highest = shares.max(axis=0)
            shares -= highest
            np.exp(shares, out=shares)
            scale = shares.sum(axis=0)
            shares /= scale
            total += float((highest + np.log(scale)).sum())
            sums += shares @ features
        return total / len(rows), sums

    def _constants(self) -> np.ndarray:
        """log π − log det(2πΣ)/2 of each component, (K,)."""
        logs = np.log(np.diagonal(self.roots, axis1=1, axis2=2)).sum(axis=1)
        return np.log(self.weights) - self.means.shape[1] / 2 * math.log(2 * math.pi) - logs

    def log_prob(self, rows: np.ndarray) -> np.ndarray:
        """log p(x) of rows (N, D), in nats: (N,)."""
        components, columns = self.means.shape
        inverse, constant = np.linalg.inv(self.roots), self._constants()[:, np.newaxis]
        shift = np.einsum("kij,kj->ki", inverse, self.means).reshape(-1, 1)
        found = []
        for part in _parts(rows, components * columns):
            z = inverse.reshape(-1, columns) @ part.T - shift
            z *= z
            joint = constant - z.reshape(components, columns, -1).sum(axis=1) / 2
            highest = joint.max(axis=0)
            found.append(highest + np.log(np.exp(joint - highest).sum(axis=0)))
        return np.concatenate(found)

    def sample(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """Rows (count, D)."""
        of = rng.choice(len(self.weights), count, p=self.weights)
        noise = rng.standard_normal((count, self.means.shape[1]))
        return self.means[of] + np.einsum("nij,nj->ni", self.roots[of], noise)


def _width(components: int, columns: int) -> int:
    """Shares and features of a row."""
    return components + 1 + columns + columns * (columns + 1) // 2


def _parts(rows: np.ndarray, width: int) -> Iterator[np.ndarray]:
    """Consecutive parts of rows: an array of `width` numbers for each of their rows is small."""
    many = max(1, _NUMBERS // width)
    return (rows[first : first + many] for first in range(0, len(rows), many))


def _features(rows: np.ndarray) -> np.ndarray:
    """1, x_i and x_i x_j (i ≤ j) of rows (N, D): (N, F)."""
    upper, lower = np.triu_indices(rows.shape[1])
    return np.concatenate([np.ones((len(rows), 1)), rows, rows[:, upper] * rows[:, lower]], axis=1)


def _start(rows, components: int, rng) -> np.ndarray:
    """For each row, the nearest of K rows drawn far apart: (N,)."""
    nearest, labels = np.full(len(rows), math.inf), np.zeros(len(rows), int)
    place = rng.integers(len(rows))
    for k in range(components):
        distances = ((rows - rows[place]) ** 2).sum(axis=1)
        labels[distances < nearest] = k
        nearest = np.minimum(nearest, distances)
        if not nearest.any():  # no row is left that was not drawn
            break
        ends = nearest.cumsum()
        place = int(np.searchsorted(ends, rng.random() * ends[-1], side="right"))
        place = min(place, len(rows) - 1)
    return labels
