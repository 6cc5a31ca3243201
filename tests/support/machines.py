"""Machines on which `--backend cupy` may or may not run, for `test_cupy_device.py`.

CuPy, its driver and its libraries are faked: nothing here needs them.
"""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass, field
from types import SimpleNamespace

from snfnp.ops.gpu import requirements

STUB = -1  # instead of a driver's version: a library of its name without its functions
GIB = 2**30


class CUDARuntimeError(RuntimeError):
    def __init__(self, status, text):
        super().__init__(text)
        self.status = status


class OutOfMemoryError(MemoryError):
    """As CuPy's: the amounts are in the text."""


class FakeCupy(SimpleNamespace):
    """The part of CuPy that is called, of an H100 on which all is well but for what is given.

    devices, nvrtc, cublas, cusolver and kernel take an exception to raise in their place.
    """

    def __init__(self, **given):
        state = {
            "version": "14.2.0",
            "driver": 13000,
            "runtime": 13020,
            "devices": 1,
            "name": b"NVIDIA H100 80GB HBM3",
            "capability": "90",
            "nvrtc": (13, 0),
            "archs": (75, 80, 90, 121),
            "cublas": "cuBLAS",
            "cusolver": "cuSOLVER",
            "kernel": 1.0,
            "memory": (30 * GIB, 80 * GIB),
            "pool": 40 * GIB,
        }
        assert set(given) <= set(state)
        self.state = {**state, **given}
        properties = {"name": self.state["name"], "totalGlobalMem": self.state["memory"][1]}
        runtime = SimpleNamespace(
            CUDARuntimeError=CUDARuntimeError,
            getDeviceCount=lambda: self.answer("devices"),
            driverGetVersion=lambda: self.answer("driver"),
            runtimeGetVersion=lambda: self.answer("runtime"),
            getDeviceProperties=lambda device: properties,
            memGetInfo=lambda: self.answer("memory"),
        )
        nvrtc = SimpleNamespace(
            getVersion=lambda: self.answer("nvrtc"),
            getSupportedArchs=lambda: self.answer("archs"),
        )
        device = SimpleNamespace(id=0, compute_capability=self.state["capability"])
        super().__init__(
            __version__=self.state["version"],
            cuda=_Cuda(self, runtime, nvrtc, device),
            zeros=lambda size: _Number(self),
            get_default_memory_pool=lambda: SimpleNamespace(
                total_bytes=lambda: self.answer("pool")
            ),
        )

    def answer(self, name):
        found = self.state[name]
        if isinstance(found, Exception):
            raise found
        return found


class _Cuda:
    """cupy.cuda: the libraries are looked for when they are first named."""

    memory = SimpleNamespace(OutOfMemoryError=OutOfMemoryError)

    def __init__(self, cupy, runtime, nvrtc, device):
        self._cupy, self.runtime, self.nvrtc = cupy, runtime, nvrtc
        self.Device = lambda: device

    cublas = property(lambda self: self._cupy.answer("cublas"))
    cusolver = property(lambda self: self._cupy.answer("cusolver"))


class _Number:
    def __init__(self, cupy):
        self._cupy = cupy

    def __add__(self, other):
        return [self._cupy.answer("kernel")]


@dataclass
class Machine:
    """What there is on a machine.

    driver: the CUDA version it supports, None, or STUB. cupy: a FakeCupy, an exception of its
    import, or None.
    """

    driver: int | None = None
    nvidia_smi: bool = False
    installed: dict = field(default_factory=lambda: {"cupy-cuda13x": "14.2.0"})
    cupy: FakeCupy | Exception | None = field(default_factory=FakeCupy)
    visible: str | None = None


class _FailingImport:
    def __init__(self, error):
        self._error = error

    def find_spec(self, name, path=None, target=None):
        if name == "cupy":
            raise self._error


def enter(monkeypatch, machine: Machine):
    """From here on the code under test is on that machine. -> its CuPy"""

    def version(name):
        if name not in machine.installed:
            raise requirements.metadata.PackageNotFoundError(name)
        return machine.installed[name]

    def load(name):
        assert name == "libcuda.so.1"
        if machine.driver is None:
            raise OSError(f"{name}: cannot open shared object file")
        return SimpleNamespace() if machine.driver == STUB else SimpleNamespace(**functions)

    def ask(reference):
        reference._obj.value = machine.driver
        return 0

    functions = {"cuDriverGetVersion": ask}
    # all that the module uses of ctypes; other modules keep theirs
    loader = SimpleNamespace(CDLL=load, c_int=ctypes.c_int, byref=ctypes.byref)
    monkeypatch.setattr(requirements, "ctypes", loader)
    monkeypatch.setattr(
        requirements,
        "metadata",
        SimpleNamespace(
            version=version,
            PackageNotFoundError=requirements.metadata.PackageNotFoundError,
            distributions=lambda: [SimpleNamespace(name=name) for name in machine.installed],
        ),
    )
    which = {"nvidia-smi": "/usr/bin/nvidia-smi"} if machine.nvidia_smi else {}
    monkeypatch.setattr(requirements, "shutil", SimpleNamespace(which=which.get))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if machine.visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", machine.visible)
    if isinstance(machine.cupy, Exception):
        monkeypatch.delitem(sys.modules, "cupy", raising=False)
        finders = [_FailingImport(machine.cupy), *sys.meta_path]
        monkeypatch.setattr(sys, "meta_path", finders)
    else:
        monkeypatch.setitem(sys.modules, "cupy", machine.cupy)  # None: there is none
    return machine.cupy
