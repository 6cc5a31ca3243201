"""Sums of arrays on GPUs by NCCL, through CuPy; see derivations/26-many-cores.md."""

import warnings

from snfnp.errors import BackendError
from snfnp.ops.communication import Communicator
from snfnp.ops.gpu.launch import DeviceGuard
from snfnp.ops.gpu.requirements import cuda_version, first_line


class Nccl:
    """Sums over the processes of `world`, on the current stream of the device that is current now.

    NCCL adds each element in one place and hands the sum round: all ranks get the same bits. A sum
    is a launch as any other: the host does not wait, and a CUDA graph records it. All ranks make
    this together; raises BackendError if NCCL is missing or two ranks have the same GPU.
    """

    def __init__(self, cupy, world: Communicator):
        self._guard = DeviceGuard(cupy)
        try:
            with warnings.catch_warnings():  # in place of which there is the error
                warnings.simplefilter("ignore")
                from cupyx.distributed import init_process_group
            self._group = init_process_group(world.size, world.rank, use_mpi=True)
        except (ImportError, RuntimeError) as error:
            message = f"NCCL cannot connect the GPUs of {world.size} ranks ({first_line(error)})"
            install = f"`python -m pip install nvidia-nccl-cu{cuda_version(cupy)}` brings NCCL"
            raise BackendError(
                f"{message}: each needs a GPU of its own, and {install}"
            ) from None

    def all_reduce(self, *arrays) -> None:
        """See `Communicator`."""
        self._guard.require()
        for array in arrays:  # CuPy refuses those that are not contiguous
            self._group.all_reduce(array, array)
