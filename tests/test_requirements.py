"""tests/conftest.py: what a test needs and is missing, and how many processes there are."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import SLOW

MISSING = "nvidia-cuda-nvrtc is nowhere"
CHECK = f"""
import sys
from support import nvrtc
nvrtc.missing = lambda: {MISSING!r}
import pytest
raise SystemExit(pytest.main(["-n", "0", "-p", "no:cacheprovider", *sys.argv[1:]]))
"""


def session(require: str, *arguments: str):
    """(exit status, what it said) of pytest on a machine without NVIDIA's compiler."""
    tests = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-c", CHECK, str(tests / "test_kernels_compile.py"), *arguments],
        env=os.environ | {"SNFNP_REQUIRE": require, "PYTHONPATH": f"{tests}:{tests.parent}"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    return done.returncode, done.stdout + done.stderr


def test_what_is_missing_skips_and_where_it_is_required_fails():
    status, said = session("", "-k", "refus or spill")
    assert status == pytest.ExitCode.OK and f"needs nvrtc: {MISSING}" in said
    status, said = session("hostcuda,nvrtc")
    assert status == pytest.ExitCode.USAGE_ERROR
    assert f"SNFNP_REQUIRE names nvrtc, but: {MISSING}" in said
    status, said = session("gpu")
    assert status == pytest.ExitCode.USAGE_ERROR
    assert "SNFNP_REQUIRE names gpu: choose of nvrtc, hostcuda," in said


@pytest.mark.parametrize(
    "arguments, cores, device, processes",
    [
        (["tests", "derivations"], 2, "", 2),
        (["tests", "derivations"], 64, "", 8),
        (["tests", "derivations"], 1, "", 0),
        (["tests", "derivations"], 2, "standin", 0),
        (["tests/test_a.py", "tests/test_b.py::test_c"], 2, "", 0),
        (["tests/gpu", "tests/test_c.py"], 2, "", 2),
    ],
)
def test_how_many_processes(request, monkeypatch, arguments, cores, device, processes):
    """None, 0, means this one alone."""
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(cores)), raising=False)
    monkeypatch.setenv("SNFNP_DEVICE", device)
    config = SimpleNamespace(args=arguments)
    assert request.config.hook.pytest_xdist_auto_num_workers(config=config) == processes


def test_every_slow_test_is_there():
    here = Path(__file__).parent
    files = {path.relative_to(here).as_posix(): path for path in here.rglob("*.py")}
    for start in SLOW:
        file, _, test = start.partition("::")
        found = [path for name, path in files.items() if name.startswith(file)]
        assert any(f"def {test}" in path.read_text() for path in found), start
