"""The three backends, put together: which class each room has, and which rooms a room uses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from snfnp.ops.activation.definition import Activation
from snfnp.ops.causal.definition import Causal
from snfnp.ops.channels.definition import Channels
from snfnp.ops.conv.definition import Conv
from snfnp.ops.coupling.definition import Coupling
from snfnp.ops.density.definition import Density
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
    """One backend: a device, and one room for each family of operations on its arrays."""

    device: HostDevice | Gpu
    random: Random
    linalg: LinearAlgebra
    density: Density
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
        """Why a first run is slow to start, for its user; "" where it is not."""
        return self.device.start_note

    @property
    def asynchronous(self) -> bool:
        """Whether operations may return before they are done."""
        return self.device.asynchronous

    def asarray(self, host, dtype=None):
        """A host array as a C-contiguous array on the device, cast where `dtype` is given."""
        return self.device.asarray(host, dtype)

    def constant(self, host):
        """A small host array that depends on shapes alone, on the device in double precision. It
        is copied once, and must not be changed."""
        return self.device.constant(host)

    def to_host(self, array):
        """A device array as a NumPy array on the host."""
        return self.device.to_host(array)

    def peek(self, condition) -> bool | None:
        """Whether a condition or number of shape () is not 0; None where the host would wait."""
        return self.device.peek(condition)

    def aside(self, function, *arguments, **named) -> None:
        """Call `function(*arguments, **named)`, for what it writes into arrays among them.

        Inside `with ops.joining():` a device may do it beside all that follows, up to the end of
        the block: until there nothing else may write what it reads, or touch what it writes. It
        keeps no array that it makes on the way.
        """
        self.device.aside(function, *arguments, **named)

    def joining(self):
        """A context at whose end all that was called `aside` in it is done before what follows."""
        return self.device.joining()


def assemble(device, rooms: dict[str, type]) -> Ops:
    """A backend from its device and the class of every room."""
    linalg, channels = rooms["linalg"](device), rooms["channels"](device)
    conv = rooms["conv"](device, linalg, channels)
    return Ops(
        device=device,
        random=rooms["random"](device),
        linalg=linalg,
        density=rooms["density"](device),
        activation=rooms["activation"](device),
        channels=channels,
        spline=rooms["spline"](device),
        conv=conv,
        causal=rooms["causal"](device, linalg, conv),
        coupling=rooms["coupling"](device, linalg, channels, conv),
        images=rooms["images"](device),
        step=rooms["step"](device, linalg),
    )


def numpy_rooms() -> dict[str, type]:
    """Every definition as it stands."""
    return {
        "random": Random,
        "linalg": LinearAlgebra,
        "density": Density,
        "activation": Activation,
        "channels": Channels,
        "spline": Spline,
        "conv": Conv,
        "causal": Causal,
        "coupling": Coupling,
        "images": Images,
        "step": Step,
    }


def numba_rooms() -> dict[str, type]:
    """The definitions, and kernels that Numba compiles where a CPU spends its time."""
    from snfnp.ops.activation.cpu import CpuActivation
    from snfnp.ops.causal.cpu import CpuCausal
    from snfnp.ops.channels.cpu import CpuChannels
    from snfnp.ops.conv.cpu import CpuConv
    from snfnp.ops.coupling.cpu import CpuCoupling
    from snfnp.ops.images.cpu import CpuImages
    from snfnp.ops.linalg.cpu import CpuLinearAlgebra
    from snfnp.ops.random.cpu import CpuRandom
    from snfnp.ops.spline.cpu import CpuSpline
    from snfnp.ops.step.cpu import CpuStep

    return numpy_rooms() | {
        "random": CpuRandom,
        "linalg": CpuLinearAlgebra,
        "activation": CpuActivation,
        "channels": CpuChannels,
        "spline": CpuSpline,
        "conv": CpuConv,
        "causal": CpuCausal,
        "coupling": CpuCoupling,
        "images": CpuImages,
        "step": CpuStep,
    }


def cupy_rooms() -> dict[str, type]:
    """The definitions on CuPy's arrays, and CUDA kernels. Importing these needs no CuPy."""
    from snfnp.ops.activation.gpu import GpuActivation
    from snfnp.ops.causal.gpu import GpuCausal
    from snfnp.ops.channels.gpu import GpuChannels
    from snfnp.ops.conv.gpu import GpuConv
    from snfnp.ops.coupling.gpu import GpuCoupling
    from snfnp.ops.density.gpu import GpuDensity
    from snfnp.ops.images.gpu import GpuImages
    from snfnp.ops.linalg.gpu import GpuLinearAlgebra
    from snfnp.ops.random.gpu import GpuRandom
    from snfnp.ops.spline.gpu import GpuSpline
    from snfnp.ops.step.gpu import GpuStep

    return {
        "random": GpuRandom,
        "linalg": GpuLinearAlgebra,
        "density": GpuDensity,
        "activation": GpuActivation,
        "channels": GpuChannels,
        "spline": GpuSpline,
        "conv": GpuConv,
        "causal": GpuCausal,
        "coupling": GpuCoupling,
        "images": GpuImages,
        "step": GpuStep,
    }
