"""The GPU: what it needs, which one it is, and why something did not fit in its memory."""

import re
from importlib import metadata

from snfnp.errors import BackendError

# For each version of CUDA that an extra of the package installs, its oldest driver (NVIDIA, "CUDA
# Compatibility", table 1).
_DRIVERS = {13: 580, 12: 525}
_OLDEST_CUPY = (14, 1)  # the first that caches compiled templates on disk
_ROOM = 64 << 20  # bytes: for a handle of cuBLAS and its workspace, which come next
_OUT_OF_MEMORY = re.compile("MemoryAllocation|OUT_OF_MEMORY|ALLOC_FAILED")


def install(major: int) -> str:
    """The command that installs CuPy and the libraries of a version of CUDA."""
    first, second = _OLDEST_CUPY
    return (
        f'python -m pip install "cupy-cuda{major}x[ctk]>={first}.{second},<{first + 1}"'
    )


def require_cupy():
    """The `cupy` module, once it is certain that it can run a kernel.
    Raises BackendError: what failed, and what to do."""
    commands = [
        f"{install(cuda)} (driver {driver} or newer)"
        for cuda, driver in _DRIVERS.items()
    ]
    # `failed` and `remedy` are for the error, if the statements that follow them raise one
    remedy = f"{' or '.join(commands)}, not both"
    failed = "CuPy cannot be imported"
    try:
        import cupy

        library = f"CuPy {cupy.__version__}"
        failed = f"{library} cannot be used"
        if tuple(map(int, cupy.__version__.split(".")[:2])) < _OLDEST_CUPY:
            raise RuntimeError("{}.{} is the oldest that can".format(*_OLDEST_CUPY))
        failed = f"{library} cannot find a GPU"
        remedy = "nvidia-smi -L lists those that the driver knows"
        cupy.cuda.runtime.getDeviceCount()
        failed = f"{library} cannot load CUDA's libraries"
        remedy = f"{install(cuda_version(cupy))} brings them along"
        cupy.cuda.nvrtc.getVersion()
        # attributes, no imports: CuPy then also looks where pip puts the libraries
        _ = cupy.cuda.cublas, cupy.cuda.cusolver
        failed = f"{library} cannot run a first kernel"
        remedy = "nvidia-smi shows whether the GPU is free"
        int((cupy.zeros(_ROOM, "uint8") + 1)[0])
        cupy.get_default_memory_pool().free_all_blocks()
    except Exception as error:
        reason = first_line(error.__cause__ or error)
        more = "more is in scripts/gpu.md, and backend numba needs no GPU"
        raise BackendError(
            f"backend cupy cannot run: {failed} ({reason}): {remedy}; {more}"
        ) from None
    return cupy


def cuda_version(cupy) -> int:
    """The major version of CUDA that CuPy runs on."""
    return cupy.cuda.runtime.runtimeGetVersion() // 1000


def describe(cupy) -> dict:
    """The current device and the libraries that compute on it, for a run's configuration."""
    runtime = cupy.cuda.runtime
    packages = {
        each.name: each.version for each in metadata.distributions() if each.name
    }
    return {
        "name": runtime.getDeviceProperties(cupy.cuda.Device().id)["name"].decode(),
        # 13020 is 13.2
        "cuda_driver": "{}.{}".format(*divmod(runtime.driverGetVersion() // 10, 100)),
        "cuda_runtime": "{}.{}".format(*divmod(runtime.runtimeGetVersion() // 10, 100)),
        "cupy": cupy.__version__,
        "packages": {
            n: packages[n]
            for n in sorted(packages)
            if re.match("cupy|nvidia-|cuda-", n)
        },
    }


def explain_out_of_memory(error: Exception, cupy) -> str | None:
    """The message for what did not fit on the device or the host; None for any other error."""
    of_a_library = isinstance(error, RuntimeError) and _OUT_OF_MEMORY.search(str(error))
    if of_a_library or isinstance(error, cupy.cuda.memory.OutOfMemoryError):
        free, total = (
            f"{size / 2**30:.1f} GiB" for size in cupy.cuda.runtime.memGetInfo()
        )
        return f"{first_line(error).rstrip('.')}; the GPU has {total}, of which {free} are free"
    return (
        f"on the host: {first_line(error)}" if isinstance(error, MemoryError) else None
    )


def first_line(error: BaseException) -> str:
    """The first line of an error with a word in it."""
    lines = (" ".join(line.split()) for line in str(error).splitlines())
    words = next(
        (line for line in lines if re.search("[A-Za-z]", line)), type(error).__name__
    )
    return words if len(words) <= 200 else words[:199] + "…"
