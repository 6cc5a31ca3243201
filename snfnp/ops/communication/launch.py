"""The launcher of this process, as the environment tells it: this needs no MPI."""

import os
from typing import NamedTuple

# (how many processes, this one's number, how many on this machine), as each launcher tells its
# processes. Hydra (MPICH, Intel MPI) and Slurm's PMI-1 and PMI-2; Open MPI; Slurm's steps, which
# have nothing to do with the size of the job around them.
_VARIABLES = (
    ("PMI_SIZE", "PMI_RANK", "MPI_LOCALNRANKS"),
    ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),
    ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_NTASKS_PER_NODE"),
)


class Launch(NamedTuple):
    """size: how many processes were started; rank: this one's number; here: how many on this
    machine, 0 if nothing tells; by: what tells."""

    size: int
    rank: int
    here: int
    by: str


def launched() -> Launch | None:
    """The launch of this process, if it is one of several."""
    for size, *others in _VARIABLES:
        launch = Launch(_number(size), *map(_number, others), size)
        if launch.size > 1:
            return launch
    return None


def _number(variable: str) -> int:
    text = os.environ.get(variable, "")
    return int(text) if text.isdecimal() else 0
