"""Runs beside each other: `compare`, what its table says, and what it refuses."""

import json
import shutil

import pytest
from support.messages import one_line
from support.trainers import run_training, small_dataset

from snfnp.cli import compare
from snfnp.errors import SnfnpError, UsageError
from snfnp.training.runs import comparison
from snfnp.training.runs.folder import RunFolder


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs of three epochs that differ in their seed, and one of two epochs."""
    folder = tmp_path_factory.mktemp("runs")
    for name, changes in (("a", {}), ("b", {"seed": 1}), ("c", {"seed": 2, "epochs": 2})):
        run_training(folder / name, **{"epochs": 3, **changes})
    return folder


def rows_of(capsys):
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    head, _, *rows = (line.strip("| ").split(" | ") for line in lines)
    return [dict(zip(head, row, strict=True)) for row in rows]


def metrics(run):
    return [record["validation_nll_nats"] for record in RunFolder(run).read_metrics()]


def test_the_table_has_the_metrics_of_every_run_at_their_common_epochs(runs, capsys):
    compare.main([str(runs / name) for name in "abc"])
    rows = rows_of(capsys)
    assert [row["run"] for row in rows] == ["`--seed 0`", "`--seed 1`", "`--seed 2`"]
    for row, name in zip(rows, "abc", strict=True):
        found = metrics(runs / name)
        assert [row["NLL at 1"], row["NLL at 2"]] == [f"{nll:.2f}" for nll in found[:2]]
        assert "NLL at 3" not in row
        assert row["best"].startswith(f"{min(found):.2f} at ")
        test = json.loads((runs / name / "summary.json").read_text())["test_nll_nats"]
        assert row["test"] == f"{test:.2f}"


def test_the_largest_gap_is_from_the_first_run_and_from_an_epoch_on(runs):
    first, other = comparison.open_runs([runs / "a", runs / "b"])
    gaps = [b - a for a, b in zip(metrics(runs / "a"), metrics(runs / "b"), strict=True)]
    for start in (1, 2, 3):
        epoch, gap = comparison.largest_gap(other, first, start)
        assert epoch >= start and gap == gaps[epoch - 1]
        assert abs(gap) == max(map(abs, gaps[start - 1 :]))
    assert comparison.largest_gap(other, first, 4) is None


def test_runs_that_differ_in_nothing_are_told_apart_by_their_folders(runs):
    assert comparison.labels(comparison.open_runs([runs / "a"] * 2)) == [str(runs / "a")] * 2


def test_models_are_named_without_what_their_presets_say(tmp_path):
    for name, model in (("fc", "fc"), ("conv", "conv")):
        run_training(
            tmp_path / name, small_dataset(side=8), model=model, lr=None, epochs=1, backend="numpy"
        )
    opened = comparison.open_runs([tmp_path / "fc", tmp_path / "conv"])
    assert comparison.labels(opened) == ["--model fc", "--model conv"]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("names", ["ac", "a"])
def test_a_picture_is_drawn(runs, tmp_path, capsys, names):
    compare.main([*(str(runs / name) for name in names), "--plot", str(tmp_path / "runs.svg")])
    assert "</svg>" in (tmp_path / "runs.svg").read_text()
    assert str(tmp_path / "runs.svg") in capsys.readouterr().out


def test_one_line_says_what_is_wrong(runs, tmp_path):
    run_training(tmp_path / "other", small_dataset(images=72), epochs=1)
    (tmp_path / "new").mkdir()
    shutil.copy(runs / "a" / "config.json", tmp_path / "new")
    for arguments, message in (
        ([runs / "a", tmp_path / "other"], "was trained on other images than"),
        ([tmp_path], "is no run folder"),
        ([tmp_path / "new"], "has no evaluation yet"),
        ([runs / "a", "--plot", tmp_path / "a.txt"], "`plot` is"),
        ([runs / "a", "--from-epoch", "0"], "`from_epoch` is 0: it must be at least 1"),
    ):
        with pytest.raises(UsageError, match=message):
            compare.main([str(argument) for argument in arguments])


def evaluation(**changes):
    known = {"epoch": 9, "step": 45, "seconds": 1.0, "validation_nll_nats": 1.0}
    return json.dumps({**known, "reconstruction": 0.1, **changes}) + "\n"


BAD = [{"epoch": 0}, {"epoch": 10**400}, {"step": 10**400}, {"seconds": 10**400}, {"epoch": [1]}]


@pytest.mark.parametrize("change", BAD, ids=range(len(BAD)))
def test_a_damaged_evaluation_is_one_line(runs, tmp_path, change):
    copy = shutil.copytree(runs / "a", tmp_path / "copy")
    (copy / "last.safetensors").unlink()
    (copy / "metrics.jsonl").write_text(evaluation(**change))
    with one_line(SnfnpError, match="metrics.jsonl is damaged .line 1"):
        compare.main([str(copy)])


def test_only_evaluations_of_the_run_are_believed(runs, tmp_path, capsys):
    """As --resume does, which drops what comes after the last checkpoint."""
    copy = shutil.copytree(runs / "a", tmp_path / "copy")
    compare.main([str(runs / "a")])
    whole, file = capsys.readouterr().out, copy / "metrics.jsonl"
    with open(file, "a") as metrics:
        metrics.write(evaluation())
    compare.main([str(copy)])
    assert capsys.readouterr().out == whole.replace(str(runs / "a"), str(copy))
    first, *others = file.read_text().splitlines(keepends=True)
    file.write_text("".join([evaluation(epoch=1), *others]))
    with one_line(SnfnpError, match="metrics.jsonl is damaged .not what it was"):
        compare.main([str(copy)])


def test_no_number_is_longer_than_a_table(runs, tmp_path, capsys):
    for name, nll in (("zero", 0.0), ("huge", -1e299)):
        shutil.copytree(runs / "a", tmp_path / name)
        (tmp_path / name / "last.safetensors").unlink()
        (tmp_path / name / "metrics.jsonl").write_text(evaluation(validation_nll_nats=nll))
        (tmp_path / name / "summary.json").write_text('{"test_nll_nats": -1e300}')
    compare.main([str(tmp_path / "zero"), str(tmp_path / "huge")])
    huge = rows_of(capsys)[1]
    assert huge["largest gap"].startswith("-1e+299 nats = ") and huge["test"] == "-1e+300"


@pytest.mark.parametrize("summary", ["", "[]", "null", "{", '{"test_nll_nats": "x"}', "{}"])
def test_a_damaged_summary_is_one_line(runs, tmp_path, summary):
    copy = shutil.copytree(runs / "a", tmp_path / "copy")
    (copy / "summary.json").write_text(summary)
    with one_line(SnfnpError, match="summary.json is damaged"):
        compare.main([str(copy)])
