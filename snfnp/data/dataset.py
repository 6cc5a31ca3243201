"""A data set in memory, in three splits, checked when it is made."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from snfnp.errors import UsageError
from snfnp.images import fault, is_rows, with_channels

SPLITS = ("train", "validation", "test")
_AT_ONCE = 1 << 20  # numbers of which moments are taken together


@dataclass(frozen=True, eq=False)
class Dataset:
    """The images or rows of one data set, in three splits.

    Args:
        name: for messages and run records; published data have that of `load_dataset`.
        train, validation, test: images, uint8 (N, H, W, C) or (N, H, W), values 0 to 255; or rows
            of floats, (N, D), in any units. They are kept read-only, (N, H, W) as (N, H, W, 1).
        source: where the samples came from, in words.
        is_sample: true for a part of a published data set, whose results cannot be compared with
            published ones.
        columns: the names of the columns of rows, if they have names.
        true_nll: the NLL of the test samples in nats per sample under the density that they were
            drawn from, where it is known, as of a toy density.

    Raises:
        UsageError: a split is empty or anything else, the splits differ in shape, a column has
            the same value in all training rows, or `columns` has more or fewer names.
    """

    name: str
    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    source: str = "arrays in memory"
    is_sample: bool = False
    columns: tuple[str, ...] | None = None
    true_nll: float | None = None

    def __post_init__(self) -> None:
        for split in SPLITS:
            samples = with_channels(getattr(self, split))
            object.__setattr__(self, split, samples)
            problem = fault(samples)
            if not problem and samples.shape[1:] != self.train.shape[1:]:
                problem = (
                    f"shape {samples.shape} beside {self.train.shape} of train; give all splits "
                    "one shape, and images one number of channels"
                )
            if problem:
                raise UsageError(f"the {split} {self.noun} of {self.name}: {problem}")
            samples = samples[:]  # a view: the caller's array stays writeable
            samples.flags.writeable = False
            object.__setattr__(self, split, samples)
        width = self.train.shape[1]
        if not self.of_images and len(self.labels) != width:
            raise UsageError(
                f"{self.name} has {width} columns, and `columns` has {len(self.labels)} name(s): "
                "give each column a name"
            )
        _ = self.moments  # raises for constant columns

    @property
    def of_images(self) -> bool:
        """True if its samples are images, false if they are rows."""
        return not is_rows(self.train)

    @property
    def labels(self) -> list[str]:
        """The columns of rows in messages."""
        return labels_of(self.columns, self.train.shape[1])

    @property
    def noun(self) -> str:
        """The word for its samples in messages."""
        return "images" if self.of_images else "rows"

    @cached_property
    def moments(self) -> tuple[np.ndarray, np.ndarray] | None:
        """The results of `moments_of` for the training rows; None for images."""
        if self.of_images:
            return None
        return moments_of(self.train, f"the train rows of {self.name}", self.labels)

    def fingerprint(self, split: str) -> str:
        """The SHA-256 of a split's shape and samples, which are all read."""
        samples = getattr(self, split)
        digest = hashlib.sha256(repr(samples.shape).encode())
        digest.update(np.ascontiguousarray(samples).data)
        return digest.hexdigest()


@np.errstate(all="ignore")
def moments_of(
    rows: np.ndarray, name: str, labels: list[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each column of rows (N, D), both (D,) in float64.

    One pass (Chan et al. 1983). Raises UsageError, in which the rows have a name and the columns
    labels, for a column without a positive, finite deviation.
    """
    count = 0
    constant = True
    columns = rows.shape[1]
    mean = np.zeros(columns)
    squares = np.zeros(columns)
    at_once = max(1, _AT_ONCE // columns)
    for first in range(0, len(rows), at_once):
        part = rows[first : first + at_once]
        constant &= (part == rows[:1]).all(axis=0)
        part = part.astype(np.float64)
        total = count + len(part)
        part_mean = part.mean(axis=0)
        apart = part_mean - mean
        squares += ((part - part_mean) ** 2).sum(axis=0)
        squares += apart * (count * len(part) / total) * apart
        mean += apart * (len(part) / total)
        count = total
    if count == 1:
        raise UsageError(f"{name}: there is only 1 sample; give more")
    spread = np.where(constant, 0.0, np.sqrt(squares / count))
    bad = np.flatnonzero(~((spread > 0) & np.isfinite(spread)))
    if len(bad):
        problem = f"{labels[bad[0]]} has the standard deviation {spread[bad[0]]:g}"
        if len(bad) > 1:
            problem += f", and {len(bad) - 1} more likewise"
        raise UsageError(f"{name}: {problem}: leave such columns out, or rescale them")
    return mean, spread


def labels_of(names: Iterable[str] | None, width: int) -> list[str]:
    """Columns in messages: by their names, or without names (None) by numbers."""
    if names is not None:
        return [f"column {name!r}" for name in names]
    return [f"column {index} (from 0)" for index in range(width)]


def require_dataset(dataset: object) -> None:
    """Raises UsageError for anything but a `Dataset`."""
    if not isinstance(dataset, Dataset):
        raise UsageError(
            f"the data is of type {type(dataset).__name__}: make a snfnp.Dataset(name, train, "
            "validation, test, …) of it"
        )
