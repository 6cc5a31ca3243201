"""`reproduce.py` where its files are damaged, or its folders no good: one line before it trains."""

import json

import numpy as np
import pytest
import reproduce
from reproduction import runs
from reproduction import setting as settings
from support.trainers import at_step

from snfnp.errors import SnfnpError
from snfnp.training.runs.folder import RunFolder


@pytest.fixture
def command(monkeypatch, tmp_path, capsys):
    """`reproduce.py TARGET …` of one row at the smoke scale on the sample: what it prints."""
    monkeypatch.setenv("SNFNP_OFFLINE", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("SNFNP_DATA_DIR", raising=False)

    def run(target="table1", *options):
        places = ("--runs", str(tmp_path / "runs"), "--scale", "smoke", "--backend", "numpy")
        reproduce.main([target, *places, "--rows", "fc-snf", *options])
        return capsys.readouterr().out

    return run


@pytest.fixture
def folder(tmp_path):
    """Of the run."""
    return tmp_path / "runs/smoke/fc-snf-seed-0"


@pytest.fixture
def refused(command, monkeypatch):
    """refused(what it says, target, …): that it says so in one line before anything is trained."""

    def check(said, *options):
        with monkeypatch.context() as patch, pytest.raises(SnfnpError, match=said) as caught:
            patch.setattr(runs, "train", trained)
            command(*options)
        assert "\n" not in str(caught.value) and "--out" not in str(caught.value)

    return check


def trained(*_, **__):
    raise AssertionError("trained")


def diverge(monkeypatch, step=1):
    def spoil(trainer):
        trainer.p[:] = np.nan

    at_step(monkeypatch, step, spoil)


def change(file, changed):
    file.write_text(json.dumps(json.loads(file.read_text()) | changed))


@pytest.mark.parametrize("name", ["test_nll_nats", "test_bits_per_dimension", "best_epoch"])
def test_a_damaged_summary(command, folder, refused, name):
    command()
    change(folder / "summary.json", {name: "x"})
    refused(f"summary.json is damaged .its {name}.: delete it to")


@pytest.mark.parametrize("content", ["[1]", "{}", '[{"commit": 1, "processor": "p"}]'])
def test_a_damaged_note_of_the_commit(command, folder, refused, content):
    command()
    folder.with_name(f"{folder.name}.made-with.json").write_text(content)
    refused("made-with.json is damaged: delete it")


def test_a_damaged_outcome(command, folder, refused, monkeypatch):
    diverge(monkeypatch)
    command()
    file = folder.with_name(f"{folder.name}.diverged.json")
    whole = file.read_text()
    for changed in ({"step": "x"}, {"before": 1}, {"config": None}, {"config": {"a": 1}}):
        file.write_text(whole)
        change(file, changed)
        refused("diverged.json is damaged .*: delete it to")
    file.write_text("{}")
    refused("diverged.json is damaged .*: delete it to")


def test_lost_metrics_of_a_run_that_is_done(command, folder, refused):
    """It is no run that diverged."""
    for target in ("table1", "figure3", "figure5"):
        command(target)
    (folder / "metrics.jsonl").unlink()
    for target in ("table1", "figure3", "figure5"):
        refused("metrics.jsonl has no evaluation, but .* restore it", target)
    (folder / "metrics.jsonl").write_text("{\n")
    refused("metrics.jsonl is damaged .*: restore", "figure5")


@pytest.mark.parametrize("target", ["figure3", "figure5"])
def test_nothing_is_drawn_where_there_is_nothing(command, folder, monkeypatch, target):
    """Nor does an older picture stay."""
    picture = folder.with_name(f"{target}.svg")
    folder.parent.mkdir(parents=True)
    picture.write_text("older")
    diverge(monkeypatch)
    said = command(target)
    assert "1 / 6,000 (diverged there)" in said
    assert "Picture" not in said and not picture.exists()


def test_a_run_that_diverged_on_other_images_is_another(command, refused, monkeypatch):
    diverge(monkeypatch)
    command()
    monkeypatch.setitem(settings._SMOKE, "train", 300)
    refused(r"was trained on \[200, 100, 100\] images .* found \[300")


def test_a_diverged_run_is_shown_to_where_it_went(command, folder, monkeypatch):
    """However many epochs are asked for; also where it is not known at which step."""
    diverge(monkeypatch, step=3)
    first = command("table1", "--epochs", "9")
    assert "| diverged at step 4, after epoch 1: " in first and "| 2 / 6,000 |" in first
    monkeypatch.setattr(runs, "train", trained)
    for epochs in ("1", "9", "30"):
        assert command("table1", "--epochs", epochs) == first
    change(folder.with_name(f"{folder.name}.diverged.json"), {"step": None})
    said = command()
    assert "| diverged at step unknown, after epoch 1: " in said and "| 1 / 6,000 |" in said


def test_a_place_that_cannot_be_used(command, folder, refused):
    folder.parent.mkdir(parents=True)
    folder.write_text("")
    refused("fc-snf-seed-0 is no folder: move it away, or choose another --runs")
    folder.unlink()
    folder.mkdir()
    (folder / "stray").write_text("")
    refused("holds stray and no last.safetensors: move it away, or choose another --runs")
    (folder / "stray").unlink()
    with RunFolder(folder).lock:
        refused("is in use by process .*: stop that one, or choose another --runs")
    command()
    (folder / "last.safetensors").unlink()
    refused("and no last.safetensors: move it away", "table1", "--epochs", "2")


@pytest.mark.parametrize(
    "targets",
    [
        [],
        {"table1": {}},
        {"table1": []},
        {"table3": {"scale": "hour"}},
        {"figure4": {"scale": "hour", "made_with": {"backend": "numpy"}}},
        {"table1": {"title": "t", "scale": "hour", "heads": ["model"], "rows": [1], "notes": []}},
    ],
)
def test_damaged_results(folder, refused, targets):
    """Of any target, for the page as well."""
    folder.parent.mkdir(parents=True)
    file = folder.with_name("results.json")
    file.write_text(json.dumps({"format": 1, "targets": targets}))
    refused("results.json is damaged .*: restore it, or delete it and give the command again")
    with pytest.raises(SnfnpError, match="results.json is damaged .*: restore it") as caught:
        reproduce.main(["page", "--runs", str(file.parent)])
    assert "\n" not in str(caught.value)
