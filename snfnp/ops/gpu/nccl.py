"""Sums of arrays on GPUs through CuPy's wrapper of NCCL; see derivations/25-many-cores.md."""

import socket
import warnings

import numpy as np

from snfnp.errors import BackendError
from snfnp.ops.communication import Communicator
from snfnp.ops.gpu.launch import DeviceGuard


class Nccl:
    """Sums over the processes of `world`, on the current stream of the device that is current now.

    NCCL adds each element in one place and hands the sum round: all ranks get the same bits. A sum
    is a launch as any other: the host does not wait, and a CUDA graph records it. All ranks make
    this together; raises BackendError, on all of them, if one lacks NCCL or two have the same GPU.
    """

    def __init__(self, cupy, world: Communicator):
        self._cupy, self._guard = cupy, DeviceGuard(cupy)
        nccl, missing = _load(cupy)
        for rank, reason in enumerate(world.gather(missing)):
            if reason:
                found = f"for rank {rank} {reason}"
                raise BackendError(f"several processes on GPUs need NCCL, and {found}")
        _require_apart(world.gather(_place(cupy)))
        self._nccl = nccl
        self._types = {np.dtype("f4"): nccl.NCCL_FLOAT32, np.dtype("f8"): nccl.NCCL_FLOAT64}
        key = world.on_rank_zero(nccl.get_unique_id)
        self._nccl_communicator = nccl.NcclCommunicator(world.size, key, world.rank)

    def all_reduce(self, *arrays) -> None:
        """See `Communicator`."""
        self._guard.require()
        stream = self._cupy.cuda.get_current_stream().ptr
        for array in arrays:
            if not array.flags.c_contiguous:
                raise ValueError("an array that is summed over ranks must be C-contiguous")
        self._nccl.groupStart()  # one launch for all of them
        try:
            for array in arrays:
                place, kind, add = array.data.ptr, self._types[array.dtype], self._nccl.NCCL_SUM
                self._nccl_communicator.allReduce(place, place, array.size, kind, add, stream)
        finally:
            self._nccl.groupEnd()


def _load(cupy):
    """CuPy's module for NCCL, and what is missing of it, or None."""
    with warnings.catch_warnings():  # in place of which there is the error
        warnings.simplefilter("ignore")
        from cupy.cuda import nccl
    if nccl.available:
        return nccl, None
    cuda = cupy.cuda.runtime.runtimeGetVersion() // 1000
    return nccl, f"NCCL is not installed: python -m pip install nvidia-nccl-cu{cuda}"


def _place(cupy) -> tuple[str, str]:
    """The machine and the GPU that this process has there."""
    runtime = cupy.cuda.runtime
    properties = runtime.getDeviceProperties(runtime.getDevice())
    numbers = (properties[f"pci{part}ID"] for part in ("Domain", "Bus", "Device"))
    return socket.gethostname(), "{:08X}:{:02X}:{:02X}".format(*numbers)


def _require_apart(places: list[tuple[str, str]]) -> None:
    for rank, place in enumerate(places):
        first = places.index(place)
        if first != rank:
            here = [other for other in places if other[0] == place[0]]
            found = f"{len(here)} processes on {place[0]} are more than its {len(set(here))} GPU(s)"
            both = f"ranks {first} and {rank} both have {place[1]}"
            raise BackendError(f"{found}: {both}; start one process for each GPU")
