"""Runs of tables: names, options and figures from the file to samples and scores."""

import gzip
import json
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from support.messages import one_line

import snfnp
from snfnp.cli import angle, evaluate, sample, train
from snfnp.data import own_data
from snfnp.data.table import read_table
from snfnp.errors import UsageError
from snfnp.ops import RandomKey
from snfnp.training.options import TrainConfig

pytestmark = pytest.mark.usefixtures("here")

SHORT = (
    "--backend",
    "numpy",
    "--batch-size",
    "20",
    "--epochs",
    "2",
    "--warmup-epochs",
    "0.5",
)


def write(path, rows, names):
    np.savetxt(path, rows, "%.17g", ",", header=names, comments="")
    return str(path)


def test_names_go_from_the_file_to_the_run_its_samples_and_scores(
    tmp_path, undrawn, capsys
):
    """Other files have their columns by name, in any order; without a name there is an error."""
    rng = np.random.default_rng(0)
    rows = rng.normal((5.0, -300.0), (0.1, 40.0), (200, 2))
    mine = write(tmp_path / "mine.csv", rows, "a,b")
    turned = write(tmp_path / "turned.csv", rows[:, ::-1], "b,a")
    other = write(tmp_path / "other.csv", rows, "a,c")
    out = str(tmp_path / "run")
    train.main([mine, *SHORT, "--test", turned, "--out", out])
    assert f"{turned}: columns are taken by name, a, b" in capsys.readouterr().err
    assert snfnp.load_run(out).record["data"]["columns"] == ["a", "b"]
    sample.main([out, "--count", "5", "--out", str(tmp_path / "s.csv")])
    samples, names = read_table(tmp_path / "s.csv", print)
    assert names == ("a", "b") and samples.shape == (5, 2)
    sample.main([out, "--count", "5", "--out", str(tmp_path / "s.NPY")])
    np.testing.assert_array_equal(samples, np.load(tmp_path / "s.NPY"))
    scores = []
    for data in (mine, turned):
        file = tmp_path / f"scores{len(scores)}.csv"
        evaluate.main([out, "--data", data, "--split", "all", "--scores", str(file)])
        scores.append(file.read_text())
    assert scores[0] == scores[1]
    capsys.readouterr()
    for data in (mine, turned):
        evaluate.main([out, "--data", data])
    printed = [
        line for line in capsys.readouterr().out.splitlines() if line.startswith("NLL")
    ]
    assert len(printed) == 2 and printed[0] == printed[1]
    first, *lines = scores[0].splitlines()
    assert first == "index,nats,a,b"
    np.testing.assert_array_equal(
        [line.split(",")[2:] for line in lines], rows.astype(str)
    )
    for split in ("all", "test"):
        with one_line(UsageError, "column"):
            evaluate.main([out, "--data", other, "--split", split])
    with one_line(UsageError, "column"):
        train.main([mine, *SHORT, "--test", other])


def test_scores_read_a_table_as_its_run_did(tmp_path, undrawn):
    path = tmp_path / "t.csv"
    out = "run"
    rows = np.random.default_rng(0).normal(size=(100, 3)).astype(str)
    rows[7, 1] = ""
    path.write_text("\n".join(map(",".join, rows)))
    train.main(
        [str(path), *SHORT, "--columns", "1,2", "--drop-incomplete", "--out", out]
    )
    scores = tmp_path / "scores.csv"
    evaluate.main([out, "--data", str(path), "--split", "all", "--scores", str(scores)])
    assert len(scores.read_text().splitlines()) == 1 + 99
    evaluate.main([out, "--data", str(path)])
    with one_line(UsageError, "`drop_incomplete` is for tables, and moons is none"):
        evaluate.main([out, "--data", "moons", "--drop-incomplete"])


def test_a_score_that_is_no_number_is_the_lowest_there_is(
    tmp_path, undrawn, monkeypatch
):
    path = write("t.csv", np.random.default_rng(0).normal(size=(60, 2)), "a,b")
    out = tmp_path / "run"
    train.main([path, *SHORT, "--out", str(out)])
    log_prob = snfnp.Likelihood.log_prob

    def overflowing(likelihood, data, *options):
        return np.where(
            np.arange(len(data)) % 2, np.nan, log_prob(likelihood, data, *options)
        )

    monkeypatch.setattr(snfnp.Likelihood, "log_prob", overflowing)
    evaluate.main([str(out), "--scores", "scores.csv"])
    lines = Path("scores.csv").read_text().splitlines()[1:]
    assert [line.split(",")[1] == "-inf" for line in lines] == [False, True] * 3


@pytest.mark.parametrize("suffix", [".tsv", ".txt", ".csv.gz"])
def test_a_table_of_any_suffix_goes_through_every_command(suffix, tmp_path, undrawn):
    path = tmp_path / f"t{suffix}"
    out = "run"
    rows = np.random.default_rng(0).normal(size=(100, 3)).astype(str)
    rows[7, 1] = "#N/A"
    text = "\n".join(map("\t".join, rows)).encode()
    path.write_bytes(gzip.compress(text) if suffix.endswith("gz") else text)
    train.main(
        [str(path), *SHORT, "--columns", "1,2", "--drop-incomplete", "--out", out]
    )
    evaluate.main([out, "--data", str(path), "--drop-incomplete"])
    scores = "scores.csv"
    evaluate.main([out, "--data", str(path), "--split", "all", "--scores", scores])


def test_few_rows_are_evaluated_forty_times_and_overfitting_is_reported(
    tmp_path, undrawn, capsys
):
    rng = np.random.default_rng(0)
    np.savetxt("few.csv", rng.normal(size=(60, 3)), delimiter=",")
    out = tmp_path / "run"
    argv = ["--backend", "numpy", "--depth", "2", "--epochs", "240", "--out", str(out)]
    train.main(["few.csv", *argv])
    records = [
        json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()
    ]
    assert (
        len(records) == 40
        and records[-1]["training_nll_nats"] < records[0]["training_nll_nats"]
    )
    best = min(records, key=lambda record: record["validation_nll_nats"])
    line = (
        f"overfitting since epoch {best['epoch']} ({best['validation_nll_nats']:.2f} → "
    )
    assert line in capsys.readouterr().out and best["epoch"] < 190
    assert TrainConfig().resolve(1000, (28, 28, 1)).eval_every == 1


def test_figures_of_some_rows_are_of_rows_from_the_whole_file(monkeypatch, capsys):
    """Of a table sorted by class: what is said of as many training rows as there are for validation
    is theirs from all classes, and so are the rows of `angle`."""
    rng = np.random.default_rng(0)
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
    np.testing.assert_array_equal(angles.call_args.args[3], expected)
