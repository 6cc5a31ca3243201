"""Runs of tables: names, options and figures from the file to samples and scores."""

import gzip
import re
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from numpy.random import default_rng
from numpy.testing import assert_array_equal
from support.arrays import normal
from support.messages import one_line
from support.runs import SHORT

import snfnp
from snfnp.cli import angle
from snfnp.data import own_data
from snfnp.data.table import read_table
from snfnp.errors import UsageError
from snfnp.ops import RandomKey
from snfnp.training.options import TrainConfig
from snfnp.training.runs.folder import RunFolder

pytestmark = pytest.mark.usefixtures("here")


def write(path, rows, names):
    np.savetxt(path, rows, "%.17g", ",", header=names, comments="")


def test_names_go_from_the_file_to_the_run_its_samples_and_scores(shell, capsys):
    """Other files have their columns by name, in any order; without a name there is an error."""
    rows = default_rng(0).normal((5.0, -300.0), (0.1, 40.0), (200, 2))
    write("mine.csv", rows, "a,b")
    write("turned.csv", rows[:, ::-1], "b,a")
    write("other.csv", rows, "a,c")
    shell(f"train mine.csv {SHORT} --test turned.csv --out run")
    assert "turned.csv: columns are taken by name, a, b" in capsys.readouterr().err
    assert snfnp.load_run("run").record["data"]["columns"] == ["a", "b"]
    for name in ("s.csv", "s.NPY"):
        shell(f"sample run --count 5 --out {name}")
    samples, names = read_table(Path("s.csv"), print)
    assert names == ("a", "b") and samples.shape == (5, 2)
    assert_array_equal(samples, np.load("s.NPY"))
    texts = []
    nlls = []
    for name in ("mine", "turned"):
        shell(f"evaluate run --data {name}.csv --split all --scores {name}-scores.csv")
        texts.append(Path(f"{name}-scores.csv").read_text())
        capsys.readouterr()
        shell(f"evaluate run --data {name}.csv")
        nlls += re.findall("(?m)^NLL.*", capsys.readouterr().out)
    assert len(nlls) == 2 and len(set(nlls)) == len(set(texts)) == 1
    write("far.csv", rows[:50] + 9, "a,b")
    shell("evaluate run --data far.csv")  # not of turned.csv
    assert "5 test rows from far.csv" in capsys.readouterr().out
    Path("turned.csv").unlink()
    shell("evaluate run --data far.csv")
    first, *lines = texts[0].splitlines()
    assert first == "index,nats,a,b"
    kept = [line.split(",")[2:] for line in lines]
    assert_array_equal(kept, rows.astype(str))
    for line in (
        "evaluate run --data other.csv --split all",
        "evaluate run --data other.csv",
        f"train mine.csv {SHORT} --test other.csv",
    ):
        with one_line(UsageError, "column"):
            shell(line)


def test_a_score_that_is_no_number_is_the_lowest_there_is(shell, monkeypatch):
    write("t.csv", normal(60, 2), "a,b")
    shell(f"train t.csv {SHORT} --out run")

    def overflowing(likelihood, data, *options):
        return np.where(np.arange(len(data)) % 2, np.nan, 1.0)

    monkeypatch.setattr(snfnp.Likelihood, "log_prob", overflowing)
    shell("evaluate run --scores scores.csv")
    lines = Path("scores.csv").read_text().splitlines()[1:]
    assert [line.split(",")[1] == "-inf" for line in lines] == [False, True] * 3


@pytest.mark.parametrize("suffix", [".tsv", ".txt", ".csv.gz"])
def test_a_table_of_any_suffix_is_read_by_every_command_as_by_its_run(suffix, shell):
    rows = normal(100, 3).astype(str)
    rows[7, 1] = "#N/A"
    text = "\n".join(map("\t".join, rows)).encode()
    path = Path(f"t{suffix}")
    path.write_bytes(gzip.compress(text) if suffix.endswith("gz") else text)
    shell(f"train {path} {SHORT} --columns 1,2 --drop-incomplete --out run")
    shell(f"evaluate run --data {path} --drop-incomplete")
    shell(f"evaluate run --data {path} --split all --scores scores.csv")
    assert len(Path("scores.csv").read_text().splitlines()) == 1 + 99


@pytest.mark.slow
def test_few_rows_are_evaluated_forty_times_and_overfitting_is_reported(shell, capsys):
    write("few.csv", normal(60, 3), "")
    shell("train few.csv --backend numpy --depth 2 --epochs 240 --out run")
    records = RunFolder("run").read_metrics()
    first, *_, last = (record["training_nll_nats"] for record in records)
    assert len(records) == 40 and last < first
    best = min(records, key=lambda record: record["validation_nll_nats"])
    nats = best["validation_nll_nats"]
    said = f"overfitting since epoch {best['epoch']} ({nats:.4f} → "
    assert said in capsys.readouterr().out and best["epoch"] < 190
    for backend, every in (("numpy", 1), ("cupy", 2)):
        config = TrainConfig(backend=backend, epochs=80)
        assert config.resolve(1000, (28, 28, 1)).eval_every == every


def test_figures_of_some_rows_are_of_rows_from_the_whole_file(monkeypatch, capsys):
    """Of a table sorted by class: what is said of as many training rows as there are for validation
    is theirs from all classes, and so are the rows of `angle`."""
    rng = default_rng(0)
    rows = np.concatenate([rng.normal(scale=s, size=(100, 2)) for s in (0.1, 1, 9)])
    run = snfnp.fit(rows, out="run", epochs=4, backend="numpy", report=None)
    train_rows = own_data(rows).train
    evenly = train_rows[np.arange(30) * len(train_rows) // 30]
    last = snfnp.load_run(run.folder.path, "last").likelihood
    nll = last.evaluate(evenly).nll
    assert run.folder.read_metrics()[-1]["training_nll_nats"] == pytest.approx(
        nll, rel=1e-12
    )
    assert abs(nll - last.evaluate(train_rows[:30]).nll) > 0.1

    angles = mock.Mock(return_value={})
    monkeypatch.setattr(angle, "gradient_angles", angles)
    np.save("rows.npy", rows)
    data = "rows.npy"
    angle.main([str(run.folder.path), "--images", "30", "--data", data])
    expected, _ = run.flow.encode(run.ops, evenly, RandomKey(0, 1), np.float64)
    assert_array_equal(angles.call_args.args[3], expected)
