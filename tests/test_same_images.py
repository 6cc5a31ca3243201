"""A run knows the images that it was trained on: what scores it or goes on with it says so."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
from support.messages import assert_one_line
from support.trainers import run_training, small_dataset

import snfnp
from snfnp.cli import angle, evaluate, shared
from snfnp.data import SPLITS, Dataset
from snfnp.errors import UsageError
from snfnp.training.runs.folder import RunFolder

SAME = small_dataset()
OTHERS = {split: getattr(SAME, split)[::-1] for split in SPLITS}  # the same images in another order
CHANGED = Dataset("mnist", **OTHERS, source="elsewhere", is_sample=False)
FEWER = replace(SAME, test=SAME.test[:20])
LARGER = small_dataset(side=6)
HOW = {"evaluate": evaluate, "angle": angle}


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """A run of one's own photographs. Nothing but `data="mnist"` can be said of them so far."""
    path, own = tmp_path_factory.mktemp("runs") / "run", replace(SAME, name="photographs")
    return run_training(path, own, backend="numpy")[0].path


@pytest.fixture
def score(monkeypatch):
    """Run a command, which finds this data."""

    def run(command, path, dataset, *options):
        monkeypatch.setattr(shared, "load_dataset", lambda name, folder: dataset)
        HOW[command].main([str(path), *options])

    return run


@pytest.fixture
def old(photographs, tmp_path):
    """The run as an earlier version described it."""
    path = shutil.copytree(photographs, tmp_path / "old")
    folder, record = RunFolder.open(path)
    del record["data"]["sha256"], record["data"]["name"]
    folder.write_config(record)
    return path


def refusal(photographs, found):
    return (
        f"{photographs} was trained on [100, 30, 30] images (train, validation, test) of shape "
        f"(5, 5, 1), photographs from random images, found others: {found}"
    )


FOUND = {
    "other images": (CHANGED, "[100, 30, 30] of shape (5, 5, 1), mnist from elsewhere"),
    "another shape": (LARGER, "[100, 30, 30] of shape (6, 6, 1), mnist from random images"),
}


@pytest.mark.parametrize("dataset, found", FOUND.values(), ids=FOUND.keys())
@pytest.mark.parametrize("command", HOW)
def test_other_images_are_refused(command, dataset, found, photographs, score, capsys):
    with pytest.raises(UsageError) as caught:
        score(command, photographs, dataset)
    assert_one_line(caught.value, refusal(photographs, found))
    advice = "--data-dir takes what is in a folder all the same; for images of your own use Python"
    assert str(caught.value).endswith(f": {advice}")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("command", HOW)
def test_others_that_were_asked_for_are_said_to_be_others(command, photographs, score, capsys):
    score(command, photographs, CHANGED, "--data-dir", "there")
    first, second, *_ = capsys.readouterr().out.splitlines()
    assert first == refusal(photographs, FOUND["other images"][1])
    assert "images from elsewhere" in second
    with pytest.raises(UsageError, match="was trained on .* found others: .* of shape .6, 6, 1."):
        score(command, photographs, LARGER, "--data-dir", "there")


@pytest.mark.parametrize("command", HOW)
def test_nothing_is_said_of_the_same_images(command, photographs, score, capsys):
    """By another name, and even if a split that is not looked at is another."""
    unused = {"evaluate": "train", "angle": "test"}[command]
    for dataset in (SAME, replace(SAME, **{unused: OTHERS[unused]})):
        score(command, photographs, dataset)
        assert "30 test images from" in (out := capsys.readouterr().out) or "100 training" in out
        assert "was trained on" not in out and "cannot be checked" not in out


@pytest.mark.parametrize("command", HOW)
def test_an_old_run_is_scored_and_said_not_to_be_checked(command, old, score, capsys):
    score(command, old, CHANGED)
    line = f"{old} has no SHA-256 of its images (an earlier version's): whether these are the same "
    assert capsys.readouterr().out.startswith(f"{line}images cannot be checked\n")
    if command == "evaluate":  # their number alone shows it
        with pytest.raises(
            UsageError, match=r"mnist from random images, found others: \[100, 30, 20"
        ):
            score(command, old, FEWER)


@pytest.mark.parametrize("split", SPLITS)
def test_a_run_goes_on_with_the_same_images_alone(split, photographs, tmp_path):
    path = shutil.copytree(photographs, tmp_path / "run")
    with pytest.raises(UsageError) as caught:
        snfnp.resume(path, dataset=replace(SAME, **{split: OTHERS[split]}), epochs=4)
    assert_one_line(caught.value, "was trained on", ": give the same data (--data-dir, dataset=)")
    summary = snfnp.resume(path, dataset=SAME, epochs=4, report=lambda line: None)
    assert summary["best_epoch"] > 0


def test_an_old_run_goes_on_and_is_said_not_to_be_checked(old):
    said = []
    snfnp.resume(old, dataset=SAME, epochs=4, report=said.append)
    assert said[0].endswith("whether these are the same images cannot be checked")


def test_a_fingerprint_is_of_values_order_and_shape_and_of_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setattr("snfnp.data.files._HASHED", 7)
    apart = np.zeros((100, 5, 10, 1), np.uint8)
    apart[:, :, ::2] = SAME.train
    np.save(tmp_path / "images.npy", SAME.train)
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    known = SAME.fingerprint("train")
    for images in (apart[:, :, ::2], mapped):
        assert replace(SAME, train=images).fingerprint("train") == known
    changed = SAME.train.copy()
    changed[-1, -1, -1] ^= 1
    for images in (changed, SAME.train[::-1], SAME.train[:-1], SAME.train.reshape(25, 10, 10, 1)):
        rest = images[:1]
        other = Dataset("mnist", images, rest, rest, "random images", False)
        assert other.fingerprint("train") != known
