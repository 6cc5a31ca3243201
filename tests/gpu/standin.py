"""The device that these tests run on: a GPU, or the stand-in that lets CuPy run on a CPU.

SNFNP_DEVICE=gpu or standin asks for one of them; without it a GPU is taken where there is one, and
the stand-in where that can be built. The stand-in's source is looked for in SNFNP_STANDIN and in
shared/tools/cupy-on-cpu-streams beside the checkout. It is built once per content and CuPy version,
into the user's cache, and what all kernels include with it: a kernel then compiles in half the
time.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from support.processes import python

from snfnp.files import user_cache

GPU = "gpu"
STANDIN = "standin"
# Of the stand-in's compiler: its own, and a header that is compiled with just the same ones.
_FLAGS = "-O1 -ffp-contract=fast"
_HEADER = Path(__file__).with_name("before_kernels.h")
_COUNT_DEVICES = """
import ctypes
driver, count = ctypes.CDLL("libcuda.so.1"), ctypes.c_int()
failed = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
raise SystemExit(failed or count.value == 0)
"""


class Device(NamedTuple):
    """The device: GPU, STANDIN or None. missing, missing_gpu: why it is not any, or not a GPU."""

    kind: str | None
    missing: str | None = None
    missing_gpu: str | None = None


def wanted() -> str | None:
    """The device that SNFNP_DEVICE asks for."""
    return os.environ.get("SNFNP_DEVICE") or None


@cache
def device() -> Device:
    """Decide, once. The stand-in is imported here: that must come before CuPy's first import."""
    if importlib.util.find_spec("cupy") is None:
        why = "CuPy is not installed"
        return Device(None, why, why)
    why = (
        "SNFNP_DEVICE asks for the stand-in" if wanted() == STANDIN else _missing_gpu()
    )
    if why is None:
        return Device(GPU)
    if wanted() == GPU:
        return Device(None, why, why)
    try:
        _import_standin()
    except _Unavailable as error:
        return Device(None, f"{why}, and no stand-in: {error}", why)
    return Device(STANDIN, None, why)


def describe() -> str:
    """The device and the versions of what runs on it, for the head of a test log."""
    if device().kind is None:
        return f"none: {device().missing}"
    try:
        import cupy

        runtime = cupy.cuda.runtime
        name = runtime.getDeviceProperties(cupy.cuda.Device().id)["name"].decode()
        cuda = runtime.runtimeGetVersion()
    except Exception as error:  # the tests will say more
        return f"a GPU that CuPy cannot use ({str(error).splitlines()[0]})"
    versions = f"CUDA {cuda // 1000}.{cuda % 1000 // 10}, CuPy {cupy.__version__}"
    if device().kind == STANDIN:
        return f"CPU stand-in for a GPU ({device().missing_gpu}), {versions}"
    return f"{name}, driver {_driver_version()}, {versions}"


def run_alone(script: str, *arguments: str, **environment: str) -> str:
    """Run a script on the same device in a process of its own, and return what it printed.

    NaN pivots may lead cuSOLVER outside its memory; after one such access no call works.
    """
    tests = Path(__file__).parents[1]
    paths = [str(tests), str(tests.parent), os.environ.get("PYTHONPATH", "")]
    own = {
        "SNFNP_DEVICE": device().kind,
        "PYTHONPATH": os.pathsep.join(paths),
        **environment,
    }
    done = python(
        f"from gpu import standin\nstandin.device()\n{script}", *arguments, **own
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


class _Unavailable(Exception):
    pass


def _missing_gpu() -> str | None:
    """Found out in a process of its own: a loaded driver library would replace the stand-in."""
    probe = subprocess.run([sys.executable, "-c", _COUNT_DEVICES], capture_output=True)
    return "no GPU" if probe.returncode else None


def _driver_version() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True).stdout.split()[0]
    except (OSError, IndexError):
        return "unknown"


def _import_standin() -> None:
    if "cupy" in sys.modules:
        raise _Unavailable("CuPy was imported before it")
    sys.path.insert(0, str(_built()))
    os.environ.setdefault("FAKEGPU_CXXFLAGS", f"{_FLAGS} -include {_HEADER.name}")
    try:
        importlib.import_module("fakegpu")
    finally:
        del sys.path[0]


def _source() -> Path:
    """The folder with the stand-in's files, and nothing of what a build leaves there."""
    given = os.environ.get("SNFNP_STANDIN")
    beside = (
        Path(__file__).resolve().parents[3] / "shared" / "tools" / "cupy-on-cpu-streams"
    )
    folder = Path(given).expanduser() if given else beside
    if not (folder / "fakegpu" / "build.py").is_file():
        raise _Unavailable(f"{folder} does not have it (SNFNP_STANDIN)")
    return folder / "fakegpu"


def _built() -> Path:
    """A folder that holds the built package `fakegpu`."""
    files = sorted(path for path in _source().iterdir() if path.is_file()) + [_HEADER]
    names = ((d.metadata["Name"] or "", d.version) for d in metadata.distributions())
    version = next(
        v for name, v in names if name == "cupy" or name.startswith("cupy-cuda")
    )
    content = [version, sys.implementation.cache_tag, platform.machine(), _FLAGS]
    content += [part for path in files for part in (path.name, path.read_text())]
    key = hashlib.sha256(repr(content).encode()).hexdigest()[:16]
    final = user_cache() / "standin" / f"cupy-{version}-{key}"
    if not final.exists():
        final.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=final.parent) as temporary:
            package = Path(temporary, "built", "fakegpu")
            package.mkdir(parents=True)
            for path in files:
                shutil.copyfile(path, package / path.name)
            _run([sys.executable, str(package / "build.py")])
            include = (package / "build" / "include").read_text()
            options = [
                "-std=c++17",
                *_FLAGS.split(),
                "-fPIC",
                "-w",
                "-fpermissive",
                include,
            ]
            _run(["g++", *options, "-x", "c++-header", str(package / _HEADER.name)])
            try:
                package.parent.rename(final)
            except OSError:
                if not final.exists():  # or else another process was faster
                    raise
    return final


def _run(command: list[str]) -> None:
    """A part of the build."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise _Unavailable(f"its build failed ({last})")
