"""Where compiled kernels and other files are kept, and machines on which nothing can be written."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from snfnp import paths

ROOT = Path(__file__).resolve().parents[1]
KERNEL = """
from snfnp.ops import RandomKey, get_ops
print(get_ops("numba").random.uniform(RandomKey(0, 0), (3,), "float32"))
"""


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """A copy of the package in which nothing can be kept."""
    root = tmp_path_factory.mktemp("read-only")
    shutil.copytree(ROOT / "snfnp", root / "snfnp", ignore=shutil.ignore_patterns("__pycache__"))
    for folder in [path for path in root.rglob("*") if path.is_dir()]:
        (folder / "__pycache__").touch()
    return root


@pytest.fixture
def machine(package, tmp_path):
    """Environment variables: no home, and a temporary folder of its own."""
    (tmp_path / "file").touch()
    home = str(tmp_path / "file" / "home")
    (tmp_path / "tmp").mkdir()
    unset = ("NUMBA_CACHE_DIR", "MPLCONFIGDIR", "XDG_CACHE_HOME", "XDG_CONFIG_HOME")
    kept = {name: value for name, value in os.environ.items() if name not in unset}
    return {**kept, "HOME": home, "TMPDIR": str(tmp_path / "tmp"), "PYTHONPATH": str(package)}


def run(machine, code, **variables):
    settings = {"env": {**machine, **variables}, "cwd": machine["PYTHONPATH"], "timeout": 200}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, **settings)
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def place_of(machine, *names):
    return Path(machine["TMPDIR"], f"snfnp-{os.getuid()}", *names)


KEPT = "compiled kernels cannot be kept beside the package or in the home folder: they are {} "
KEPT += "(NUMBA_CACHE_DIR names another place)\n"


def kernels(folder):
    return {path: path.stat().st_mtime_ns for path in Path(folder).rglob("*.nbc")}


def test_compiled_kernels_go_to_a_temporary_folder(machine):
    out, err = run(machine, KERNEL)
    place = place_of(machine, "numba")
    assert err == KEPT.format(f"kept in {place}")
    first = kernels(place)
    assert first and place.parent.stat().st_mode & 0o077 == 0
    assert run(machine, KERNEL) == (out, err)
    assert kernels(place) == first  # the second run compiles nothing


def test_where_that_is_not_ours_nothing_is_kept(machine, tmp_path):
    """Somebody else's folder of that name could hold anything, and it would be executed."""
    place_of(machine).mkdir()
    place_of(machine).chmod(0o777)
    assert run(machine, KERNEL)[1] == KEPT.format("compiled again in every run")
    assert not list(place_of(machine).iterdir())
    _, err = run(machine, KERNEL, NUMBA_CACHE_DIR=str(tmp_path / "kernels"))
    assert err == "" and kernels(tmp_path / "kernels")


def test_matplotlib_does_not_need_a_home(machine, tmp_path):
    code = "import snfnp.training.plots, matplotlib as m; print(m.get_configdir())"
    out, err = run(machine, code)
    assert Path(out.strip()).parent == Path(machine["TMPDIR"]) and err == ""
    (home := tmp_path / "home").mkdir()
    assert run(machine, code, HOME=str(home))[0].strip() == str(home / ".config" / "matplotlib")


def test_a_private_folder_is_nobody_elses(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    found = paths.private_folder("a")
    assert found == paths.private_folder("a") and found.is_dir()
    found.parent.chmod(0o750)
    assert paths.private_folder("a") is None
    shutil.rmtree(found.parent)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    found.parent.symlink_to(elsewhere)
    assert paths.private_folder("a") is None and not list(elsewhere.iterdir())
    found.parent.unlink()
    monkeypatch.setattr("os.getuid", lambda: 12345)
    (tmp_path / "snfnp-12345").mkdir(mode=0o700)  # made by us, and we are somebody else
    assert paths.private_folder("a") is None


# The first word of a key: `philox4x32` of another file is inlined into the kernel.
CODE = """
from snfnp.ops import RandomKey, get_ops
print(get_ops("numba").random.words(RandomKey(0, 0), 1, 0)[0])
"""
INLINED, WORD, SECOND_WORD = "return c0, c1, c2, c3", 0x6627E8D5, 0xE169C58D


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
        return int(done.stdout)

    run.environment = environment
    return tmp_path, run


def test_a_changed_function_is_seen_by_kernels_of_other_files(checkout):
    root, run = checkout
    helper, place = root / "snfnp/ops/random/philox.py", root / "snfnp/ops/__pycache__"
    text = helper.read_text()
    assert run() == WORD
    first = kernels(place)
    with open(root / "snfnp/ops/step/gpu.py", "a") as file:
        file.write("# kernels of the CPU do not see this\n")
    assert first and run() == WORD and kernels(place) == first, "nothing is compiled again"
    assert text.count(INLINED) == 1
    helper.write_text(text.replace(INLINED, "return c1, c1, c2, c3"))
    assert run() == SECOND_WORD
    helper.write_text(text)
    assert run() == WORD and first.items() <= kernels(place).items(), "the old ones are found again"
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
    assert run(NUMBA_CACHE_DIR=str(root / "kernels")) == WORD
    assert stranger.exists() and len(kernels(root / "kernels")) > 1
    assert not kernels(root / "snfnp")
