"""Numbers on a device: the only place that tells NumPy, Numba and CuPy apart.

Every group of operations has a folder. `definition.py` is the reference implementation in array
terms: NumPy runs it, and CuPy what `gpu.py` does not override. `cpu.py` (Numba) and `gpu.py` (CuPy,
with `kernels.cu`) override the operations that take most of the time, and a test compares every
override with the reference. So `ops.spline.evaluate` is in `spline/definition.py`. Overrides do not
repeat the types of its arguments.

An ops object is passed explicitly to everything that computes; there is no current backend.
"""

from copy import copy
from dataclasses import dataclass, replace
from importlib import import_module
from importlib.util import find_spec
from operator import attrgetter
from typing import Any

from snfnp import threads
from snfnp.errors import UsageError
from snfnp.ops.activation.definition import Activation
from snfnp.ops.channels.definition import Channels
from snfnp.ops.conv.definition import Conv
from snfnp.ops.coupling.definition import Coupling
from snfnp.ops.group import Array, Scalar, Shape
from snfnp.ops.host import HostDevice
from snfnp.ops.images.definition import Images
from snfnp.ops.linalg.definition import LinearAlgebra
from snfnp.ops.random.definition import Random, RandomKey
from snfnp.ops.spline.definition import Spline
from snfnp.ops.step.definition import Step

BACKENDS = {"numba": "CPU, compiled", "numpy": "CPU", "cupy": "GPU"}


@dataclass(frozen=True, eq=False, repr=False)
class Ops:
    """One backend: a device, and one group of operations for each folder of `snfnp.ops`."""

    device: HostDevice  # or a `Gpu`, which has the same members
    random: Random
    linalg: LinearAlgebra
    activation: Activation
    channels: Channels
    spline: Spline
    conv: Conv
    coupling: Coupling
    images: Images
    step: Step

    # The device's members that all other code uses: `HostDevice` says what each does.
    xp = property(attrgetter("device.xp"))
    name = property(attrgetter("device.name"))
    asynchronous = property(attrgetter("device.asynchronous"))
    asarray = property(attrgetter("device.asarray"))
    constant = property(attrgetter("device.constant"))
    to_host = property(attrgetter("device.to_host"))
    known_on_host = property(attrgetter("device.known_on_host"))

    @property
    def host(self) -> "Ops":
        """The reference implementation on the CPU, for host arrays."""
        return assemble(HostDevice("numpy"), DEFINITIONS)

    @property
    def forward_only(self) -> "Ops":
        """These operations for passes that no backward pass follows: they keep nothing for one. An
        object of its own, since another thread may train with this one."""
        coupling = copy(self.coupling)
        coupling.keeps_hidden = False
        return replace(self, coupling=coupling)

    def __reduce__(self) -> tuple:
        """Copies and pickles have the same classes, on the device that unpickling makes."""
        return assemble, (
            self.device,
            {name: type(getattr(self, name)) for name in DEFINITIONS},
        )


# The definitions themselves, which are NumPy's backend. A group comes after those it uses.
DEFINITIONS = {
    name: kind for name, kind in Ops.__annotations__.items() if name != "device"
}


def overrides(kind: str) -> dict[str, type]:
    """The class of every group: `CpuConv` of `conv/cpu.py` (Numba), or `GpuConv` of `conv/gpu.py`,
    in place of `Conv` if the folder has such a file. Importing the latter needs no CuPy."""
    classes = {}
    for group, definition in DEFINITIONS.items():
        module = f"snfnp.ops.{group}.{kind}"
        if find_spec(module):
            definition = getattr(
                import_module(module), kind.title() + definition.__name__
            )
        classes[group] = definition
    return classes


def assemble(device: Any, classes: dict[str, type]) -> Ops:
    """A backend from its device and the class of every group, in the order of `DEFINITIONS`."""
    groups = {}
    for name, group in classes.items():
        groups[name] = group(device, **groups)
    return Ops(device=device, **groups)


def get_ops(backend: str = "numba", tf32: bool = False) -> Ops:
    """The operations of a backend: "numba" (the default on a CPU), "numpy" or "cupy" (a GPU).

    Args:
        backend: its name.
        tf32: on a GPU, let tensor cores round the factors of single-precision products to 10 bits.

    Raises:
        BackendError: in one line, with what is missing, if the backend cannot run.
        UsageError: for another name.
    """
    device: Any
    if backend == "numpy":
        groups = DEFINITIONS
        device = HostDevice(backend)
    elif backend == "numba":
        from snfnp.ops.jit import compilations

        groups = overrides("cpu")
        device = HostDevice(backend, compilations)
    elif backend == "cupy":
        from snfnp.ops.gpu.device import Gpu

        groups = overrides("gpu")
        device = Gpu(tf32)
    else:
        raise UsageError(f"backend is {backend!r}: choose one of {', '.join(BACKENDS)}")
    threads.limit_to_cores()
    return assemble(device, groups)


def cpu_backends() -> list[Ops]:
    """The operations of every backend of CPUs that is installed, the reference's first."""
    return [get_ops(name) for name in ("numpy", "numba") if find_spec(name)]


__all__ = [
    "BACKENDS",
    "Array",
    "Ops",
    "RandomKey",
    "Scalar",
    "Shape",
    "cpu_backends",
    "get_ops",
]
