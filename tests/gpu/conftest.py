"""The device of the tests in this folder, all of which need one. See standin.py."""

from pathlib import Path

import pytest

from gpu import standin as devices
from snfnp.ops import get_ops

# Before any test can import CuPy.
if devices.wanted() not in (None, devices.GPU, devices.STANDIN):
    raise pytest.UsageError(
        f"SNFNP_DEVICE is {devices.wanted()!r}: choose gpu or standin"
    )
if devices.device().missing and devices.wanted():
    raise pytest.UsageError(
        f"SNFNP_DEVICE is {devices.wanted()}, but: {devices.device().missing}"
    )


def pytest_report_collectionfinish():
    return f"device: {devices.describe()}"


def pytest_collection_modifyitems(config, items):
    here = [item for item in items if Path(__file__).parent in item.path.parents]
    for item in here:
        item.add_marker("device")
    if devices.device().kind == devices.GPU:
        # what counts the stand-in's calls has no meaning on a GPU; nothing is missing there
        others = [item for item in here if "standin" in item.fixturenames]
        config.hook.pytest_deselected(items=others)
        items[:] = [item for item in items if item not in others]
    # one of each file says why; a thousand more would take long
    elif devices.device().missing:
        others = {*here} - {*{item.path: item for item in here}.values()}
        config.hook.pytest_deselected(items=list(others))
        items[:] = [item for item in items if item not in others]


@pytest.fixture(scope="session")
def ops():
    """The operations of the device."""
    return get_ops("cupy")


@pytest.fixture(scope="session")
def standin():
    """The stand-in itself, which counts launches, copies and what makes the host wait."""
    import fakegpu

    return fakegpu


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Renewals of white coordinates from 60 images, and a backend's first kernel on one byte: more
    takes the stand-in longer than all else."""
    monkeypatch.setattr("snfnp.step.coordinates._IMAGES", 60)
    monkeypatch.setattr("snfnp.ops.gpu.requirements._ROOM", 1)
