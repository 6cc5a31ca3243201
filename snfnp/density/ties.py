"""Ties: columns whose values repeat, as whole numbers and zeros do, and the step between values.

A density has no finite best fit to repeated values: it can grow without bound on each of them.
Uniform noise of one step turns a column of steps into one that has a density, as for the bytes of
images (Uria et al. 2013, Theis et al. 2016).
Derivation: derivations/31-an-average-of-densities.md.
"""

from __future__ import annotations

import numpy as np

_REPEATED = 0.1  # the share of rows that repeat a value from which on a column has ties,
_SPIKE = 0.01  # or the share of a single value, which at least _FEWEST rows have
_FEWEST = 4
_DECIMALS = 9  # digits behind the point at which steps are looked for
_FINER = 20  # times finer than the values lie apart: a step that explains no ties


def find_steps(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The step of each column with ties, 0 for others, and a value on its lattice: (D,), (D,)."""
    found = [_step(column) for column in rows.T]
    step, origin = np.array(found, np.float64).reshape(-1, 2).T
    return step, origin


def decimals(step: np.ndarray, origin: np.ndarray) -> np.ndarray:
    """10^d of each column, d the fewest decimals that its lattice has; 0 if more than 9."""
    powers = 10.0 ** np.arange(_DECIMALS + 1)
    scaled = np.stack([step, origin])[..., np.newaxis] * powers
    whole = (np.abs(scaled - np.rint(scaled)) < 1e-6).all(axis=0)
    return np.where(np.any(whole, axis=1), powers[whole.argmax(axis=1)], 0.0)


def _step(column: np.ndarray) -> tuple[float, float]:
    """(step, a value of the lattice) of one column; (0, 0) without ties."""
    values, counts = np.unique(column, return_counts=True)
    repeated, most = 1 - len(values) / len(column), counts.max()
    if len(values) < 2 or (repeated < _REPEATED and most < max(_FEWEST, _SPIKE * len(column))):
        return 0.0, 0.0
    gaps, commonest = np.diff(values), values[counts.argmax()]
    typical, step = float(np.median(gaps)), _common_divisor(values, gaps)
    if step * _FINER < typical:  # a spike among values that do not repeat: zeros, say
        step = typical
    return step, float(commonest)


def _common_divisor(values: np.ndarray, gaps: np.ndarray) -> float:
    """The largest number of which all gaps are multiples, but for rounding; the least gap if there
    is none."""
    for digits in range(_DECIMALS + 1):
        scaled = values * 10.0**digits
        whole = np.rint(scaled)
        if np.abs(whole).max() < 2**53 and np.abs(scaled - whole).max() < 1e-6:
            divisor = np.gcd.reduce(np.diff(whole).astype(np.int64))
            return float(divisor) / 10.0**digits
    least, rounding = float(gaps.min()), 1e-9 * float(np.abs(values).max())
    ratios = gaps / least
    for part in range(1, 13):  # a lattice that was rescaled
        if np.abs(ratios * part - np.rint(ratios * part)).max() * least / part < 100 * rounding:
            return least / part
    return least


def described(step: np.ndarray, names) -> str:
    """The columns with ties and their steps, in words."""
    found = [f"{names[place]} (step {step[place]:.6g})" for place in np.flatnonzero(step)]
    more = f" and {len(found) - 6} others" if len(found) > 6 else ""
    return f"{', '.join(found[:6])}{more}"


def offsets(step: np.ndarray, count: int = 16) -> np.ndarray:
    """Points of one cell around its centre, (count, D): a Latin hypercube, always the same. Without
    ties a single 0."""
    if not step.any():
        return np.zeros((1, len(step)))
    rng = np.random.default_rng(0)
    places = np.stack([rng.permutation(count) for _ in step], axis=1)
    return ((places + 0.5) / count - 0.5) * step
