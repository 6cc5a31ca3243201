"""Output, Ctrl-C, and errors in options."""

import io
import os
import signal
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from support.arrays import normal
from support.messages import cases
from support.processes import program, python
from support.runs import SHORT

from snfnp.cli import COMMANDS, main, run_script
from snfnp.errors import UsageError
from snfnp.processes import terminal

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
HELP = ("-m", "snfnp", "evaluate", "--help")
LISTING = ("-m", "snfnp")


def every_help():
    for name in COMMANDS:
        with suppress(SystemExit):
            main([name, "--help-all" if name == "train" else "--help"])
    print("a \u2603 \udcff")
    raise UsageError("λ is −1")


@pytest.mark.parametrize("encoding, lam", [("utf-8", "λ"), ("ascii", "\\u03bb")])
def test_characters_that_an_output_lacks_are_escaped(encoding, lam, monkeypatch):
    streams = [
        io.TextIOWrapper(io.BytesIO(), encoding, write_through=True) for _ in "12"
    ]
    with monkeypatch.context() as patched:
        for name, stream in zip(("stdout", "stderr"), streams, strict=True):
            patched.setattr(sys, name, stream)
        assert terminal.run(every_help) == 2
    out, err = (stream.buffer.getvalue().decode(encoding) for stream in streams)
    assert out.count("usage: python -m snfnp ") == len(COMMANDS)
    assert f"{lam} of Eq. 3" in out
    snowman, minus = ("\u2603", "−") if encoding == "utf-8" else ("\\u2603", "\\u2212")
    assert out.splitlines()[-1] == f"a {snowman} \\udcff"
    assert err == f"error: {lam} is {minus}1\n"


def test_every_line_is_flushed_to_a_log_file(monkeypatch, tmp_path):
    """Whoever waits for a run, and after a run that was killed; then the file is as it was."""
    result = []
    path = tmp_path / "log"
    with open(path, "w") as log, monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", log)
        assert (
            terminal.run(lambda: result.append((print("a line"), path.read_text())[1]))
            == 0
        )
        assert result == ["a line\n"] and not log.line_buffering


def into(output, *arguments, **settings):
    """(exit status, stderr) of Python with a descriptor as standard output."""
    try:
        done = program(*arguments, stdout=output, **settings)
    finally:
        os.close(output)
    return done.returncode, done.stderr


def closed_pipe():
    reader, writer = os.pipe()
    os.close(reader)
    return writer


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_closed_pipe_is_quiet_and_a_full_disk_one_line(unbuffered):
    result = into(closed_pipe(), *HELP, PYTHONUNBUFFERED=unbuffered)
    assert result == (128 + signal.SIGPIPE, "")
    if Path("/dev/full").exists():
        full = os.open("/dev/full", os.O_WRONLY)
        cause = "cannot be written (No space left on device): send it elsewhere"
        result = into(full, *HELP, PYTHONUNBUFFERED=unbuffered)
        assert result == (1, f"error: the output {cause}\n")


def test_a_closed_pipe_for_errors_keeps_the_status():
    writer = closed_pipe()
    assert into(writer, "-m", "snfnp", "trian", stderr=writer)[0] == 2


def test_without_an_output_there_is_no_error():
    code = "import os, sys; os.close(1); os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    done = python(code, *LISTING)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


TWICE = """
from snfnp.cli import run_script
def status():
    try:
        return run_script()
    except SystemExit as end:
        return end.code
raise SystemExit((status(), status()) != (None, 2))  # the folder is in the way
"""


@pytest.mark.parametrize("closed", [(1,), (2,), (0, 1, 2)])
def test_without_its_streams_a_run_is_whole_and_an_error_has_its_status(
    closed, tmp_path
):
    code = f"import os, sys; [os.close(each) for each in {closed}];"
    code += "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    np.save(tmp_path / "rows.npy", normal(60, 3))
    options = f"rows.npy {SHORT} --depth 1 --epochs 1 --out run"
    words = ["-c", TWICE, "train", *options.split()]
    done = python(code, *words, cwd=tmp_path, PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stderr
    assert done.stdout == "" or 1 not in closed
    assert (done.stderr.count("\n") == 1) == (2 not in closed), done.stderr
    for name in ("summary.json", "curves.png"):
        assert (tmp_path / "run" / name).exists()


CLOSED = """
import sys
closed = open("closed", "w")
closed.close()
import numpy as np, snfnp
from snfnp.training.progress import compilations_shown
rows = np.random.default_rng(0).normal(size=(60, 2))
for sys.stdout, sys.stderr in ((None, None), (open("out", "w"), closed)):
    snfnp.fit(rows, epochs=1, backend="numpy", depth=1)
    for verbose in (None, True):
        how = {"activation": "smooth-leaky-relu", "members": 2, "noise": 0.0, "verbose": verbose}
        snfnp.FlowDensity(1, epochs=1, **how).fit(rows).score(rows)
"""


def test_fits_need_no_streams(tmp_path):
    """As under pythonw, which has no console."""
    done = python(CLOSED, cwd=tmp_path, PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stderr


NO_FOLDER = cases("""
train moons --backend numpy --out run | cannot make run (No such file or directory):
train t.csv | t.csv does not exist: check it, or give the path
sample run | run is no run folder (it has no config.json): check the path
""") | {"": "the current folder is gone: change to another one"}


@pytest.mark.parametrize("line", NO_FOLDER)
def test_a_current_folder_that_is_gone_is_one_line(line, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SNFNP_OFFLINE", "1")
    (gone := tmp_path / "gone").mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    work = partial(main, line.split()) if line else os.getcwd
    assert terminal.run(work) == (2 if line else 1)
    assert capsys.readouterr().err.startswith(f"error: {NO_FOLDER[line]}")


def test_an_error_of_the_program_itself_keeps_its_traceback():
    with pytest.raises(FileNotFoundError, match="/no/such/file"):
        run_script(lambda argv: Path("/no/such/file").read_text())


AT_IMPORT = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
class Press:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            try:
                os.kill(os.getpid(), signal.SIGINT)
                for _ in range(1000):
                    pass
            except KeyboardInterrupt:
                if {becomes!r} == "ImportError":  # as extension modules do
                    raise ImportError("numpy.core.multiarray failed to import") from None
                if {becomes!r} == "KeyboardInterrupt":
                    raise
sys.meta_path.insert(0, Press())
"""


@pytest.mark.parametrize(
    "words, module, becomes",
    [
        ("scripts/train_mnist.py", "numpy", "KeyboardInterrupt"),
        ("-m snfnp evaluate", "numpy", "KeyboardInterrupt"),
        ("-m snfnp evaluate", "numpy", "ImportError"),
        ("-m snfnp evaluate", "numpy", "nothing"),
        ("-m snfnp sample", "matplotlib", "KeyboardInterrupt"),
        ("-m snfnp angle", "safetensors", "KeyboardInterrupt"),
    ],
)
def test_ctrl_c_during_an_import_is_quiet(words, module, becomes, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(
        AT_IMPORT.format(module=module, becomes=becomes)
    )
    done = program(*words.split(), "--help", PYTHONPATH=str(tmp_path), cwd=ROOT)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


AT_COMPILATION = """
import os, signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from numba import njit
from numba.core.codegen import CPUCodeLibrary
from snfnp.cli import run_script
from snfnp.processes.terminal import Signals
def press(*of):
    os.kill(os.getpid(), signal.SIGINT)
def work(argv):
    CPUCodeLibrary._object_compiled_hook = press  # LLVM calls it, and drops what it raises
    steps = Signals().defer_interrupts()
    if argv:
        steps.__enter__(), press()
    njit(lambda: 1)()
run_script(work)
"""


@pytest.mark.parametrize("first", [[], ["in a step"]])
def test_ctrl_c_where_llvm_calls_python_ends_a_command(first):
    done = python(AT_COMPILATION, *first, PYTHONIOENCODING="ascii")
    said = "\nstopping after this step \\u2026\n" * len(first)
    assert (done.returncode, done.stderr) == (130, said)


@pytest.mark.parametrize("before", [signal.SIG_IGN, signal.default_int_handler])
def test_ctrl_c_is_left_as_it_was(before):
    """Ignored, as a shell has it for `command &`, it stays ignored."""
    outer = signal.signal(signal.SIGINT, before)
    try:
        status = terminal.run(lambda: os.kill(os.getpid(), signal.SIGINT))
        assert status == (0 if before is signal.SIG_IGN else 130)
        with (steps := terminal.Signals()).defer_interrupts():
            os.kill(os.getpid(), signal.SIGINT)
        assert steps.stop == (before is not signal.SIG_IGN)
        assert signal.getsignal(signal.SIGINT) is before
    finally:
        signal.signal(signal.SIGINT, outer)
