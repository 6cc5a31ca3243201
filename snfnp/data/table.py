"""Tables of numbers in text files, .csv, .tsv or .txt: rows, and the names of their columns."""

import csv
import gzip
import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from snfnp.errors import Report, UsageError, printable
from snfnp.files import open_binary

SUFFIXES = (".csv", ".tsv", ".txt")  # also with .gz
# cells without a number: of statistics, databases and spreadsheets, and what no density has
_MISSING = "na n/a nan -nan null none ? - . <na> #na #n/a #div/0! #value! #ref! #name? #num! #null!"
_INFINITE = "inf +inf -inf infinity +infinity -infinity"
INCOMPLETE = frozenset(["", *_MISSING.split(), *_INFINITE.split()])
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")  # byte-order marks
_DELIMITERS = "\t;, "  # in the order in which they are tried
_MOST = 1 << 30  # bytes of the text in a .gz file, which may be a bomb
_LINE = re.compile(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+")
# which Excel writes and reads
_SEPARATOR = re.compile(r'\s*"?sep=(.)"?[^\S\n]*\n', re.IGNORECASE)
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
# the same with decimal commas, beside which 1.234 may be 1234
_COMMA_NUMBER = re.compile(
    r"(?![+-]?\d{1,3}(\.\d{3})+$)[+-]?(\d+[.,]?\d*|[.,]\d+)([eE][+-]?\d+)?"
)
# 1,5 where columns are separated by something else
_COMMA = re.compile(r"[+-]?\d+,\d+")
_THOUSANDS = re.compile(r"[+-]?\d{1,3}(,\d{3})+(\.\d+)?|[+-]?\d{1,3}(\.\d{3})+(,\d+)?")


def is_table(path: object) -> bool:
    """True if a file's name is that of a table."""
    return str(path).lower().removesuffix(".gz").endswith(SUFFIXES)


def read_table(
    path: Path,
    report: Report,
    header: bool | None = None,
    columns: str | Sequence[str | int] | None = None,
    drop_incomplete: bool = False,
) -> tuple[np.ndarray, tuple[str, ...] | None]:
    """Read a table of numbers.

    Args:
        path: the file: UTF-8, or UTF-16 with a byte-order mark; columns separated by
            commas, semicolons, tabs or spaces, or as a first line `sep=;` says; lines that begin
            with # before the table are left out. A name in .gz: compressed, at most 1 GiB of text.
        report: gets a line on what is left out, or looks like a mistake.
        header: whether the first row has names; None: if a cell of it is text above a number, or
            none is a number.
        columns: the columns to take, in this order: names or numbers from 0, as a sequence or
            separated by commas (a name with a comma in double quotes); None: all.
        drop_incomplete: leave out rows that have a cell without a number.

    Returns:
        Rows (N, D), float64, and the names of their columns, or None if the file has none.

    Raises:
        UsageError: a cell is not a number (the message has its line and column), or a row has
            more or fewer cells than the first one.
    """
    content = _text(path)
    file = printable(path)
    start, delimiter, first, second = _beginning(content, header)
    if "#" in content[:start].rpartition("\n")[0]:
        report(f"{file}: lines before the table are left out, as they begin with #")
    commas = delimiter != "," and _has_decimal_commas(content, delimiter)
    number = (_COMMA_NUMBER if commas else _NUMBER).fullmatch
    guessed = header is None and _has_names(first, second, number)
    # text beside numbers
    if header is None and any(map(number, first)) and not all(map(number, first)):
        report(
            f"{file}: the first row, {_listed(first)[:200]}, is read as "
            f"{'names of columns' if guessed else 'data'}: if that is wrong, give "
            f"`header={not guessed}`"
        )
    names = tuple(first) if header or guessed else None
    labels = names or tuple(map(str, range(len(first))))
    if (twice := _twice(labels)) is not None:
        raise UsageError(f"{file}: several columns are called {twice!r}: rename them")
    taken = _chosen(columns, labels, file)
    chosen = tuple(labels[index] for index in taken)
    if "" in chosen:
        report(
            f"{file}: a column has no name: if it is an index, choose others by `columns`"
        )
    if chosen != labels and not isinstance(columns, str):  # the order of another file
        report(f"{file}: columns are taken by name, {_listed(chosen)[:200]}")
    numbers = array("d")
    dropped = 0
    before = len(re.findall("\r\n|\r|\n", content[:start]))
    reader = _reader(content, delimiter, start)
    for cells in islice(filter(None, reader), int(bool(names)), None):
        line = f"{file}, line {before + reader.line_num}"
        if len(cells) < len(first) or any(map(str.strip, cells[len(first) :])):
            raise UsageError(
                f"{line}: the number of cells is {len(cells)}, in the first row it is "
                f"{len(first)}: give all rows the same; decimals need a point"
            )
        row = [cells[index].strip() for index in taken]
        wrong = [index for index, cell in enumerate(row) if not number(cell)]
        if not wrong:
            numbers.extend(float(cell.replace(",", ".")) for cell in row)
        elif drop_incomplete and any(
            row[index].lower() in INCOMPLETE for index in wrong
        ):
            dropped += 1
        else:
            raise UsageError(
                _problem(f"{line}, column {chosen[wrong[0]]!r}", row[wrong[0]])
            )
    rows = np.frombuffer(numbers, np.float64).reshape(-1, max(1, len(taken)))
    if not len(rows):
        advice = "choose columns with `columns`" if dropped else "check the file"
        raise UsageError(f"{file} has no rows of numbers: {advice}")
    if dropped:
        report(
            f"{file}: incomplete rows are left out ({dropped} of {len(rows) + dropped})"
        )
    if (
        delimiter == ","
        and not names
        and _COMMA.fullmatch(",".join(second or first))
        and (rows == np.rint(rows)).all()
        and (rows[:, -1] >= 0).all()
    ):
        report(
            f"{file}: pairs of whole numbers are read as two columns: if they are decimals, write "
            "these with a point"
        )
    return rows, chosen if names else None


def _text(path: Path) -> str:
    with open_binary(path) as file:
        if path.suffix.lower() == ".gz":
            content = gzip.GzipFile(fileobj=file).read(_MOST + 1)
            if len(content) > _MOST:
                raise UsageError(
                    f"{printable(path)} has more than {_MOST:,} bytes of text: decompress it"
                )
        else:
            content = file.read()
    encoding = "utf-16" if content.startswith(_UTF_16) else "utf-8"
    try:
        return content.decode(encoding).lstrip("\ufeff")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UsageError(
            f"{printable(path)}, line {line}: it is not UTF-8 text: save it as UTF-8"
        ) from None


def _reader(content: str, delimiter: str, start: int) -> Any:
    """A reader of the rows from an index in the text on."""
    lines = (match[0].lstrip(" ") for match in _LINE.finditer(content, start))
    return csv.reader(lines, delimiter=delimiter, skipinitialspace=True)


def _beginning(
    content: str, header: bool | None
) -> tuple[int, str, list[str], list[str]]:
    """The index where the table begins, its delimiter, and its first two rows; the first one
    without cells at its end that are empty in both."""
    delimiters = _DELIMITERS
    start = 0
    if separator := _SEPARATOR.match(content):
        delimiters = separator[1]
        start = separator.end()
    for line in _LINE.finditer(content, start):
        if not line[0].strip():
            continue
        start = line.start()
        tried = [each for each in delimiters if each in line[0]] or [delimiters[-1]]
        delimiter, first, second = _split(content, start, tried)
        comment = first[0].startswith("#") and first[0].lower() not in INCOMPLETE
        if comment:  # or names, as `np.savetxt` writes them
            start = content.index("#", start) + 1
            delimiter, first, second = _split(content, start, tried)
            alike = _filled(first) == _filled(second) and delimiter in (*tried, ",")
            number = _COMMA_NUMBER.fullmatch
            named = _has_names(first, second, number) if header is None else header
            comment = not (alike and named and any(map(number, second)))
        if not comment:
            width = max(_filled(first), min(_filled(second), len(first)))
            return start, delimiter, first[:width], second
        start = line.end()
    return start, ",", [], []


def _split(
    content: str, start: int, delimiters: list[str]
) -> tuple[str, list[str], list[str]]:
    """The delimiter that splits the first two rows into as many cells, and these rows."""
    tried = {}
    for delimiter in (*delimiters, ","):
        rows = filter(None, _reader(content, delimiter, start))
        tried[delimiter] = [[cell.strip() for cell in next(rows, [])] for _ in range(2)]
        first, second = tried[delimiter]
        if len(first) == len(second) > 1 or _filled(first) == _filled(second) > 1:
            return delimiter, first, second
    first, second = tried[","]
    decimal = ",".join(second)
    # one column of numbers with decimal commas
    if len(first) == 1 and _COMMA.fullmatch(decimal):
        return ";", first, [decimal]
    tried.pop(" ", None)  # a space is part of a name here
    delimiter = next(iter(tried))
    first, second = tried[delimiter]
    return delimiter, first, second


def _filled(cells: list[str]) -> int:
    """The number of cells without empty ones at the end."""
    return max((count for count, cell in enumerate(cells, 1) if cell), default=0)


def _chosen(
    columns: str | Sequence[str | int] | None, labels: tuple[str, ...], file: str
) -> list[int]:
    """The indices of the columns to take, by names or numbers."""
    indices = {str(index): index for index in range(len(labels))}
    indices |= {label: index for index, label in enumerate(labels)}
    if isinstance(columns, str):
        columns = next(csv.reader([columns], skipinitialspace=True)) or [""]
    names = [str(name).strip() for name in (labels if columns is None else columns)]
    for name in names:
        if name not in indices:
            raise UsageError(
                f"{file} has no column {name!r}: its columns are {_listed(labels)[:200]}"
            )
    taken = [indices[name] for name in names]
    # the density of equal columns is infinite
    twice = _twice(labels[index] for index in taken)
    if twice is not None:
        raise UsageError(
            f"`columns` has {twice!r} more than once: name each column once"
        )
    return taken


def _twice(names: Iterable[str]) -> str | None:
    """A name that is there more than once, or None."""
    return next((name for name, count in Counter(names).items() if count > 1), None)


def _listed(names: Iterable[str]) -> str:
    """Names as `columns` takes them: with a comma, in quotes."""
    return ", ".join(f'"{name}"' if "," in name else name for name in names)


def _has_names(
    first: list[str], second: list[str], number: Callable[[str], Any]
) -> bool:
    """True if the first row has names: a cell is text above a number, or no cell is a number and
    not all are gaps."""
    texts = {cell for cell in first if not (number(cell) or cell.lower() in INCOMPLETE)}
    for cell, below in zip(first, second, strict=False):
        if cell in texts and any(map(str.isalpha, cell)) and number(below):
            return True
    return bool(texts) and not any(map(number, first))


def _has_decimal_commas(content: str, delimiter: str) -> bool:
    """True if numbers have decimal commas: some comma is not followed by three digits, which might
    be thousands."""
    edge = rf'[{re.escape(delimiter)}\r\n"]'
    cell = r" {0,9}[+-]?\d+,(?!\d{3}(?!\d))\d+ {0,9}"
    return re.search(rf"(?:^|{edge}){cell}(?:$|{edge})", content) is not None


def _problem(column: str, cell: str) -> str:
    """The message on a cell that is no number; column: with its file and line."""
    if cell.lower() in INCOMPLETE:
        return (
            f"{column} {f'has {cell!r}' if cell else 'is empty'}: fill it in, or leave such rows "
            "out with `drop_incomplete`"
        )
    message = f"{column} has {printable(cell)[:40]!r}"
    if _THOUSANDS.fullmatch(cell) or _COMMA.fullmatch(cell):
        return f"{message}: write numbers with a decimal point, without separators of thousands"
    if all(map(_NUMBER.fullmatch, cell.split())):
        return f"{message}: separate columns by commas"
    return f"{message}, which is not a number: choose columns of numbers with `columns`"
