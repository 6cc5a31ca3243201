"""Fixtures of the tests that read data files: none of them touches the user's cache."""

import dataclasses
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.data_files import Mirror, use_small_sets

import snfnp.data
from snfnp.data import sets


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The package's cache folder, which does not exist yet."""
    root = tmp_path / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(root))
    return root / "snfnp"


@pytest.fixture
def unreachable() -> Iterator[str]:
    """An address that refuses connections at once: its port is bound, but does not listen."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{closed.getsockname()[1]}/"


@pytest.fixture(autouse=True)
def isolated(cache: Path, unreachable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep every test off the user's cache and settings, and off the network."""
    for variable in ("SNFNP_DATA_DIR", "SNFNP_OFFLINE"):
        monkeypatch.delenv(variable, raising=False)
    for variable in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(variable, "127.0.0.1")
    for published in (sets.MNIST, sets.FASHION_MNIST, sets.CIFAR):
        published = dataclasses.replace(published, mirrors=(unreachable,))
        monkeypatch.setitem(snfnp.data.LOADERS, published.name, published.load)


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
def small(isolated: None, unreachable: str, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Replace the data sets by small ones; the function that it gives sets their mirrors."""

    def set_mirrors(*urls: str) -> None:
        names = ("mnist", "fashion-mnist", "cifar-10")
        use_small_sets(monkeypatch, dict.fromkeys(names, urls or (unreachable,)))

    set_mirrors()
    return set_mirrors
