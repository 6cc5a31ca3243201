"""Patches of photographs."""

from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from support.data_files import colour_images, refused

from snfnp.data import load_dataset, patches
from snfnp.errors import UsageError


def test_splits_of_patches_share_no_pixel() -> None:
    """Photographs whose pixels are numbered: a patch tells where it is from."""
    height, width = 96, 400
    numbers = np.arange(width)[np.newaxis, :] + np.zeros((height, 1), int)
    photograph = np.stack([numbers // 2, numbers % 2, np.full_like(numbers, 7)], -1).astype("u1")
    splits = patches.cut_splits([photograph, photograph[::-1]])
    columns = []
    for split in splits:
        assert split.dtype == np.uint8
        assert split.shape[1:] == (32, 32, 3)
        # The red value is the column over 2; shrunk photographs round it up or keep it.
        columns.append((int(split[..., 0].min()), int(split[..., 0].max())))
        assert (split[..., 2] == 7).all()
    # 16% of 400 columns is 64: training has columns 64 to 335, the others the rest of both ends.
    assert columns == [(32, 167), (0, 199), (0, 199)]
    for index in (0, 1):
        one = patches.cut_splits([photograph] * (index + 1))
        counts = [len(split) // (index + 1) for split in one]
        assert [len(split) for split in one] == [count * (index + 1) for count in counts]
    first = [split[: len(split) // 2, ..., 0] for split in splits]
    second = [split[len(split) // 2 :, ..., 0] for split in splits]
    assert first[1].max() < 32 <= first[0].min() and first[0].max() < 168 <= first[2].min()
    assert second[2].max() < 32 <= second[0].min() and second[0].max() < 168 <= second[1].min()


def test_patches_at_both_scales() -> None:
    photograph = colour_images(12, seed=3).reshape(96, 128, 3)
    wide = np.concatenate([photograph] * 4, axis=1)  # 96 x 512: the ends have 82 columns each
    train, validation, _ = patches.cut_splits([wide])
    assert len(validation) == 5 * 4 + 3 * 2  # grid steps of 16 in 96 x 82, of 8 in 48 x 41
    np.testing.assert_array_equal(validation[0], wide[:32, :32])
    np.testing.assert_array_equal(validation[5], wide[16:48, 16:48])
    squares = wide[:64, :64].astype(float).reshape(32, 2, 32, 2, 3).mean(axis=(1, 3))
    np.testing.assert_array_equal(validation[20], np.rint(squares))
    np.testing.assert_array_equal(train[0], wide[:32, 82:114])


def test_patches_without_scikit_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patches, "find_spec", lambda name: None)
    refused("patches", None, "pip install scikit-image", kind=UsageError)


def test_patches_take_no_folder(tmp_path: Path) -> None:
    refused("patches", tmp_path, tmp_path, "leave out", kind=UsageError)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the photographs in a package that holds small ones."""
    folder = tmp_path / "skimage" / "data"
    folder.mkdir(parents=True)
    for index, name in enumerate(patches.PHOTOGRAPHS):
        picture = colour_images(60, seed=index).reshape(96, 640, 3)
        Image.fromarray(picture).save(folder / name)
    spec = SimpleNamespace(submodule_search_locations=[str(folder.parent)])
    monkeypatch.setattr(patches, "find_spec", lambda name: spec)
    monkeypatch.setattr(patches.metadata, "version", lambda name: "1.2.3")
    return folder


def test_patches_are_announced_as_no_published_data_set(package: Path) -> None:
    lines: list[str] = []
    dataset = load_dataset("patches", report=lines.append)
    (line,) = lines
    count = str(len(dataset.train))
    for part in ("NOT A PUBLISHED DATA SET", "scikit-image", count, "not comparable"):
        assert part in line and "\n" not in line
    assert dataset.is_sample and dataset.name == "patches"
    assert "patches of astronaut" in dataset.source and "1.2.3" in dataset.source
    again = load_dataset("patches", report=lambda line: None)
    np.testing.assert_array_equal(again.train, dataset.train)


def test_patches_with_a_damaged_photograph(package: Path) -> None:
    path = package / "coffee.png"
    path.write_bytes(path.read_bytes()[:1000])
    for _ in range(2):
        refused("patches", None, path, "missing or damaged", "--force-reinstall")
        path.unlink(missing_ok=True)


@pytest.mark.skipif(find_spec("skimage") is None, reason="scikit-image is not installed")
def test_patches_of_the_photographs() -> None:
    dataset = load_dataset("patches", report=lambda line: None)
    assert dataset.train.shape[1:] == (32, 32, 3)
    assert len(dataset.train) >= 4000
    assert len(dataset.validation) >= 500 and len(dataset.test) >= 500
