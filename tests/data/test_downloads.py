"""Downloads of MNIST: mirrors that work and that do not, and what the cache is left with."""

import dataclasses
import gzip
from collections.abc import Callable
from pathlib import Path

import pooch
import pytest
from support.data_files import (
    TEST,
    TEST_GZ,
    TRAIN,
    TRAIN_GZ,
    Mirror,
    assert_tiny,
    idx_bytes,
    put_tiny,
)
from support.messages import no_announcement

from snfnp.data import load_dataset, mnist


def test_download_then_cache(
    tiny: Callable[..., None],
    mnist_cache: Path,
    make_mirror: Callable[[], Mirror],
    capfd: pytest.CaptureFixture[str],
) -> None:
    mirror = make_mirror()
    mirror.serve_tiny()
    tiny(mirror)
    assert_tiny(load_dataset("mnist", report=no_announcement))
    assert sorted(path.name for path in mnist_cache.iterdir()) == [TEST_GZ, TRAIN_GZ]
    mirror.files.clear()
    assert_tiny(load_dataset("mnist", report=no_announcement))
    assert mirror.requests == [TRAIN_GZ, TEST_GZ]
    assert capfd.readouterr() == ("", "")


def test_download_of_what_the_cache_lacks(
    tiny: Callable[..., None], mnist_cache: Path, make_mirror: Callable[[], Mirror]
) -> None:
    mirror = make_mirror()
    mirror.serve_tiny()
    tiny(mirror)
    put_tiny(mnist_cache)
    (mnist_cache / TEST_GZ).unlink()
    assert_tiny(load_dataset("mnist", report=no_announcement))
    assert mirror.requests == [TEST_GZ]


def test_mirror_that_uncompresses(
    tiny: Callable[..., None], make_mirror: Callable[[], Mirror]
) -> None:
    mirror = make_mirror()
    mirror.files = {TRAIN_GZ: idx_bytes(TRAIN), TEST_GZ: idx_bytes(TEST)}
    tiny(mirror)
    assert_tiny(load_dataset("mnist", report=no_announcement))


@pytest.mark.parametrize("fault", ["not found", "wrong images", "damaged", "web page", "cut short"])
def test_second_mirror(
    tiny: Callable[..., None], mnist_cache: Path, make_mirror: Callable[[], Mirror], fault: str
) -> None:
    bad, good = make_mirror(), make_mirror()
    good.serve_tiny()
    bad.serve_tiny()
    if fault == "not found":
        bad.files.clear()
    elif fault == "wrong images":
        bad.files[TRAIN_GZ] = gzip.compress(idx_bytes(TRAIN[::-1]))
    elif fault == "damaged":
        bad.files[TRAIN_GZ] = bad.files[TRAIN_GZ][:-100]
    elif fault == "web page":
        bad.files[TRAIN_GZ] = b"<html>please sign in</html>"
    else:
        bad.cut_short = True
    tiny(bad, good)
    dataset = load_dataset("mnist", report=no_announcement)
    assert_tiny(dataset)
    assert TRAIN_GZ in bad.requests
    assert good.requests[0] == TRAIN_GZ
    assert good.url.split("/")[2] in dataset.source
    assert sorted(path.name for path in mnist_cache.iterdir()) == [TEST_GZ, TRAIN_GZ]


def test_unreachable_first_mirror(
    tiny: Callable[..., None],
    make_mirror: Callable[[], Mirror],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    unreachable = mnist.SPECS["mnist"].mirrors
    good = make_mirror()
    good.serve_tiny()
    spec = dataclasses.replace(mnist.SPECS["mnist"], mirrors=(*unreachable, good.url))
    monkeypatch.setitem(mnist.SPECS, "mnist", spec)
    assert_tiny(load_dataset("mnist", report=no_announcement))


@pytest.mark.parametrize("fault", ["cut short", "wrong images"])
def test_failed_download_leaves_no_file(
    tiny: Callable[..., None], mnist_cache: Path, make_mirror: Callable[[], Mirror], fault: str
) -> None:
    mirror = make_mirror()
    mirror.serve_tiny()
    if fault == "cut short":
        mirror.cut_short = True
    else:
        mirror.files[TRAIN_GZ] = mirror.files[TEST_GZ]
    tiny(mirror)
    lines: list[str] = []
    dataset = load_dataset("mnist", report=lines.append)
    assert dataset.is_sample
    assert list(mnist_cache.iterdir()) == []
    assert len(lines) == 1
    assert ("wrong checksum" if fault == "wrong images" else "connection failed") in lines[0]


def test_interrupted_download_leaves_no_file(
    tiny: Callable[..., None], mnist_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(self: pooch.HTTPDownloader, url: str, output_file: str, pooch: None) -> None:
        Path(output_file).write_bytes(gzip.compress(idx_bytes(TEST))[:50])
        raise KeyboardInterrupt

    monkeypatch.setattr(pooch.HTTPDownloader, "__call__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        load_dataset("mnist", report=no_announcement)
    assert list(mnist_cache.iterdir()) == []


def test_cache_that_cannot_be_written(tiny: None, mnist_cache: Path) -> None:
    mnist_cache.parent.parent.mkdir(parents=True)
    mnist_cache.parent.write_bytes(b"a file where the cache folder should be")
    lines: list[str] = []
    assert load_dataset("mnist", report=lines.append).is_sample
    assert len(lines) == 1
    assert f"{mnist_cache} cannot be written" in lines[0]
