"""Ties: columns whose values repeat, as whole numbers and zeros do, and the step between values.

A density has no finite best fit to repeated values: it can grow without bound on each of them.
Uniform noise of one step turns a column of steps into one that has a density, as for the bytes of
images (Uria et al. 2013, Theis et al. 2016).
Derivation: derivations/25-an-average-of-densities.md.
"""

import numpy as np

from snfnp.errors import Report, UsageError

TIES = ("dequantise", "keep", "raise")
_LOOKED_AT = 10_000  # rows in which columns with ties are looked for
# A column has ties if this share of its rows repeat a value, or if the share _SPIKE of them, and at
# least _FEWEST, have the same value.
_REPEATED = 0.1
_SPIKE = 0.01
_FEWEST = 4
_DECIMALS = 9  # digits behind the point at which steps are looked for
_FINER = 20  # times finer than the values lie apart: a step that explains no ties
# The share of values that are written with so many decimals. Others may be off by the share _OFF of
# a step.
_WRITTEN = 0.98
_OFF = 0.01
_POINTS = 16  # of a cell, at which a density is averaged


def with_ties(
    moments: tuple[np.ndarray, np.ndarray],
    rows: np.ndarray,
    ties: str,
    labels: list[str],
    report: Report,
) -> tuple[np.ndarray, ...]:
    """The arguments of `Standardise`: `moments`, and what columns with ties need if `ties` is
    "dequantise", with a line on them. Raises UsageError for such columns if it is "raise"."""
    if ties == "keep":
        return moments
    step, origin, least, greatest = find_steps(rows)
    columns = [
        f"{labels[column]} (step {step[column]:.6g})" for column in np.flatnonzero(step)
    ]
    if not columns:
        return moments
    more = f" and {len(columns) - 6} others" if len(columns) > 6 else ""
    message = f"ties in {', '.join(columns[:6])}{more}"
    if ties == "raise":
        raise UsageError(f"{message}: choose `ties=dequantise`, or leave them out")
    report(f"{message}: noise of one step is part of the model, samples are rounded")
    return *moments, step, origin, decimals(step, origin), least, greatest


@np.errstate(all="ignore")
def find_steps(rows: np.ndarray) -> np.ndarray:
    """The step of each column with ties, 0 for others; a value on its lattice, and the numbers of
    steps from there to the least and to the greatest value: (4, D).

    Values that repeat in copies of a row alone are ties only if they fill a lattice. In a table of
    one column, all that repeat are ties.
    """
    lattice = np.zeros((4, rows.shape[1]))
    # rows may be sorted
    some = np.random.default_rng(0).permutation(len(rows))[:_LOOKED_AT]
    looked_at = rows[np.sort(some)]
    distinct = np.unique(looked_at, axis=0) if rows.shape[1] > 1 else looked_at
    for index, column in enumerate(looked_at.T):
        step, _, fills = _step(column)
        alike = np.ptp(column) == 0  # it may be a spike of the whole column
        if alike or step and (fills or _step(distinct[:, index])[0]):
            column = rows[:, index]
            step, origin, _ = _step(column)
            if step:
                ends = (np.array([column.min(), column.max()]) - origin) / step
                ends = np.trunc(ends + np.sign(ends) * 2 * _OFF)
                lattice[:, index] = step, origin, *ends
    return lattice


def decimals(step: np.ndarray, origin: np.ndarray) -> np.ndarray:
    """10^d of each column, d the fewest decimals that its lattice has; 0 if more than 9."""
    powers = 10.0 ** np.arange(_DECIMALS + 1)
    scaled = np.stack([step, origin])[..., None] * powers
    off = np.abs(scaled - np.rint(scaled))
    # a step may be a small number
    whole = (off <= 1e-6 * np.minimum(1, scaled[0])).all(axis=0)
    return np.where(np.any(whole, axis=1), powers[whole.argmax(axis=1)], 0.0)


def _step(column: np.ndarray) -> tuple[float, float, bool]:
    """(step, a value of the lattice, whether values fill it) of one column; zeros without ties."""
    values, counts = np.unique(column, return_counts=True)
    repeated = 1 - len(values) / len(column)
    most = counts.max()
    if len(values) < 2 or (
        repeated < _REPEATED and most < max(_FEWEST, _SPIKE * len(column))
    ):
        return 0.0, 0.0, False
    values = _as_written(values.astype(np.float64))
    commonest = float(values[counts.argmax()])
    gaps = np.diff(values)
    typical = float(np.median(gaps))
    step, fills = _common_divisor(values, gaps)
    if step * _FINER < typical:  # a spike among values that do not repeat: zeros, say
        return typical, commonest, False
    return step, commonest, fills


def _as_written(values: np.ndarray) -> np.ndarray:
    """Undo the rounding of decimal numbers of at most 7 digits to single precision. Returns the
    values themselves if some of them cannot have come from such numbers."""
    single = values.astype(np.float32)
    if (single != values).any():
        return values
    written = np.array([float(f"{value:.7g}") for value in values])
    return written if (written.astype(np.float32) == single).all() else values


def _common_divisor(values: np.ndarray, gaps: np.ndarray) -> tuple[float, bool]:
    """The largest number of which all gaps are multiples up to rounding, and True; without one, the
    smallest gap, and False."""
    least = float(gaps.min())
    rounding = 1e-9 * float(np.abs(values).max())
    for digits in range(_DECIMALS + 1):
        scaled = values * 10.0**digits
        whole = np.rint(scaled)
        if (np.diff(whole)[gaps > rounding] == 0).any():  # a step may be a small number
            continue
        off = np.abs(scaled - whole)
        if np.abs(whole).max() < 2**53 and (off < 1e-6).mean() >= _WRITTEN:
            divisor = float(np.gcd.reduce(np.diff(whole).astype(np.int64)))
            if off.max() <= max(1e-6, _OFF * divisor):
                return divisor / 10.0**digits, True
    for divisor in range(1, 13):  # a lattice that was rescaled
        step, off = _least_squares(values, gaps, least / divisor)
        if off <= _OFF:
            return step, True
    return least, False


def _least_squares(
    values: np.ndarray, gaps: np.ndarray, step: float
) -> tuple[float, float]:
    """The step near `step` of the lattice that is nearest to values, and how far from it the
    furthest of them lies, in steps. Small gaps come first: of a large one a step that is rounded
    does not tell the number of steps."""
    for reach in (1.5, 30, 1000, np.inf):
        near = gaps[gaps <= reach * step]
        if len(near):
            step = near.sum() / max(1.0, np.rint(near / step).sum())
    index = np.r_[0.0, np.rint(gaps / step).cumsum()]
    centred = index - index.mean()
    step = float(centred @ values / (centred @ centred))
    off = values - values.mean() - step * centred
    return step, float(np.abs(off).max()) / step


def offsets(step: np.ndarray) -> np.ndarray:
    """Points of one cell around its centre, (16, D): a Latin hypercube, always the same."""
    rng = np.random.default_rng(0)
    layers = np.stack([rng.permutation(_POINTS) for _ in step], axis=1)
    return ((layers + 0.5) / _POINTS - 0.5) * step
