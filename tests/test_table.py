"""Tables: numbers and names in text files, from there to samples and scores; columns with ties."""

import gzip
import json
import time

import numpy as np
import pytest
from support.messages import one_line

import snfnp
from snfnp.cli import angle, evaluate, sample, train
from snfnp.data import own_data, table
from snfnp.data.table import read_table
from snfnp.data.ties import decimals, find_steps
from snfnp.errors import UsageError
from snfnp.flow import Flow
from snfnp.layers import Linear
from snfnp.layers.preprocess import Standardise
from snfnp.maps import Dense
from snfnp.ops import RandomKey, get_ops
from snfnp.rules import SelfNormalizing
from snfnp.training.options import TrainConfig

SHORT = ("--backend", "numpy", "--batch-size", "20", "--epochs", "2", "--warmup-epochs", "0.5")
TWO = [[1.0, 2.0], [3.0, 4.5]]
GUESSED = "the first row is taken for names of columns, {}: if it is none, give `header=False`"


@pytest.fixture
def read(tmp_path):
    """A function (text, …) -> (rows as lists, names, lines that were reported)."""

    def read(text, encoding="utf-8", name="t.csv", **how):
        path, said = tmp_path / name, []
        content = text.encode(encoding)
        path.write_bytes(gzip.compress(content) if name.endswith("gz") else content)
        rows, names = read_table(path, said.append, **how)
        return rows.tolist(), names, said

    return read


@pytest.mark.parametrize(
    "text, encoding, how, names",
    [
        ("a,b\n1,2\n3,4.5\n", "utf-8", {}, ("a", "b")),
        ("1,2\r\n\r\n3,4.5", "utf-8", {}, None),
        ("7,8\n1,2\n3,4.5\n", "utf-8", {"header": True}, ("7", "8")),
        ("a;b\n1;2\n3;4,5\n", "utf-8-sig", {}, ("a", "b")),
        ("ä\tb\n1\t2\n3\t4.5\n", "utf-16", {}, ("ä", "b")),
        ('"x, y","z"\n"1","2"\n3, +.45e1\n', "utf-8", {}, ("x, y", "z")),
        ("b,word,a\n2,x,1\n4.5,y,3\n", "utf-8", {"columns": "a, b"}, ("a", "b")),
        ("1,x,2\n3,y,4.5\n", "utf-8", {"columns": "0,2"}, None),
        ("a,b\n1,2\nNA,3\n,\n3,4.5\n", "utf-8", {"drop_incomplete": True}, ("a", "b")),
        ("id,2019,2020\n7,1,2\n8,3,4.5\n", "utf-8", {"columns": "1,2"}, ("2019", "2020")),
        ("1,0;2,0\n3,0;4,5\n", "utf-8", {}, None),  # more commas than semicolons
        ("\na;b\n1;2\n3;4,5\n", "utf-8", {}, ("a", "b")),
        ('"a;b",c\n1,2\n3,4.5\n', "utf-8", {}, ("a;b", "c")),
        ("a,b,\n1,2,\n3,4.5,\n", "utf-8", {"columns": "a,b"}, ("a", "b")),
        ("a,b,,\n1,2,,\n3,4.5,,\n", "utf-8", {}, ("a", "b")),  # of a spreadsheet
        ("a,b\n1,2,\n3,4.5,\n", "utf-8", {}, ("a", "b")),
        ("a,b,\n1,2\n3,4.5\n", "utf-8", {}, ("a", "b")),
        ("1,2,\n3,4.5,\n", "utf-8", {}, None),
        ("sep=;\na;b\n1;2\n3;4,5\n", "utf-8", {}, ("a", "b")),
        ("sep=^\na^b\n1^2\n3^4,5\n", "utf-8", {}, ("a", "b")),
        ('"sep=\t"\r\n1\t2\r\n3\t4.5\r\n', "utf-8", {}, None),
        ("\ufeff\ufeffa,b\n1,2\n3,4.5\n", "utf-8", {}, ("a", "b")),
        ("ä,b\n1,2\n3,4.5\n", "utf-32", {}, ("ä", "b")),
        ("\ufeffä,b\n1,2\n3,4.5\n", "utf-7", {}, ("ä", "b")),
        ('"a", "b"\n"1", 2\n3, "4.5"\n', "utf-8", {}, ("a", "b")),
        ('a,"b, c"\n1,2\n3,4.5\n', "utf-8", {"columns": 'a, "b, c"'}, ("a", "b, c")),
        ("  1.0   2.0\n  3.0   4.5 \n", "utf-8", {"name": "t.txt"}, None),
        ("# a b\n1 2\n3 4.5\n", "utf-8", {"name": "t.txt"}, ("a", "b")),
        ("a\tb\n1\t2\n3\t4.5\n", "utf-8", {"name": "t.tsv"}, ("a", "b")),
        ("a;b\n1;2\n3;4,5\n", "utf-8", {"name": "t.CSV.gz"}, ("a", "b")),
        ("a;b\n1.0;2,0\n3;4,5\n", "utf-8", {}, ("a", "b")),
        ("a,b\r1,2\r3,4.5\r", "utf-8", {}, ("a", "b")),
    ],
)
def test_rows_and_names_are_read(text, encoding, how, names, read):
    rows, found, said = read(text, encoding, **how)
    assert rows == TWO and found == names
    lines = ["incomplete rows are left out (2 of 4)"] if "drop_incomplete" in how else []
    if names and "2019" in names:
        lines = [GUESSED.format("id, 2019, 2020")]
    assert [line.partition(": ")[2] for line in said] == lines


@pytest.mark.parametrize(
    "text, rows, names, line",
    [
        ("cat,1,2\n1,2,4.5\n", [[1.0, 2.0, 4.5]], ("cat", "1", "2"), GUESSED.format("cat, 1, 2")),
        ("3,5\n4,25\n", [[3.0, 5.0], [4.0, 25.0]], None, "pairs of whole numbers are read as two"),
        ("x\n3,5\n4,25\n", [[3.5], [4.25]], ("x",), None),
        ("first name\n1\n2\n", [[1.0], [2.0]], ("first name",), None),
        ("+AOQ-,b\n1,2\n", [[1.0, 2.0]], ("+AOQ-", "b"), "the name '+AOQ-' looks like UTF-7: sav"),
        ("# by me, today\n#\na,b\n1,2\n", [[1.0, 2.0]], ("a", "b"), "lines before the table are"),
        ("# me\n\n1,2\n3,4.5\n", TWO, None, "lines before the table are left out, as they begin"),
    ],
)
def test_what_may_mean_something_else_is_said(text, rows, names, line, read):
    found, named, said = read(text)
    assert (found, named) == (rows, names)
    assert len(said) == bool(line) and (line or "") in "".join(said)


@pytest.mark.parametrize("cell", ["#N/A", "#DIV/0!", "<NA>", ".", "inf", "-Infinity", "?", ""])
def test_a_cell_without_a_number_is_incomplete(cell, read):
    text = f"a,b\n1,2\n{cell},7\n3,4.5\n"
    assert read(text, drop_incomplete=True)[0] == TWO
    with one_line(UsageError, "t.csv, line 3, column 'a'", "fill it in, or leave such rows out"):
        read(text)
    assert read(f"{cell},7\n1,2\n3,4.5\n", drop_incomplete=True)[:2] == (TWO, None)


@pytest.mark.parametrize("columns", [None, "g7,g3"])
def test_a_wide_table_is_read_in_linear_time(columns, read):
    """In a second; a minute or more if each name is looked for among all."""
    width = 60_000
    text = ",".join(f"g{k}" for k in range(width)) + 2 * ("\n" + ",".join(["0.5"] * width))
    start = time.process_time()
    rows, names, _ = read(text, columns=columns)
    assert time.process_time() - start < 8
    assert len(rows[0]) == len(names) == (2 if columns else width)


def test_many_comments_are_left_out_in_linear_time(read):
    """In a second; a minute if lines are counted from the start of the file at each comment."""
    start = time.process_time()
    rows, _, said = read(10_000 * "# a line of a comment, as long as they are\n" + "1,2\n3,4.5\n")
    assert time.process_time() - start < 8
    assert rows == TWO and len(said) == 1


def test_a_compressed_table_is_read_up_to_a_limit(read, monkeypatch):
    monkeypatch.setattr(table, "_MOST", 100)
    assert len(read(50 * "1\n", name="t.csv.gz")[0]) == 50
    with one_line(UsageError, "t.csv.gz has more than 100 bytes of text: decompress it"):
        read(51 * "1\n", name="t.csv.gz")


@pytest.mark.parametrize(
    "text, problem",
    [
        ("NA,1,2\n1,2,3\n", "t.csv, line 1, column '0' has 'NA': fill it in, or leave such rows"),
        (",x\n1,2\n1,\n", "line 3, column 'x' is empty: fill it in"),
        ("1_000,2\n1,2\n", "line 1, column '0' has '1_000', which is not a number"),
        ('a,b\n"1,234",2\n', "line 2, column 'a' has '1,234': write numbers with a decimal point"),
        (
            "a;b\n1.234,5;2\n",
            "line 2, column 'a' has '1.234,5': write numbers with a decimal point",
        ),
        ("a;b\n1,234;2\n", "line 2, column 'a' has '1,234': write numbers with a decimal point"),
        ("a;b\n1.234;3,5\n", "line 2, column 'a' has '1.234': write numbers with a decimal point"),
        ("x\n3,512\n", "line 2, column 'x' has '3,512': write numbers with a decimal point"),
        ("sep=;\n# me\n1;2\n3;x\n", "line 4, column '1' has 'x', which is not a number"),
        ("a,b,\n1,2,\n3,4,5\n", "line 3: the number of cells is 3, in line 1 it is 2: give all"),
        ("a,b,c\n1,2,\n", "line 2, column 'c' is empty: fill it in"),
        ("a,b\n1,5,2,5\n", "line 2: the number of cells is 4, in line 1 it is 2: give all"),
        ("a,a\n1,2\n", "several columns are called 'a': rename them"),
        ("a\n2024-01-01\n", "line 2, column 'a' has '2024-01-01', which is not a number"),
    ],
)
def test_what_is_no_number_is_named_by_line_and_column(text, problem, read):
    with one_line(UsageError, problem):
        read(text)


def test_numbers_in_line_one_are_a_row_unless_text_stands_above_a_number(read):
    assert read("1,NA\n3,4.5\n1,2\n", drop_incomplete=True)[0] == [[3.0, 4.5], [1.0, 2.0]]
    assert read("0,1\n3,4.5\n") == ([[0.0, 1.0], [3.0, 4.5]], None, [])


def test_other_errors_are_a_line(read):
    with one_line(UsageError, "t.csv, line 1, column '1' has '2 3': separate columns by commas"):
        read("1,2 3\n3,4\n", header=False)
    with one_line(UsageError, "t.csv has no rows of numbers: choose columns with `columns`"):
        read("a,b,c\n1,2,\n", drop_incomplete=True)
    with one_line(UsageError, "t.csv, line 2: it is not UTF-8 text: save it as UTF-8"):
        read("a\n1,é\n", "latin-1")
    with one_line(UsageError, "t.csv has no column 'c': its columns are a, b"):
        read("a,b\n1,2\n", columns="a,c")
    with one_line(UsageError, "t.csv has no column 'b': its columns are a, \"b,c\""):
        read('a,"b,c"\n1,2\n', columns="a,b,c")
    with one_line(UsageError, "t.csv has no column '': its columns are a, b"):
        read("a,b\n1,2\n", columns="")
    for twice in ("b,a,b", ["b", "b"]):  # the density of a column given itself is infinite
        with one_line(UsageError, "`columns` has 'b' more than once: name each column once"):
            read("a,b\n1,2\n", columns=twice)
    assert read("1,x,2\n", columns=[2, 0])[0] == [[2.0, 1.0]]


def test_names_go_from_the_file_to_the_run_its_samples_and_scores(tmp_path, undrawn, capsys):
    """Other files have their columns by name, in any order; without a name there is an error."""
    rng = np.random.default_rng(0)
    rows = rng.normal((5.0, -300.0), (0.1, 40.0), (200, 2))

    def write(name, columns, header):
        path = tmp_path / name
        how = {"delimiter": ",", "header": header, "comments": "", "fmt": "%.17g"}
        np.savetxt(path, rows[:, columns], **how)
        return str(path)

    mine, turned = write("mine.csv", [0, 1], "a,b"), write("turned.csv", [1, 0], "b,a")
    other = write("other.csv", [0, 1], "a,c")
    out = tmp_path / "run"
    train.main([mine, *SHORT, "--test", turned, "--out", str(out)])
    assert f"{turned}: columns are taken by name, a, b" in capsys.readouterr().err
    record = json.loads((out / "config.json").read_text())
    assert record["data"]["columns"] == ["a", "b"]
    sample.main([str(out), "--count", "5", "--out", str(tmp_path / "s.csv")])
    drawn, names = read_table(tmp_path / "s.csv", print)
    assert names == ("a", "b") and drawn.shape == (5, 2)
    sample.main([str(out), "--count", "5", "--out", str(tmp_path / "s.NPY")])
    np.testing.assert_array_equal(drawn, np.load(tmp_path / "s.NPY"))
    scores = []
    for number, data in enumerate((mine, turned)):
        written = tmp_path / f"scores{number}.csv"
        evaluate.main([str(out), "--data", data, "--split", "all", "--scores", str(written)])
        scores.append(written.read_text())
    assert scores[0] == scores[1]
    capsys.readouterr()
    for data in (mine, turned):
        evaluate.main([str(out), "--data", data])
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("NLL")]
    assert len(printed) == 2 and printed[0] == printed[1]
    first, *lines = scores[0].splitlines()
    assert first == "index,nats,a,b"
    np.testing.assert_array_equal([line.split(",")[2:] for line in lines], rows.astype(str))
    for split in ("all", "test"):
        with one_line(UsageError, "column"):
            evaluate.main([str(out), "--data", other, "--split", split])
    with one_line(UsageError, "column"):
        train.main([mine, *SHORT, "--test", other])


def test_scores_read_a_table_as_its_run_did(tmp_path, undrawn):
    path, out = tmp_path / "t.csv", str(tmp_path / "run")
    rows = np.random.default_rng(0).normal(size=(100, 3)).astype(str)
    rows[7, 1] = ""
    path.write_text("\n".join(map(",".join, rows)))
    train.main([str(path), *SHORT, "--columns", "1,2", "--drop-incomplete", "--out", out])
    scores = tmp_path / "scores.csv"
    evaluate.main([out, "--data", str(path), "--split", "all", "--scores", str(scores)])
    assert len(scores.read_text().splitlines()) == 1 + 99
    evaluate.main([out, "--data", str(path)])
    with one_line(UsageError, "`drop_incomplete` is for tables, and moons is none"):
        evaluate.main([out, "--data", "moons", "--drop-incomplete"])


def test_a_score_that_is_no_number_is_the_lowest_there_is(tmp_path, undrawn, monkeypatch):
    path, out, rows = tmp_path / "t.csv", tmp_path / "run", np.zeros((60, 2))
    rows[:, :] = np.random.default_rng(0).normal(size=(60, 2))
    np.savetxt(path, rows, delimiter=",")
    train.main([str(path), *SHORT, "--out", str(out)])
    log_prob = snfnp.Likelihood.log_prob

    def overflowing(likelihood, data, *options):
        return np.where(np.arange(len(data)) % 2, np.nan, log_prob(likelihood, data, *options))

    monkeypatch.setattr(snfnp.Likelihood, "log_prob", overflowing)
    evaluate.main([str(out), "--scores", str(tmp_path / "scores.csv")])
    lines = (tmp_path / "scores.csv").read_text().splitlines()[1:]
    assert [line.split(",")[1] == "-inf" for line in lines] == [False, True] * 3


@pytest.mark.parametrize("way", ["standardise", "none"])
def test_columns_with_ties_are_dequantised_by_every_preprocessing(way, tmp_path, undrawn, capsys):
    rows, path, out = np.random.default_rng(0).normal(size=(100, 2)), tmp_path / "t.csv", "run"
    np.savetxt(path, rows.round(1), delimiter=",", fmt="%.1f")
    how = ["--preprocess", way, "--activation", "smooth-leaky-relu", "--out", str(tmp_path / out)]
    train.main([str(path), *SHORT, *how])
    assert "samples are rounded" in capsys.readouterr().out
    train.main(["--resume", "--out", str(tmp_path / out), "--epochs", "3"])
    sample.main([str(tmp_path / out), "--count", "50", "--out", str(tmp_path / "s.npy")])
    drawn = np.load(tmp_path / "s.npy")
    np.testing.assert_array_equal(drawn, drawn.round(1))


def test_no_note_on_ties_with_a_preprocessing_of_ones_own(tmp_path):
    own, lines = Standardise(mean=(0.0, 0.0), spread=(1.0, 1.0)), []
    flow = Flow((2,), (("dense", Linear(Dense(2), SelfNormalizing())),), preprocess=own)
    rows = np.random.default_rng(0).integers(0, 9, (100, 2)).astype(float)
    how = {"epochs": 1, "batch_size": 20, "warmup_epochs": 0, "backend": "numpy"}
    run = snfnp.fit(rows, flow=flow, out=tmp_path / "run", report=lines.append, **how)
    assert run.flow.preprocess == own and "ties in" not in "".join(lines)


@pytest.mark.parametrize("suffix", [".tsv", ".txt", ".csv.gz"])
def test_a_table_of_any_suffix_goes_through_every_command(suffix, tmp_path, undrawn):
    path, out = tmp_path / f"t{suffix}", str(tmp_path / "run")
    rows = np.random.default_rng(0).normal(size=(100, 3)).astype(str)
    rows[7, 1] = "#N/A"
    text = "\n".join(map("\t".join, rows)).encode()
    path.write_bytes(gzip.compress(text) if suffix.endswith("gz") else text)
    train.main([str(path), *SHORT, "--columns", "1,2", "--drop-incomplete", "--out", out])
    evaluate.main([out, "--data", str(path), "--drop-incomplete"])
    scores = str(tmp_path / "scores.csv")
    evaluate.main([out, "--data", str(path), "--split", "all", "--scores", scores])


@pytest.mark.parametrize("kind", [int, np.uint8, bool])
def test_whole_numbers_of_two_axes_are_rows(kind):
    array = (np.arange(60).reshape(20, 3) % 7).astype(kind)
    data = own_data(array, array, array)
    assert data.train.dtype == np.float64 and not data.of_images
    np.testing.assert_array_equal(data.train, array)


def test_few_rows_are_evaluated_forty_times_and_overfitting_is_reported(tmp_path, undrawn, capsys):
    rng = np.random.default_rng(0)
    np.savetxt(tmp_path / "few.csv", rng.normal(size=(60, 3)), delimiter=",")
    out = tmp_path / "run"
    argv = ["--backend", "numpy", "--depth", "2", "--epochs", "240", "--out", str(out)]
    train.main([str(tmp_path / "few.csv"), *argv])
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert len(records) == 40 and records[-1]["training_nll_nats"] < records[0]["training_nll_nats"]
    best = min(records, key=lambda record: record["validation_nll_nats"])
    said = f"overfitting since epoch {best['epoch']} ({best['validation_nll_nats']:.2f} → "
    assert said in capsys.readouterr().out and best["epoch"] < 190
    assert TrainConfig().resolve(1000, (28, 28, 1)).eval_every == 1


def test_steps_of_columns_with_ties():
    rng = np.random.default_rng(0)
    zeros = np.where(rng.random(400) < 0.3, 0.0, rng.exponential(size=400))
    columns = {
        "whole": (rng.poisson(4.0, 400), 1.0),
        "tenths": (rng.integers(40, 80, 400) / 10, 0.1),
        "25 g": (rng.integers(100, 160, 400) * 25.0, 25.0),
        "rescaled": (rng.integers(0, 30, 400) * np.pi / 7 - 1.3, np.pi / 7),
        "six digits": (rng.normal(size=400).round(6), 0.0),
        "continuous": (rng.normal(size=400), 0.0),
    }
    step, origin, *ends = find_steps(np.stack([each for each, _ in columns.values()], axis=1))
    np.testing.assert_allclose(step, [expected for _, expected in columns.values()], rtol=1e-6)
    assert list(decimals(step, origin)[:3]) == [1.0, 10.0, 1.0]
    least, greatest = origin + np.multiply(ends, step)
    for place, (values, _) in enumerate(list(columns.values())[:4]):
        found = least[place], greatest[place]
        np.testing.assert_allclose(found, [values.min(), values.max()], rtol=1e-6)
    (step,), (origin,), *_ = find_steps(zeros[:, np.newaxis])
    assert origin == 0 and 1e-3 < step < 0.1  # as far as the other values lie apart
    ordered = np.stack([rng.normal(size=25_000), np.arange(25_000) // 12_500], axis=1)
    np.testing.assert_array_equal(find_steps(ordered)[0], [0.0, 1.0])


@pytest.mark.parametrize("step, most", [(0.1, 20_000), (0.01, 1000), (0.001, 5000)])
def test_numbers_of_single_precision_have_the_steps_that_were_written(step, most):
    """Larger numbers, whose eight digits single precision holds, stay as they are."""
    counts = np.random.default_rng(0).integers(0, most, 20_000)
    table = np.stack([counts * step, 1_234_567.25 + counts % 7 / 4], axis=1).astype(np.float32)
    found, origin, *_ = find_steps(table)
    assert list(found) == [step, 0.25] and origin[0] == round(origin[0], 3)
    assert list(decimals(found, origin)) == [round(1 / step), 100.0]


@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize("step, most", [(1 / 60, 4320), (1 / 3, 20_000), (np.pi, 1000), (2.54, 20)])
def test_a_lattice_fits_all_values_of_a_step_without_decimals(step, most, kind):
    """Single precision rounds the smallest gap: by it alone, far values lie beside the lattice."""
    counts = np.random.default_rng(0).integers(0, most, 20_000)
    values = (counts * step + 1.7).astype(kind)
    (found,), (origin,), (least,), (greatest,) = find_steps(values[:, np.newaxis])
    steps = (values - origin) / found
    assert np.abs(steps - np.rint(steps)).max() < 0.01
    assert found == pytest.approx(step, rel=1e-5) and greatest - least == np.ptp(counts)


def test_a_few_badly_written_numbers_do_not_hide_the_decimals_of_a_column():
    values = np.random.default_rng(0).integers(100, 1400, 400) / 100
    values[7] = 9.899999  # as in scikit-learn's table of wines
    assert find_steps(values[:, np.newaxis])[0] == 0.01
    values[:40] += 0.005
    assert find_steps(values[:, np.newaxis])[0] != 0.01


def test_steps_may_be_small_and_spikes_rare_among_the_rows_looked_at():
    rng = np.random.default_rng(0)
    lattice = np.r_[5.0, rng.integers(0, 400, 999) * 1e-7]
    rain = np.where(rng.random(2000) < 0.2, 0.0, rng.exponential(1e-4, 2000)) * 1e-3
    for values in (lattice, rain):
        step, origin, *_ = find_steps(values[:, np.newaxis])
        (unit,) = decimals(step, origin)
        drawn = Standardise((0.0,), (1.0,), tuple(step), tuple(origin), (unit,)).inverse(
            get_ops("numpy"), values[:, np.newaxis]
        )
        assert 0 < step < 2e-7 and np.abs(drawn[:, 0] - values).max() <= 0.51 * step
    rare = np.zeros((200_000, 1))
    rare[:5, 0] = np.arange(1, 6)
    assert find_steps(rare)[0] == 1.0
    few = np.where(
        rng.random(4000) < 0.05, 0.0, rng.normal(size=4000)
    )  # a spike of 5 % of the rows
    assert find_steps(few[:, np.newaxis])[0] > 0
    few = rng.normal(size=200)
    few[:3] = 0.0  # of three rows
    assert find_steps(few[:, np.newaxis])[0] == 0
    large = 1e15 + rng.integers(0, 100, (300, 1)) / 8  # ten times that is beyond 53 bits
    assert find_steps(large)[0] == 0.125


def test_columns_with_steps_are_dequantised_and_samples_lie_on_them():
    """Each cell's probability is its frequency, and those of all cells sum to 1."""
    rng = np.random.default_rng(0)
    x = np.stack([rng.choice([4.9, 5.0, 5.1, 5.2], 600, p=[0.1, 0.4, 0.3, 0.2])], axis=1)
    density = snfnp.FlowDensity(random_state=0, members=2, noise=0.0, epochs=20)
    said = r"ties in column 0 \(from 0\) \(step 0.1\): noise of one"
    with pytest.warns(UserWarning, match=said) as found:
        density.fit(x)
    assert found[0].filename == __file__  # the line that calls `fit`
    cells = np.arange(30, 70)[:, np.newaxis] / 10
    mass = np.exp(density.score_samples(cells)) * 0.1
    assert mass.sum() == pytest.approx(1, abs=1e-3) and density.step_ == pytest.approx(0.1)
    np.testing.assert_allclose(mass[19:23], [0.1, 0.4, 0.3, 0.2], atol=0.06)
    drawn = density.sample(400, random_state=0)
    assert set(drawn.ravel()) <= set(cells.ravel())  # 5.1, not 5.1000000000000005
    back = density.inverse_transform(density.transform(x))
    np.testing.assert_array_equal(back, x)
    assert "dequantisation" in density.likelihood_.evaluate(x).terms
    with one_line(ValueError, "ties in column 0 (from 0) (step 0.1): choose `ties=dequantise`"):
        snfnp.FlowDensity(ties="raise").fit(x)
    kept = snfnp.FlowDensity(2, members=1, epochs=2, ties="keep", random_state=0).fit(x)
    assert not kept.step_.any() and "dequantisation" not in kept.likelihood_.evaluate(x).terms


def test_figures_of_some_rows_are_of_rows_from_the_whole_file(tmp_path, monkeypatch, capsys):
    """Of a table sorted by class: what is said of as many training rows as there are for validation
    is theirs from all classes, and so are the rows of `angle`."""
    rng = np.random.default_rng(0)
    rows = np.concatenate([rng.normal(scale=s, size=(100, 2)) for s in (0.1, 1, 9)])
    run = snfnp.fit(rows, out=tmp_path / "run", epochs=4, backend="numpy", report=None)
    record, folder = run.folder.read_metrics()[-1], str(run.folder.path)
    train_rows, count = own_data(rows).train, 30
    places = np.arange(count) * len(train_rows) // count
    last = snfnp.load_run(folder, "last").likelihood
    evenly, first = (last.evaluate(train_rows[p]).nll for p in (places, slice(count)))
    assert record["training_nll_nats"] == pytest.approx(evenly, rel=1e-12)
    assert abs(evenly - first) > 0.1

    seen = []
    monkeypatch.setattr(angle, "gradient_angles", lambda *given: seen.append(given[3]) or {})
    np.save(tmp_path / "rows.npy", rows)
    more = ["--data", str(tmp_path / "rows.npy")]
    angle.main([folder, "--images", str(count), *more])
    expected, _ = run.flow.encode(run.ops, train_rows[places], RandomKey(0, 1), np.float64)
    np.testing.assert_array_equal(seen[0], expected)
