"""The three backends, put together: the class of each group of operations."""

import inspect
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from operator import attrgetter

from snfnp.ops.activation.definition import Activation
from snfnp.ops.causal.definition import Causal
from snfnp.ops.channels.definition import Channels
from snfnp.ops.conv.definition import Conv
from snfnp.ops.coupling.definition import Coupling
from snfnp.ops.host import HostDevice
from snfnp.ops.images.definition import Images
from snfnp.ops.linalg.definition import LinearAlgebra
from snfnp.ops.random.definition import Random
from snfnp.ops.spline.definition import Spline
from snfnp.ops.step.definition import Step


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
    causal: Causal
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
    defer = property(attrgetter("device.defer"))
    deferred = property(attrgetter("device.deferred"))

    @property
    def host(self):
        """The reference implementation on the CPU, for host arrays."""
        return assemble(HostDevice("numpy") if self.asynchronous else self.device, DEFINITIONS)

    @property
    def definitions(self):
        """The reference implementation, on a CPU: for rare computations, whose kernels would take
        longer to compile than they save. On a GPU this backend itself."""
        return self if self.asynchronous else self.host

    def __reduce__(self):
        """Copies and pickles have the same classes, on the device that unpickling makes."""
        return assemble, (self.device, {name: type(getattr(self, name)) for name in DEFINITIONS})


# The definitions themselves, which are NumPy's backend. A group comes after those it uses.
DEFINITIONS = {name: kind for name, kind in Ops.__annotations__.items() if name != "device"}


def overrides(kind: str) -> dict[str, type]:
    """The class of every group: `CpuConv` of `conv/cpu.py` (Numba), or `GpuConv` of `conv/gpu.py`,
    in place of `Conv` if the folder has such a file. Importing the latter needs no CuPy."""
    classes = {}
    for group, definition in DEFINITIONS.items():
        module = f"snfnp.ops.{group}.{kind}"
        if find_spec(module):
            definition = getattr(import_module(module), kind.title() + definition.__name__)
        classes[group] = definition
    return classes


def assemble(device, classes: dict[str, type]) -> Ops:
    """A backend from its device and the class of every group, in the order of `DEFINITIONS`. The
    parameters of a class name the groups that it uses."""
    groups = {}
    for name, group in classes.items():
        _, *used = inspect.signature(group).parameters
        groups[name] = group(device, *(groups[other] for other in used))
    return Ops(device=device, **groups)
