"""Rows as they are given to an estimator: numbers, names of columns, weights, random states."""

from __future__ import annotations

import sys
import warnings
from typing import Any

import numpy as np

from snfnp.data.dataset import labels_of


def checked(X) -> np.ndarray:
    """X as rows (N, D) of finite float64 numbers. Raises ValueError or TypeError, in the words that
    scikit-learn has for it."""
    if hasattr(X, "toarray"):
        raise TypeError("Sparse data was passed for X, but dense data is required: X.toarray()")
    if isinstance(X, np.ma.MaskedArray):
        raise TypeError("X is a masked array: leave masked rows out, or fill them in")
    array = np.asarray(X)
    if array.ndim != 2:
        found = f"Expected 2D array, got {array.ndim}D array instead of shape {array.shape}"
        if array.ndim == 0:
            found = f"Expected 2D array, got scalar array instead, of type {type(X).__name__}"
        raise ValueError(f"{found}. Reshape your data: rows are samples, columns are features")
    if np.iscomplexobj(array):
        raise ValueError("Complex data not supported: give real numbers")
    if array.dtype.kind in "mM" or _has_dates(array):
        raise TypeError("X has dates or durations: turn them into numbers, of days for example")
    try:
        rows = np.ascontiguousarray(array, np.float64)
    except ValueError as error:
        if place := _text_in(array, X):
            advice = "leave it out, or give a column of 0 and 1 for each category"
            raise ValueError(f"{error}: {place} has text: {advice}") from None
        raise
    for axis, what in enumerate(("sample", "feature")):
        if rows.shape[axis] == 0:
            found = f"Found array with 0 {what}(s) (shape={rows.shape})"
            raise ValueError(f"{found} while a minimum of 1 is required.")
    if not np.isfinite(rows).all():
        row, column = np.argwhere(~np.isfinite(rows))[0]
        found = f"X contains NaN or infinity, first in row {row}, column {column} (from 0)"
        raise ValueError(f"{found}: leave such rows out, or fill them in")
    return rows


def _has_dates(array: np.ndarray) -> bool:
    first = array[:1].ravel() if array.dtype.kind == "O" else ()
    return any(hasattr(value, "isoformat") or isinstance(value, np.datetime64) for value in first)


def _text_in(array: np.ndarray, X) -> str:
    """The first column of rows that has text, in words; empty without one."""
    labels = labels_of(names_of(X), array.shape[-1])
    for label, column in zip(labels, array.T, strict=True):
        try:
            column.astype(np.float64)
        except ValueError:
            return label
    return ""


def names_of(X) -> np.ndarray | None:
    """The names of a DataFrame's columns, if all are text, as scikit-learn has it; else None."""
    columns = getattr(X, "columns", None)
    names = np.array([] if columns is None else list(columns), dtype=object)
    kinds = {isinstance(name, str) for name in names}
    if kinds == {True, False}:
        found = "the names of X's columns are text and other things"
        raise TypeError(f"{found}: make them text, X.columns = X.columns.astype(str)")
    return names if kinds == {True} else None


def check_names(X, expected: np.ndarray | None) -> None:
    """Compare the names of X's columns with those that were fitted, as scikit-learn does: raises
    ValueError for others, or for another order; warns if only one side has names."""
    found = names_of(X)
    if (found is None) != (expected is None):
        has, was = ("has", "without") if expected is None else ("does not have valid", "with")
        text = f"X {has} feature names, but FlowDensity was fitted {was} feature names"
        warnings.warn(text, stacklevel=5)
    if found is None or expected is None or list(found) == list(expected):
        return
    text = "The feature names should match those that were passed during fit.\n"
    unseen, missing = sorted(set(found) - set(expected)), sorted(set(expected) - set(found))
    for names, what in (
        (unseen, "unseen at fit time"),
        (missing, "seen at fit time, yet now missing"),
    ):
        if names:
            text += f"Feature names {what}:\n" + "".join(f"- {name}\n" for name in names[:5])
    if not unseen and not missing:
        text += "Feature names must be in the same order as they were in fit.\n"
    raise ValueError(text)


def drawn(rows: np.ndarray, sample_weight, rng) -> tuple[np.ndarray, np.ndarray]:
    """Rows (N, D) in an order of their own, as often as their weights say, and each one's group:
    equal rows are one.

    Whole weights, up to 2²⁴ in all, are counts. Others become counts that differ from N w_i / Σ w
    by less than 1 (systematic sampling), N in all.

    Raises ValueError for weights that are no finite numbers ≥ 0, one for each row.
    """
    count = len(rows)
    weights = np.asarray(1 if sample_weight is None else sample_weight, np.float64)
    weights = np.full(count, float(weights)) if weights.ndim == 0 else weights
    if weights.shape != (count,):
        found = f"sample_weight.shape == {weights.shape}, expected {(count,)}"
        raise ValueError(f"{found}: give one weight for each row")
    if not (np.isfinite(weights).all() and (weights >= 0).all()):
        raise ValueError("sample_weight has negative or infinite numbers, or NaN: give others")
    if not weights.any():
        raise ValueError("sample_weight is zero for every row: give at least one row some")
    order, shift = np.lexsort(rows.T), rng.random()  # whatever kind the weights are
    counts = weights[order]
    if counts.sum() > 2**24 or (counts != np.rint(counts)).any():
        weights = counts / counts.max()  # whose sum is finite
        ends = np.cumsum(weights) / weights.sum() * count
        counts = np.diff(np.floor(ends + shift), prepend=0.0)
    table = rows[np.repeat(order, counts.astype(np.int64))]
    return table, np.r_[0, (table[1:] != table[:-1]).any(axis=1).cumsum()]


def generator(random_state) -> np.random.Generator:
    """The generator that a `random_state` stands for: None, a number, or a generator of NumPy's."""
    if isinstance(random_state, np.random.RandomState):
        return np.random.default_rng(random_state.randint(2**31))
    try:
        return np.random.default_rng(random_state)
    except (TypeError, ValueError):
        advice = "give None, a whole number from 0 on, or a generator of NumPy's"
        raise ValueError(f"random_state is {random_state!r}: {advice}") from None


def in_container(values: np.ndarray, names, X, kind: str | None) -> Any:
    """An array, or a DataFrame of pandas or polars where `set_output` or scikit-learn's
    configuration says so."""
    sklearn = sys.modules.get("sklearn")
    kind = kind or (sklearn.get_config()["transform_output"] if sklearn else "default")
    if kind == "pandas":
        import pandas  # pyright: ignore[reportMissingImports]

        index = X.index if hasattr(X, "columns") else None  # a list has a method of that name
        return pandas.DataFrame(values, index, list(names))
    if kind == "polars":
        import polars  # pyright: ignore[reportMissingImports]

        return polars.DataFrame(values, schema=list(names), orient="row")
    return values
