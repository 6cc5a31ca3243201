"""What tests of `reproduce.py` share."""

from dataclasses import replace

import numpy as np
from reproduction import runs, times
from reproduction.page import TARGETS
from reproduction.runs import Command

from snfnp.data import Dataset, load_dataset
from snfnp.errors import UsageError

SIDE = 8  # of the images of `small`


class FullSize(Command):
    """As if there were all images."""

    def dataset(self, name):
        splits = [np.zeros((count, 28, 28, 1), np.uint8) for count in (500, 100, 100)]
        return Dataset(name, *splits, source="somewhere", is_sample=False)


def mnist(name, folder=None, count=200):
    """The middle of a few images of the sample, as if they were all of MNIST; no other data."""
    if name != "mnist":
        raise UsageError(f"there is no {name}")
    sample = load_dataset("mnist-sample")
    middle = slice(14 - SIDE // 2, 14 + SIDE // 2)
    splits = zip(("train", "validation", "test"), (count, 100, 100), strict=True)
    cropped = {
        split: np.ascontiguousarray(getattr(sample, split)[:number, middle, middle])
        for split, number in splits
    }
    return replace(sample, **cropped, is_sample=False)


def small(patch):
    """Let everything take seconds: few small images, few rows of many, few repeats."""
    patch.setattr(runs, "load_dataset", mnist)
    patch.setattr(times, "_MNIST", (SIDE, SIDE, 1))
    patch.setattr(times, "_REPEATS", (2, 2, 0, 0, 0))
    patch.setattr(times, "_PLAN", ((8, 16, 24), (4, 6, 8), 0.0))
    for name, count in (("white", 3), ("white-parts", 2)):
        patch.setattr(TARGETS[name], "rows", TARGETS[name].rows[:count])


def rows_of(text):
    """The first table in a text, a dictionary of cells by head for each row."""
    lines = iter(text[text.index("| ") :].splitlines())
    table = []
    for line in lines:
        if not line.startswith("|"):
            break
        table.append([cell.strip() for cell in line[1:-1].split("|")])
    head, _, *rows = table
    return [dict(zip(head, row, strict=True)) for row in rows]
