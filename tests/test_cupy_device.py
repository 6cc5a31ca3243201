"""What the user is told where the GPU backend cannot run, and where its memory is full."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from support.machines import GIB, STUB, CUDARuntimeError, FakeCupy, Machine, OutOfMemoryError, enter

from snfnp.errors import BackendError
from snfnp.ops.gpu import requirements
from snfnp.ops.host import HostDevice, Shortage


@pytest.fixture
def on(monkeypatch):
    """on(machine): from here on the code under test is on that machine."""
    return partial(enter, monkeypatch)


def no_cupy(driver, nvidia_smi=False):
    return Machine(driver, nvidia_smi, installed={}, cupy=None)


def failing(status, text, machine=None, **state):
    machine = machine or Machine()
    machine.cupy = FakeCupy(devices=CUDARuntimeError(status, text), **state)
    return machine


INSUFFICIENT = "cudaErrorInsufficientDriver: CUDA driver version is insufficient"
WITHOUT = ModuleNotFoundError("No module named 'cuda'", name="cuda")
BROKEN = ImportError("\n=====\nFailed to import CuPy.\n=====")
BROKEN.__cause__ = ImportError("libstdc++.so.6: version `GLIBCXX_3.4.30' not found")
CUDA12 = {"cupy-cuda12x": "14.2.0"}
NO_GPU = "cudaErrorNoDevice: no CUDA-capable device is detected"
CUBLAS = ImportError('Failure finding "libcublas.so.13": No such file\n  listdir("/usr/lib")')

# A machine on which `--backend cupy` cannot run, and all that the user is told.
CASES = {
    "not installed, driver of CUDA 13": (
        no_cupy(13000),
        'CuPy is not installed; the driver here supports CUDA 13.0: pip install ".[cuda13]"',
    ),
    "not installed, driver newer than any wheel": (
        no_cupy(14010),
        'CuPy is not installed; the driver here supports CUDA 14.1: pip install ".[cuda13]"',
    ),
    "not installed, driver of CUDA 12": (
        no_cupy(12040),
        'CuPy is not installed; the driver here supports CUDA 12.4: pip install ".[cuda12]"',
    ),
    "not installed, driver of CUDA 11": (
        no_cupy(11080),
        "CuPy is not installed; the driver here supports CUDA 11.8, which is too old: update the "
        'driver to 580 or newer, then pip install ".[cuda13]"',
    ),
    "not installed, no driver": (
        no_cupy(None),
        "CuPy is not installed, and no NVIDIA driver was found (libcuda.so.1 cannot be used): "
        "without a GPU use --backend numba; with one install driver 580 or newer (start a "
        'container with --gpus all), then pip install ".[cuda13]" (driver 580 or newer) or '
        '".[cuda12]" (driver 525 or newer)',
    ),
    "not installed, a stub of the driver": (
        no_cupy(STUB),
        "CuPy is not installed, and no NVIDIA driver was found (libcuda.so.1 cannot be used): "
        "without a GPU use --backend numba; with one install driver 580 or newer (start a "
        'container with --gpus all), then pip install ".[cuda13]" (driver 580 or newer) or '
        '".[cuda12]" (driver 525 or newer)',
    ),
    "not installed, driver half there": (
        no_cupy(None, nvidia_smi=True),
        "CuPy is not installed, and the driver's library libcuda.so.1 cannot be used, although "
        "nvidia-smi is here: start a container with "
        "NVIDIA_DRIVER_CAPABILITIES=compute,utility, else install the driver again, then "
        'pip install ".[cuda13]" (driver 580 or newer) or ".[cuda12]" (driver 525 or newer)',
    ),
    "installed twice": (
        Machine(12090, installed={"cupy-cuda13x": "14.2.0", "cupy-cuda12x": "14.1.1"}),
        "CuPy is installed 2 times, each over the other (cupy-cuda12x 14.1.1, cupy-cuda13x "
        '14.2.0): pip uninstall cupy-cuda12x cupy-cuda13x, then pip install ".[cuda12]"',
    ),
    "broken": (
        Machine(13000, cupy=BROKEN),
        "CuPy cannot be imported (libstdc++.so.6: version `GLIBCXX_3.4.30' not found): "
        'pip uninstall cupy-cuda13x, then pip install ".[cuda13]"',
    ),
    "lacks a dependency": (
        Machine(13000, cupy=WITHOUT),
        "CuPy cannot be imported (No module named 'cuda'): "
        'pip uninstall cupy-cuda13x, then pip install ".[cuda13]"',
    ),
    "files gone": (
        Machine(13000, cupy=None),
        "CuPy cannot be imported (import of cupy halted; None in sys.modules): "
        'pip uninstall cupy-cuda13x, then pip install ".[cuda13]"',
    ),
    "too old a CuPy": (
        Machine(12040, installed={"cupy": "13.6.0"}, cupy=FakeCupy(version="13.6.0")),
        'CuPy 13.6.0 is older than 14.1: pip uninstall cupy, then pip install ".[cuda12]"',
    ),
    "too old a minor version of CuPy": (
        Machine(13000, installed={"cupy": "14.0.1"}, cupy=FakeCupy(version="14.0.1")),
        'CuPy 14.0.1 is older than 14.1: pip uninstall cupy, then pip install ".[cuda13]"',
    ),
    "no driver": (
        failing(35, INSUFFICIENT, driver=0),
        "CuPy 14.2.0 is installed, but no NVIDIA driver was found (libcuda.so.1 cannot be "
        "used): without a GPU use --backend numba; with one install driver 580 or newer (start "
        "a container with --gpus all)",
    ),
    "no driver, CuPy for CUDA 12": (
        failing(35, INSUFFICIENT, Machine(installed=CUDA12), driver=0, runtime=12090),
        "CuPy 14.2.0 is installed, but no NVIDIA driver was found (libcuda.so.1 cannot be "
        "used): without a GPU use --backend numba; with one install driver 525 or newer (start "
        "a container with --gpus all)",
    ),
    "driver half there": (
        failing(35, INSUFFICIENT, Machine(nvidia_smi=True), driver=0),
        "CuPy 14.2.0 is installed, but the driver's library libcuda.so.1 cannot be used, "
        "although nvidia-smi is here: start a container with "
        "NVIDIA_DRIVER_CAPABILITIES=compute,utility, else install the driver again",
    ),
    "driver of CUDA 12, CuPy for 13": (
        failing(35, INSUFFICIENT, driver=12040),
        "CuPy 14.2.0 is installed and made for CUDA 13, but the driver here supports CUDA 12.4: "
        'pip uninstall cupy-cuda13x, then pip install ".[cuda12]"; or update the driver to 580 '
        "or newer",
    ),
    "driver of CUDA 11, CuPy for 12": (
        failing(35, INSUFFICIENT, Machine(installed=CUDA12), driver=11080, runtime=12090),
        "CuPy 14.2.0 is installed and made for CUDA 12, but the driver here supports CUDA 11.8: "
        "update the driver to 525 or newer",
    ),
    "driver broken": (
        failing(803, "cudaErrorSystemDriverMismatch: system has unsupported display driver"),
        "the NVIDIA driver fails (cudaErrorSystemDriverMismatch: system has unsupported display "
        "driver): see whether nvidia-smi works; after an update of the driver, restart the machine",
    ),
    "no device": (
        failing(100, NO_GPU),
        "the NVIDIA driver works, but shows no GPU: look for one with nvidia-smi -L; start a "
        "container with --gpus all",
    ),
    "devices hidden": (
        failing(100, NO_GPU, Machine(visible="")),
        "CUDA_VISIBLE_DEVICES is '' and leaves no GPU: unset it, or set it to the number of a "
        "GPU that nvidia-smi -L lists",
    ),
    "a device that is not there": (
        Machine(visible="7", cupy=FakeCupy(devices=0)),
        "CUDA_VISIBLE_DEVICES is '7' and leaves no GPU: unset it, or set it to the number of a "
        "GPU that nvidia-smi -L lists",
    ),
    "a library missing": (
        Machine(cupy=FakeCupy(cublas=CUBLAS)),
        'CuPy 14.2.0 cannot load cuBLAS (Failure finding "libcublas.so.13": No such file): '
        'pip install ".[cuda13]", which brings the libraries along',
    ),
    "all libraries missing, CuPy for CUDA 12": (
        Machine(
            installed=CUDA12,
            cupy=FakeCupy(
                nvrtc=RuntimeError("CuPy failed to load libnvrtc.so.12"),
                cublas=CUBLAS,
                cusolver=ImportError("libcusolver.so.11"),
                runtime=12090,
            ),
        ),
        "CuPy 14.2.0 cannot load NVRTC and cuBLAS and cuSOLVER (CuPy failed to load "
        'libnvrtc.so.12): pip install ".[cuda12]", which brings the libraries along',
    ),
    "a device too old for CUDA 13": (
        Machine(cupy=FakeCupy(name=b"Tesla V100", capability="70")),
        "Tesla V100 has compute capability 7.0, but CUDA 13 needs 7.5 or newer: pip uninstall "
        'cupy-cuda13x, then pip install ".[cuda12]"; or use --backend numba',
    ),
    "a device too old for CUDA 12": (
        Machine(
            installed=CUDA12,
            cupy=FakeCupy(name=b"Tesla K80", capability="37", nvrtc=(12, 9), archs=(50, 121)),
        ),
        "Tesla K80 has compute capability 3.7, but CUDA 12 needs 5.0 or newer: use --backend numba",
    ),
    "a device that others fill": (
        Machine(cupy=FakeCupy(kernel=CUDARuntimeError(2, "cudaErrorMemoryAllocation: out of"))),
        "the GPU's memory is full (cudaErrorMemoryAllocation: out of): see with nvidia-smi which "
        "program has it",
    ),
    "no headers": (
        Machine(cupy=FakeCupy(kernel=RuntimeError("\ncannot open source file cuda_fp16.h\n\n"))),
        "CuPy 14.2.0 cannot run a first kernel (cannot open source file cuda_fp16.h): see with "
        'nvidia-smi whether the GPU is free; if it is, pip install ".[cuda13]", which brings '
        "CUDA's headers along",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_missing_is_one_line_with_advice(on, case):
    machine, message = CASES[case]
    on(machine)
    with pytest.raises(BackendError) as caught:
        requirements.require_cupy()
    assert str(caught.value) == f"--backend cupy cannot run: {message}"
    assert "\n" not in str(caught.value) and caught.value.exit_status == 2


@pytest.mark.parametrize("capability", ["75", "121"])
def test_where_all_is_well_cupy_is_returned(on, capability):
    cupy = on(Machine(13000, cupy=FakeCupy(capability=capability)))
    assert requirements.require_cupy() is cupy


def test_a_driver_may_be_newer_than_cupy_or_older_by_a_minor_version(on):
    for driver, runtime in ((14000, 12090), (13000, 13020)):
        cupy = on(Machine(driver, cupy=FakeCupy(driver=driver, runtime=runtime)))
        assert requirements.require_cupy() is cupy


def test_a_long_reason_is_cut():
    assert len(requirements._line(RuntimeError("x" * 500))) == 200
    assert requirements._line(RuntimeError("====\n   \n")) == "RuntimeError"


def test_the_description_of_a_device(on):
    packages = {"cupy-cuda13x": "14.2.0", "nvidia-cublas": "13.1", "numpy": "2.4"}
    cupy = on(Machine(13000, installed=packages))
    assert requirements.describe(cupy) == {
        "name": "NVIDIA H100 80GB HBM3",
        "compute_capability": "9.0",
        "memory_bytes": 80 * GIB,
        "cuda_driver": "13.0",
        "cuda_runtime": "13.2",
        "nvrtc": "13.0",
        "cupy": "14.2.0",
        "packages": {"cupy-cuda13x": "14.2.0", "nvidia-cublas": "13.1"},
    }


# ---------------------------------------------------------------- out of memory


def pool_error(asked, held, more=""):
    text = f"Out of memory allocating {asked:,} bytes (allocated so far: {held:,} bytes{more})."
    return OutOfMemoryError(text)


def test_a_full_pool_tells_what_was_asked_and_what_there_is():
    found = requirements.explain_out_of_memory(pool_error(32 * GIB, 40 * GIB), FakeCupy())
    assert found == Shortage(
        "this run holds 40.0 GiB and asked for 32.0 GiB more; NVIDIA H100 80GB HBM3 has 80.0 GiB, "
        "of which 30.0 GiB are free",
        needed=72 * GIB,
        room=70 * GIB,
    )


def test_a_captured_steps_own_pool_counts_as_well():
    cupy = FakeCupy(pool=5 * GIB)
    found = requirements.explain_out_of_memory(pool_error(32 * GIB, 40 * GIB), cupy)
    assert (found.needed, found.room) == (77 * GIB, 75 * GIB)


@pytest.mark.parametrize("default_pool", [40, 5])
def test_a_limit_holds_for_each_pool(default_pool):
    error = pool_error(32 * GIB, 40 * GIB, f", limit set to: {50 * GIB:,} bytes")
    found = requirements.explain_out_of_memory(error, FakeCupy(pool=default_pool * GIB))
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
    found = requirements.explain_out_of_memory(RuntimeError(text), FakeCupy())
    assert "asked for more; NVIDIA H100" in found.found
    assert (found.needed, found.room, found.fitting(64)) == (None, None, None)


def test_the_hosts_memory_is_told_apart():
    error = MemoryError("Unable to allocate 7.45 GiB for an array")
    found = requirements.explain_out_of_memory(error, FakeCupy())
    assert found == Shortage("on the host: Unable to allocate 7.45 GiB for an array")


def test_another_error_is_no_shortage():
    for error in (ValueError("cudaErrorMemoryAllocation"), RuntimeError("cudaErrorLaunchFailure")):
        assert requirements.explain_out_of_memory(error, FakeCupy()) is None
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
