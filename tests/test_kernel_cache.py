"""Compiled kernels on disk: those of other sources are never used, and old ones are removed."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# Adam's kernel, into which `block_sum_squares` of another file is inlined: Σ g² = 3
CODE = """
import numpy as np
from snfnp.ops import get_ops
g, state = np.ones(3), tuple(np.zeros(3) for _ in range(3))
print(get_ops("numba").step.adam(g, 0.1, 0.9, 0.999, 1e-8, 1, 1.0, 0.0, out=state))
"""
INLINED = "total += np.float64(value) * value"


@pytest.fixture
def checkout(tmp_path):
    """A copy of the package, and what a new process computes with it."""
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "snfnp", tmp_path / "snfnp", ignore=ignored)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "HOME": str(tmp_path)}
    environment.pop("NUMBA_CACHE_DIR", None)

    def run(**variables):
        how = {"env": environment | variables, "cwd": tmp_path, "timeout": 300}
        command = [sys.executable, "-c", CODE]
        done = subprocess.run(command, capture_output=True, text=True, **how)
        assert done.returncode == 0 and done.stderr == "", done.stderr
        return float(done.stdout)

    run.environment = environment
    return tmp_path, run


def kernels(folder):
    return {path: path.stat().st_mtime_ns for path in Path(folder).rglob("*.nbc")}


def test_a_changed_function_is_seen_by_kernels_of_other_files(checkout):
    root, run = checkout
    helper, place = root / "snfnp/ops/linalg/cpu.py", root / "snfnp/ops/__pycache__"
    text = helper.read_text()
    place.mkdir()
    (place / "kernel.nbc").touch()  # where an earlier version kept them
    assert run() == 3
    first = kernels(place)
    assert not (place / "kernel.nbc").exists()
    with open(root / "snfnp/ops/step/gpu.py", "a") as file:
        file.write("# kernels of the CPU do not see this\n")
    assert first and run() == 3 and kernels(place) == first, "nothing is compiled again"
    assert text.count(INLINED) == 1
    helper.write_text(text.replace(INLINED, "total += 7 * value"))
    assert run() == 21
    helper.write_text(text)
    assert run() == 3 and first.items() <= kernels(place).items(), "the old ones are found again"
    (folder,) = place.glob("snfnp-*")
    for age in range(5):  # those of other sources, each of its own
        helper.write_text(f"{text}# {age}\n")
        command = [sys.executable, "-c", "import snfnp.ops.jit"]
        subprocess.run(command, cwd=root, env=run.environment, check=True)
    assert len(list(folder.iterdir())) == 3 and not first.keys() & kernels(place).keys()


def test_a_shared_place_has_a_folder_for_each_checkout(checkout):
    root, run = checkout
    stranger = root / "kernels" / "snfnp-other" / "state" / "kernel.nbc"
    stranger.parent.mkdir(parents=True)
    stranger.touch()
    assert run(NUMBA_CACHE_DIR=str(root / "kernels")) == 3
    assert stranger.exists() and len(kernels(root / "kernels")) > 1
    assert not kernels(root / "snfnp")
