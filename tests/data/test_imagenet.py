"""ImageNet32: its splits, and how its file is made of the archives."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support.data_files import FILES, assert_is, colour_images, png, put, refused

from snfnp.data import load_dataset, sets
from snfnp.images import StoredArray

ROOT = Path(__file__).resolve().parents[2]
PUBLISHED = sets.IMAGENET32.counts


def test_published_splits() -> None:
    """Appendix A.3: 1,261,149 images for training, and 40,000 of CIFAR-10."""
    assert PUBLISHED == (1_261_149, 20_000, 49_999) and sets.CIFAR.counts == (
        40_000,
        10_000,
        10_000,
    )
    assert sets.BATCHES[::5] == ("data_batch_1.bin", "test_batch.bin")


def test_images_are_read_as_they_are_needed(tmp_path: Path, small, monkeypatch) -> None:
    monkeypatch.setattr("snfnp.data.npy._SMALL", 0)
    dataset = load_dataset("imagenet32", put(tmp_path, FILES["imagenet32"]))
    assert_is("imagenet32", dataset)
    assert isinstance(dataset.train, StoredArray) and not dataset.is_sample


@pytest.mark.parametrize(
    "array", [np.zeros((29, 32, 32, 3), np.uint8), np.zeros((30, 32, 32, 3), np.int8), np.zeros(())]
)
def test_another_array_is_refused(tmp_path: Path, small, array) -> None:
    np.save(tmp_path / sets.ARRAY, array)
    refused("imagenet32", tmp_path, tmp_path / sets.ARRAY, f"{array.dtype} of shape", "is not")


def test_the_documented_command_makes_the_file(tmp_path: Path, small, monkeypatch) -> None:
    """Of folders as the archives unpack to."""
    text = (ROOT / "scripts" / "runs.md").read_text(encoding="utf-8")
    (command,) = re.findall(r'^    python -c "(.*?)"$', text, flags=re.M | re.S)
    assert "0.015611" in command and round(0.015611 * 1_281_149) == PUBLISHED[1]
    for split, count in (("train", 23), ("test", 7)):
        images = {f"{place}.png": png(each) for place, each in enumerate(colour_images(count, 5))}
        put(tmp_path / "unpacked" / split, images)
    code = "\n".join(line.removeprefix("    ") for line in command.splitlines())
    code = code.replace("0.015611", str(5 / 23))
    environment = {"PYTHONPATH": str(ROOT), "PATH": ""}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True)
    dataset = load_dataset("imagenet32", tmp_path)
    assert [len(dataset.train), len(dataset.validation), len(dataset.test)] == [18, 5, 7]
