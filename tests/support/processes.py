"""Python in a process of its own."""

import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from subprocess import PIPE

_ROOT = Path(__file__).resolve().parents[2]


def program(*words, cwd=None, timeout=300, stdout=PIPE, stderr=PIPE, **changes):
    """Python with these words; changes: of the environment, in which a variable that is "" is left
    out."""
    variables = {name: value for name, value in (os.environ | changes).items() if value}
    command = [sys.executable, *map(str, words)]
    how = {"cwd": cwd, "env": variables, "timeout": timeout, "text": True}
    return subprocess.run(command, stdout=stdout, stderr=stderr, **how)


def python(code, *arguments, **how):
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


def environment(**changes):
    """This one, with one thread to a process, and the package and the tests to be found."""
    paths = [str(_ROOT), str(_ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
    one = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "NUMBA")}
    return os.environ | one | {"PYTHONPATH": os.pathsep.join(paths)} | changes
