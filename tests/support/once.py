"""What is made once for all processes of a session of pytest (pytest-xdist's workers)."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

PATIENCE = 300  # seconds that a worker waits for what another one makes


def once(tmp_path_factory, name: str, make: Callable[[Path], object]):
    """make(folder), which the worker that asks first calls with a new folder, for all of them.

    What it returns must survive JSON.
    """
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    folder, result = root / name, root / f"{name}.json"
    try:
        folder.mkdir()
    except FileExistsError:
        return _wait_for(result)
    outcome = {"error": "the worker that was to make it failed"}
    try:
        outcome = {"made": make(folder)}
    finally:
        unfinished = result.with_suffix(".unfinished")
        unfinished.write_text(json.dumps(outcome))
        unfinished.rename(result)
    return outcome["made"]


def _wait_for(result: Path):
    deadline = time.monotonic() + PATIENCE
    while not result.exists():
        assert time.monotonic() < deadline, f"nobody made {result.stem} within {PATIENCE} s"
        time.sleep(0.05)
    outcome = json.loads(result.read_text())
    assert "made" in outcome, f"{result.stem}: {outcome['error']}"
    return outcome["made"]
