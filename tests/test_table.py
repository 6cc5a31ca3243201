"""Tables: numbers and names in text files."""

import gzip
import time

import numpy as np
import pytest
from support.messages import one_line

from snfnp.data import own_data, table
from snfnp.data.table import read_table
from snfnp.errors import UsageError

TWO = [[1.0, 2.0], [3.0, 4.5]]
GUESSED = "the first row, {}, is read as names of columns: if that is wrong, give `header=False`"


@pytest.fixture
def read(tmp_path):
    """A function (text, …) -> (rows as lists, names, lines that were reported)."""

    def read(text, encoding="utf-8", name="t.csv", **options):
        lines = []
        content = text.encode(encoding)
        if name.endswith("gz"):
            content = gzip.compress(content)
        (tmp_path / name).write_bytes(content)
        rows, names = read_table(tmp_path / name, lines.append, **options)
        return rows.tolist(), names, lines

    return read


# {text: the names of its columns, between |}, of the rows `TWO`
PLAIN = {
    "a,b\n1,2\n3,4.5\n": "a|b",
    "1,2\r\n\r\n3,4.5": None,
    '"x, y","z"\n"1","2"\n3, +.45e1\n': "x, y|z",
    "1,0;2,0\n3,0;4,5\n": None,  # more commas than semicolons
    "\na;b\n1;2\n3;4,5\n": "a|b",
    '"a;b",c\n1,2\n3,4.5\n': "a;b|c",
    "a,b,,\n1,2,,\n3,4.5,,\n": "a|b",  # of a spreadsheet
    "a,b\n1,2,\n3,4.5,\n": "a|b",
    "a,b,\n1,2\n3,4.5\n": "a|b",
    "1,2,\n3,4.5,\n": None,
    "sep=;\na;b\n1;2\n3;4,5\n": "a|b",
    "sep=^\na^b\n1^2\n3^4,5\n": "a|b",
    '"sep=\t"\r\n1\t2\r\n3\t4.5\r\n': None,
    "\ufeff\ufeffa,b\n1,2\n3,4.5\n": "a|b",
    '"a", "b"\n"1", 2\n3, "4.5"\n': "a|b",
    "a;b\n1.0;2,0\n3;4,5\n": "a|b",
    "a,b\r1,2\r3,4.5\r": "a|b",
}
WORDS = "b,word,a\n2,x,1\n4.5,y,3\n"
YEARS = "id,2019,2020\n7,1,2\n8,3,4.5\n"
GAPS = "a,b\n1,2\nNA,3\n,\n3,4.5\n"
TOLD = [
    ("7,8\n1,2\n3,4.5\n", {"header": True}, "7|8"),
    ("a;b\n1;2\n3;4,5\n", {"encoding": "utf-8-sig"}, "a|b"),
    ("ä\tb\n1\t2\n3\t4.5\n", {"encoding": "utf-16"}, "ä|b"),
    (WORDS, {"columns": "a, b"}, "a|b"),
    (
        "1,x,2\n3,y,4.5\n",
        {
            "columns": "0,2",
            "said": "the first row, 1, x, 2, is read as data: if that is wrong, give `header=True`",
        },
        None,
    ),
    (
        ",a\n1,2\n3,4.5\n",
        {"said": "a column has no name: if it is an index, choose others by `columns`"},
        "|a",
    ),
    (YEARS, {"columns": "1,2", "said": GUESSED.format("id, 2019, 2020")}, "2019|2020"),
    (
        GAPS,
        {"drop_incomplete": True, "said": "incomplete rows are left out (2 of 4)"},
        "a|b",
    ),
    ("a,b,\n1,2,\n3,4.5,\n", {"columns": "a,b"}, "a|b"),
    ('a,"b, c"\n1,2\n3,4.5\n', {"columns": 'a, "b, c"'}, "a|b, c"),
    ("  1.0   2.0\n  3.0   4.5 \n", {"name": "t.txt"}, None),
    ("# a b\n1 2\n3 4.5\n", {"name": "t.txt"}, "a|b"),
    ("# 7 8\n1 2\n3 4.5\n", {"header": True}, "7|8"),
    ("a\tb\n1\t2\n3\t4.5\n", {"name": "t.tsv"}, "a|b"),
    ("a;b\n1;2\n3;4,5\n", {"name": "t.CSV.gz"}, "a|b"),
]


@pytest.mark.parametrize(
    "text, options, names", [*((text, {}, PLAIN[text]) for text in PLAIN), *TOLD]
)
def test_rows_and_names_are_read(text, options, names, read):
    options = dict(options)
    said = options.pop("said", "")
    rows, read_names, lines = read(text, **options)
    assert rows == TWO and read_names == (tuple(names.split("|")) if names else None)
    assert "".join(line.partition(": ")[2] for line in lines) == said


@pytest.mark.parametrize(
    "text, rows, names, line",
    [
        ("cat,1,2\n1,2,4.5\n", [[1, 2, 4.5]], "cat|1|2", GUESSED.format("cat, 1, 2")),
        (
            "3,5\n4,25\n",
            [[3, 5], [4, 25]],
            None,
            "pairs of whole numbers are read as two",
        ),
        ("x\n3,5\n4,25\n", [[3.5], [4.25]], "x", None),
        ("first name\n1\n2\n", [[1], [2]], "first name", None),
        ("# by, me\n#\na,b\n1,2\n", [[1, 2]], "a|b", "lines before the table are left"),
        ("# me\n\n1,2\n3,4.5\n", TWO, None, "left out, as they begin"),
        ("#7,8\n1,2\n3,4.5\n", TWO, None, "left out, as they begin"),
    ],
)
def test_what_may_mean_something_else_is_said(text, rows, names, line, read):
    read_rows, read_names, lines = read(text)
    assert read_rows == rows and read_names == (
        tuple(names.split("|")) if names else None
    )
    assert len(lines) == bool(line) and (line or "") in "".join(lines)


@pytest.mark.parametrize(
    "cell", ["#N/A", "#DIV/0!", "<NA>", ".", "inf", "-Infinity", "?", ""]
)
def test_a_cell_without_a_number_is_incomplete(cell, read):
    text = f"a,b\n1,2\n{cell},7\n3,4.5\n"
    assert read(text, drop_incomplete=True)[0] == TWO
    with one_line(
        UsageError, "t.csv, line 3, column 'a'", "fill it in, or leave such rows out"
    ):
        read(text)
    assert read(f"{cell},7\n1,2\n3,4.5\n", drop_incomplete=True)[:2] == (TWO, None)


@pytest.mark.parametrize("columns", [None, "g7,g3"])
def test_a_wide_table_is_read_in_linear_time(columns, read):
    """In a second; a minute or more if each name is looked for among all."""
    width = 60_000
    text = ",".join(f"g{k}" for k in range(width)) + 2 * (
        "\n" + ",".join(["0.5"] * width)
    )
    start = time.process_time()
    rows, names, _ = read(text, columns=columns)
    assert time.process_time() - start < 8
    assert len(rows[0]) == len(names) == (2 if columns else width)


def test_many_comments_are_left_out_in_linear_time(read):
    """In a second; a minute if lines are counted from the start of the file at each comment."""
    start = time.process_time()
    rows, _, lines = read(
        10_000 * "# a line of a comment, as long as they are\n" + "1,2\n3,4.5\n"
    )
    assert time.process_time() - start < 8
    assert rows == TWO and len(lines) == 1


def test_a_compressed_table_is_read_up_to_a_limit(read, monkeypatch):
    monkeypatch.setattr(table, "_MOST", 100)
    assert len(read(50 * "1\n", name="t.csv.gz")[0]) == 50
    with one_line(
        UsageError, "t.csv.gz has more than 100 bytes of text: decompress it"
    ):
        read(51 * "1\n", name="t.csv.gz")


POINT = "write numbers with a decimal point, without separators of thousands"
REFUSED = {
    "NA\n1\n2\n": "line 1, column '0' has 'NA': fill it in, or leave such rows out",
    "NA,1,2\n1,2,3\n": "line 1, column '0' has 'NA': fill it in, or leave such rows out",
    ",x\n1,2\n1,\n": "line 3, column 'x' is empty: fill it in",
    "1_000,2\n1,2\n": "line 1, column '0' has '1_000', which is not a number",
    'a,b\n"1,234",2\n': f"line 2, column 'a' has '1,234': {POINT}",
    "a;b\n1.234,5;2\n": f"line 2, column 'a' has '1.234,5': {POINT}",
    "a;b\n1,234;2\n": f"line 2, column 'a' has '1,234': {POINT}",
    "a;b\n1.234;3,5\n": f"line 2, column 'a' has '1.234': {POINT}",
    "x\n3,512\n": f"line 2, column 'x' has '3,512': {POINT}",
    "sep=;\n# me\n1;2\n3;x\n": "line 4, column '1' has 'x', which is not a number",
    "a,b,\n1,2,\n3,4,5\n": "line 3: the number of cells is 3, in the first row it is 2: give",
    "a,b,c\n1,2,\n": "line 2, column 'c' is empty: fill it in",
    "a,b\n1,5,2,5\n": "line 2: the number of cells is 4, in the first row it is 2: give all",
    "a\n2024-01-01\n": "line 2, column 'a' has '2024-01-01', which is not a number",
    "town,t\nNew York,1\n": "line 2, column 'town' has 'New York', which is not a number",
    "a,a\n1,2\n": "several columns are called 'a': rename them",
}
CHOSEN = [
    ("1,2 3\n3,4\n", {"header": False}, "line 1, column '1' has '2 3': separate col"),
    ("a\n1,é\n", {"encoding": "latin-1"}, "line 2: it is not UTF-8 text: save it as"),
    ("a,b,c\n1,2,\n", {"drop_incomplete": True}, "has no rows of numbers: choose col"),
    ("a,b\n1,2\n", {"columns": "a,c"}, "has no column 'c': its columns are a, b"),
    ('a,"b,c"\n1,2\n', {"columns": "a,b,c"}, "no column 'b': its columns are a, \"b,c"),
    ("a,b\n1,2\n", {"columns": ""}, "has no column '': its columns are a, b"),
    # the density of a column beside itself is infinite
    ("a,b\n1,2\n", {"columns": "b,a,b"}, "`columns` has 'b' more than once: name each"),
    ("a,b\n1,2\n", {"columns": ["b", "b"]}, "`columns` has 'b' more than once: name"),
]


@pytest.mark.parametrize(
    "text, options, problem",
    [*((text, {}, REFUSED[text]) for text in REFUSED), *CHOSEN],
)
def test_what_is_no_table_is_named_by_line_and_column(text, options, problem, read):
    with one_line(UsageError, "" if "columns" in options else "t.csv", problem):
        read(text, **options)


def test_numbers_in_line_one_are_a_row_unless_text_stands_above_a_number(read):
    assert read("1,x,2\n", columns=np.array([2, 0]))[0] == [[2.0, 1.0]]
    assert read("1,NA\n3,4.5\n1,2\n", drop_incomplete=True)[0] == [
        [3.0, 4.5],
        [1.0, 2.0],
    ]
    assert read("0,1\n3,4.5\n") == ([[0.0, 1.0], [3.0, 4.5]], None, [])


@pytest.mark.parametrize("kind", [int, np.uint8, bool])
def test_whole_numbers_of_two_axes_are_rows(kind):
    array = (np.arange(60).reshape(20, 3) % 7).astype(kind)
    data = own_data(array, array, array)
    assert data.train.dtype == np.float64 and not data.of_images
    np.testing.assert_array_equal(data.train, array)
