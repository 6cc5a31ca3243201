"""What all of a `reproduce.py` command has in common: its scale, its images, where its runs are."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np

from reproduction.rows import Row
from snfnp.data import Dataset, load_dataset
from snfnp.data.files import print_to_stderr
from snfnp.errors import SnfnpError
from snfnp.ops import SINGLE_PROCESS, Communicator

SCALES = ("smoke", "hour", "paper")
_SMOKE = {"train": 200, "validation": 100, "test": 100}  # images at the smoke scale
_SMOKE_SIDE = 8  # and their pixels: the middle of each image


@dataclass(frozen=True, eq=False)
class Setting:
    """scale: one of `SCALES`; runs: the folder of all runs; ops: what computes; seeds, epochs: of
    every row, where they are not the table's; data_dir: where data sets are, where that was said;
    again: whether times that are there are measured once more; rows: the names of those that are
    wanted, in the order in which they are to be trained, where not all are. world: the processes
    that train together; the first of them alone looks at folders, measures, draws and shows.
    eval_every: epochs from one evaluation to the next.
    """

    scale: str
    runs: Path
    ops: object
    seeds: list[int] | None = None
    epochs: int | None = None
    data_dir: Path | None = None
    again: bool = False
    rows: tuple[str, ...] | None = None
    world: Communicator = SINGLE_PROCESS
    eval_every: int = 1

    @property
    def folder(self) -> Path:
        """Of the runs: those of the smoke scale have one of their own."""
        return self.runs / self.scale if self.scale == "smoke" else self.runs

    def wants(self, row: Row) -> bool:
        """Whether a row, as it is at this scale, is one of those that are wanted."""
        return self.rows is None or row.name in self.rows

    @cache  # noqa: B019 (one setting lives as long as the command)
    def dataset(self, name: str) -> Dataset:
        """Its images at this scale. Raises UsageError or SnfnpError where it is not there."""
        return images_at(self.scale, load_dataset(name, self.data_dir))

    @cache  # noqa: B019
    def missing(self, name: str) -> bool:
        """Whether a data set is not there; why, is said once. MNIST has to be."""
        try:
            self.dataset(name)
        except SnfnpError as error:
            if name == "mnist":
                raise
            if self.world.rank == 0:
                print_to_stderr(f"no rows of {name}: {error}")
            return True
        return False


def images_at(scale: str, dataset: Dataset) -> Dataset:
    """The images that a scale is run on: all, or so few and small that a run takes a second."""
    if scale != "smoke":
        return dataset
    splits = {}
    for name, count in _SMOKE.items():
        images = getattr(dataset, name)
        top, left = ((size - _SMOKE_SIDE) // 2 for size in images.shape[1:3])
        middle = images[:count, top : top + _SMOKE_SIDE, left : left + _SMOKE_SIDE]
        splits[name] = np.ascontiguousarray(middle)
    return replace(dataset, **splits)
