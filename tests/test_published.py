"""Published data sets: where their files are looked for, what they hold, damage, the sample."""

import dataclasses
import gzip
import re
import socket
import sys
from pathlib import Path

import numpy as np
import pooch
import pytest
from numpy.testing import assert_array_equal
from support import data_files
from support.arrays import pixels
from support.data_files import (
    FILES,
    FULL_MNIST,
    TEST,
    TEST_GZ,
    TRAIN,
    TRAIN_GZ,
    put,
    refused,
)
from support.messages import assert_one_line, no_announcement
from support.processes import python

import snfnp.data
from snfnp.data import Dataset, load_dataset, sets
from snfnp.errors import SnfnpError, UsageError

NAMES = list(FILES)
DOWNLOADED = ["mnist", "cifar-10"]
ROOT = Path(__file__).resolve().parents[1]
PUBLISHED = sets.IMAGENET32.counts
IMAGES = np.arange(48, dtype=np.uint8).reshape(3, 4, 4, 1)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The package's cache folder, which does not exist yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "snfnp"


@pytest.fixture
def unreachable():
    """An address that refuses connections at once: its port is bound, but does not listen."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{closed.getsockname()[1]}/"


@pytest.fixture(autouse=True)
def isolated(cache, unreachable, monkeypatch):
    """Keep every test off the user's cache and settings, and off the network."""
    for variable in ("SNFNP_DATA_DIR", "SNFNP_OFFLINE"):
        monkeypatch.delenv(variable, raising=False)
    for variable in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(variable, "127.0.0.1")
    for published in (sets.MNIST, sets.FASHION_MNIST, sets.CIFAR):
        published = dataclasses.replace(published, mirrors=(unreachable,))
        monkeypatch.setitem(snfnp.data.LOADERS, published.name, published.load)


@pytest.fixture
def make_mirror():
    mirrors = []
    yield lambda: mirrors.append(data_files.Mirror()) or mirrors[-1]
    for mirror in mirrors:
        mirror.close()


@pytest.fixture
def small(isolated, unreachable, monkeypatch):
    """Replace the data sets by small ones; the function that it gives sets their mirrors."""

    def set_mirrors(*urls):
        names = ("mnist", "fashion-mnist", "cifar-10")
        mirrors = dict.fromkeys(names, urls or (unreachable,))
        data_files.use_small_sets(monkeypatch, mirrors)

    set_mirrors()
    return set_mirrors


def load(name, folder=None):
    return load_dataset(name, folder, report=lambda line: None)


@pytest.mark.parametrize("name", NAMES)
def test_files_are_looked_for_in_the_documented_order(
    name, tmp_path, cache, small, monkeypatch
):
    """The argument, its subfolder first; the environment; the cache."""
    put(cache / name, FILES[name])
    for folder in ("argument", "environment"):
        put(tmp_path / folder, dict.fromkeys(FILES[name], b"damaged"))
        put(tmp_path / folder / name, FILES[name])
    monkeypatch.setenv("SNFNP_DATA_DIR", str(tmp_path / "environment"))
    assert (
        f"folder {tmp_path / 'argument' / name}"
        in load(name, tmp_path / "argument").source
    )
    assert f"folder {tmp_path / 'environment' / name}" in load(name).source
    monkeypatch.setenv("SNFNP_DATA_DIR", "")
    dataset = load(name)
    data_files.assert_is(name, dataset)
    assert f"cache folder {cache / name}" in dataset.source


def test_a_tilde_is_the_home_folder(tmp_path, small, monkeypatch):
    put(tmp_path / "images", FILES["mnist"])
    for variable in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(variable, str(tmp_path))
    data_files.assert_is("mnist", load("mnist", "~/images"))


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("name", NAMES)
def test_a_folder_without_the_files_is_refused(name, tmp_path, cache, monkeypatch):
    """Nor do others take its place: those in the cache, or in the folder around it."""
    files = FILES[name]
    put(cache / name, files)
    put(tmp_path, {"file": b"", "empty/file": b""})
    problems = {"none": "is not a folder", "file": "is not a folder"}
    for first in files if len(files) > 1 else ():
        lacking = tmp_path / first / name
        put(lacking.parent, files)
        put(lacking, {file: files[file] for file in files if file != first})
        said = f"`data_dir` is {lacking}, which lacks {first} of"
        refused(name, lacking.parent, said, kind=UsageError)
    problems["empty"] = "lacks"
    for folder, problem in problems.items():
        expected = f"`data_dir` is {tmp_path / folder}, which {problem}"
        message = refused(name, tmp_path / folder, expected, kind=UsageError)
    assert all(file in message for file in files)
    monkeypatch.setenv("SNFNP_DATA_DIR", "/none")
    expected = "SNFNP_DATA_DIR is /none, which is not a folder"
    refused(name, None, expected, kind=UsageError)


@pytest.mark.parametrize("name", DOWNLOADED)
def test_files_are_downloaded_once(name, cache, small, make_mirror, monkeypatch, capfd):
    """And those alone that the cache lacks."""
    mirror = make_mirror()
    mirror.files.update(FILES[name])
    small(mirror.url)
    put(cache / name, {"cifar-10-python.tar.gz": b"what an older snfnp downloaded"})
    data_files.assert_is(name, load_dataset(name, report=no_announcement))
    first, *others = FILES[name]
    assert sorted(mirror.requests) == sorted(FILES[name])
    (cache / name / first).unlink()
    data_files.assert_is(name, load_dataset(name, report=no_announcement))
    mirror.files.clear()
    for offline in ("0", "1"):
        monkeypatch.setenv("SNFNP_OFFLINE", offline)
        data_files.assert_is(name, load_dataset(name, report=no_announcement))
    assert mirror.requests[len(FILES[name]) :] == [first]
    assert capfd.readouterr() == ("", "")


def faults(name):
    """Files at a mirror that are not the published ones."""
    file, content = next(iter(FILES[name].items()))
    return {
        "not found": {},
        "other images": {file: FILES["fashion-mnist"].get(file, content + b"\0")},
        "damaged": {file: content[:-100]},
        "web page": {file: b"<html>please sign in</html>"},
        "cut short": FILES[name],
    }


@pytest.mark.parametrize("fault", faults("mnist"))
@pytest.mark.parametrize("name", DOWNLOADED)
def test_the_second_mirror_is_tried_and_no_damaged_file_is_kept(
    name, fault, cache, unreachable, small, make_mirror, monkeypatch
):
    bad = make_mirror()
    good = make_mirror()
    good.files.update(FILES[name])
    bad.files.update(faults(name)[fault])
    bad.cut_short = fault == "cut short"
    small(unreachable, bad.url)
    lines: list[str] = []
    try:
        assert load_dataset(name, report=lines.append).is_sample
    except SnfnpError as error:
        assert name == "cifar-10"
        lines.append(str(error))
    (line,) = lines
    words = {"not found": "HTTP status 404", "cut short": "connection failed"}
    words["other images"] = "wrong checksum"
    assert words.get(fault, "") in line and "connection failed" in line
    assert list((cache / name).iterdir()) == []
    small(unreachable, bad.url, good.url)
    data_files.assert_is(name, load_dataset(name, report=no_announcement))
    assert sorted(path.name for path in (cache / name).iterdir()) == sorted(FILES[name])


def test_an_interrupted_download_leaves_no_file(small, cache, make_mirror, monkeypatch):
    def interrupted(self, url, output_file, pooch):
        Path(output_file).write_bytes(b"a part")
        raise KeyboardInterrupt

    monkeypatch.setattr(pooch.HTTPDownloader, "__call__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        load("mnist")
    assert list((cache / "mnist").iterdir()) == []


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("name", ["fashion-mnist", "cifar-10", "imagenet32"])
@pytest.mark.parametrize("offline", [False, True])
def test_a_data_set_found_nowhere_is_one_line_with_advice(
    name, offline, cache, unreachable, monkeypatch
):
    monkeypatch.setenv("SNFNP_OFFLINE", "1" if offline else "0")
    message = refused(
        name, None, *FILES[name], "`data_dir`", "no download", cache / name
    )
    addresses = {
        "fashion-mnist": unreachable,
        "cifar-10": "https://www.cs.toronto.edu/~kriz/",
    }
    assert addresses.get(name, "register at https://image-net.org") in message
    assert ("SNFNP_OFFLINE" in message) == (offline and name != "imagenet32")


@pytest.mark.parametrize(
    "name, said",
    [("cifar-10", "python version is pickled"), ("imagenet32", "the npz version")],
)
def test_other_versions_are_not_read(name, said, tmp_path):
    put(
        tmp_path,
        {"cifar-10-python.tar.gz": b"", "data_batch_1.bin": b"", "val_data.npz": b""},
    )
    refused(name, tmp_path, "which lacks", *FILES[name], said, kind=UsageError)


@pytest.mark.usefixtures("small")
def test_a_damaged_gzip_file_is_one_line_or_harmless(tmp_path):
    """Cuts and changed bytes give SnfnpError or, if they do not matter, the images."""
    whole = gzip.compress(data_files.idx_bytes(TEST), mtime=0)
    refusals = 0
    contents = [whole[:end] for end in range(0, len(whole), 40)]
    for at in (
        *range(12),
        *range(12, len(whole), 40),
        *range(len(whole) - 8, len(whole)),
    ):
        contents += [
            whole[:at] + bytes([whole[at] ^ mask]) + whole[at + 1 :]
            for mask in (1, 0xFF)
        ]
    for content in contents:
        put(tmp_path, FILES["mnist"] | {TEST_GZ: content})
        try:
            data_files.assert_is("mnist", load_dataset("mnist", tmp_path))
        except SnfnpError as error:
            assert_one_line(error, tmp_path / TEST_GZ)
            refusals += 1
    assert refusals >= len(contents) - 16


SCRIPT = """
import resource, sys
from snfnp.data import load_dataset
from snfnp.errors import SnfnpError
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (300 << 20),) * 2)
try:
    load_dataset(sys.argv[1], sys.argv[2], report=lambda line: None)
except SnfnpError as error:
    print(error)
"""
ZEROS = gzip.compress(bytes(64 << 20), 9) * 96  # 6 GiB, in members of 64 MiB
BOMBS = {
    "IDX file": ("mnist", {TRAIN_GZ: ZEROS, TEST_GZ: b""}, "no published data set"),
    "archive": ("cifar-10", {sets.ARCHIVE: ZEROS}, "its MD5 is not that"),
}


@pytest.mark.skipif(sys.platform != "linux", reason="limits memory as Linux does")
@pytest.mark.parametrize("name, files, problem", BOMBS.values(), ids=BOMBS.keys())
def test_a_decompression_bomb_is_refused_in_little_memory(
    tmp_path, name, files, problem
):
    put(tmp_path, files)
    done = python(SCRIPT, name, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("\n") == 1 and problem in done.stdout


@pytest.mark.parametrize("name", NAMES)
def test_damage_to_every_file_of_every_set(name, tmp_path, cache, small):
    """Trailing bytes are damage too, except behind ImageNet32's array, which is read as needed."""
    for file, content in FILES[name].items():
        damages = [b"", b"<html>404</html>" * 100, content[: len(content) // 2]]
        for damaged in damages + [content + b"garbage"] * (name != "imagenet32"):
            folder = put(tmp_path / "given", FILES[name] | {file: damaged})
            message = refused(name, folder, "replace it with a fresh copy")
            assert message.startswith(f"{folder / file} cannot be read (")
        put(cache / name, FILES[name] | {file: damages[-1]})
        message = refused(name, None)
        assert ("delete it to have it downloaded" in message) == (name != "imagenet32")
        put(cache / name, FILES[name])
    load(name)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    "end", ["-idx3-ubyte", "-idx3-ubyte.gz", ".idx3-ubyte", ".idx3-ubyte.gz"]
)
def test_all_four_spellings_of_file_names_are_found(tmp_path, end):
    files = {f"train-images{end}": TRAIN, f"t10k-images{end}": TEST}
    files = {name: data_files.idx_bytes(images) for name, images in files.items()}
    # the content tells what is compressed, and not the name
    if not end.endswith(".gz"):
        files = {name: gzip.compress(content) for name, content in files.items()}
    put(tmp_path, files)
    data_files.assert_is(
        "mnist", load_dataset("mnist", tmp_path, report=no_announcement)
    )


@pytest.mark.usefixtures("small")
def test_the_published_file_name_is_preferred(tmp_path):
    put(
        tmp_path,
        FILES["cifar-10"]
        | {sets.ARCHIVE.removesuffix(".gz"): b"unpacked by a browser"},
    )
    data_files.assert_is("cifar-10", load("cifar-10", tmp_path))


@pytest.mark.usefixtures("small")
def test_files_of_another_data_set_are_refused(tmp_path):
    put(tmp_path, FILES["mnist"])
    file = tmp_path / TRAIN_GZ
    refused(
        "fashion-mnist",
        tmp_path,
        f"{file} cannot be read (it is a file of MNIST, not Fashion",
    )
    put(tmp_path, {TRAIN_GZ: data_files.idx_bytes(data_files.FASHION[TRAIN_GZ])})
    refused("fashion-mnist", tmp_path, tmp_path / TEST_GZ, "it is a file of MNIST")
    put(tmp_path, {TEST_GZ: data_files.idx_bytes(TEST[::-1])})
    refused(
        "fashion-mnist",
        tmp_path,
        tmp_path / TEST_GZ,
        "it is a file of no published data set",
    )


REASONS = {
    "": "no mirror",
    "SNFNP_OFFLINE": "SNFNP_OFFLINE",
    "a file": "cannot be written",
}


@pytest.mark.parametrize("fault", REASONS)
def test_the_sample_is_announced_once(fault, cache, monkeypatch, capfd):
    if fault == "SNFNP_OFFLINE":
        monkeypatch.setenv(fault, "1")
    elif fault:
        put(cache.parent, {cache.name: b""})
    dataset = load_dataset("mnist")
    assert dataset.is_sample and dataset.name == "mnist"
    assert dataset.source == "sample shipped with the package"
    for split, count in (("train", 5000), ("validation", 1000), ("test", 1000)):
        images = getattr(dataset, split)
        assert images.shape == (count, 28, 28, 1) and images.dtype == np.uint8
        assert (images.min(), images.max()) == (0, 255)
    out, line = capfd.readouterr()
    assert out == "" and line.count("\n") == 1
    assert line.startswith("WARNING: NOT THE FULL MNIST")
    for part in ("sample", "5000 train", "--data-dir", REASONS[fault]):
        assert part in line
    assert not (cache / "mnist").exists() or not list((cache / "mnist").iterdir())


@data_files.needs_full_mnist
def test_full_mnist_and_the_sample_of_it(monkeypatch):
    full = load_dataset("mnist", FULL_MNIST, report=no_announcement)
    assert not full.is_sample
    assert list(map(len, (full.train, full.validation, full.test))) == [
        50_000,
        10_000,
        10_000,
    ]
    monkeypatch.setenv("SNFNP_OFFLINE", "1")
    sample = load_dataset("mnist", report=lambda line: None)
    assert_array_equal(sample.train, full.train[:5000])
    assert_array_equal(sample.validation, full.validation[:1000])
    assert_array_equal(sample.test, full.test[:1000])


def test_the_splits_are_those_of_the_paper():
    """Appendix A.3: 1,261,149 images for training, and 40,000 of CIFAR-10."""
    assert PUBLISHED == (1_261_149, 20_000, 49_999)
    assert sets.CIFAR.counts == (40_000, 10_000, 10_000)
    assert sets.BATCHES[::5] == ("data_batch_1.bin", "test_batch.bin")


def test_imagenet_is_read(tmp_path, small):
    dataset = load_dataset("imagenet32", put(tmp_path, FILES["imagenet32"]))
    data_files.assert_is("imagenet32", dataset)
    assert not dataset.is_sample


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((29, 32, 32, 3), np.uint8),
        np.zeros((30, 32, 32, 3), np.int8),
        np.zeros(()),
    ],
)
def test_an_imagenet_array_of_another_shape_or_type_is_refused(tmp_path, small, array):
    np.save(tmp_path / sets.ARRAY, array)
    refused(
        "imagenet32",
        tmp_path,
        tmp_path / sets.ARRAY,
        f"{array.dtype} of shape",
        "is not",
    )


def test_the_documented_command_makes_the_file(tmp_path, small, monkeypatch):
    """From folders like those that the archives unpack to."""
    text = (ROOT / "scripts" / "runs.md").read_text(encoding="utf-8")
    (command,) = re.findall(r'(?ms)^    python -c "(.*?)"$', text)
    assert "0.015611" in command and round(0.015611 * 1_281_149) == PUBLISHED[1]
    for split, count in (("train", 23), ("test", 7)):
        images = map(data_files.image_bytes, pixels(count, 32, 32, 3, seed=5))
        named = {f"{place}.png": content for place, content in enumerate(images)}
        put(tmp_path / "unpacked" / split, named)
    code = "\n".join(line.removeprefix("    ") for line in command.splitlines())
    code = code.replace("0.015611", str(5 / 23))
    assert python(code, cwd=tmp_path, PYTHONPATH=str(ROOT), PATH="").returncode == 0
    dataset = load_dataset("imagenet32", tmp_path)
    assert [len(dataset.train), len(dataset.validation), len(dataset.test)] == [
        18,
        5,
        7,
    ]


def test_a_data_set_leaves_its_arrays_as_they_were():
    images = IMAGES.copy()
    dataset = Dataset(
        "mine", images, images[:1], images[:2], source="made here", is_sample=False
    )
    with pytest.raises(ValueError, match="read-only"):
        dataset.train[0] = 1
    images[0] = 1
    assert dataset.train[0].all()
