"""A run knows the images that it was trained on: what scores it or goes on with it says so."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
from support.messages import assert_one_line
from support.trainers import run_training, small_dataset

import snfnp
from snfnp.cli import angle, evaluate, shared
from snfnp.data import LOADERS, SPLITS, Dataset
from snfnp.data.mnist import SAMPLE
from snfnp.errors import UsageError
from snfnp.training.options import TrainConfig
from snfnp.training.runs.folder import RunFolder

SAME, LARGER = small_dataset(), small_dataset(side=6)
# the same images in another order, split by split; and fewer of them
OTHERS = {s: replace(SAME, source="elsewhere", **{s: getattr(SAME, s)[::-1]}) for s in SPLITS}
FEWER = replace(SAME, train=SAME.train[:90], test=SAME.test[:20])
COMMANDS = {"evaluate": evaluate, "angle": angle}
SEES = {"evaluate": ("test",), "angle": ("train",), "resume": SPLITS}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of the user's own photographs."""
    path, own = tmp_path_factory.mktemp("runs") / "run", replace(SAME, name="photographs")
    return run_training(path, own)[0].path


@pytest.fixture
def photographs(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "run")


@pytest.fixture
def said(monkeypatch, capsys):
    """Lines that a command prints that finds this data, or that are reported of more training."""

    def look(way, path, dataset, *options):
        monkeypatch.setattr(shared, "load_dataset", lambda name, folder, **splits: dataset)
        lines = []
        if way == "resume":
            snfnp.resume(path, dataset=dataset, epochs=4, report=lines.append)
        else:
            COMMANDS[way].main([str(path), *options])
        return lines or capsys.readouterr().out.splitlines()

    return look


def refusal(path, shape="(5, 5, 1)", source="elsewhere"):
    return (
        f"{path} was trained on [100, 30, 30] images (train, validation, test) of shape (5, 5, 1), "
        f"photographs from random images, found others: [100, 30, 30] of shape {shape}, "
        f"mnist from {source}"
    )


@pytest.mark.parametrize("way, split", [(way, split) for way in SEES for split in SEES[way]])
def test_other_images_are_refused(way, split, photographs, said):
    others = "" if way == "resume" else ", or others of its shape to look at,"
    advice = f"give the same data{others} with `data` (dataset= in Python)"
    with pytest.raises(UsageError) as caught:
        said(way, photographs, OTHERS[split])
    assert str(caught.value) == f"{refusal(photographs)}: {advice}"
    with pytest.raises(UsageError) as caught:
        said(way, photographs, LARGER, *(() if way == "resume" else ("--data-dir", "there")))
    assert str(caught.value) == f"{refusal(photographs, '(6, 6, 1)', 'random images')}: {advice}"
    assert_one_line(caught.value)


@pytest.mark.parametrize("way", COMMANDS)
def test_others_that_were_asked_for_are_said_to_be_others(way, photographs, said):
    first, second, *_ = said(way, photographs, OTHERS[SEES[way][0]], "--data-dir", "there")
    assert first == refusal(photographs) and "images from elsewhere" in second


@pytest.mark.parametrize("way", SEES)
def test_nothing_is_said_of_the_same_images(way, photographs, said):
    """By another name, and even if a split that is not looked at is another."""
    unused = OTHERS["validation"] if way in COMMANDS else SAME
    lines = said(way, photographs, unused)
    assert lines and not any("trained on" in line or "SHA-256" in line for line in lines)


@pytest.mark.parametrize("way", SEES)
def test_an_earlier_versions_run_is_said_not_to_be_checked(way, photographs, said):
    """Of other images their number alone tells."""
    folder, record = RunFolder.open(photographs)
    del record["data"]["sha256"], record["data"]["name"]
    folder.write_config(record)
    with pytest.raises(UsageError, match=r"photographs from .*, found others: \[90, 30, 20\]"):
        said(way, photographs, FEWER)
    unknown = "whether these are the same images cannot be checked"
    line = f"{photographs} has no SHA-256 of its images (an earlier version's): {unknown}"
    assert said(way, photographs, OTHERS["train"])[0] == line


def test_a_fingerprint_is_of_values_order_and_shape_alone(tmp_path, monkeypatch):
    monkeypatch.setattr("snfnp.images._AT_ONCE", 7 * SAME.train[0].size)
    apart = np.zeros((100, 5, 10, 1), np.uint8)
    apart[:, :, ::2] = SAME.train
    np.save(tmp_path / "images.npy", SAME.train)
    known = SAME.fingerprint("train")
    for images in (apart[:, :, ::2], np.load(tmp_path / "images.npy", mmap_mode="r")):
        assert replace(SAME, train=images).fingerprint("train") == known
    changed = SAME.train.copy()
    changed[-1, -1, -1] ^= 1
    for images in (changed, SAME.train[::-1], SAME.train[:-1], SAME.train.reshape(25, 10, 10, 1)):
        other = Dataset("mnist", images, images[:1], images[:1], "random images", False)
        assert other.fingerprint("train") != known


def test_a_run_of_the_sample_finds_it_again(tmp_path, monkeypatch, capsys):
    """Also where all of MNIST, or what goes for it, has come since."""
    path, sample = tmp_path / "run", snfnp.load_dataset("mnist-sample")
    config = TrainConfig(epochs=1, batch_size=1000, warmup_epochs=1).resolve(len(sample.train))
    snfnp.train(config, sample, snfnp.get_ops("numpy"), RunFolder.create(path))
    here = replace(SAME, source="the cache")
    monkeypatch.setitem(LOADERS, "mnist", lambda *arguments: here)
    resume = lambda arguments: snfnp.resume(arguments[0], epochs=2, report=print)  # noqa: E731
    for way in (evaluate.main, angle.main, resume):
        capsys.readouterr()
        way([str(path)])
        assert "from sample shipped with the package" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["mnist", "mnist-sample"])
def test_a_folder_that_is_given_has_files_of_mnist_and_no_sample(name, tmp_path):
    record = {"config": {"data": name}, "data": {"source": SAMPLE}}
    assert RunFolder(tmp_path).data_name(record, None) == "mnist-sample"
    assert RunFolder(tmp_path).data_name(record, tmp_path) == "mnist"
