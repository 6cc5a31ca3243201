"""Files: runs' under the hands of others, and what is kept where nothing can be written."""

import os
import shutil
import stat
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
from support.messages import one_line
from support.processes import files_limited, python
from support.runs import around, assert_same_run
from support.trainers import at_step, run_training

from snfnp import files
from snfnp.errors import SnfnpError, UsageError
from snfnp.training.runs.folder import RunFolder

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("here")]


@pytest.fixture
def holder(tmp_path):
    """Another process that has locked a folder."""
    (tmp_path / "run").mkdir()
    code = "import sys\nfrom time import sleep\nfrom snfnp import RunFolder\n"
    code += "with RunFolder(sys.argv[1]).lock: print('locked', flush=True); sleep(600)"
    command = [sys.executable, "-c", code, str(tmp_path / "run")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "locked\n"
        yield process
        process.kill()


def test_a_second_trainer_is_told_who_is_the_first_and_its_death_is_enough(
    tmp_path, holder
):
    path = tmp_path / "run"
    with one_line(
        UsageError, path, "is in use by process", holder.pid, os.uname().nodename
    ):
        run_training(path)
    assert {file.name for file in path.iterdir()} == {"run.lock"}
    holder.kill()
    holder.wait()
    assert (path / "run.lock").exists()
    run_training(path, epochs=1)
    assert not (path / "run.lock").exists()


@pytest.mark.parametrize("how", [{"resume": True}, {"resume": "best"}, {}])
def test_a_trainer_keeps_others_out_from_its_first_step_to_its_last(
    finished, monkeypatch, how
):
    refused = []

    def intrude(trainer):
        with pytest.raises(UsageError, match="in use|exists"):
            run_training("run", **how)
        refused.append(trainer.step)

    at_step(monkeypatch, 7, intrude)
    run_training("run")
    assert refused == [7]
    assert_same_run(finished, "run")


def in_threads(count, work):
    """What that many calls at the same time raise."""
    with ThreadPoolExecutor(count) as pool:
        calls = [pool.submit(work) for _ in range(count)]
    return [call.exception() for call in calls if call.exception()]


def test_one_of_several_starts_gets_a_new_folder():
    together = threading.Barrier(8)
    done = threading.Barrier(8)
    won = []

    def race():
        together.wait()
        try:
            with RunFolder.create("run").lock:
                won.append(done.wait())
        except UsageError:
            done.wait()
            raise

    assert list(map(type, in_threads(8, race))) == 7 * [UsageError] and len(won) == 1


def test_a_lock_on_a_removed_file_is_taken_again(tmp_path, monkeypatch):
    """The holder releases it after another process opened the file and before it locks it."""
    path = tmp_path / "run.lock"
    original = files._lock
    held = ExitStack()
    held.enter_context(files.folder_lock(path))

    def lock_late(file):
        held.close()
        original(file)

    monkeypatch.setattr(files, "_lock", lock_late)
    in_use = pytest.raises(UsageError, match="is in use")
    with files.folder_lock(path), in_use, files.folder_lock(path):
        pass


def test_a_folder_whose_start_lost_the_race_is_looked_at_again(monkeypatch):
    run_training("run", epochs=1)
    # looked at before
    monkeypatch.setattr(RunFolder, "create", staticmethod(RunFolder))
    with pytest.raises(UsageError, match="exists and holds"):
        run_training("run", epochs=1)


def test_a_file_of_other_programs_is_no_failed_start(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with one_line(SnfnpError, "was edited, damaged, or written by another"):
        RunFolder.create(tmp_path)


def test_a_file_system_without_locks_is_no_obstacle(monkeypatch, capsys):
    def refuse(*args):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(files, "_lock", refuse)
    run_training("run", epochs=1)
    assert "cannot be locked here (Function not implemented)" in capsys.readouterr().err


def test_two_writers_of_a_file_never_share_a_temporary_one(tmp_path):
    path = tmp_path / "file"
    contents = [bytes([n]) * 200_000 for n in range(4)]
    files.write_atomically(path, contents[0])
    left = list(contents)

    def write():
        content = left.pop()
        for _ in range(20):
            files.write_atomically(path, content)
            assert path.read_bytes() in contents

    assert not in_threads(4, write)
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_cannot_be_listed_is_written_to(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "scandir", refuse)
    files.write_atomically(tmp_path / "a.png", b"new")
    assert (tmp_path / "a.png").read_bytes() == b"new"


def test_no_pipe_or_device_is_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with one_line(SnfnpError, "cannot write", "pipe (it is no regular file)"):
        files.write_atomically(tmp_path / "pipe", b"content")
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    assert [file.name for file in tmp_path.iterdir()] == ["pipe"]


def test_a_file_is_durable_under_its_name(tmp_path, monkeypatch):
    """After a power failure too: the content before it is renamed, the folder after that."""
    done = []

    def note(number):
        done.append("folder" if stat.S_ISDIR(os.fstat(number).st_mode) else "file")

    around(monkeypatch, os, "fsync", note)
    around(monkeypatch, os, "replace", lambda *_: done.append("rename"))
    files.write_atomically(tmp_path / "file", b"content")
    assert done == ["file", "rename", "folder"]


def test_a_pipe_in_the_place_of_the_lock_is_refused(copy):
    os.mkfifo(copy / "run.lock")
    with one_line(SnfnpError, match="run.lock .it is no regular file"):
        run_training(copy, resume=True, epochs=4)


@pytest.mark.parametrize("name", ["run.lock", "metrics.jsonl"])
def test_nothing_is_written_through_a_link(copy, tmp_path, name):
    """The file behind the link may belong to anybody."""
    victim = tmp_path / "victim"
    if name == "metrics.jsonl":
        (copy / name).rename(victim)
    else:
        victim.write_text("precious")
    before = victim.read_bytes()
    (copy / name).symlink_to(victim)
    problem = f"cannot write .*{name} .it is a symbolic link.: (let it be a file|choose another)"
    with one_line(SnfnpError, match=problem):
        run_training(copy, resume=True, epochs=4)
    if name == "run.lock":
        Path("run").mkdir()
        (tmp_path / "run" / name).symlink_to(victim)
        # nor by a new run
        with pytest.raises(UsageError, match="it is a symbolic link"):
            run_training("run", epochs=1)
    assert victim.read_bytes() == before


def test_a_snapshot_by_hard_links_stays_as_it_is(copy):
    (copy / "run.lock").write_text("process 7 on a machine that stopped\n")
    shutil.copytree(copy, "other", copy_function=os.link)
    before = {path.name: path.read_bytes() for path in copy.iterdir()}
    run_training("other", resume=True, epochs=4)
    assert {path.name: path.read_bytes() for path in copy.iterdir()} == before
    lines = [len(RunFolder(path).read_metrics()) for path in (copy, "other")]
    assert lines[1] > lines[0]


def test_a_hard_link_to_a_lock_lets_nobody_in(holder, tmp_path):
    path = tmp_path / "run"
    os.link(path / "run.lock", "link")
    with (
        one_line(UsageError, path, "is in use by process", holder.pid),
        RunFolder(path).lock,
    ):
        pass
    assert os.path.samefile(path / "run.lock", "link")


def test_a_lock_does_not_need_room_for_its_holders_name(tmp_path):
    first = RunFolder(tmp_path).lock
    second = RunFolder(tmp_path).lock
    with files_limited(0):
        first.__enter__()
    with pytest.raises(UsageError, match="in use by another process"), second:
        pass
    first.__exit__(None, None, None)
    assert not list(tmp_path.iterdir())


def test_a_link_to_a_whole_run_folder_is_one(finished, copy):
    Path("link").symlink_to(copy)
    run_training("link", resume=True)
    assert_same_run(finished, "link")


ROOT = Path(__file__).resolve().parents[1]
KERNEL = """
import numpy as np
from snfnp.ops import RandomKey, get_ops
black = np.zeros((1, 3), np.uint8)
print(get_ops("numba").images.preprocess(black, RandomKey(0, 0), 0.05, 256.0, np.float32))
"""


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """A copy of the package in which nothing can be kept."""
    root = tmp_path_factory.mktemp("read-only")
    shutil.copytree(
        ROOT / "snfnp", root / "snfnp", ignore=shutil.ignore_patterns("__pycache__")
    )
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
    places = {"HOME": home, "TMPDIR": str(tmp_path / "tmp"), "PYTHONPATH": str(package)}
    return dict.fromkeys(unset, "") | places


def run(machine, code, **variables):
    done = python(code, cwd=machine["PYTHONPATH"], **machine | variables)
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def place_of(machine, *names):
    return Path(machine["TMPDIR"], f"snfnp-{os.getuid()}", *names)


def kept(machine, fate):
    beside = f"{machine['PYTHONPATH']}/snfnp/ops/__pycache__"
    return (
        f"compiled kernels cannot be kept in {beside} or {machine['HOME']}/.cache/snfnp/kernels: "
        f"they are {fate} (NUMBA_CACHE_DIR names another place)\n"
    )


def kernels(folder):
    return {path: path.stat().st_mtime_ns for path in Path(folder).rglob("*.nbc")}


def test_compiled_kernels_go_to_a_temporary_folder(machine):
    out, err = run(machine, KERNEL)
    place = place_of(machine, "numba")
    assert err == kept(machine, f"kept in {place}")
    first = kernels(place)
    assert first and place.parent.stat().st_mode & 0o077 == 0
    assert run(machine, KERNEL) == (out, err)
    assert kernels(place) == first  # the second run compiles nothing


def test_kernels_are_not_kept_in_a_folder_of_others(machine):
    """A folder of that name that somebody else made could hold any code, which would run."""
    place_of(machine).mkdir()
    place_of(machine).chmod(0o777)
    assert run(machine, KERNEL)[1] == kept(machine, "compiled again in every run")
    assert not list(place_of(machine).iterdir())


def test_matplotlib_does_not_need_a_home(machine, tmp_path):
    code = "import snfnp.training.plots, matplotlib as m; print(m.get_configdir())"
    out, err = run(machine, code)
    assert Path(out.strip()).parent == Path(machine["TMPDIR"]) and err == ""
    (home := tmp_path / "home").mkdir()
    assert run(machine, code, HOME=str(home))[0].strip() == str(
        home / ".config" / "matplotlib"
    )


def test_a_private_folder_is_refused_if_others_can_write_to_it(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    found = files.private_folder("a")
    assert found == files.private_folder("a") and found.is_dir()
    found.parent.chmod(0o750)
    assert files.private_folder("a") is None
    shutil.rmtree(found.parent)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    found.parent.symlink_to(elsewhere)
    assert files.private_folder("a") is None and not list(elsewhere.iterdir())
    found.parent.unlink()
    monkeypatch.setattr("os.getuid", lambda: 12345)
    Path("snfnp-12345").mkdir(mode=0o700)  # made by us, and we are somebody else
    assert files.private_folder("a") is None


# The first word of a key: `philox4x32` of another file is inlined into the kernel.
CODE = """
import numpy as np
from snfnp.ops import RandomKey, get_ops
black = np.zeros((1, 1), np.uint8)
(x,), _ = get_ops("numba").images.preprocess(black, RandomKey(0, 0), 0.0, 1.0, np.float64)
print(round(2**32 / (1 + np.exp(-x[0]))))
"""
INLINED = "return c0, c1, c2, c3"
WORD = 0x6627E8D5
SECOND_WORD = 0xE169C58D


@pytest.fixture
def checkout(tmp_path):
    """A copy of the package, and what a new process computes with it."""
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "snfnp", tmp_path / "snfnp", ignore=ignored)
    own = {"PYTHONPATH": str(tmp_path), "HOME": str(tmp_path), "NUMBA_CACHE_DIR": ""}

    def run(code=CODE, **variables):
        done = python(code, cwd=tmp_path, **own | variables)
        assert done.returncode == 0 and done.stderr == "", done.stderr
        return int(done.stdout or 0)

    return tmp_path, run


def test_a_changed_function_is_seen_by_kernels_of_other_files(checkout):
    root, run = checkout
    helper = root / "snfnp/ops/random/definition.py"
    place = root / "snfnp/ops/__pycache__"
    text = helper.read_text()
    assert run() == WORD
    first = kernels(place)
    assert text.count(INLINED) == 1
    helper.write_text(text.replace(INLINED, "return c1, c1, c2, c3"))
    assert run() == SECOND_WORD
    both = kernels(place)
    helper.write_text(text)
    with open(root / "snfnp/ops/step/gpu.py", "a") as file:
        file.write("# kernels of the CPU do not see this\n")
    assert run() == WORD and kernels(place) == both, "the old ones are found again"
    assert first.items() < both.items()
    (folder,) = place.glob("snfnp-*")
    for age in range(3):  # those of other sources, each of its own
        helper.write_text(f"{text}# {age}\n")
        run("import snfnp.ops.jit")
    assert len(list(folder.iterdir())) == 3 and not first.keys() & kernels(place).keys()


def test_kernels_that_cannot_be_written_or_read_are_compiled_again(checkout):
    """The limit of a file's size stands for a full disk, empty files for a loss of power."""
    root, run = checkout
    limit = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))"
    plain = {
        "PYTHONDONTWRITEBYTECODE": "1"
    }  # Python's own files would be cut off as well
    assert run(limit + CODE, **plain) == WORD and not kernels(root)
    assert run() == WORD
    for pattern in ("*.nbc", "*.nbi"):
        for path in root.rglob(pattern):
            path.write_bytes(b"")
        assert run() == WORD
        assert all(path.stat().st_size for path in root.rglob("*.nb?"))


def test_a_shared_place_has_a_folder_for_each_checkout(checkout):
    root, run = checkout
    stranger = root / "kernels" / "snfnp-other" / "state" / "kernel.nbc"
    stranger.parent.mkdir(parents=True)
    stranger.touch()
    assert run(NUMBA_CACHE_DIR=str(root / "kernels")) == WORD
    assert stranger.exists() and len(kernels(root / "kernels")) > 1
    assert not kernels(root / "snfnp")
