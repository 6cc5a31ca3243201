"""The oldest versions that pyproject.toml allows, as CI installs them (.ci/run)."""

import importlib.util
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CI = ROOT / ".ci"
pytestmark = pytest.mark.skipif(not CI.exists(), reason="not a checkout")


@pytest.fixture(scope="module")
def oldest():
    spec = importlib.util.spec_from_file_location("oldest", CI / "oldest.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.oldest


def test_the_oldest_versions_are_the_lower_bounds(oldest):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found = oldest(project)
    declared = project["dependencies"] + project["optional-dependencies"]["test"]
    assert [line.replace("==", ">=") for line in found] == [
        requirement.partition(";")[0] for requirement in declared
    ]
    assert set(project["optional-dependencies"]["mpi"]) <= set(declared)


@pytest.mark.parametrize("requirement", ["numpy", "numpy==2.0", "numpy>=2.0,<3", "numpy<3"])
def test_a_version_that_would_not_be_checked_is_refused(oldest, requirement):
    project = {"dependencies": [requirement], "optional-dependencies": {"test": []}}
    with pytest.raises(ValueError, match="is not of the form name>=version"):
        oldest(project)


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
