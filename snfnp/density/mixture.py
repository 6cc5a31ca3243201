"""Mixtures of Gaussians, candidates beside flows: few parameters, for tables of few rows.

Derivation: derivations/31-an-average-of-densities.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

_ITERATIONS = 100  # of EM, at most
_GAIN = 1e-4  # nats per row that the next one has to gain; ten times as many from _MANY rows on:
_MANY = 1000  # stopping early smooths many components, and takes a third of the time


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
            rows: (N, D), at least `components` of them.
            components: K.
            kind: of the covariances, "full" or "diagonal".
            prior: rows that the prior of each covariance counts as.
            seed: of the start, K rows far apart (k-means++, Arthur & Vassilvitskii 2007).
        """
        columns = rows.shape[1]
        usual = np.cov(rows.T, bias=True).reshape(columns, columns) / components ** (2 / columns)
        usual += 1e-6 * np.trace(usual) / columns * np.eye(columns)
        shares = _start(rows, components, np.random.default_rng(seed))
        before = -math.inf
        for _ in range(_ITERATIONS):
            mixture = cls._maximised(rows, shares, usual, kind, prior)
            now, shares = mixture._expected(rows)
            if now.mean() - before < (_GAIN if len(rows) < _MANY else 10 * _GAIN):
                break
            before = now.mean()
        return mixture

    @classmethod
    def _maximised(cls, rows, shares, usual, kind: str, prior: float) -> Mixture:
        """The M-step: π, μ and Σ from each row's shares (K, N) in the components."""
        counts, columns = shares.sum(axis=1), rows.shape[1]
        means = shares @ rows / np.maximum(counts, 1e-300)[:, np.newaxis]
        covariances = np.empty((len(shares), columns, columns))
        for covariance, share, count, mean in zip(covariances, shares, counts, means, strict=True):
            centred = rows - mean
            scatter = (centred * share[:, np.newaxis]).T @ centred
            covariance[...] = (scatter + prior * usual) / (count + prior)
        if kind == "diagonal":
            covariances *= np.eye(columns)
        roots = np.linalg.cholesky(covariances)
        return cls((counts + 1) / (counts + 1).sum(), means, roots)

    def _expected(self, rows) -> tuple[np.ndarray, np.ndarray]:
        """The E-step: log p(x) of rows (N, D), and their shares in the components, (K, N)."""
        components, columns = self.means.shape
        inverse = np.linalg.inv(self.roots)
        shift = np.einsum("kij,kj->ki", inverse, self.means)
        constant = np.log(self.weights) - columns / 2 * math.log(2 * math.pi)
        constant -= np.log(np.diagonal(self.roots, axis1=1, axis2=2)).sum(axis=1)
        z = inverse.reshape(-1, columns) @ rows.T - shift.reshape(-1, 1)
        z *= z
        joint = constant[:, np.newaxis] - z.reshape(components, columns, -1).sum(axis=1) / 2
        highest = joint.max(axis=0)
        shares = np.exp(joint - highest)
        total = shares.sum(axis=0)
        return highest + np.log(total), shares / total

    def log_prob(self, rows: np.ndarray) -> np.ndarray:
        """log p(x) of rows (N, D), in nats: (N,)."""
        return self._expected(rows)[0]

    def sample(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """Rows (count, D)."""
        of = rng.choice(len(self.weights), count, p=self.weights)
        noise = rng.standard_normal((count, self.means.shape[1]))
        return self.means[of] + np.einsum("nij,nj->ni", self.roots[of], noise)


def _start(rows, components: int, rng) -> np.ndarray:
    """Shares (K, N): each row wholly in the component of the nearest of K rows drawn far apart."""
    distances = np.full((components, len(rows)), math.inf)
    place = rng.integers(len(rows))
    for k in range(components):
        distances[k] = ((rows - rows[place]) ** 2).sum(axis=1)
        far = distances[: k + 1].min(axis=0)
        if not far.any():  # no row is left that was not drawn
            break
        place = rng.choice(len(rows), p=far / far.sum())
    return np.eye(components)[distances.argmin(axis=0)].T
