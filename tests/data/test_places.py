"""Places where the files of a data set are looked for, the same for all of them."""

import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pooch
import pytest
from support.data_files import FILES, Mirror, assert_is, put
from support.messages import assert_one_line, no_announcement

from snfnp.data import Dataset, load_dataset
from snfnp.errors import SnfnpError, UsageError

NAMES = list(FILES)


def load(name: str, folder: Path | str | None = None):
    return load_dataset(name, folder, report=lambda line: None)


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_that_is_given(name: str, tmp_path: Path, small: Callable) -> None:
    put(tmp_path / "given", FILES[name])
    dataset = load(name, str(tmp_path / "given"))
    assert_is(name, dataset)
    assert f"folder {tmp_path / 'given'}" in dataset.source


@pytest.mark.parametrize("name", NAMES)
def test_the_order_of_the_places(
    name: str, tmp_path: Path, cache: Path, small: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The argument, its subfolder first; the environment; the cache."""
    put(cache / name, FILES[name])
    for folder in ("argument", "environment"):
        put(tmp_path / folder, dict.fromkeys(FILES[name], b"damaged"))
        put(tmp_path / folder / name, FILES[name])
    monkeypatch.setenv("SNFNP_DATA_DIR", str(tmp_path / "environment"))
    assert f"folder {tmp_path / 'argument' / name}" in load(name, tmp_path / "argument").source
    assert f"folder {tmp_path / 'environment' / name}" in load(name).source
    monkeypatch.setenv("SNFNP_DATA_DIR", "")
    dataset = load(name)
    assert_is(name, dataset)
    assert f"cache folder {cache / name}" in dataset.source


def test_a_folder_in_the_home(tmp_path: Path, small: Callable, monkeypatch) -> None:
    put(tmp_path / "images", FILES["mnist"])
    for variable in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(variable, str(tmp_path))
    assert_is("mnist", load("mnist", "~/images"))


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_that_does_not_hold_them(
    name: str, tmp_path: Path, cache: Path, small: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(cache / name, FILES[name])  # must not take the place of the folder that was given
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "empty").mkdir()
    problems = {"none": "does not exist", "file": "is not a folder", "empty": "lacks"}
    for folder, problem in problems.items():
        with pytest.raises(UsageError) as caught:
            load(name, tmp_path / folder)
        assert_one_line(caught.value, f"{tmp_path / folder}: the data folder {problem}")
    assert_one_line(caught.value, *FILES[name])
    monkeypatch.setenv("SNFNP_DATA_DIR", str(tmp_path / "none"))
    with pytest.raises(UsageError) as caught:
        load(name)
    assert_one_line(caught.value, f"{tmp_path / 'none'}: SNFNP_DATA_DIR does not exist")


@pytest.mark.parametrize(
    "name, missing",
    [(name, file) for name in NAMES for file in FILES[name] if len(FILES[name]) > 1],
)
def test_half_a_set_is_named(
    name: str, missing: str, tmp_path: Path, cache: Path, small: Callable
) -> None:
    half = {file: content for file, content in FILES[name].items() if file != missing}
    put(tmp_path / "given", FILES[name])
    put(tmp_path / "given" / name, half)
    with pytest.raises(UsageError) as caught:
        load(name, tmp_path / "given")
    assert_one_line(
        caught.value, f"{tmp_path / 'given' / name}: the data folder lacks {missing} of"
    )


@pytest.mark.parametrize("name", NAMES)
def test_every_damaged_file_is_one_line(
    name: str, tmp_path: Path, cache: Path, small: Callable
) -> None:
    for file, content in FILES[name].items():
        for damaged in (b"", b"<html>404</html>" * 100, content[: len(content) // 2]):
            folder = put(tmp_path / "given", FILES[name] | {file: damaged})
            with pytest.raises(SnfnpError) as caught:
                load(name, folder)
            assert str(caught.value).startswith(f"{folder / file}: ")
            assert_one_line(caught.value, "replace it with a fresh copy")
        put(cache / name, FILES[name] | {file: damaged})
        with pytest.raises(SnfnpError) as caught:
            load(name)
        assert ("delete it to have it downloaded" in str(caught.value)) == (name != "imagenet32")
        put(cache / name, FILES[name])


OTHER_VERSIONS = {
    "cifar-10": ["cifar-10-python.tar.gz", "cifar-10-batches-py/data_batch_1", "data_batch_1"],
    "imagenet32": [
        *("Imagenet32_train_npz.zip", "Imagenet32_val_npz.zip"),
        *("train_data_batch_1.npz", "val_data.npz", "npz/record.json"),
    ],
}


@pytest.mark.parametrize(
    "name, file", [(name, file) for name in OTHER_VERSIONS for file in OTHER_VERSIONS[name]]
)
@pytest.mark.parametrize("subfolder", [False, True])
def test_another_version_is_named_and_not_read(
    name: str, file: str, subfolder: bool, tmp_path: Path, cache: Path, small: Callable
) -> None:
    folder = put(tmp_path / "given" / (name if subfolder else ""), {file: b"\x80\x02}."})
    with pytest.raises(UsageError) as caught:
        load(name, tmp_path / "given")
    assert str(caught.value).startswith(f"{folder}: holds the ")
    assert_one_line(caught.value, "version", "is not read", *FILES[name], "https://")
    if name == "imagenet32":
        put(cache / name, {file: b""})
        with pytest.raises(UsageError) as caught:
            load(name)
        assert_one_line(caught.value, f"{cache / name}: holds the npz version", "other likelihoods")
    put(folder, FILES[name])
    assert_is(name, load(name, tmp_path / "given"))


def test_a_data_set_leaves_its_arrays_as_they_were() -> None:
    images = np.zeros((3, 4, 4, 1), np.uint8)
    dataset = Dataset("mine", images, images[:1], images[:2], source="made here", is_sample=False)
    with pytest.raises(ValueError, match="read-only"):
        dataset.train[0] = 1
    images[0] = 1
    assert dataset.train[0].all()


# ---------------------------------------------------------------- downloads

DOWNLOADED = ["mnist", "cifar-10"]


@pytest.mark.parametrize("name", DOWNLOADED)
def test_download_then_cache(
    name: str, cache: Path, small: Callable, make_mirror: Callable[[], Mirror], monkeypatch, capfd
) -> None:
    mirror = make_mirror()
    mirror.files.update(FILES[name])
    small(mirror.url)
    put(cache / name, {"cifar-10-python.tar.gz": b"what an older snfnp downloaded"})
    first = load_dataset(name, report=no_announcement)
    assert_is(name, first)
    assert mirror.url.split("/")[2] in first.source
    assert sorted(mirror.requests) == sorted(FILES[name])
    mirror.files.clear()
    for offline in ("0", "1"):
        monkeypatch.setenv("SNFNP_OFFLINE", offline)
        assert_is(name, load_dataset(name, report=no_announcement))
    assert len(mirror.requests) == len(FILES[name])
    assert capfd.readouterr() == ("", "")


def test_only_what_the_cache_lacks_is_downloaded(cache, small, make_mirror) -> None:
    mirror = make_mirror()
    mirror.files.update(FILES["mnist"])
    small(mirror.url)
    train, test = FILES["mnist"]
    put(cache / "mnist", {train: FILES["mnist"][train]})
    assert_is("mnist", load("mnist"))
    assert mirror.requests == [test]


def faults(name: str) -> dict[str, dict[str, bytes]]:
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
def test_a_second_mirror_and_a_cache_without_damaged_files(
    name: str, fault: str, cache: Path, unreachable: str, small: Callable, make_mirror, monkeypatch
) -> None:
    bad, good = make_mirror(), make_mirror()
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
    dataset = load_dataset(name, report=no_announcement)
    assert_is(name, dataset)
    assert good.url.split("/")[2] in dataset.source
    assert sorted(path.name for path in (cache / name).iterdir()) == sorted(FILES[name])


def test_a_mirror_that_uncompresses(small, make_mirror) -> None:
    mirror = make_mirror()
    mirror.files = {name: gzip.decompress(content) for name, content in FILES["mnist"].items()}
    small(mirror.url)
    assert_is("mnist", load("mnist"))


def test_an_interrupted_download_leaves_no_file(small, cache, make_mirror, monkeypatch) -> None:
    def interrupted(self: pooch.HTTPDownloader, url: str, output_file: str, pooch: None) -> None:
        Path(output_file).write_bytes(b"a part")
        raise KeyboardInterrupt

    monkeypatch.setattr(pooch.HTTPDownloader, "__call__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        load("mnist")
    assert list((cache / "mnist").iterdir()) == []


@pytest.mark.parametrize("name", ["fashion-mnist", "cifar-10"])
@pytest.mark.parametrize("offline", [False, True])
def test_it_is_nowhere(
    name: str, offline: bool, cache: Path, small: Callable, unreachable: str, monkeypatch
) -> None:
    monkeypatch.setenv("SNFNP_OFFLINE", "1" if offline else "0")
    with pytest.raises(SnfnpError) as caught:
        load_dataset(name, report=no_announcement)
    assert not isinstance(caught.value, UsageError)
    assert_one_line(caught.value, *FILES[name], "--data-dir", "no download", str(cache / name))
    assert ("SNFNP_OFFLINE" in str(caught.value)) == offline
    address = unreachable if name == "fashion-mnist" else "https://www.cs.toronto.edu/~kriz/"
    assert address in str(caught.value)


def test_imagenet_is_nowhere(tmp_path: Path, cache: Path) -> None:
    for folder, looked in ((None, cache / "imagenet32"), (tmp_path, tmp_path)):
        with pytest.raises(UsageError) as caught:
            load_dataset("imagenet32", folder, report=no_announcement)
        assert_one_line(caught.value, looked, "register at https://image-net.org", "--data-dir")
        assert_one_line(caught.value, *FILES["imagenet32"], "datasets/issues/4662")


def test_an_unknown_name() -> None:
    with pytest.raises(UsageError) as caught:
        load_dataset("cifar")
    assert_one_line(caught.value, "cifar", "mnist, fashion-mnist, cifar-10, imagenet32, patches")
