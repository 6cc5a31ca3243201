"""What tests of `reproduce.py` share."""

import numpy as np
from reproduction.runs import Command

from snfnp.data import Dataset


class FullSize(Command):
    """As if there were all images."""

    def dataset(self, name):
        splits = [np.zeros((count, 28, 28, 1), np.uint8) for count in (500, 100, 100)]
        return Dataset(name, *splits, source="somewhere", is_sample=False)


def rows_of(text):
    """The first table in a text, a dictionary of cells by head for each row."""
    lines = iter(text[text.index("\n| ") + 1 :].splitlines())
    table = []
    for line in lines:
        if not line.startswith("|"):
            break
        table.append([cell.strip() for cell in line[1:-1].split("|")])
    head, _, *rows = table
    return [dict(zip(head, row, strict=True)) for row in rows]
