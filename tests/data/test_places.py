"""Places where the files of a data set are looked for, the same for all of them."""

from collections.abc import Callable
from pathlib import Path

import pooch
import pytest
from support.data_files import FILES, Mirror, assert_is, put, refused
from support.messages import no_announcement

from snfnp.data import load_dataset
from snfnp.errors import SnfnpError, UsageError

NAMES = list(FILES)


def load(name: str, folder: Path | str | None = None):
    return load_dataset(name, folder, report=lambda line: None)


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


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("name", NAMES)
def test_a_folder_that_does_not_hold_them(name: str, tmp_path: Path, cache: Path, monkeypatch):
    put(cache / name, FILES[name])  # must not take the place of the folder that was given
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "empty").mkdir()
    problems = {"none": "is no folder", "file": "is no folder", "empty": "lacks"}
    for folder, problem in problems.items():
        expected = f"{tmp_path / folder}: the data folder {problem}"
        message = refused(name, tmp_path / folder, expected, kind=UsageError)
    assert all(file in message for file in FILES[name])
    monkeypatch.setenv("SNFNP_DATA_DIR", str(tmp_path / "none"))
    expected = f"{tmp_path / 'none'}: SNFNP_DATA_DIR is no folder"
    refused(name, None, expected, kind=UsageError)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_half_a_set_is_named(name: str, tmp_path: Path) -> None:
    for missing in FILES[name]:
        half = {file: content for file, content in FILES[name].items() if file != missing}
        place = tmp_path / missing / name
        put(place.parent, FILES[name])
        put(place, half)
        expected = f"{place}: the data folder lacks {missing} of"
        refused(name, place.parent, expected, kind=UsageError)


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
    assert_is(name, load_dataset(name, report=no_announcement))
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
    assert_is(name, load_dataset(name, report=no_announcement))
    assert sorted(path.name for path in (cache / name).iterdir()) == sorted(FILES[name])


def test_an_interrupted_download_leaves_no_file(small, cache, make_mirror, monkeypatch) -> None:
    def interrupted(self: pooch.HTTPDownloader, url: str, output_file: str, pooch: None) -> None:
        Path(output_file).write_bytes(b"a part")
        raise KeyboardInterrupt

    monkeypatch.setattr(pooch.HTTPDownloader, "__call__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        load("mnist")
    assert list((cache / "mnist").iterdir()) == []


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("name", ["fashion-mnist", "cifar-10", "imagenet32"])
@pytest.mark.parametrize("offline", [False, True])
def test_it_is_nowhere(name: str, offline: bool, cache: Path, unreachable, monkeypatch) -> None:
    monkeypatch.setenv("SNFNP_OFFLINE", "1" if offline else "0")
    message = refused(name, None, *FILES[name], "`data_dir`", "no download", cache / name)
    addresses = {"fashion-mnist": unreachable, "cifar-10": "https://www.cs.toronto.edu/~kriz/"}
    assert addresses.get(name, "register at https://image-net.org") in message
    assert ("SNFNP_OFFLINE" in message) == (offline and name != "imagenet32")


@pytest.mark.parametrize(
    "name, said", [("cifar-10", "python version is pickled"), ("imagenet32", "the npz version")]
)
def test_other_versions_are_not_read(name: str, said: str, tmp_path: Path) -> None:
    put(tmp_path, {"cifar-10-python.tar.gz": b"", "data_batch_1.bin": b"", "val_data.npz": b""})
    refused(name, tmp_path, "the data folder lacks", *FILES[name], said, kind=UsageError)


def test_an_unknown_name() -> None:
    names = "mnist, fashion-mnist, cifar-10, imagenet32, mnist-sample"
    refused("cifar", None, "'cifar' is neither a data set nor a path", names, kind=UsageError)
