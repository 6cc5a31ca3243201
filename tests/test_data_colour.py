"""Colour images: CIFAR-10 and ImageNet32 from small files in their formats, patches, augment."""

import dataclasses
import gzip
import hashlib
import io
import json
import os
import pickle
import shutil
import struct
import tarfile
import zipfile
from collections import namedtuple
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pooch
import pytest
import requests
from messages import assert_one_line, no_announcement
from PIL import Image

from snfnp.data import (
    Dataset,
    cifar,
    files,
    imagenet,
    imagenet_files,
    load_dataset,
    patches,
)
from snfnp.errors import SnfnpError, UsageError
from snfnp.ops.augment import augment
from snfnp.ops.philox import RandomKey

COUNT = 4  # images in a batch of the small CIFAR-10
PYTHON, BINARY = cifar.FORMS
# The real counts, which the tests replace by small ones.
PUBLISHED_PNG, PUBLISHED_VALIDATION = imagenet.VERSIONS["png"], imagenet.VALIDATION_COUNT


def random_images(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)


def planes(images: np.ndarray) -> np.ndarray:
    """(N, 3072): the red, the green, the blue plane, as the published files hold them."""
    return np.stack(
        [images[..., channel].reshape(len(images), -1) for channel in range(3)], 1
    ).reshape(len(images), -1)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache, in the test's folder; and no network, no settings of the user's."""
    for variable in ("SNFNP_DATA_DIR", "SNFNP_OFFLINE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(pooch, "os_cache", lambda project: tmp_path / "cache" / project)
    serve(monkeypatch, {})
    return tmp_path / "cache" / "snfnp"


def serve(monkeypatch: pytest.MonkeyPatch, content: dict[str, bytes]) -> list[str]:
    """Replace the downloader: `content` maps addresses to bytes. Returns the log of addresses."""
    asked = []

    def fetch(self: pooch.HTTPDownloader, url: str, output_file: str, pooch: None) -> None:
        asked.append(url)
        if url not in content:
            raise requests.ConnectionError
        Path(output_file).write_bytes(content[url])

    monkeypatch.setattr(pooch.HTTPDownloader, "__call__", fetch)
    return asked


def tar_bytes(members: dict[str, bytes], compressed: bool) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz" if compressed else "w") as archive:
        folders = {name.rpartition("/")[0] for name in members}
        for folder in sorted(folders):
            info = tarfile.TarInfo(folder)
            info.type = tarfile.DIRTYPE
            archive.addfile(info)
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


# CIFAR-10

CIFAR = [random_images(COUNT, seed) for seed in range(6)]  # five training batches, the test batch


def python2_pickle(data: np.ndarray, type_code: bytes = b"u1") -> bytes:
    """A batch as Python 2 wrote it, protocol 2, opcode by opcode: strings of bytes, old names."""

    def string(content: bytes) -> bytes:
        if len(content) < 256:
            return b"U" + bytes([len(content)]) + content
        return b"T" + struct.pack("<i", len(content)) + content

    def integer(value: int) -> bytes:
        return b"J" + struct.pack("<i", value)

    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n" + integer(0) + b"\x85"
    array += string(b"b") + b"\x87R(" + integer(1)
    array += b"(" + b"".join(map(integer, data.shape)) + b"t"
    array += b"cnumpy\ndtype\n" + string(type_code) + integer(0) + integer(1) + b"\x87R("
    array += integer(3) + string(b"|") + b"NNN" + integer(-1) + integer(-1) + integer(0) + b"tb"
    array += b"\x89" + string(data.tobytes()) + b"tb"
    labels = b"](" + b"".join(integer(label % 10) for label in range(len(data))) + b"e"
    items = string(b"batch_label") + string(b"training batch 1 of 5")
    items += string(b"labels") + labels + string(b"data") + array
    return b"\x80\x02}(" + items + b"u."


def records(images: np.ndarray) -> bytes:
    labels = np.arange(len(images), dtype=np.uint8)[:, None] % 10
    return np.hstack([labels, planes(images)]).tobytes()


def cifar_members(form: cifar.Form) -> dict[str, bytes]:
    write = {PYTHON: lambda images: python2_pickle(planes(images)), BINARY: records}[form]
    content = map(write, CIFAR)
    members = {f"{form.folder}/{name}": next(content) for name in form.batches}
    return members | {f"{form.folder}/readme.html": b"<html>"}


@pytest.fixture
def small_cifar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cifar, "BATCH_COUNT", COUNT)
    monkeypatch.setattr(cifar, "VALIDATION_COUNT", COUNT)


def assert_is_cifar(dataset: Dataset) -> None:
    np.testing.assert_array_equal(dataset.train, np.concatenate(CIFAR[:4]), strict=True)
    np.testing.assert_array_equal(dataset.validation, CIFAR[4], strict=True)
    np.testing.assert_array_equal(dataset.test, CIFAR[5], strict=True)
    assert dataset.name == "cifar-10"
    assert not dataset.is_sample
    for images in (dataset.train, dataset.validation, dataset.test):
        assert not images.flags.writeable


def put(folder: Path, members: dict[str, bytes]) -> None:
    for name, content in members.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def test_published_splits() -> None:
    """Appendix A.3: 40,000 images of CIFAR-10 and 1,261,149 of ImageNet32 for training."""
    assert cifar.TRAIN_BATCHES * cifar.BATCH_COUNT - cifar.VALIDATION_COUNT == 40_000
    assert PUBLISHED_PNG.train_count - PUBLISHED_VALIDATION == 1_261_149
    assert cifar.FORMS[0].batches == [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]


@pytest.mark.parametrize("form", cifar.FORMS, ids=lambda form: form.folder)
@pytest.mark.parametrize("subfolder", ["", "cifar-10"])
def test_cifar_archive(tmp_path: Path, small_cifar: None, form: cifar.Form, subfolder: str) -> None:
    archive = tar_bytes(cifar_members(form), compressed=True)
    put(tmp_path / "given" / subfolder, {form.archive: archive})
    dataset = load_dataset("cifar-10", tmp_path / "given", announce=no_announcement)
    assert_is_cifar(dataset)
    assert str(tmp_path / "given" / subfolder) in dataset.source
    assert form.archive in dataset.source


@pytest.mark.parametrize("form", cifar.FORMS, ids=lambda form: form.folder)
def test_cifar_unpacked(
    tmp_path: Path, small_cifar: None, form: cifar.Form, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path, cifar_members(form))
    assert_is_cifar(load_dataset("cifar-10", tmp_path))
    assert_is_cifar(load_dataset("cifar-10", tmp_path / form.folder))
    monkeypatch.setenv("SNFNP_DATA_DIR", str(tmp_path))
    assert_is_cifar(load_dataset("cifar-10"))


def test_cifar_is_nowhere(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError) as caught:
        load_dataset("cifar-10", tmp_path)
    assert_one_line(caught.value, tmp_path, PYTHON.archive, BINARY.archive, PYTHON.folder)
    with pytest.raises(UsageError) as caught:
        load_dataset("cifar-10", tmp_path / "none")
    assert_one_line(caught.value, "does not exist")
    with pytest.raises(SnfnpError) as caught:
        load_dataset("cifar-10")
    assert_one_line(caught.value, "connection failed", "www.cs.toronto.edu", "--data-dir")
    monkeypatch.setenv("SNFNP_OFFLINE", "1")
    with pytest.raises(SnfnpError) as caught:
        load_dataset("cifar-10")
    assert_one_line(caught.value, "SNFNP_OFFLINE", "www.cs.toronto.edu", "--data-dir")


@pytest.fixture
def published(small_cifar: None, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """The small archives by address, with their checksums in place of the published ones."""
    archives = {form: tar_bytes(cifar_members(form), compressed=True) for form in (PYTHON, BINARY)}
    forms = tuple(
        dataclasses.replace(form, md5=hashlib.md5(archive).hexdigest())
        for form, archive in archives.items()
    )
    monkeypatch.setattr(cifar, "FORMS", forms)
    return {cifar.MIRRORS[0] + form.archive: archive for form, archive in archives.items()}


def test_cifar_download_then_cache(
    cache: Path, published: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = serve(monkeypatch, published)
    first = load_dataset("cifar-10", announce=no_announcement)
    assert_is_cifar(first)
    assert "www.cs.toronto.edu" in first.source
    second = load_dataset("cifar-10", announce=no_announcement)
    assert_is_cifar(second)
    assert second.source == f"cache folder {cache / 'cifar-10'}, {PYTHON.archive}"
    assert asked == [cifar.MIRRORS[0] + PYTHON.archive]
    (cache / "cifar-10" / PYTHON.archive).write_bytes(b"")
    with pytest.raises(SnfnpError) as caught:
        load_dataset("cifar-10")
    assert_one_line(caught.value, PYTHON.archive, "delete it")


def test_cifar_download_of_the_other_form(
    cache: Path, published: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    published[cifar.MIRRORS[0] + PYTHON.archive] += b"\0"  # which gzip would not mind
    asked = serve(monkeypatch, published)
    assert_is_cifar(load_dataset("cifar-10"))
    assert asked == [cifar.MIRRORS[0] + PYTHON.archive, cifar.MIRRORS[0] + BINARY.archive]
    assert os.listdir(cache / "cifar-10") == [BINARY.archive]


def test_cifar_wrong_checksum(
    cache: Path, published: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(monkeypatch, dict.fromkeys(published, b"<html>please sign in</html>"))
    with pytest.raises(SnfnpError) as caught:
        load_dataset("cifar-10")
    assert_one_line(caught.value, "wrong checksum", "--data-dir")
    assert os.listdir(cache / "cifar-10") == []


@pytest.mark.parametrize("form", cifar.FORMS, ids=lambda form: form.folder)
def test_cifar_missing_batch(tmp_path: Path, small_cifar: None, form: cifar.Form) -> None:
    members = cifar_members(form)
    missing = form.batches[2]
    del members[f"{form.folder}/{missing}"]
    put(tmp_path / "unpacked", members)
    put(tmp_path / "packed", {form.archive: tar_bytes(members, compressed=True)})
    for folder in ("unpacked", "packed"):
        with pytest.raises(SnfnpError) as caught:
            load_dataset("cifar-10", tmp_path / folder)
        assert_one_line(caught.value, tmp_path / folder, f"lacks {missing};")


GOOD_PICKLE = python2_pickle(planes(CIFAR[0]))
BAD_BATCHES = {
    "too few images": (PYTHON, python2_pickle(planes(CIFAR[0][:-1])), "3 x 3072"),
    "too large images": (PYTHON, python2_pickle(np.zeros((4, 12288), np.uint8)), "4 x 12288"),
    "floats": (PYTHON, python2_pickle(planes(CIFAR[0]).astype("f8"), b"f8"), "type b'f8'"),
    "objects": (PYTHON, python2_pickle(planes(CIFAR[0]), b"O8"), "type b'O8'"),
    "cut": (PYTHON, GOOD_PICKLE[:-100], "damaged"),
    "empty": (PYTHON, b"", "EOFError"),
    "text": (PYTHON, b"<html>", "damaged"),
    "a list": (PYTHON, b"\x80\x02].", "no array b'data'"),
    "no data": (PYTHON, pickle.dumps({b"labels": [1]}, 2).replace(b"_codecs", b"numpy"), "names"),
    "data is a list": (PYTHON, b"\x80\x02}U\x04data]s.", "no array b'data'"),
    "records cut": (BINARY, records(CIFAR[0])[:-1], "not whole records of 3073"),
    "records missing": (BINARY, records(CIFAR[0][:-1]), "3 x 3072"),
    "no records": (BINARY, b"", "0 x 3072"),
    "label": (BINARY, b"\x0a" + records(CIFAR[0])[1:], "label 10"),
}


@pytest.mark.parametrize("form, content, problem", BAD_BATCHES.values(), ids=BAD_BATCHES.keys())
def test_cifar_bad_batch(
    tmp_path: Path, small_cifar: None, form: cifar.Form, content: bytes, problem: str
) -> None:
    members = cifar_members(form)
    batch = form.batches[1]
    members[f"{form.folder}/{batch}"] = content
    put(tmp_path, {form.archive: tar_bytes(members, compressed=True)})
    with pytest.raises(SnfnpError) as caught:
        load_dataset("cifar-10", tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / form.archive}: {batch} ")
    assert_one_line(caught.value, "fresh copy")
    assert problem in str(caught.value).removeprefix(str(tmp_path))


class _Intruder:
    """What plain pickle.load would run."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_cifar_pickle_runs_nothing(tmp_path: Path, small_cifar: None) -> None:
    touched = tmp_path / "touched"
    content = pickle.dumps({b"data": _Intruder(touched)}, protocol=4)
    pickle.loads(content)
    assert touched.exists()  # so the file does what it is here for
    touched.unlink()
    members = cifar_members(PYTHON) | {f"{PYTHON.folder}/data_batch_1": content}
    put(tmp_path, members)
    with pytest.raises(SnfnpError) as caught:
        load_dataset("cifar-10", tmp_path)
    assert_one_line(caught.value, "it names")
    assert not touched.exists()


def test_any_damage_of_a_pickle_is_one_error_or_none(small_cifar: None) -> None:
    refused = 0
    header = GOOD_PICKLE.index(planes(CIFAR[0]).tobytes())
    damaged = [GOOD_PICKLE[:end] for end in range(header)]
    damaged += [
        GOOD_PICKLE[:at] + bytes([GOOD_PICKLE[at] ^ mask]) + GOOD_PICKLE[at + 1 :]
        for at in range(header)
        for mask in (0x01, 0x80, 0xFF)
    ]
    for content in damaged:
        try:
            data = PYTHON.parse(content)
        except cifar._BadBatchError as error:
            assert_one_line(error)
            refused += 1
        else:
            assert data.dtype == np.uint8
    assert refused >= len(damaged) // 2


def damage_archives() -> dict[str, tuple[bytes, str]]:
    whole = tar_bytes(cifar_members(BINARY), compressed=True)
    plain = gzip.decompress(whole)
    return {
        "empty": (b"", "damaged"),
        "text": (b"<html>404</html>" * 100, "damaged"),
        "cut": (whole[: len(whole) // 2], "damaged"),
        "cut in the trailer": (whole[:-3], "damaged"),
        "wrong CRC": (whole[:-8] + b"\0\0\0\0" + whole[-4:], "CRC"),
        "garbage after": (whole + b"garbage", "damaged"),
        "not a tar inside": (gzip.compress(b"x" * 2000), "damaged"),
        "tar cut, then compressed": (gzip.compress(plain[:20_000], 1), "damaged"),
        "one header": (gzip.compress(plain[:512] + bytes(1024), 1), "lacks data_batch_1.bin"),
    }


@pytest.mark.parametrize("case", damage_archives())
def test_damaged_archive(tmp_path: Path, small_cifar: None, case: str) -> None:
    content, problem = damage_archives()[case]
    put(tmp_path, {BINARY.archive: content})
    with pytest.raises(SnfnpError) as caught:
        load_dataset("cifar-10", tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / BINARY.archive}: ")
    assert_one_line(caught.value, "fresh copy", problem)


def test_archive_that_is_not_compressed(tmp_path: Path, small_cifar: None) -> None:
    put(tmp_path, {BINARY.archive: tar_bytes(cifar_members(BINARY), compressed=False)})
    assert_is_cifar(load_dataset("cifar-10", tmp_path))


# ImageNet32

TRAIN, TEST = random_images(23, seed=10), random_images(7, seed=11)
VALIDATION_COUNT = 5


def png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def png_members(images: np.ndarray, folder: str) -> dict[str, bytes]:
    return {f"{folder}/{index + 1:07d}.png": png(image) for index, image in enumerate(images)}


def npz(images: np.ndarray, compressed: bool = True, **arrays) -> bytes:
    buffer = io.BytesIO()
    arrays = {
        "data": planes(images),
        "labels": np.arange(len(images)) + 1,
        "mean": np.zeros(3072),
    } | arrays
    (np.savez_compressed if compressed else np.savez)(buffer, **arrays)
    return buffer.getvalue()


def train_batches() -> dict[str, bytes]:
    parts = np.array_split(TRAIN, 10)
    return {f"train_data_batch_{i + 1}.npz": npz(part, i % 2 == 0) for i, part in enumerate(parts)}


def zipped(members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def png_files() -> dict[str, bytes]:
    return {
        "train_32x32.tar": tar_bytes(png_members(TRAIN, "train_32x32"), compressed=False),
        "valid_32x32.tar": tar_bytes(png_members(TEST, "valid_32x32"), compressed=False),
    }


def npz_files() -> dict[str, bytes]:
    return train_batches() | {"val_data.npz": npz(TEST)}


def zip_files() -> dict[str, bytes]:
    val = {"folder/val_data.npz": npz(TEST)}
    return {
        "Imagenet32_train_npz.zip": zipped(train_batches()),
        "Imagenet32_val_npz.zip": zipped(val, zipfile.ZIP_STORED),
    }


FORMATS = {"png": png_files, "npz": npz_files, "zip": zip_files}


@pytest.fixture(autouse=True)
def small_imagenet(monkeypatch: pytest.MonkeyPatch) -> None:
    for key, version in imagenet.VERSIONS.items():
        small = dataclasses.replace(version, train_count=len(TRAIN), test_count=len(TEST))
        monkeypatch.setitem(imagenet.VERSIONS, key, small)
    monkeypatch.setattr(imagenet, "VALIDATION_COUNT", VALIDATION_COUNT)
    monkeypatch.setattr(imagenet_files, "_BLOCK", 4)


def assert_is_imagenet(dataset: Dataset, title: str) -> None:
    mask = imagenet.validation_mask(len(TRAIN))
    np.testing.assert_array_equal(dataset.train, TRAIN[~mask])
    np.testing.assert_array_equal(dataset.validation, TRAIN[mask])
    np.testing.assert_array_equal(dataset.test, TEST)
    for images in (dataset.train, dataset.validation, dataset.test):
        assert isinstance(images, np.memmap)
        assert images.dtype == np.uint8
        assert not images.flags.writeable
    assert dataset.train[np.array([3, 1, 1])].shape == (3, 32, 32, 3)
    assert title in dataset.source
    assert dataset.name == "imagenet32"
    assert not dataset.is_sample


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("subfolder", ["", "imagenet32"])
def test_imagenet(tmp_path: Path, cache: Path, form: str, subfolder: str) -> None:
    put(tmp_path / "given" / subfolder, FORMATS[form]())
    lines: list[str] = []
    dataset = load_dataset("imagenet32", tmp_path / "given", announce=lines.append)
    title = "PNG version" if form == "png" else "npz version"
    assert_is_imagenet(dataset, title)
    (line,) = lines
    assert title in line and "\n" not in line
    key = "png" if form == "png" else "npz"
    assert os.listdir(cache / "imagenet32") == [key]
    record = json.loads((cache / "imagenet32" / key / "record.json").read_text())
    assert (record["validation_count"], record["validation_seed"]) == (VALIDATION_COUNT, 0)
    # The copy is used from now on: nobody is told of a second one.
    again = load_dataset("imagenet32", tmp_path / "given", announce=no_announcement)
    assert_is_imagenet(again, title)


def test_validation_mask() -> None:
    mask = imagenet.validation_mask(100)
    assert mask.sum() == VALIDATION_COUNT
    # Fixed for ever: a change would mix validation images into the training of resumed runs.
    np.testing.assert_array_equal(np.flatnonzero(mask), [8, 21, 56, 63, 78])


def test_imagenet_in_the_cache(cache: Path) -> None:
    folder = cache / "imagenet32"
    put(folder, png_files())
    assert_is_imagenet(load_dataset("imagenet32", announce=lambda line: None), "PNG version")
    for name in png_files():
        (folder / name).unlink()
    assert_is_imagenet(load_dataset("imagenet32", announce=no_announcement), "PNG version")
    put(folder, npz_files())
    with pytest.raises(UsageError) as caught:
        load_dataset("imagenet32")
    assert_one_line(caught.value, folder, "both versions", "different likelihoods")
    shutil.rmtree(folder / "png")
    assert_is_imagenet(load_dataset("imagenet32", announce=lambda line: None), "npz version")


def test_imagenet_other_archives_make_another_copy(tmp_path: Path) -> None:
    put(tmp_path, png_files())
    load_dataset("imagenet32", tmp_path, announce=lambda line: None)
    other = tar_bytes(png_members(TEST[::-1], "valid_32x32"), compressed=True)
    put(tmp_path, {"valid_32x32.tar": other})
    dataset = load_dataset("imagenet32", tmp_path, announce=lambda line: None)
    np.testing.assert_array_equal(dataset.test, TEST[::-1])


def test_imagenet_both_versions(tmp_path: Path) -> None:
    put(tmp_path, png_files() | zip_files())
    with pytest.raises(UsageError) as caught:
        load_dataset("imagenet32", tmp_path)
    assert_one_line(caught.value, tmp_path, "both versions", "different likelihoods")


def test_imagenet_is_nowhere(tmp_path: Path, cache: Path) -> None:
    for data_dir, looked in ((None, cache / "imagenet32"), (tmp_path, tmp_path)):
        with pytest.raises(UsageError) as caught:
            load_dataset("imagenet32", data_dir, announce=no_announcement)
        assert_one_line(caught.value, looked, "https://image-net.org", "register", "--data-dir")
        names = [*png_files(), *zip_files()]
        assert_one_line(caught.value, *names)


@pytest.mark.parametrize(
    "form, missing",
    [
        ("png", "train_32x32.tar"),
        ("png", "valid_32x32.tar"),
        ("npz", "train_data_batch_7.npz"),
        ("npz", "val_data.npz"),
        ("zip", "Imagenet32_val_npz.zip"),
    ],
)
def test_imagenet_lacks_a_file(tmp_path: Path, form: str, missing: str) -> None:
    content = FORMATS[form]()
    del content[missing]
    put(tmp_path, content)
    with pytest.raises(UsageError) as caught:
        load_dataset("imagenet32", tmp_path)
    # Of the two sets of names that the test images can have, either may be asked for.
    if missing == "val_data.npz":
        missing = "Imagenet32_val_npz.zip"
    assert_one_line(caught.value, f"{tmp_path}: lacks {missing} of ImageNet32")


GRAY = np.zeros((32, 32), np.uint8)
BAD_PNGS = {
    "larger": (png(np.zeros((64, 32, 3), np.uint8)), "32 x 64 of type RGB"),
    "grey": (png(GRAY), "of type L"),
    "alpha": (png(np.zeros((32, 32, 4), np.uint8)), "of type RGBA"),
    "cut": (png(TRAIN[0])[:-100], "damaged"),
    "header cut": (png(TRAIN[0])[:20], "damaged"),
    "empty": (b"", "damaged"),
    "text": (b"<html>", "damaged"),
    "flipped": (png(TRAIN[0])[:300] + b"\xff" * 9 + png(TRAIN[0])[309:], "damaged"),
}


@pytest.mark.parametrize("content, problem", BAD_PNGS.values(), ids=BAD_PNGS.keys())
def test_bad_png(tmp_path: Path, cache: Path, content: bytes, problem: str) -> None:
    members = png_members(TRAIN, "train_32x32") | {"train_32x32/0000009.png": content}
    put(tmp_path, png_files() | {"train_32x32.tar": tar_bytes(members, compressed=False)})
    with pytest.raises(SnfnpError) as caught:
        load_dataset("imagenet32", tmp_path, announce=lambda line: None)
    assert str(caught.value).startswith(f"{tmp_path / 'train_32x32.tar'}: train_32x32/0000009.png")
    assert_one_line(caught.value, "fresh copy")
    assert problem in str(caught.value).removeprefix(str(tmp_path))
    assert os.listdir(cache / "imagenet32") == []


def tampered(batch: bytes) -> bytes:
    """An npz with changed bytes in the middle of its stored array."""
    middle = len(batch) // 2
    return batch[:middle] + bytes([batch[middle] ^ 1]) + batch[middle + 1 :]


def npz_with_header(shape: str) -> bytes:
    """An npz whose array declares a shape that its data does not have."""
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    array = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode()
    return zipped({"data.npy": array + bytes(3072)})


BAD_NPZS = {
    "larger": (npz(TRAIN[:2], data=np.zeros((2, 12288), np.uint8)), "uint8 of 2 x 12288"),
    "floats": (npz(TRAIN[:2], data=np.zeros((2, 3072))), "float64 of 2 x 3072"),
    "objects": (npz(TRAIN[:2], data=np.full((2, 3072), None)), "object of 2 x 3072"),
    "four axes": (npz(TRAIN[:2], data=TRAIN[:2]), "2 x 32 x 32 x 3"),
    "no data": (zipped({"labels.npy": b""}), "no array data"),
    "cut": (npz(TRAIN[:2])[:-50], "damaged"),
    "empty": (b"", "damaged"),
    "text": (b"<html>", "damaged"),
    "changed": (tampered(npz(TRAIN[:9], compressed=False)), "CRC"),
    "huge": (npz_with_header("(1000000000000, 3072)"), "1000000000000 x 3072"),
    "more than there is": (npz_with_header("(2, 3072)"), "damaged"),
    "negative": (npz_with_header("(-1, 3072)"), "damaged"),
    "bad header": (npz_with_header("(2, 3072"), "damaged"),
    "not an npy": (zipped({"data.npy": b"x" * 100}), "damaged"),
}


@pytest.mark.parametrize("content, problem", BAD_NPZS.values(), ids=BAD_NPZS.keys())
@pytest.mark.parametrize("packed", [False, True])
def test_bad_npz(tmp_path: Path, cache: Path, content: bytes, problem: str, packed: bool) -> None:
    bad = "train_data_batch_3.npz"
    batches = train_batches() | {bad: content}
    if packed:
        put(tmp_path, zip_files() | {"Imagenet32_train_npz.zip": zipped(batches)})
        where = f"{tmp_path / 'Imagenet32_train_npz.zip'}: {bad}: "
    else:
        put(tmp_path, npz_files() | batches)
        where = f"{tmp_path / bad}: "
    with pytest.raises(SnfnpError) as caught:
        load_dataset("imagenet32", tmp_path, announce=lambda line: None)
    assert str(caught.value).startswith(where)
    assert_one_line(caught.value, "fresh copy")
    assert problem in str(caught.value).removeprefix(str(tmp_path))
    assert os.listdir(cache / "imagenet32") == []


def test_npz_in_fortran_order(tmp_path: Path) -> None:
    batches = npz_files() | {"val_data.npz": npz(TEST, data=np.asfortranarray(planes(TEST)))}
    put(tmp_path, batches)
    dataset = load_dataset("imagenet32", tmp_path, announce=lambda line: None)
    np.testing.assert_array_equal(dataset.test, TEST)


@pytest.mark.parametrize(
    "content, problem",
    [
        (b"<html>", "no zip archive"),
        (zipped(train_batches())[:-100], "no zip archive"),
        (
            zipped({k: v for k, v in train_batches().items() if "_4" not in k}),
            "lacks train_data_batch_4.npz",
        ),
    ],
    ids=["text", "cut", "member missing"],
)
def test_bad_zip(tmp_path: Path, content: bytes, problem: str) -> None:
    put(tmp_path, zip_files() | {"Imagenet32_train_npz.zip": content})
    with pytest.raises(SnfnpError) as caught:
        load_dataset("imagenet32", tmp_path, announce=lambda line: None)
    assert_one_line(caught.value, tmp_path / "Imagenet32_train_npz.zip", problem)


@pytest.mark.parametrize("count, found", [(22, "22 images"), (24, "more than 23 images")])
def test_imagenet_wrong_count(tmp_path: Path, cache: Path, count: int, found: str) -> None:
    members = png_members(random_images(count, seed=12), "train_32x32")
    put(tmp_path, png_files() | {"train_32x32.tar": tar_bytes(members, compressed=False)})
    with pytest.raises(SnfnpError) as caught:
        load_dataset("imagenet32", tmp_path, announce=lambda line: None)
    assert_one_line(caught.value, tmp_path / "train_32x32.tar", found, "not the 23")
    assert os.listdir(cache / "imagenet32") == []


def test_imagenet_does_not_fit(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, 92_159))
    put(tmp_path, png_files())  # 30 images of 3072 bytes: 92,160
    with pytest.raises(SnfnpError) as caught:
        load_dataset("imagenet32", tmp_path, announce=no_announcement)
    assert_one_line(caught.value, cache / "imagenet32", "needs 0.0 GB", "make room")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, 92_160))
    load_dataset("imagenet32", tmp_path, announce=lambda line: None)


def test_imagenet_disk_runs_full(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, count: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(imagenet, "_create", full)
    put(tmp_path, png_files())
    with pytest.raises(SnfnpError) as caught:
        load_dataset("imagenet32", tmp_path, announce=lambda line: None)
    assert_one_line(caught.value, cache / "imagenet32", "No space left on device")
    assert os.listdir(cache / "imagenet32") == []


def test_interrupted_copy_leaves_none(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = files.read_tar

    def interrupted(path: Path, wanted: Callable[[str], bool]):
        for index, item in enumerate(original(path, wanted)):
            if index == 9:
                raise KeyboardInterrupt
            yield item

    monkeypatch.setattr(imagenet_files, "read_tar", interrupted)
    put(tmp_path, png_files())
    with pytest.raises(KeyboardInterrupt):
        load_dataset("imagenet32", tmp_path, announce=lambda line: None)
    assert os.listdir(cache / "imagenet32") == []
    monkeypatch.undo()


def test_damaged_copy(tmp_path: Path, cache: Path) -> None:
    put(tmp_path, png_files())
    load_dataset("imagenet32", tmp_path, announce=lambda line: None)
    copy = cache / "imagenet32" / "png"
    whole = (copy / "train.npy").read_bytes()
    for content in (whole[:-1], whole[:50], b""):
        (copy / "train.npy").write_bytes(content)
        with pytest.raises(SnfnpError) as caught:
            load_dataset("imagenet32", tmp_path)
        assert_one_line(caught.value, copy / "train.npy", f"delete {copy}")
    shutil.copy(copy / "test.npy", copy / "train.npy")
    with pytest.raises(SnfnpError) as caught:
        load_dataset("imagenet32", tmp_path)
    assert_one_line(caught.value, "wrong shape")
    shutil.rmtree(copy)
    assert_is_imagenet(
        load_dataset("imagenet32", tmp_path, announce=lambda line: None), "PNG version"
    )


# Patches


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
    photograph = random_images(12, seed=3).reshape(96, 128, 3)
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
    with pytest.raises(UsageError) as caught:
        load_dataset("patches", announce=no_announcement)
    assert_one_line(caught.value, "pip install scikit-image")


def test_patches_take_no_folder(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        load_dataset("patches", tmp_path)
    assert_one_line(caught.value, tmp_path, "leave out")


class _Package:
    """As much of an installed scikit-image as the patches look at."""

    def __init__(self, folder: Path):
        self.submodule_search_locations = [str(folder)]


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the photographs in a package that holds small ones."""
    folder = tmp_path / "skimage" / "data"
    folder.mkdir(parents=True)
    for index, name in enumerate(patches.PHOTOGRAPHS):
        picture = random_images(60, seed=index).reshape(96, 640, 3)
        Image.fromarray(picture).save(folder / name)
    monkeypatch.setattr(patches, "find_spec", lambda name: _Package(folder.parent))
    monkeypatch.setattr(patches.metadata, "version", lambda name: "1.2.3")
    return folder


def test_patches_are_announced_as_a_stand_in(package: Path) -> None:
    lines: list[str] = []
    dataset = load_dataset("patches", announce=lines.append)
    (line,) = lines
    assert "\n" not in line
    for part in ("STAND-IN", "scikit-image", str(len(dataset.train)), "not comparable"):
        assert part in line
    assert dataset.is_sample
    assert dataset.name == "patches"
    assert "1.2.3" in dataset.source and "stand-in" in dataset.source
    for images in (dataset.train, dataset.validation, dataset.test):
        assert not images.flags.writeable
    again = load_dataset("patches", announce=lambda line: None)
    np.testing.assert_array_equal(again.train, dataset.train)


def test_patches_with_a_damaged_photograph(package: Path) -> None:
    path = package / "coffee.png"
    path.write_bytes(path.read_bytes()[:1000])
    for _ in range(2):
        with pytest.raises(SnfnpError) as caught:
            load_dataset("patches", announce=no_announcement)
        assert_one_line(caught.value, path, "missing or damaged", "--force-reinstall")
        path.unlink(missing_ok=True)


@pytest.mark.skipif(find_spec("skimage") is None, reason="scikit-image is not installed")
def test_patches_of_the_photographs() -> None:
    dataset = load_dataset("patches", announce=lambda line: None)
    assert dataset.train.shape[1:] == (32, 32, 3)
    assert len(dataset.train) >= 4000
    assert len(dataset.validation) >= 500
    assert len(dataset.test) >= 500


# Augmentation


def shifted(image: np.ndarray, down: int, right: int, flip: bool) -> np.ndarray:
    """The definition, on one image: pad by its border, cut, flip."""
    height, width, _ = image.shape
    padded = np.pad(image, ((1, 1), (1, 1), (0, 0)), mode="edge")
    cut = padded[1 - down : 1 - down + height, 1 - right : 1 - right + width]
    return cut[:, ::-1] if flip else cut


def test_augment() -> None:
    """Every result is one of the 18 possible ones, each as often as it should be."""
    count = 1800
    images = np.random.default_rng(0).integers(0, 256, (count, 5, 6, 3), dtype=np.uint8)
    before = images.copy()
    result = augment(images, RandomKey(1, 2, 3))
    assert result.shape == images.shape
    assert result.dtype == np.uint8
    np.testing.assert_array_equal(images, before)
    kinds = [(d, r, f) for d in (-1, 0, 1) for r in (-1, 0, 1) for f in (False, True)]
    tally = dict.fromkeys(kinds, 0)
    for image, changed in zip(images, result, strict=True):
        same = [kind for kind in kinds if np.array_equal(shifted(image, *kind), changed)]
        assert len(same) == 1
        tally[same[0]] += 1
    # Chi squared with 17 degrees of freedom is above 51 once in 30,000 draws; the draw is fixed.
    assert sum((n - 100) ** 2 / 100 for n in tally.values()) < 51


def test_augment_depends_on_the_key_alone() -> None:
    images = random_images(50, seed=0)
    first = augment(images, RandomKey(1, 2, 3))
    np.testing.assert_array_equal(augment(images, RandomKey(1, 2, 3)), first)
    for key in (RandomKey(0, 2, 3), RandomKey(1, 0, 3), RandomKey(1, 2, 0)):
        assert (augment(images, key) != first).any()


def test_augment_nothing() -> None:
    assert augment(np.zeros((0, 32, 32, 3), np.uint8), RandomKey(0, 0)).shape == (0, 32, 32, 3)


@pytest.mark.parametrize("name", ["imagenet", "cifar"])
def test_unknown_name_lists_all(name: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_dataset(name)
    assert_one_line(caught.value, "mnist, fashion-mnist, cifar-10, imagenet32, patches")
