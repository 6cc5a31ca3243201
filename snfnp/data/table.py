"""Tables of numbers in text files, .csv: rows, and the names of their columns."""

import csv
import io
import re
from array import array
from collections.abc import Callable, Sequence
from itertools import islice
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
        header: whether line 1 has names; None: if a cell of it is text above a number, or none is a
            number.
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
    delimiter, first, second = _beginning(content)
    commas = delimiter != "," and _has_decimal_commas(content, delimiter)

    def stripped(cells: list[str]) -> list[str]:
        return [cell.strip().replace(",", ".") if commas else cell.strip() for cell in cells]

    if header is None:
        header = _has_names(stripped(first), stripped(second))
        if not header and first == [str(place) for place in range(max(2, len(first)))]:
            report(f"{where}: line 1 counts from 0: if these are names of columns, give `header`")
    names = tuple(cell.strip() for cell in first) if header else None
    if names and (twice := [name for name in names if names.count(name) > 1]):
        raise UsageError(f"{where}: several columns are called {twice[0]!r}: rename them")
    labels = names or tuple(map(str, range(len(first))))
    wanted = columns.split(",") if isinstance(columns, str) else columns or labels
    by_number = {str(place): label for place, label in enumerate(labels)}
    asked = [str(name).strip() for name in wanted]
    asked = [name if name in labels else by_number.get(name, name) for name in asked]
    if unknown := [name for name in asked if name not in labels]:
        found = f"{where} has no column {unknown[0]!r}: its columns are"
        raise UsageError(f"{found} {', '.join(labels)[:200]}")
    if twice := [name for name in asked if asked.count(name) > 1]:  # a density would be infinite
        raise UsageError(f"`columns` has {twice[0]!r} more than once: name each column once")
    taken = [labels.index(name) for name in asked]
    if asked != list(labels) and not isinstance(columns, str):  # the order of another file
        report(f"{where}: columns are taken by name, {', '.join(asked)[:200]}")
    numbers, dropped = array("d"), 0
    lines = csv.reader(io.StringIO(content, newline=""), delimiter=delimiter)
    for cells in islice(filter(None, lines), int(header), None):
        at = f"{where}, line {lines.line_num}"
        if len(cells) != len(labels):
            found = f"{at}: the number of cells is {len(cells)}, in line 1 it is {len(labels)}"
            raise UsageError(f"{found}: give all rows the same; decimals need a point")
        row = stripped([cells[each] for each in taken])
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
        advice = "choose columns with `columns`" if dropped else "check the file"
        raise UsageError(f"{where} has no rows of numbers: {advice}")
    if dropped:
        report(f"{where}: incomplete rows are left out ({dropped} of {len(rows) + dropped})")
    counts = labels[taken[0]] in ("", "0", "Unnamed: 0", "rownames") and len(rows) > 2
    if counts and rows[0, 0] in (0, 1) and (np.diff(rows[:, 0]) == 1).all():
        rest = ",".join(labels[each] for each in taken[1:])
        how = f"`columns={rest}`" if len(rest) < 200 else "`columns` with the names of the others"
        report(f"{where}: the first column only counts the rows: {how} leaves it out")
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


def _beginning(content: str) -> tuple[str, list[str], list[str]]:
    """The delimiter, which splits the first two rows into as many cells, and these rows."""
    line = next(filter(str.strip, io.StringIO(content)), "")
    starts = []
    for delimiter in [each for each in "\t;," if each in line] or ",":
        lines = filter(None, csv.reader(io.StringIO(content, newline=""), delimiter=delimiter))
        starts.append((delimiter, next(lines, []), next(lines, [])))
    return next((start for start in starts if len(start[1]) == len(start[2]) > 1), starts[-1])


def _has_names(first: list[str], second: list[str]) -> bool:
    """True if the first row has names: a cell is text above a number, or none is a number."""
    number = _NUMBER.fullmatch

    def text(cell: str) -> bool:
        return not number(cell) and cell.lower() not in INCOMPLETE and any(map(str.isalpha, cell))

    above = any(text(a) and number(b) for a, b in zip(first, second, strict=False))
    return above or not any(map(number, first))


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
    if " " in cell:
        return f"{found}: separate columns by commas"
    return f"{found}, which is not a number: choose columns of numbers with `columns`"
