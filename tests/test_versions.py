"""What CI reads of pyproject.toml, its size budget, and what tests/conftest.py does."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import SLOW

ROOT = Path(__file__).resolve().parents[1]
CI = ROOT / ".ci"
pytestmark = pytest.mark.skipif(not CI.exists(), reason="not a checkout")


def of_ci(name):
    """A script of CI as a module."""
    spec = importlib.util.spec_from_file_location(name, CI / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def oldest():
    return of_ci("oldest").oldest


def declared():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_the_oldest_versions_are_the_lower_bounds(oldest):
    project = declared()
    found = oldest(project)
    required = project["dependencies"] + project["optional-dependencies"]["test"]
    assert [line.replace("==", ">=") for line in found] == [
        requirement.partition(";")[0] for requirement in required
    ]
    assert set(project["optional-dependencies"]["mpi"]) <= set(required)


@pytest.mark.parametrize("requirement", ["numpy", "numpy==2.0", "numpy>=2.0,<3", "numpy<3"])
def test_a_version_that_would_not_be_checked_is_refused(oldest, requirement):
    project = {"dependencies": [requirement], "optional-dependencies": {"test": []}}
    with pytest.raises(ValueError, match="is not of the form name>=version"):
        oldest(project)


def test_pre_commit_runs_the_ruff_that_is_pinned():
    text = (ROOT / ".pre-commit-config.yaml").read_text()
    (pinned,) = re.findall(r"ruff-pre-commit\n    rev: v(\S+)\n", text)
    assert f"ruff=={pinned}" in declared()["optional-dependencies"]["dev"]


def test_the_size_budget_counts_lines_by_room_and_refuses_one_too_many(tmp_path):
    size = of_ci("size")
    for name, lines in (("snfnp/a.py", 3), ("snfnp/ops/b/c.py", 5), ("tests/d.py", 7)):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("pass\n" * lines)
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    assert not size.lines_by_room(tmp_path)  # only what is tracked counts
    subprocess.run(["git", "-C", tmp_path, "add", "."], check=True)
    assert size.lines_by_room(tmp_path) == {"snfnp": 3, "snfnp/ops": 5, "tests": 7}
    most = size.BUDGET["snfnp"]
    assert size.excess(Counter({"snfnp": 1, "snfnp/ops": most - 1})) == []
    (found,) = size.excess(Counter({"snfnp": 2, "snfnp/ops": most - 1}))
    assert found == f"snfnp has {most + 1:,} lines of Python: its budget is {most:,}"


@pytest.mark.skipif(not shutil.which("bash"), reason="needs bash")
def test_ci_can_be_parsed_and_names_tests_that_exist():
    script = CI / "run"
    subprocess.run(["bash", "-n", script], check=True)
    named = [word for word in script.read_text().split() if word.startswith("tests/")]
    assert len(named) > 8
    assert [word for word in named if not is_there(word)] == []
    for missing in ("tests/test_nothing.py", "tests/test_versions.py::test_nothing"):
        assert not is_there(missing)


def is_there(named: str) -> bool:
    """Whether a file or folder of tests, or a test named as in file.py::test, exists."""
    path, _, test = named.partition("::")
    return (ROOT / path).exists() and (not test or f"\ndef {test}(" in (ROOT / path).read_text())


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
