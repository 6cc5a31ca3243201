"""Numbers on a device: the only place that tells NumPy, Numba and CuPy apart.

Every group of operations has a folder. `definition.py` is the reference implementation in array
terms, which NumPy runs and CuPy can run. `cpu.py` (Numba) and `gpu.py` (CuPy, with `kernels.cu`)
override the operations that take most of the time, and a test compares every override with the
reference. So `ops.spline.evaluate` is in `spline/definition.py`.

An ops object is passed explicitly to everything that computes; there is no current backend.
"""

from typing import Any

from snfnp import threads
from snfnp.errors import UsageError
from snfnp.ops.backends import DEFINITIONS, Ops, assemble, overrides
from snfnp.ops.communication import SINGLE_PROCESS, Communicator, shares, world
from snfnp.ops.host import HostDevice, ranks_on_shared_cores
from snfnp.ops.random.philox import RandomKey

Array = Any  # an array of a device: NumPy's, or CuPy's
BACKENDS = {"numba": "CPU, compiled", "numpy": "CPU", "cupy": "GPU"}


def get_ops(backend="numba", tf32=False, world: Communicator = SINGLE_PROCESS) -> Ops:
    """The operations of a backend: "numba" (the default on a CPU), "numpy" or "cupy" (a GPU).

    Args:
        backend: its name.
        tf32: on a GPU, let tensor cores round the factors of single-precision products to 10 bits.
        world: the processes of a run: on CPUs those of a machine share its cores, on GPUs each has
            its own device.

    Raises:
        BackendError: in one line, with what is missing, if the backend cannot run.
        UsageError: for another name.
    """
    if backend in ("numpy", "numba"):
        groups, device = DEFINITIONS, HostDevice(backend)
        if backend == "numba":
            from snfnp.ops.jit import compilations

            groups, device = overrides("cpu"), HostDevice(backend, compilations)
        threads.share_cores(ranks_on_shared_cores(world))
        return assemble(device, groups)
    if backend == "cupy":
        from snfnp.ops.gpu.device import Gpu

        return assemble(Gpu(tf32, world), overrides("gpu"))
    raise UsageError(f"backend is {backend!r}: choose one of {', '.join(BACKENDS)}")


__all__ = ["SINGLE_PROCESS", "BACKENDS", "Array", "Communicator", "Ops"]
__all__ += ["RandomKey", "get_ops", "shares", "world"]
