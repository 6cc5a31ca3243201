"""Tables of numbers in text files, .csv, .tsv or .txt: rows, and the names of their columns."""

import csv
import gzip
import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from snfnp.errors import UsageError, printable
from snfnp.files import open_regular

SUFFIXES = (".csv", ".tsv", ".txt")  # also with .gz
# cells without a number: of statistics, databases and spreadsheets, and what no density has
_MISSING = "na n/a nan -nan null none ? - . <na> #na #n/a #div/0! #value! #ref! #name? #num! #null!"
_INFINITE = "inf +inf -inf infinity +infinity -infinity"
INCOMPLETE = frozenset(["", *_MISSING.split(), *_INFINITE.split()])
_MARKS = {  # {a byte-order mark: its encoding}
    b"\xff\xfe\0\0": "utf-32",
    b"\0\0\xfe\xff": "utf-32",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
    b"+/v": "utf-7",
}
_DELIMITERS = "\t;, "  # in the order in which they are tried
_MOST = 1 << 30  # bytes of the text in a .gz file, which may be a bomb
_LINE = re.compile(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+")
_SEPARATOR = re.compile(r'\s*"?sep=(.)"?[^\S\n]*\n', re.IGNORECASE)  # which Excel writes and reads
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
# the same with decimal commas, beside which 1.234 may be 1234
_COMMA_NUMBER = re.compile(r"(?![+-]?\d{1,3}(\.\d{3})+$)[+-]?(\d+[.,]?\d*|[.,]\d+)([eE][+-]?\d+)?")
_ENCODED = re.compile(r"\+[A-Za-z0-9+/]{3,}-")  # in UTF-7
_COMMA = re.compile(r"[+-]?\d+,\d+")  # 1,5 where columns are separated by something else
_THOUSANDS = re.compile(r"[+-]?\d{1,3}(,\d{3})+(\.\d+)?|[+-]?\d{1,3}(\.\d{3})+(,\d+)?")


def is_table(path: object) -> bool:
    """True if a file's name is that of a table."""
    return str(path).lower().removesuffix(".gz").endswith(SUFFIXES)


def read_table(
    place: Path,
    report: Callable[[str], None],
    header: bool | None = None,
    columns: str | Sequence[str] | None = None,
    drop_incomplete: bool = False,
) -> tuple[np.ndarray, tuple[str, ...] | None]:
    """Read a table of numbers.

    Args:
        place: the file: UTF-8, or another Unicode with a byte-order mark; columns separated by
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
    content, where = _text(place), printable(str(place))
    start, delimiter, first, second = _beginning(content)
    if "#" in content[:start].rpartition("\n")[0]:
        report(f"{where}: lines before the table are left out, as they begin with #")
    commas = delimiter != "," and _has_decimal_commas(content, delimiter)
    number = (_COMMA_NUMBER if commas else _NUMBER).fullmatch
    names = tuple(first) if header else None
    if header is None and _has_names(first, second, number):
        names = tuple(first)
        if any(map(number, first)):
            found = f"the first row is taken for names of columns, {_listed(first)[:200]}"
            report(f"{where}: {found}: if it is none, give `header=False`")
    elif header is None and first == list(map(str, range(max(2, len(first))))):
        report(f"{where}: line 1 counts from 0: if these are names of columns, give `header`")
    if odd := next(filter(_is_utf_7, names or ()), None):
        report(f"{where}: the name {odd!r} looks like UTF-7: save the file as UTF-8")
    labels = names or tuple(map(str, range(len(first))))
    if (twice := _twice(labels)) is not None:
        raise UsageError(f"{where}: several columns are called {twice!r}: rename them")
    asked, taken = _chosen(columns, labels, where)
    if asked != list(labels) and not isinstance(columns, str):  # the order of another file
        report(f"{where}: columns are taken by name, {_listed(asked)[:200]}")
    numbers, dropped = array("d"), 0
    before = len(re.findall("\r\n|\r|\n", content[:start]))
    reader = _reader(content, delimiter, start)
    for cells in islice(filter(None, reader), int(bool(names)), None):
        at = f"{where}, line {before + reader.line_num}"
        if len(cells) < len(first) or any(map(str.strip, cells[len(first) :])):
            found = f"{at}: the number of cells is {len(cells)}, in line 1 it is {len(first)}"
            raise UsageError(f"{found}: give all rows the same; decimals need a point")
        row = [cells[each].strip() for each in taken]
        wrong = [place for place, cell in enumerate(row) if not number(cell)]
        if not wrong:
            numbers.extend(float(cell.replace(",", ".")) for cell in row)
        elif drop_incomplete and any(row[place].lower() in INCOMPLETE for place in wrong):
            dropped += 1
        else:
            raise UsageError(_problem(f"{at}, column {asked[wrong[0]]!r}", row[wrong[0]]))
    rows = np.frombuffer(numbers, np.float64).reshape(-1, max(1, len(taken)))
    if not len(rows):
        advice = "choose columns with `columns`" if dropped else "check the file"
        raise UsageError(f"{where} has no rows of numbers: {advice}")
    if dropped:
        report(f"{where}: incomplete rows are left out ({dropped} of {len(rows) + dropped})")
    counts = asked[0] in ("", "0", "Unnamed: 0", "rownames") and len(rows) > 2
    if counts and rows[0, 0] in (0, 1) and (np.diff(rows[:, 0]) == 1).all():
        rest = _listed(asked[1:], ",")
        how = f"`columns={rest}`" if len(rest) < 200 else "`columns` with the names of the others"
        report(f"{where}: the first column only counts the rows: {how} leaves it out")
    pairs = delimiter == "," and not names and _COMMA.fullmatch(",".join(second or first))
    if pairs and (rows == np.rint(rows)).all() and (rows[:, -1] >= 0).all():
        found = "pairs of whole numbers are read as two columns"
        report(f"{where}: {found}: if they are decimals, write these with a point")
    return rows, names and tuple(asked)


def _text(place: Path) -> str:
    with open(open_regular(place, follow=True), "rb") as file:
        if place.suffix.lower() == ".gz":
            content = gzip.GzipFile(fileobj=file).read(_MOST + 1)
            if len(content) > _MOST:
                found = f"{printable(str(place))} has more than {_MOST:,} bytes of text"
                raise UsageError(f"{found}: decompress it")
        else:
            content = file.read()
    marked = next((name for mark, name in _MARKS.items() if content.startswith(mark)), "utf-8")
    try:
        return content.decode(marked).lstrip("\ufeff")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        where = f"{printable(str(place))}, line {line}"
        raise UsageError(f"{where}: it is not UTF-8 text: save it as UTF-8") from None


def _reader(content: str, delimiter: str, start: int) -> Any:
    """A reader of the rows from a place in the text on."""
    lines = (match[0].lstrip(" ") for match in _LINE.finditer(content, start))
    return csv.reader(lines, delimiter=delimiter, skipinitialspace=True)


def _beginning(content: str) -> tuple[int, str, list[str], list[str]]:
    """The place where the table begins, its delimiter, and its first two rows; the first one
    without cells at its end that are empty in both."""
    separator = _SEPARATOR.match(content)
    start = separator.end() if separator else 0
    while line := next((each for each in _LINE.finditer(content, start) if each[0].strip()), None):
        start, known = line.start(), separator[1] if separator else _DELIMITERS
        tried = [each for each in known if each in line[0]] or known[-1:]
        delimiter, first, second = _split(content, start, tried)
        comment = first[0].startswith("#") and first[0].lower() not in INCOMPLETE
        if comment:  # or names, as `np.savetxt` writes them
            start = content.index("#", start) + 1
            delimiter, first, second = _split(content, start, tried)
            alike = _filled(first) == _filled(second) and delimiter in (*tried, ",")
            comment = not (alike and any(map(_COMMA_NUMBER.fullmatch, second)))
        if not comment:
            width = max(_filled(first), min(_filled(second), len(first)))
            return start, delimiter, first[:width], second
        start = line.end()
    return start, ",", [], []


def _split(content: str, start: int, delimiters: Iterable[str]) -> tuple[str, list[str], list[str]]:
    """The delimiter that splits the first two rows into as many cells, and these rows."""
    tried = {}
    for delimiter in (*delimiters, ","):
        rows = filter(None, _reader(content, delimiter, start))
        tried[delimiter] = [[cell.strip() for cell in next(rows, [])] for _ in range(2)]
        first, second = tried[delimiter]
        if len(first) == len(second) > 1 or _filled(first) == _filled(second) > 1:
            return delimiter, first, second
    first, second = tried[","]
    if len(first) == 1 and _COMMA.fullmatch(decimal := ",".join(second)):  # of one column
        return ";", first, [decimal]
    tried.pop(" ", None)  # of a name
    delimiter = next(iter(tried))
    return delimiter, *tried[delimiter]


def _filled(cells: list[str]) -> int:
    """The number of cells without empty ones at the end."""
    return max((place for place, cell in enumerate(cells, 1) if cell), default=0)


def _chosen(columns, labels: tuple[str, ...], where: str) -> tuple[list[str], list[int]]:
    """The names, or numbers, and the places of the columns to take."""
    places = {str(place): place for place in range(len(labels))}
    places |= {label: place for place, label in enumerate(labels)}
    if isinstance(columns, str):
        columns = next(csv.reader([columns], skipinitialspace=True)) or [""]
    asked = [str(name).strip() for name in columns or labels]
    if unknown := [name for name in asked if name not in places]:
        found = f"{where} has no column {unknown[0]!r}: its columns are"
        raise UsageError(f"{found} {_listed(labels)[:200]}")
    taken = [places[name] for name in asked]
    asked = [labels[place] for place in taken]
    if (twice := _twice(asked)) is not None:  # a density would be infinite
        raise UsageError(f"`columns` has {twice!r} more than once: name each column once")
    return asked, taken


def _twice(names: Iterable[str]) -> str | None:
    """A name that is there more than once, or None."""
    return next((name for name, count in Counter(names).items() if count > 1), None)


def _listed(names: Iterable[str], separator: str = ", ") -> str:
    """Names as `columns` takes them: with a comma, in quotes."""
    return separator.join(f'"{name}"' if "," in name else name for name in names)


def _has_names(first: list[str], second: list[str], number: Callable) -> bool:
    """True if the first row has names: a cell is text above a number, or none is a number."""

    def text(cell: str) -> bool:
        return not number(cell) and cell.lower() not in INCOMPLETE and any(map(str.isalpha, cell))

    above = any(text(a) and number(b) for a, b in zip(first, second, strict=False))
    return above or not any(map(number, first))


def _has_decimal_commas(content: str, delimiter: str) -> bool:
    """True if numbers have decimal commas: some comma is not followed by three digits, which might
    be thousands."""
    edge = rf'[{re.escape(delimiter)}\r\n"]'
    cell = r" {0,9}[+-]?\d+,(?!\d{3}(?!\d))\d+ {0,9}"
    return re.search(rf"(?:^|{edge}){cell}(?:$|{edge})", content) is not None


def _is_utf_7(name: str) -> bool:
    """True if a name has an encoded character, as +AOQ- for ä."""
    with suppress(UnicodeError):
        return bool(_ENCODED.search(name)) and not name.encode().decode("utf-7").isascii()
    return False


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
