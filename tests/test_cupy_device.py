"""What the user is told where the GPU backend cannot run, and where its memory is full."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from snfnp.errors import BackendError
from snfnp.ops.gpu import requirements
from snfnp.ops.host import HostDevice, Shortage

GIB = 2**30


class CUDARuntimeError(RuntimeError):
    status = 100  # cudaErrorNoDevice


class OutOfMemoryError(MemoryError):
    """As CuPy's: the amounts are in the text."""


def fake_cupy(version="14.2.0", devices=1, capability="90", kernel=1.0, pool=40 * GIB):
    """The part of CuPy that is called, of an H100; devices and kernel: or what is raised."""

    def answer(value):
        if isinstance(value, Exception):
            raise value
        return value

    properties = {"name": b"NVIDIA H100 80GB HBM3", "totalGlobalMem": 80 * GIB}
    runtime = SimpleNamespace(
        CUDARuntimeError=CUDARuntimeError,
        getDeviceCount=lambda: answer(devices),
        driverGetVersion=lambda: 13000,
        runtimeGetVersion=lambda: 13020,
        getDeviceProperties=lambda device: properties,
        memGetInfo=lambda: (30 * GIB, 80 * GIB),
    )
    cuda = SimpleNamespace(
        runtime=runtime,
        memory=SimpleNamespace(OutOfMemoryError=OutOfMemoryError),
        nvrtc=SimpleNamespace(getVersion=lambda: (13, 0), getSupportedArchs=lambda: (75, 90, 121)),
        cublas=None,
        cusolver=None,
        Device=lambda: SimpleNamespace(id=0, compute_capability=capability),
    )

    class Number:
        def __add__(self, other):
            return [answer(kernel)]

    return SimpleNamespace(
        __version__=version,
        cuda=cuda,
        zeros=lambda size: Number(),
        get_default_memory_pool=lambda: SimpleNamespace(total_bytes=lambda: pool),
    )


@pytest.fixture
def on(monkeypatch):
    """on(cupy, driver, *names): a machine with that CuPy (None: none), installed as `names`."""

    def enter(cupy, driver=13000, *names):
        monkeypatch.setattr(requirements, "_driver_cuda", lambda: driver)
        versions = {name: "14.2.0" for name in requirements._DISTRIBUTIONS if name in names}
        monkeypatch.setattr(requirements, "_installed", lambda of: versions)
        monkeypatch.setattr(requirements.shutil, "which", lambda name: None)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if cupy is None:
            monkeypatch.delitem(sys.modules, "cupy", raising=False)
            monkeypatch.setattr(sys, "meta_path", [Missing, *sys.meta_path])
        else:
            monkeypatch.setitem(sys.modules, "cupy", cupy)
        return cupy

    return enter


class Missing:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == "cupy":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


BOTH = ("cupy-cuda12x", "cupy-cuda13x")
FULL = CUDARuntimeError("cudaErrorMemoryAllocation: out of")
NO_GPU = CUDARuntimeError("cudaErrorNoDevice: no CUDA-capable device is detected")
# (CuPy, driver, what is installed), and what the user is told.
CASES = {
    "no CuPy": (
        (None, 12040),
        'CuPy is not installed; the driver here supports CUDA 12.4: pip install ".[cuda12]"',
    ),
    "no driver": ((None, None), "CuPy is not installed, and no NVIDIA driver was found"),
    "twice": (
        (fake_cupy(), 12090, *BOTH),
        "CuPy is installed 2 times, each over the other (cupy-cuda12x 14.2.0, cupy-cuda13x "
        '14.2.0): pip uninstall cupy-cuda12x cupy-cuda13x, then pip install ".[cuda12]"',
    ),
    "too old": (
        (fake_cupy("14.0.1"), 13000, "cupy"),
        'CuPy 14.0.1 is older than 14.1: pip uninstall cupy, then pip install ".[cuda13]"',
    ),
    "no device": ((fake_cupy(devices=NO_GPU),), "the NVIDIA driver works, but shows no GPU: look"),
    "an old card": (
        (fake_cupy(capability="70"), 13000, "cupy-cuda13x"),
        "NVIDIA H100 80GB HBM3 has compute capability 7.0, but CUDA 13 needs 7.5 or newer",
    ),
    "full": ((fake_cupy(kernel=FULL),), "the GPU's memory is full (cudaErrorMemoryAllocation"),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_missing_is_one_line_with_advice(on, case):
    machine, message = CASES[case]
    on(*machine)
    with pytest.raises(BackendError) as caught:
        requirements.require_cupy()
    assert str(caught.value).startswith(f"--backend cupy cannot run: {message}")
    assert "\n" not in str(caught.value) and caught.value.exit_status == 2


def test_where_all_is_well_cupy_is_returned_and_described(on):
    cupy = on(fake_cupy(), 13000, "cupy-cuda13x")
    assert requirements.require_cupy() is cupy
    found = requirements.describe(cupy)
    assert (found["compute_capability"], found["memory_bytes"]) == ("9.0", 80 * GIB)
    assert (found["cuda_driver"], found["cuda_runtime"], found["nvrtc"]) == ("13.0", "13.2", "13.0")
    assert found["packages"] == {"cupy-cuda13x": "14.2.0"}


def test_a_long_reason_is_cut():
    assert len(requirements._line(RuntimeError("x" * 500))) == 200
    assert requirements._line(RuntimeError("====\n   \n")) == "RuntimeError"


# ---------------------------------------------------------------- out of memory


def pool_error(asked, held, more=""):
    text = f"Out of memory allocating {asked:,} bytes (allocated so far: {held:,} bytes{more})."
    return OutOfMemoryError(text)


def test_a_full_pool_tells_what_was_asked_and_what_there_is():
    found = requirements.explain_out_of_memory(pool_error(32 * GIB, 40 * GIB), fake_cupy())
    assert found == Shortage(
        "this run holds 40.0 GiB and asked for 32.0 GiB more; NVIDIA H100 80GB HBM3 has 80.0 GiB, "
        "of which 30.0 GiB are free",
        needed=72 * GIB,
        room=70 * GIB,
    )


def test_a_captured_steps_own_pool_counts_as_well():
    cupy = fake_cupy(pool=5 * GIB)
    found = requirements.explain_out_of_memory(pool_error(32 * GIB, 40 * GIB), cupy)
    assert (found.needed, found.room) == (77 * GIB, 75 * GIB)


@pytest.mark.parametrize("default_pool", [40, 5])
def test_a_limit_holds_for_each_pool(default_pool):
    error = pool_error(32 * GIB, 40 * GIB, f", limit set to: {50 * GIB:,} bytes")
    found = requirements.explain_out_of_memory(error, fake_cupy(pool=default_pool * GIB))
    beside = 0 if default_pool == 40 else 5
    assert (found.needed, found.room) == ((72 + beside) * GIB, (50 + beside) * GIB)
    assert found.found.endswith("are free, and CUPY_GPU_MEMORY_LIMIT allows each pool 50.0 GiB")


@pytest.mark.parametrize(
    "text",
    [
        "cudaErrorMemoryAllocation: out of memory",
        "CUDA_ERROR_OUT_OF_MEMORY: out of memory",
        "CUBLAS_STATUS_ALLOC_FAILED",
        "CUSOLVER_STATUS_ALLOC_FAILED",
    ],
)
def test_a_library_without_memory_tells_no_amount(text):
    found = requirements.explain_out_of_memory(RuntimeError(text), fake_cupy())
    assert "asked for more; NVIDIA H100" in found.found
    assert (found.needed, found.room, found.fitting(64)) == (None, None, None)


def test_the_hosts_memory_is_told_apart():
    error = MemoryError("Unable to allocate 7.45 GiB for an array")
    found = requirements.explain_out_of_memory(error, fake_cupy())
    assert found == Shortage("on the host: Unable to allocate 7.45 GiB for an array")


def test_another_error_is_no_shortage():
    for error in (ValueError("cudaErrorMemoryAllocation"), RuntimeError("cudaErrorLaunchFailure")):
        assert requirements.explain_out_of_memory(error, fake_cupy()) is None
        assert HostDevice("numpy").shortage(error) is None


def test_cupys_own_words_are_understood():
    memory = pytest.importorskip("cupy", reason="needs CuPy, but no GPU").cuda.memory
    for limit, told in ((0, None), (5000, "5,000")):
        text = str(memory.OutOfMemoryError(1024, 2048, limit))
        assert requirements._POOL.search(text).groups() == ("1,024", "2,048", told)
    assert issubclass(memory.OutOfMemoryError, MemoryError)


def test_on_the_cpu_numpys_words_are_passed_on():
    assert HostDevice("numpy").shortage(MemoryError("Unable")) == Shortage("Unable")
    assert HostDevice("numpy").shortage(MemoryError()) == Shortage("nothing more is known")
    assert HostDevice("numpy").describe() == {}


@pytest.mark.parametrize(
    "count, fixed, needed, room, fits",
    [
        (100, 0, 110, 100, 50),
        (100, 0, 240, 100, 25),  # 100 // 4: half of it would still need 120
        (100, 20, 220, 100, 25),  # shares of 2: 20 + 100 would not fit, 20 + 50 does
        (100, 20, 180, 100, 50),  # exactly full
        (100, 90, 290, 100, 3),  # 90 + 2 · 3; in proportion to all of it, 25 would seem to fit
        (3, 0, 300, 100, 1),
        (3, 0, 303, 100, 0),
        (64, 101, 200, 100, 0),  # the fixed part alone is too much
        (1, 0, 110, 100, 0),
        (8, 0, 90, 100, 4),  # failed although it should have fitted: half of it all the same
        (8, 50, 40, 100, 4),
    ],
)
def test_what_would_fit_in_proportion(count, fixed, needed, room, fits):
    assert Shortage("", needed, room).fitting(count, fixed) == fits


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
from snfnp.data.files import cache_folder
assert cache_folder("mnist").name == "mnist"
raise SystemExit(pytest.main([sys.argv[1], "--collect-only", "-q", "-p", "no:cacheprovider"]))
"""


def test_the_gpu_needs_no_package_that_only_downloads_need():
    """The package, the benchmark and the tests of the device are imported without them."""
    tests = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-c", _WITHOUT_DOWNLOADS, str(tests / "gpu")],
        env=os.environ | {"PYTHONPATH": str(tests.parent / "scripts")},
        cwd=tests.parent,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
