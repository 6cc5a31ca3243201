"""Fixtures of the tests that read data files: none of them touches the user's cache."""

import dataclasses
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pooch
import pytest
from support.data_files import (
    FASHION_TEST,
    FASHION_TRAIN,
    TEST,
    TEST_COUNT,
    TRAIN,
    TRAIN_COUNT,
    VALIDATION_COUNT,
    Mirror,
    mnist_digests,
)

from snfnp.data import mnist


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The package's cache folder, which does not exist yet."""
    root = tmp_path / "cache"
    monkeypatch.setattr(pooch, "os_cache", lambda project: root / project)
    return root / "snfnp"


@pytest.fixture
def mnist_cache(cache: Path) -> Path:
    return cache / "mnist"


@pytest.fixture(autouse=True)
def isolated(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Keep every test off the user's cache and settings, and off the network."""
    for variable in ("SNFNP_DATA_DIR", "SNFNP_OFFLINE"):
        monkeypatch.delenv(variable, raising=False)
    for variable in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(variable, "127.0.0.1")
    # A port that is bound but does not listen refuses connections at once, and stays ours.
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/"
        for name, spec in mnist.SPECS.items():
            unreachable = dataclasses.replace(spec, mirrors=(url,))
            monkeypatch.setitem(mnist.SPECS, name, unreachable)
        yield


@pytest.fixture
def make_mirror() -> Iterator[Callable[[], Mirror]]:
    mirrors = []

    def make() -> Mirror:
        mirrors.append(Mirror())
        return mirrors[-1]

    yield make
    for mirror in mirrors:
        mirror.close()


@pytest.fixture
def tiny(isolated: None, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Replace MNIST and Fashion-MNIST by tiny ones; the function that it gives sets MNIST's
    mirrors."""
    counts = {
        "train_count": TRAIN_COUNT,
        "validation_count": VALIDATION_COUNT,
        "test_count": TEST_COUNT,
    }
    for name, arrays in (
        ("mnist", (TRAIN, TEST)),
        ("fashion-mnist", (FASHION_TRAIN, FASHION_TEST)),
    ):
        spec = dataclasses.replace(mnist.SPECS[name], sha256=mnist_digests(*arrays), **counts)
        monkeypatch.setitem(mnist.SPECS, name, spec)

    def set_mirrors(*mirrors: Mirror) -> None:
        spec = dataclasses.replace(
            mnist.SPECS["mnist"], mirrors=tuple(mirror.url for mirror in mirrors)
        )
        monkeypatch.setitem(mnist.SPECS, "mnist", spec)

    return set_mirrors
