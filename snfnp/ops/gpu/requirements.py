"""The GPU: what it needs, which one it is, and why something did not fit in its memory."""

import re
from importlib import metadata

from snfnp.errors import BackendError

# The oldest driver for each version of CUDA with an extra (NVIDIA, "CUDA Compatibility", table 1).
_DRIVERS = {13: 580, 12: 525}
_OLDEST_CUPY = (14, 1)  # the first that keeps compiled modules of templates on disk
_OUT_OF_MEMORY = re.compile("MemoryAllocation|OUT_OF_MEMORY|ALLOC_FAILED")


def install(major: int) -> str:
    """The command that installs CuPy and the libraries of a version of CUDA."""
    first, second = _OLDEST_CUPY
    return f'python -m pip install "cupy-cuda{major}x[ctk]>={first}.{second},<{first + 1}"'


_INSTALL = " or ".join(f"{install(k)} (driver {oldest} or newer)" for k, oldest in _DRIVERS.items())


def require_cupy(turn: int | None = None):
    """The `cupy` module, once it is certain that it can run a kernel. turn: make this device the
    current one first, modulo their number. Raises BackendError: what failed, and what to do."""
    called, task, remedy = "CuPy", "be imported", f"{_INSTALL}, one of them alone"
    try:
        import cupy

        called = f"CuPy {cupy.__version__}"
        if tuple(map(int, re.match(r"(\d+)\.(\d+)", cupy.__version__).groups())) < _OLDEST_CUPY:
            task = "be used"
            raise RuntimeError("{}.{} is the oldest that can".format(*_OLDEST_CUPY))
        task, remedy = "find a GPU", "nvidia-smi -L lists those that the driver knows"
        count = cupy.cuda.runtime.getDeviceCount()
        if not count:
            raise RuntimeError("there is none")
        if turn is not None:
            cupy.cuda.Device(turn % count).use()
        major = cupy.cuda.runtime.runtimeGetVersion() // 1000
        task, remedy = "load CUDA's libraries", f"{install(major)} brings them along"
        cupy.cuda.nvrtc.getVersion()
        # as attributes: CuPy then also looks where pip puts the libraries
        _ = cupy.cuda.cublas, cupy.cuda.cusolver
        task, remedy = "run a first kernel", "nvidia-smi shows whether the GPU is free"
        int((cupy.zeros(1) + 1)[0])
    except Exception as error:
        found = f"{called} cannot {task} ({first_line(error.__cause__ or error)}): {remedy}"
        more = "more is in scripts/gpu.md, and backend numba needs no GPU"
        raise BackendError(f"backend cupy cannot run: {found}; {more}") from None
    return cupy


def describe(cupy) -> dict:
    """The current device and the libraries that compute on it, for a run's configuration."""
    runtime, capability = cupy.cuda.runtime, str(cupy.cuda.Device().compute_capability)
    properties = runtime.getDeviceProperties(cupy.cuda.Device().id)
    packages = {d.name: d.version for d in metadata.distributions() if d.name}
    cuda = {"driver": runtime.driverGetVersion(), "runtime": runtime.runtimeGetVersion()}
    return {
        "name": properties["name"].decode(),
        "compute_capability": f"{capability[:-1]}.{capability[-1]}",
        "memory_bytes": int(properties["totalGlobalMem"]),
        **{f"cuda_{of}": f"{n // 1000}.{n % 1000 // 10}" for of, n in cuda.items()},
        "nvrtc": ".".join(map(str, cupy.cuda.nvrtc.getVersion())),
        "cupy": cupy.__version__,
        "packages": {n: packages[n] for n in sorted(packages) if re.match("cupy|nvidia-|cuda-", n)},
    }


def explain_out_of_memory(error: Exception, cupy) -> str | None:
    """The words for what did not fit on the device or the host; None for any other error."""
    of_a_library = isinstance(error, RuntimeError) and _OUT_OF_MEMORY.search(str(error))
    if not of_a_library and not isinstance(error, MemoryError):
        return None
    if not isinstance(error, (cupy.cuda.memory.OutOfMemoryError, RuntimeError)):
        return f"on the host: {first_line(error)}"
    free, total = (f"{size / 2**30:.1f} GiB" for size in cupy.cuda.runtime.memGetInfo())
    name = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)["name"].decode()
    return f"{first_line(error).rstrip('.')}; {name} has {total}, of which {free} are free"


def first_line(error: BaseException) -> str:
    """The first line of an error with a word in it."""
    lines = (" ".join(line.split()) for line in str(error).splitlines())
    words = next((line for line in lines if re.search("[A-Za-z]", line)), type(error).__name__)
    return words if len(words) <= 200 else words[:199] + "…"
