"""The three backends, put together: the class of each group of operations."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING

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

if TYPE_CHECKING:
    from snfnp.ops.gpu.device import Gpu


@dataclass(frozen=True, eq=False)
class Ops:
    """One backend: a device, and one group of operations for each folder of `snfnp.ops`."""

    device: HostDevice | Gpu
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

    @property
    def xp(self):
        """The array namespace: NumPy, or CuPy."""
        return self.device.xp

    @property
    def name(self) -> str:
        return self.device.name

    @property
    def start_note(self) -> str:
        """A line for the user of a first run that is slow to start, or ""."""
        return self.device.start_note

    @property
    def asynchronous(self) -> bool:
        """True if operations may return before they are done."""
        return self.device.asynchronous

    def asarray(self, host, dtype=None):
        """A host array as a C-contiguous array on the device, cast if `dtype` is given."""
        return self.device.asarray(host, dtype)

    def constant(self, host):
        """A small host array that depends on shapes alone, on the device in double precision. It
        is copied once, and must not be changed."""
        return self.device.constant(host)

    def to_host(self, array):
        """A device array as a NumPy array on the host."""
        return self.device.to_host(array)

    def known_on_host(self, condition) -> bool | None:
        """True if a condition or number of shape () is not 0, False if it is 0; None if the host
        would have to wait for the answer."""
        return self.device.known_on_host(condition)

    def run_async(self, function, *arguments, **named) -> None:
        """Call `function(*arguments, **named)`, for its writes to arrays among them.

        Inside `with ops.side_stream():` a device may do it at the same time as all that follows,
        up to the end of the block: until then nothing else may write what it reads, or touch what
        it writes. It keeps no array that it makes on the way.
        """
        self.device.run_async(function, *arguments, **named)

    def side_stream(self):
        """A context that waits, at its end, for everything that `run_async` started in it."""
        return self.device.side_stream()


# Every definition as it stands, which is NumPy's backend. A group comes after those it uses.
DEFINITIONS = {
    "random": Random,
    "linalg": LinearAlgebra,
    "activation": Activation,
    "channels": Channels,
    "spline": Spline,
    "conv": Conv,
    "causal": Causal,
    "coupling": Coupling,
    "images": Images,
    "step": Step,
}


def overrides(kind: str) -> dict[str, type]:
    """The class of every group: `CpuConv` of `conv/cpu.py`, or `GpuConv` of `conv/gpu.py`, in the
    place of `Conv` if the folder has such a file. kind: "cpu" (Numba) or "gpu"; importing the
    latter needs no CuPy."""
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
