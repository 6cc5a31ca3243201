"""Python in processes of its own: one, or several that mpiexec starts."""

import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from subprocess import PIPE

_ROOT = Path(__file__).resolve().parents[2]
_PROBE = "from mpi4py import MPI; raise SystemExit(MPI.COMM_WORLD.size != 2)"


def program(
    *words, cwd=None, timeout=300, stdout=PIPE, stderr=PIPE, **changes
) -> subprocess.CompletedProcess:
    """Python with these words; changes: of the environment, in which a variable that is "" is left
    out."""
    variables = {name: value for name, value in (os.environ | changes).items() if value}
    command = [sys.executable, *map(str, words)]
    how = {"cwd": cwd, "env": variables, "timeout": timeout, "text": True}
    return subprocess.run(command, stdout=stdout, stderr=stderr, **how)


def python(code, *arguments, **how) -> subprocess.CompletedProcess:
    """Run a script; how: as `program` has it."""
    return program("-c", code, *arguments, **how)


@contextmanager
def files_limited(size):
    """No file may grow beyond so many bytes, as on a full disk."""
    import resource

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@cache
def missing() -> str | None:
    """The reason why two processes that speak to each other cannot be started, or None."""
    if mpiexec() is None:
        return "mpiexec is not installed"
    done = start(2, ["-c", _PROBE])
    output = done.communicate(timeout=180)[1]
    if done.returncode:
        last = (output.strip().splitlines() or ["no output"])[-1]
        return f"two processes of mpiexec do not speak to each other ({last})"
    return None


def mpiexec() -> str | None:
    """That of this environment, or else one on the PATH."""
    here = Path(sys.executable).parent
    return shutil.which(
        "mpiexec", path=os.pathsep.join([str(here), os.environ.get("PATH", "")])
    )


def start(size: int, arguments: list[str], **changes) -> subprocess.Popen:
    """So many processes of this Python with these arguments; changes: of the environment."""
    command = [mpiexec(), "-n", str(size), sys.executable, *map(str, arguments)]
    pipes = {"stdout": PIPE, "stderr": PIPE}
    return subprocess.Popen(command, env=environment(**changes), text=True, **pipes)


def environment(**changes) -> dict:
    """This one, with one thread to a process, and the package and the tests to be found."""
    paths = [str(_ROOT), str(_ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
    one = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "NUMBA")}
    # or the lines of several processes end up in each other
    whole = {"PYTHONUNBUFFERED": ""}
    return os.environ | one | whole | {"PYTHONPATH": os.pathsep.join(paths)} | changes


def finish(process: subprocess.Popen, timeout: float = 180) -> tuple[int, str, str]:
    """(exit status, standard output, standard error) of what `start` started."""
    try:
        output, errors = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return process.returncode, output, errors


def run(size: int, script: str, *arguments) -> list[str]:
    """Run a script in so many processes: its lines, sorted, since their order is chance."""
    status, output, errors = finish(start(size, ["-c", script, *arguments]))
    assert status == 0, errors[-2000:]
    return sorted(output.splitlines())
