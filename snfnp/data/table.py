"""Tables of numbers in text files, .csv: rows, and the names of their columns."""

import csv
import io
import re
from array import array
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path

import numpy as np

from snfnp.errors import UsageError, printable
from snfnp.files import open_regular

INCOMPLETE = ("", "na", "n/a", "nan", "null", "none", "?", "-")  # cells without a number
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_COMMA = re.compile(r"[+-]?\d+,\d+")  # 1,5 where columns are separated by something else
_THOUSANDS = re.compile(r"[+-]?\d{1,3}(,\d{3})+(\.\d+)?|[+-]?\d{1,3}(\.\d{3})+,\d+")


def read_table(
    place: Path,
    report: Callable[[str], None],
    header: bool | None = None,
    columns: str | Sequence[str] | None = None,
    drop_incomplete: bool = False,
) -> tuple[np.ndarray, tuple[str, ...] | None]:
    """Read a table of numbers.

    Args:
        place: the file: UTF-8, or UTF-16 with a byte-order mark; columns separated by commas,
            semicolons or tabs.
        report: gets a line on what is left out, or looks like a mistake.
        header: whether line 1 has names; None: if no cell of it is a number.
        columns: the columns to take, in this order: names or numbers from 0, as a sequence or
            separated by commas; None: all.
        drop_incomplete: leave out rows that have a cell without a number.

    Returns:
        Rows (N, D), float64, and the names of their columns, or None if the file has none.

    Raises:
        UsageError: a cell is not a number (the message has its line and column), or a row has
            more or fewer cells than line 1.
    """
    content, where = _text(place), printable(str(place))
    delimiter = max(",;\t", key=content.partition("\n")[0].count)
    lines = csv.reader(io.StringIO(content, newline=""), delimiter=delimiter)
    first = next(filter(None, lines), [])
    if header is None:
        header = not any(_NUMBER.fullmatch(cell.strip()) for cell in first)
    names = tuple(cell.strip() for cell in first) if header else None
    if names and (twice := [name for name in names if names.count(name) > 1]):
        raise UsageError(f"{where}: several columns are called {twice[0]!r}: rename them")
    labels = names or tuple(map(str, range(len(first))))
    wanted = columns.split(",") if isinstance(columns, str) else columns or labels
    asked = [str(name).strip() for name in wanted]
    if unknown := [name for name in asked if name not in labels]:
        found = f"{where} has no column {unknown[0]!r}: its columns are"
        raise UsageError(f"{found} {', '.join(labels)[:200]}")
    if twice := [name for name in asked if asked.count(name) > 1]:  # a density would be infinite
        raise UsageError(f"`columns` has {twice[0]!r} more than once: name each column once")
    taken = [labels.index(name) for name in asked]
    if asked != list(labels) and not isinstance(columns, str):  # the order of another file
        report(f"{where}: columns are taken by name, {', '.join(asked)[:200]}")
    commas = delimiter != "," and _has_decimal_commas(content, delimiter)
    numbers, dropped = array("d"), 0
    for cells in filter(None, lines if header else chain([first], lines)):
        at = f"{where}, line {lines.line_num}"
        if len(cells) != len(labels):
            found = f"{at}: the number of cells is {len(cells)}, in line 1 it is {len(labels)}"
            raise UsageError(f"{found}: give all rows the same; decimals need a point")
        row = [cells[each].strip() for each in taken]
        row = [cell.replace(",", ".") for cell in row] if commas else row
        wrong = [place for place, cell in enumerate(row) if not _NUMBER.fullmatch(cell)]
        incomplete = any(row[place].lower() in INCOMPLETE for place in wrong)
        if not wrong:
            numbers.extend(map(float, row))
        elif incomplete and drop_incomplete:
            dropped += 1
        else:
            raise UsageError(_problem(f"{at}, column {labels[taken[wrong[0]]]!r}", row[wrong[0]]))
    rows = np.frombuffer(numbers, np.float64).reshape(-1, max(1, len(taken)))
    if not len(rows):
        raise UsageError(f"{where} has no rows of numbers: check the file")
    if dropped:
        report(f"{where}: incomplete rows are left out ({dropped} of {len(rows) + dropped})")
    counts = labels[taken[0]] in ("", "0", "Unnamed: 0", "rownames") and len(rows) > 2
    if counts and rows[0, 0] in (0, 1) and (np.diff(rows[:, 0]) == 1).all():
        rest = ",".join(labels[each] for each in taken[1:])[:200]
        report(f"{where}: the first column only counts the rows: `columns={rest}` leaves it out")
    return rows, names and tuple(asked)


def _text(place: Path) -> str:
    with open(open_regular(place, follow=True), "rb") as file:
        content = file.read()
    wide = content[:2] in (b"\xff\xfe", b"\xfe\xff")
    try:
        return content.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        where = f"{printable(str(place))}, line {line}"
        raise UsageError(f"{where}: it is not UTF-8 text: save it as UTF-8") from None


def _has_decimal_commas(content: str, delimiter: str) -> bool:
    """True if numbers have decimal commas: some comma is not followed by three digits, which might
    be thousands."""
    cells = re.split(rf'[{delimiter}\r\n"]', content)
    found = [cell.strip() for cell in cells if _COMMA.fullmatch(cell.strip())]
    return any(len(cell.partition(",")[2]) != 3 for cell in found)


def _problem(where: str, cell: str) -> str:
    if cell.lower() in INCOMPLETE:
        what = f"has {cell!r}" if cell else "is empty"
        return f"{where} {what}: fill it in, or leave such rows out with `drop_incomplete`"
    found = f"{where} has {printable(cell)[:40]!r}"
    if _THOUSANDS.fullmatch(cell) or _COMMA.fullmatch(cell):
        return f"{found}: write numbers with a decimal point, without separators of thousands"
    return f"{found}, which is not a number: choose columns of numbers with `columns`"
