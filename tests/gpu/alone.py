"""Scripts in a process of their own: for what may fail everything after it on a GPU."""

import os
import subprocess
import sys
from pathlib import Path

from gpu import standin

_TESTS = Path(__file__).parents[1]
_ON_THE_DEVICE = "from gpu import standin\nstandin.device()\n"


def run_alone(script: str, *arguments: str) -> str:
    """Run a script on the same device, and return what it printed.

    NaN pivots may lead cuSOLVER outside its memory; after one such access no call works.
    """
    paths = [str(_TESTS), str(_TESTS.parent), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, "-c", _ON_THE_DEVICE + script, *arguments],
        env=os.environ
        | {"SNFNP_DEVICE": standin.device().kind, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout
