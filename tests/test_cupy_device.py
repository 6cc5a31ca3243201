"""The messages of a GPU backend that cannot run, or whose memory is full: with a fake CuPy."""

import re
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.messages import one_line
from support.processes import python

from snfnp.errors import BackendError
from snfnp.ops.gpu import cublas, requirements
from snfnp.ops.host import HostDevice

GIB = 2**30


class OutOfMemoryError(MemoryError):
    """As CuPy's: the amounts are in the text."""


class Answers:
    """An object whose attributes are these values; an exception is raised."""

    def __init__(self, **values):
        self._values = values

    def __getattr__(self, name):
        value = self._values[name]
        if isinstance(value, Exception):
            raise value
        return value


def fake_cupy(version="14.2.0", kernel=1.0, devices=1, **libraries):
    """The part of CuPy that is called, on an H100; exceptions are raised in place of answers."""

    def called(value):
        return lambda *_: Answers(value=value).value

    properties = {"name": b"NVIDIA H100 80GB HBM3"}
    runtime = SimpleNamespace(
        getDeviceCount=called(devices),
        driverGetVersion=called(13000),
        runtimeGetVersion=called(13020),
        getDeviceProperties=called(properties),
        memGetInfo=called((30 * GIB, 80 * GIB)),
    )
    nvrtc = SimpleNamespace(getVersion=called((13, 0)))
    answers = {"nvrtc": nvrtc, "cublas": None, "cusolver": None, **libraries}
    memory = SimpleNamespace(OutOfMemoryError=OutOfMemoryError)
    device = SimpleNamespace(id=0)
    pool = SimpleNamespace(free_all_blocks=called(None))
    number = type("Number", (), {"__add__": lambda self, other: [called(kernel)()]})()
    return SimpleNamespace(
        __version__=version,
        cuda=Answers(runtime=runtime, memory=memory, Device=called(device), **answers),
        zeros=called(number),
        get_default_memory_pool=called(pool),
    )


CUDA13, CUDA12 = (
    f'python -m pip install "cupy-cuda{k}x[ctk]>=14.1,<15"' for k in (13, 12)
)
INSTALL = f"{CUDA13} (driver 580 or newer) or {CUDA12} (driver 525"
NO_CUPY, NO_CUDA = (
    ModuleNotFoundError(f"No module named {n!r}", name=n) for n in ("cupy", "cuda")
)
BROKEN = ImportError("\n=====\nFailed to import CuPy.\n=====")
BROKEN.__cause__ = ImportError("libstdc++.so.6: version `GLIBCXX_3.4.30' not found")
CUBLAS = ImportError(
    "Failure finding libcublas.so.13: No such file\n  listdir('/usr/lib')"
)
NONE = RuntimeError("cudaErrorNoDevice: no CUDA-capable device is detected")
HEADER = RuntimeError("\ncannot open source file cuda_fp16.h\n\n")
FULL = RuntimeError("cudaErrorMemoryAllocation: out of memory")
# CuPy, or what its import raises; what it cannot do, and why; a part of what to do.
CASES = [
    (NO_CUPY, "be imported (No module named 'cupy')", INSTALL),
    (NO_CUDA, "be imported (No module named 'cuda')", INSTALL),
    (
        BROKEN,
        "be imported (libstdc++.so.6: version `GLIBCXX_3.4.30' not found)",
        INSTALL,
    ),
    (fake_cupy("14.0.1"), "be used (14.1 is the oldest that can)", INSTALL),
    (fake_cupy(devices=NONE), f"find a GPU ({NONE})", "nvidia-smi -L"),
    (
        fake_cupy(cublas=CUBLAS),
        "load CUDA's libraries (Failure finding libcublas.so.13: No such file)",
        f"{CUDA13} brings them along",
    ),
    (
        fake_cupy(kernel=HEADER),
        f"run a first kernel ({str(HEADER).strip()})",
        "nvidia-smi",
    ),
    (fake_cupy(kernel=FULL), f"run a first kernel ({FULL})", "nvidia-smi"),
]


class Failing:
    def __init__(self, error):
        self._error = error

    def find_spec(self, name, path=None, target=None):
        if name == "cupy":
            raise self._error


@pytest.mark.parametrize(
    "cupy, found, remedy", CASES, ids=[found for _, found, _ in CASES]
)
def test_a_missing_requirement_is_one_line_with_a_remedy(
    monkeypatch, cupy, found, remedy
):
    if isinstance(cupy, Exception):
        monkeypatch.delitem(sys.modules, "cupy", raising=False)
        monkeypatch.setattr(sys, "meta_path", [Failing(cupy), *sys.meta_path])
    else:
        monkeypatch.setitem(sys.modules, "cupy", cupy)
    with pytest.raises(BackendError) as caught:
        requirements.require_cupy()
    message = str(caught.value)
    called = "CuPy" if isinstance(cupy, Exception) else f"CuPy {cupy.__version__}"
    assert message.startswith(
        f"backend cupy cannot run: {called} cannot {found}: {remedy}"
    )
    assert "scripts/gpu.md" in message and "backend numba" in message
    assert "\n" not in message and caught.value.exit_status == 2


def test_cublas_is_the_one_that_cupys_finder_has(monkeypatch):
    fake = fake_cupy()
    there = {"/cublas"}

    def load(path):
        if path not in there:
            raise OSError(f"{path} is not there")
        return path

    fake.cublas = SimpleNamespace()
    found = SimpleNamespace(
        load_nvidia_dynamic_lib=lambda of: SimpleNamespace(abs_path=f"/{of}")
    )
    modules = {"cupy": fake, "cupy.cublas": fake.cublas, "cuda.pathfinder": found}
    for module, value in {**modules, "cuda": SimpleNamespace(pathfinder=found)}.items():
        monkeypatch.setitem(sys.modules, module, value)
    monkeypatch.setattr(cublas.ctypes, "CDLL", load)
    assert cublas._load(fake) == "/cublas"
    there.clear()
    with one_line(BackendError, "cannot load cuBLAS (/cublas is not there)", CUDA13):
        cublas._load(fake)


def test_cupy_is_returned_if_nothing_is_missing_and_long_reasons_are_cut(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", fake_cupy())
    assert requirements.require_cupy() is sys.modules["cupy"]
    assert len(requirements.first_line(RuntimeError("x" * 500))) == 200
    assert requirements.first_line(RuntimeError("====\n   \n")) == "RuntimeError"


def test_the_description_of_a_device(monkeypatch):
    packages = {"cupy-cuda13x": "14.2.0", "nvidia-cublas": "13.1", "numpy": "2.4"}
    found = [
        SimpleNamespace(name=name, version=version)
        for name, version in packages.items()
    ]
    monkeypatch.setattr(requirements.metadata, "distributions", lambda: found)
    assert requirements.describe(fake_cupy()) == {
        "name": "NVIDIA H100 80GB HBM3",
        "cuda_driver": "13.0",
        "cuda_runtime": "13.2",
        "cupy": "14.2.0",
        "packages": {"cupy-cuda13x": "14.2.0", "nvidia-cublas": "13.1"},
    }


def test_the_gpu_page_names_extras_that_exist():
    """The extras exist, the tests come with theirs, and no command waits for a "y"."""
    root = Path(__file__).resolve().parents[1]
    page = (root / "scripts/gpu.md").read_text()
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    asked = [set(names.split(",")) for names in re.findall(r'"\.\[([\w,]+)\]"', page)]
    assert all(extras.keys() >= names for names in asked)
    assert {"cuda13", "test"} in asked
    assert not any(
        "gputest" in names and any("cuda" in each for each in names) for names in asked
    )
    assert all(more.startswith(" -y ") for more in page.split("pip uninstall")[1:])
    assert {each.replace("[ctk]", "") for each in extras["cuda12"]} <= set(
        page.split('"')
    )


def test_out_of_memory_is_told_from_other_errors():
    memory = "the GPU has 80.0 GiB, of which 30.0 GiB are free"
    pool = "Out of memory allocating 34 bytes (allocated so far: 43 bytes)"
    found = requirements.explain_out_of_memory(
        OutOfMemoryError(f"{pool}."), fake_cupy()
    )
    assert found == f"{pool}; {memory}"
    for text in (
        "cudaErrorMemoryAllocation",
        "CUDA_ERROR_OUT_OF_MEMORY",
        "STATUS_ALLOC_FAILED",
    ):
        found = requirements.explain_out_of_memory(RuntimeError(text), fake_cupy())
        assert found == f"{text}; {memory}"
    error = MemoryError("Unable to allocate 7.45 GiB for an array")
    found = requirements.explain_out_of_memory(error, fake_cupy())
    assert found == "on the host: Unable to allocate 7.45 GiB for an array"
    host = HostDevice("numpy")
    assert host.shortfall(MemoryError("Unable")) == "Unable"
    assert host.shortfall(MemoryError()) == "nothing more is known"
    for error in (
        ValueError("cudaErrorMemoryAllocation"),
        RuntimeError("cudaErrorLaunchFailure"),
    ):
        assert requirements.explain_out_of_memory(error, fake_cupy()) is None
        assert host.shortfall(error) is None


_WITHOUT_DOWNLOADS = """
import importlib, pkgutil, sys

class Missing:
    def find_spec(name, path=None, target=None):
        if name in ("pooch", "platformdirs", "requests"):
            raise ModuleNotFoundError(name, name=name)

sys.meta_path.insert(0, Missing)
import pytest, snfnp
for package in (snfnp, importlib.import_module("benchmarks")):
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
raise SystemExit(pytest.main([sys.argv[1], "--collect-only", "-q", "-p", "no:cacheprovider"]))
"""


@pytest.mark.slow
def test_gpu_code_imports_without_the_download_packages():
    """The package, the benchmark and the tests of the device are imported without them."""
    tests = Path(__file__).parent
    scripts = str(tests.parent / "scripts")
    done = python(
        _WITHOUT_DOWNLOADS, tests / "gpu", cwd=tests.parent, PYTHONPATH=scripts
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
