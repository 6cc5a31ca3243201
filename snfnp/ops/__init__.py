"""Numbers on a device: the only place that tells NumPy, Numba and CuPy apart.

Every group of operations has a folder. `definition.py` says in array terms what each
operation computes: NumPy runs it, and CuPy can. `cpu.py` (Numba) and `gpu.py` (CuPy, with
`kernels.cu`) override what takes most of the time, and a test compares every override with its
definition. So `ops.spline.evaluate` is defined in `spline/definition.py`.

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
BACKENDS = ("numba", "numpy", "cupy")


def get_ops(
    backend="numba", tf32=False, world: Communicator = SINGLE_PROCESS, overlap=False
) -> Ops:
    """The operations of a backend: "numba" (the default on a CPU), "numpy" or "cupy" (a GPU).

    tf32, overlap: see `snfnp.ops.gpu.device.Gpu`; a CPU ignores them. world: the processes of a
    run: on a CPU those of one machine share its cores, on GPUs each has one of its own. Raises
    BackendError, with one line that says what is missing, if the backend cannot run.
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

        return assemble(Gpu(tf32, world, overlap), overrides("gpu"))
    raise UsageError(f"backend is {backend!r}: choose one of {', '.join(BACKENDS)}")


__all__ = ["SINGLE_PROCESS", "BACKENDS", "Array", "Communicator", "Ops"]
__all__ += ["RandomKey", "get_ops", "shares", "world"]
