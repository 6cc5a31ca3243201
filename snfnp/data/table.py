"""Tables of numbers in text files: .csv."""

import io
import warnings
from functools import partial
from pathlib import Path

import numpy as np


def read_table(place: Path) -> np.ndarray:
    """The numbers in a table (N, D), with a line of names above them or without."""
    content = place.read_text(encoding="utf-8-sig")
    delimiter = max(",;\t", key=content.partition("\n")[0].count)
    read = partial(np.loadtxt, delimiter=delimiter, comments=None, quotechar='"', ndmin=2)
    with warnings.catch_warnings(action="ignore"):  # of a table without rows
        try:
            table = read(io.StringIO(content))
        except ValueError as error:
            if "at row 0," not in str(error):
                raise
            table = read(io.StringIO(content), skiprows=1)
    if table.size == 0:
        raise ValueError("it has no rows of numbers")
    return table
