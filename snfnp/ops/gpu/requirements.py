"""The GPU: what it takes to use it, which one it is, and why something did not fit in its memory.

Whatever is missing becomes one line that says what was found and what to do. CuPy's wheels are for
one major version of CUDA each, and a driver runs those of its own version and older ones.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
from importlib import metadata

from snfnp.errors import BackendError
from snfnp.ops.host import Shortage

# The oldest driver for each major version of CUDA that this package has an extra for (NVIDIA, "CUDA
# Compatibility", table 1), newest first.
_DRIVERS = {13: 580, 12: 525}
# The first that keeps compiled modules of templates on disk: older ones compile at every start.
_OLDEST_CUPY = (14, 1)
# What CuPy is called where it comes from; each installs the same files.
_DISTRIBUTIONS = ("cupy", "cupy-cuda11x", "cupy-cuda12x", "cupy-cuda13x")
_LIBRARIES = {"nvrtc": "NVRTC", "cublas": "cuBLAS", "cusolver": "cuSOLVER"}
_INSUFFICIENT_DRIVER, _NO_DEVICE = 35, 100  # of cudaError_t
_OUT_OF_MEMORY = re.compile("MemoryAllocation|OUT_OF_MEMORY|ALLOC_FAILED")
_POOL = re.compile(
    r"allocating ([\d,]+) bytes \(allocated so far: ([\d,]+) bytes"
    r"(?:, limit set to: ([\d,]+) bytes)?"
)


def require_cupy(turn: int | None = None):
    """The `cupy` module, once it is certain that it can compile and run a kernel.

    turn: make this device the current one first, counted round and round; None: leave that.
    Raises BackendError where it cannot.
    """
    cupy = _import_cupy()
    _require_device(cupy)
    if turn is not None:
        cupy.cuda.Device(turn % cupy.cuda.runtime.getDeviceCount()).use()
    _require_libraries(cupy)
    _require_capability(cupy)
    _require_kernels(cupy)
    return cupy


def _import_cupy():
    installed = _installed(_DISTRIBUTIONS)
    if len(installed) > 1:
        listed = ", ".join(f"{name} {version}" for name, version in installed.items())
        raise _unusable(
            f"CuPy is installed {len(installed)} times, each over the other ({listed})",
            _replace(_driver_cuda()),
        )
    try:
        import cupy
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name == "cupy" and not installed:
            raise _unusable(*_not_installed()) from None
        raise _unusable(
            f"CuPy cannot be imported ({_line(error.__cause__ or error)})",
            _replace(_driver_cuda()),
        ) from None
    version = re.match(r"(\d+)\.(\d+)", cupy.__version__)
    if tuple(map(int, version.groups())) < _OLDEST_CUPY:
        oldest = ".".join(map(str, _OLDEST_CUPY))
        raise _unusable(f"CuPy {cupy.__version__} is older than {oldest}", _replace(_driver_cuda()))
    return cupy


def _not_installed() -> tuple[str, str]:
    """What was found and what to do, where there is no CuPy."""
    driver = _driver_cuda()
    if driver is None:
        found, advice = _no_driver(max(_DRIVERS))
        return f"CuPy is not installed, and {found}", f"{advice}, then {_install(None)}"
    found = f"CuPy is not installed; the driver here supports CUDA {_version(driver)}"
    if driver // 1000 < min(_DRIVERS):
        newest = max(_DRIVERS)
        return f"{found}, which is too old", f"{_update(newest)}, then {_install(1000 * newest)}"
    return found, _install(driver)


def _require_device(cupy) -> None:
    runtime = cupy.cuda.runtime
    try:
        count = runtime.getDeviceCount()
    except runtime.CUDARuntimeError as error:
        if error.status == _INSUFFICIENT_DRIVER:
            raise _unusable(*_old_driver(cupy)) from None
        if error.status != _NO_DEVICE:
            raise _unusable(
                f"the NVIDIA driver fails ({_line(error)})",
                "see whether nvidia-smi works; after an update of the driver, restart the machine",
            ) from None
        count = 0
    if count:
        return
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        raise _unusable(
            "the NVIDIA driver works, but shows no GPU",
            "look for one with nvidia-smi -L; start a container with --gpus all",
        )
    raise _unusable(
        f"CUDA_VISIBLE_DEVICES is {visible!r} and leaves no GPU",
        "unset it, or set it to the number of a GPU that nvidia-smi -L lists",
    )


def _old_driver(cupy) -> tuple[str, str]:
    """What was found and what to do, where the driver is missing or too old for this CuPy."""
    runtime, found = cupy.cuda.runtime, f"CuPy {cupy.__version__} is installed"
    driver, built = runtime.driverGetVersion(), runtime.runtimeGetVersion() // 1000
    if not driver:  # CUDA reports a missing driver as version 0
        missing, advice = _no_driver(built)
        return f"{found}, but {missing}", advice
    found += f" and made for CUDA {built}, but the driver here supports CUDA {_version(driver)}"
    if driver // 1000 < min(_DRIVERS):
        return found, _update(built)
    return found, f"{_replace(driver)}; or {_update(built)}"


def _require_libraries(cupy) -> None:
    missing, reason = [], ""
    for name, title in _LIBRARIES.items():
        try:
            # As attributes: CuPy then also looks where pip puts the libraries.
            library = getattr(cupy.cuda, name)
            if name == "nvrtc":
                library.getVersion()  # the only one that is loaded at its first use
        except Exception as error:
            missing.append(title)
            reason = reason or _line(error)
    if missing:
        built = cupy.cuda.runtime.runtimeGetVersion()
        raise _unusable(
            f"CuPy {cupy.__version__} cannot load {' and '.join(missing)} ({reason})",
            f"{_install(built)}, which brings the libraries along",
        )


def _require_capability(cupy) -> None:
    """The device must be one for which this CUDA's compiler still makes code."""
    nvrtc, device = cupy.cuda.nvrtc, cupy.cuda.Device()
    oldest, built = min(nvrtc.getSupportedArchs()), nvrtc.getVersion()[0]
    if int(device.compute_capability) >= oldest:
        return
    older = [major for major in _DRIVERS if major < built]
    advice = "use --backend numba"
    raise _unusable(
        f"{_name(cupy)} has compute capability {_dotted(device.compute_capability)}, but CUDA "
        f"{built} needs {_dotted(oldest)} or newer",
        f"{_replace(1000 * older[0])}; or {advice}" if older else advice,
    )


def _require_kernels(cupy) -> None:
    """A first kernel finds the rest: no memory, no headers, a GPU that another process owns."""
    try:
        int((cupy.zeros(1) + 1)[0])
    except Exception as error:
        if _is_shortage(error):
            raise _unusable(
                f"the GPU's memory is full ({_line(error)})",
                "see with nvidia-smi which program has it",
            ) from None
        raise _unusable(
            f"CuPy {cupy.__version__} cannot run a first kernel ({_line(error)})",
            "see with nvidia-smi whether the GPU is free; if it is, "
            f"{_install(cupy.cuda.runtime.runtimeGetVersion())}, which brings CUDA's headers along",
        ) from None


def describe(cupy) -> dict:
    """The current device and the libraries that compute on it, for a run's configuration."""
    runtime, device = cupy.cuda.runtime, cupy.cuda.Device()
    properties = runtime.getDeviceProperties(device.id)
    return {
        "name": _name(cupy),
        "compute_capability": _dotted(device.compute_capability),
        "memory_bytes": int(properties["totalGlobalMem"]),
        "cuda_driver": _version(runtime.driverGetVersion()),
        "cuda_runtime": _version(runtime.runtimeGetVersion()),
        "nvrtc": ".".join(map(str, cupy.cuda.nvrtc.getVersion())),
        "cupy": cupy.__version__,
        "packages": _installed(
            dist.name
            for dist in metadata.distributions()
            if re.match("cupy|nvidia-|cuda-", dist.name or "")
        ),
    }


def explain_out_of_memory(error: Exception, cupy) -> Shortage | None:
    """What did not fit on the device, or on the host; None where the error is about neither.

    Call it while the error's traceback still holds the arrays.
    """
    if not _is_shortage(error):
        return None
    if not isinstance(error, (cupy.cuda.memory.OutOfMemoryError, RuntimeError)):
        return Shortage(f"on the host: {_line(error)}")
    free, total = cupy.cuda.runtime.memGetInfo()
    held = cupy.get_default_memory_pool().total_bytes()
    card = f"{_name(cupy)} has {_amount(total)}, of which {_amount(free)} are free"
    amounts = _POOL.search(str(error))
    if not amounts:
        return Shortage(f"this run holds {_amount(held)} and asked for more; {card}")
    asked, own, limit = (amount and int(amount.replace(",", "")) for amount in amounts.groups())
    # A captured step allocates from a pool of its own, beside the default one.
    held += own if own != held else 0
    room = held + free
    if limit:
        card += f", and CUPY_GPU_MEMORY_LIMIT allows each pool {_amount(limit)}"
        room = min(room, held - own + limit)
    found = f"this run holds {_amount(held)} and asked for {_amount(asked)} more; {card}"
    return Shortage(found, held + asked, room)


def _is_shortage(error: Exception) -> bool:
    """Whether an error is about memory: CuPy's pool raises MemoryError, CUDA's libraries do not."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and bool(_OUT_OF_MEMORY.search(str(error)))
    )


# The parts of the messages.


def _unusable(found: str, advice: str) -> BackendError:
    return BackendError(f"--backend cupy cannot run: {found}: {advice}")


def _driver_cuda() -> int | None:
    """The newest CUDA version that the driver supports, as 1000 major + 10 minor."""
    version = ctypes.c_int()
    try:
        failed = ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version))
    except (OSError, AttributeError):  # not there, or a stub under its name
        return None
    return None if failed else version.value


def _no_driver(major: int) -> tuple[str, str]:
    """What was found and what to do, where the driver's library cannot be used."""
    if shutil.which("nvidia-smi"):
        return (
            "the driver's library libcuda.so.1 cannot be used, although nvidia-smi is here",
            "start a container with NVIDIA_DRIVER_CAPABILITIES=compute,utility, else install the "
            "driver again",
        )
    return (
        "no NVIDIA driver was found (libcuda.so.1 cannot be used)",
        f"without a GPU use --backend numba; with one install driver {_driver(major)} or newer "
        "(start a container with --gpus all)",
    )


def _driver(major: int) -> int:
    """The oldest driver for a major version of CUDA, or for the newest that is known here."""
    return _DRIVERS.get(major, _DRIVERS[max(_DRIVERS)])


def _update(major: int) -> str:
    return f"update the driver to {_driver(major)} or newer"


def _install(cuda: int | None) -> str:
    """How to install the wheel for a CUDA version; None: the driver is not known yet."""
    if cuda is None:
        wheels = (f'".[cuda{m}]" (driver {driver} or newer)' for m, driver in _DRIVERS.items())
        return f"pip install {' or '.join(wheels)}"
    major = max((m for m in _DRIVERS if m <= cuda // 1000), default=min(_DRIVERS))
    return f'pip install ".[cuda{major}]"'


def _replace(cuda: int | None) -> str:
    """How to change to the wheel for a CUDA version: two of them would overwrite each other."""
    return f"pip uninstall {' '.join(_installed(_DISTRIBUTIONS)) or 'cupy'}, then {_install(cuda)}"


def _installed(distributions) -> dict[str, str]:
    """Those of the distributions that are installed, and their versions."""
    found = {}
    for name in sorted(set(distributions)):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _name(cupy) -> str:
    """What the current device is called."""
    return cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)["name"].decode()


def _version(number: int) -> str:
    """13020 -> "13.2", as CUDA counts its versions."""
    return f"{number // 1000}.{number % 1000 // 10}"


def _dotted(capability) -> str:
    """A compute capability with its point: 90 -> "9.0", "121" -> "12.1"."""
    return f"{str(capability)[:-1]}.{str(capability)[-1]}"


def _line(error: BaseException) -> str:
    """The first line of an error with a word in it."""
    lines = (" ".join(line.split()) for line in str(error).splitlines())
    words = next((line for line in lines if re.search("[A-Za-z]", line)), type(error).__name__)
    return words if len(words) <= 200 else words[:199] + "…"


def _amount(size: int) -> str:
    """Bytes for people: "1.5 GiB", "20 MiB"."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"
