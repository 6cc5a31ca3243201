"""Rows as they are given to an estimator: numbers, names of columns, weights, random states."""

import sys
import warnings
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.random import Generator, RandomState

from snfnp.data.dataset import labels_of

_COUNTS = 2**24  # rows in all, up to which whole weights are counts


def checked(X: Any) -> np.ndarray:
    """X as rows (N, D) of finite float64 numbers. Raises ValueError or TypeError, in the words that
    scikit-learn has for it."""
    if hasattr(X, "toarray"):
        raise TypeError(
            "Sparse data was passed for X, but dense data is required: X.toarray()"
        )
    if isinstance(X, np.ma.MaskedArray):
        raise TypeError("X is a masked array: leave masked rows out, or fill them in")
    array = np.asarray(X)
    if array.ndim != 2:
        message = (
            f"Expected 2D array, got {array.ndim}D array instead of shape {array.shape}"
        )
        if array.ndim == 0:
            message = f"Expected 2D array, got scalar array instead, of type {type(X).__name__}"
        raise ValueError(
            f"{message}. Reshape your data: rows are samples, columns are features"
        )
    if np.iscomplexobj(array):
        raise ValueError("Complex data not supported: give real numbers")
    if (
        array.dtype.kind in "mM"
        # of polars, which makes them numbers
        or any(
            getattr(kind, "is_temporal", bool)() for kind in getattr(X, "dtypes", ())
        )
        or any(
            hasattr(value, "isoformat") or isinstance(value, np.datetime64)
            for value in array[:1].ravel()
        )
    ):
        raise TypeError(
            "X has dates or durations: turn them into numbers, of days for example"
        )
    try:
        rows = np.ascontiguousarray(array, np.float64)
    except (TypeError, ValueError) as error:
        labels = labels_of(names_of(X), array.shape[1])
        for label, column in zip(labels, array.T, strict=True):
            try:
                column.astype(np.float64)
            except (TypeError, ValueError):  # of pandas.NA, say
                # scikit-learn expects a TypeError for what is no number at all
                kind = TypeError if isinstance(error, TypeError) else ValueError
                raise kind(
                    f"{error}: {label} has text or gaps: leave it out, fill it in, or give a "
                    "column of 0 and 1 for each category"
                ) from None
        raise
    for axis, noun in enumerate(("sample", "feature")):
        if rows.shape[axis] == 0:
            raise ValueError(
                f"Found array with 0 {noun}(s) (shape={rows.shape}) while a minimum of 1 is "
                "required."
            )
    if not np.isfinite(rows).all():
        row, column = np.argwhere(~np.isfinite(rows))[0]
        raise ValueError(
            f"X contains NaN or infinity, first in row {row}, column {column} (from 0): leave such "
            "rows out, or fill them in"
        )
    return rows


def names_of(X: Any) -> np.ndarray | None:
    """The names of a DataFrame's columns, if all are text, as scikit-learn has it; else None."""
    names = list(getattr(X, "columns", ()))
    texts = sum(isinstance(name, str) for name in names)
    if 0 < texts < len(names):
        raise TypeError(
            "the names of X's columns are text and other things: make them text, X.columns = "
            "X.columns.astype(str)"
        )
    return np.array(names, object) if texts else None


def check_names(X: Any, expected: np.ndarray | None) -> None:
    """Compare the names of X's columns with those that were fitted, as scikit-learn does: raises
    ValueError for others, or for another order; warns if only one side has names."""
    names = names_of(X)
    if names is None and expected is None:
        return
    if names is None or expected is None:
        warnings.warn(
            "X does not have valid feature names, but FlowDensity was fitted with feature names"
            if names is None
            else "X has feature names, but FlowDensity was fitted without feature names",
            stacklevel=5,
        )
        return
    if list(names) == list(expected):
        return
    message = "The feature names should match those that were passed during fit.\n"
    others = {
        "unseen at fit time": sorted(set(names) - set(expected)),
        "seen at fit time, yet now missing": sorted(set(expected) - set(names)),
    }
    for description, group in others.items():
        if group:
            message += f"Feature names {description}:\n"
            message += "".join(f"- {name}\n" for name in group[:5])
    if not any(others.values()):
        message += "Feature names must be in the same order as they were in fit.\n"
    raise ValueError(message)


def drawn(
    rows: np.ndarray, sample_weight: Any, rng: Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Rows (N, D) sorted by their columns, repeated by weight, and the group of each: equal rows
    are one group.

    Whole weights, up to 2²⁴ in all, are counts. Others become counts that differ from N w_i / Σ w
    by less than 1 (systematic sampling), N in all.

    Raises ValueError for weights that are no finite numbers ≥ 0, one for each row.
    """
    count = len(rows)
    weights = np.asarray(1 if sample_weight is None else sample_weight, np.float64)
    if weights.ndim == 0:
        weights = np.full(count, float(weights))
    if weights.shape != (count,):
        raise ValueError(
            f"sample_weight.shape == {weights.shape}, expected {(count,)}: give one weight for "
            "each row"
        )
    if not ((weights >= 0) & (weights < np.inf)).all():
        raise ValueError(
            "sample_weight has negative or infinite numbers, or NaN: give others"
        )
    if not weights.any():
        raise ValueError(
            "sample_weight is zero for every row: give at least one row some"
        )
    shift = rng.random()  # drawn for whole weights, too: later draws are the same
    order = np.lexsort(rows.T)
    counts = weights[order]
    if counts.sum() > _COUNTS or (counts != np.rint(counts)).any():
        weights = counts / counts.max()  # so that their sum is finite
        ends = np.cumsum(weights) / weights.sum() * count
        counts = np.diff(np.floor(ends + shift), prepend=0.0)
    table = rows[np.repeat(order, counts.astype(np.int64))]
    changes = (table[1:] != table[:-1]).any(axis=1)
    return table, np.r_[0, changes.cumsum()]


def generator(random_state: Any) -> Generator:
    """The generator that a `random_state` stands for: None, a number, or a generator of NumPy's."""
    if isinstance(random_state, RandomState):
        return np.random.default_rng(random_state.randint(2**31))
    try:
        return np.random.default_rng(random_state)
    except (TypeError, ValueError):
        raise ValueError(
            f"random_state is {random_state!r}: give None, a whole number from 0 on, or a "
            "generator of NumPy's"
        ) from None


def in_container(
    values: np.ndarray, names: Iterable[str], X: Any, container: str | None
) -> Any:
    """Values (N, D) as an array, or as the DataFrame that a container names, "pandas" or "polars";
    by default that of scikit-learn's configuration. X: rows whose index a DataFrame takes."""
    sklearn = sys.modules.get("sklearn")
    if container is None and sklearn:
        container = sklearn.get_config()["transform_output"]
    if container == "pandas":
        import pandas  # pyright: ignore[reportMissingImports]

        # a list has a method of that name, and a frame of polars nothing
        index = getattr(X, "index", None) if hasattr(X, "columns") else None
        return pandas.DataFrame(values, index, list(names))
    if container == "polars":
        import polars  # pyright: ignore[reportMissingImports]

        return polars.DataFrame(values, schema=list(names), orient="row")
    return values
