"""Launches of kernels by the names of their parameters; compilation with CuPy on first use."""

import operator
import threading
from collections.abc import Callable
from functools import cache, partial

import numpy as np

from snfnp.errors import BackendError
from snfnp.ops.gpu import source

_NULL = np.uint64(0)


class DeviceGuard:
    """The device that was current when this was made (id: its number), and the thread. `require`
    refuses other devices, whose memory is another, and threads, whose launches could come between
    those that share counters and cuBLAS's workspace."""

    def __init__(self, cupy):
        self._current = cupy.cuda.runtime.getDevice
        self.id = self._current()
        self._thread = threading.get_ident()

    def require(self) -> None:
        """Raises BackendError if another device is current, or in another thread."""
        if threading.get_ident() != self._thread:
            raise BackendError(
                "this GPU backend was made in another thread: "
                "make one in every thread that uses one, with get_ops"
            )
        if (current := self._current()) != self.id:
            raise BackendError(
                f"this backend was made on GPU {self.id}, and GPU {current} is the current one: "
                f"use it inside `with cupy.cuda.Device({self.id})`, or make another with get_ops"
            )


class Launcher:
    """launch(kernel, dtype, blocks, **arguments), on this device and CuPy's current stream.
    observer: begins() is called before kernels are compiled, and ends(count) after."""

    def __init__(self, cupy):
        self._cupy = cupy
        self._guard = DeviceGuard(cupy)
        self._functions = {}
        self.observer: tuple[Callable, Callable] = (lambda: None, lambda count: None)

    def __call__(
        self, kernel: str, dtype, blocks: int, /, *, threads=source.THREADS, **arguments
    ):
        """Launch a kernel for arrays of `dtype`; blocks = 0 (an empty array) does nothing.

        arguments: every parameter of the kernel by name, None for a null pointer. A pair `a_at, a`
        is given as `a`, a number or a device array of shape (), and strides are not given. What the
        kernel only reads, without strides, is copied if it is not contiguous. Raises TypeError for
        a name that is missing or unknown, and for an array of another type than the kernel's.
        """
        converters = _converters(kernel)
        # one for a pair, one for an array with strides
        names = {name for name, _ in converters}
        if wrong := names ^ arguments.keys():
            raise TypeError(
                f"kernel {kernel} has other parameters, missing or unknown: "
                f"{', '.join(sorted(wrong))}"
            )
        if blocks:
            dtype = np.dtype(dtype)
            values = tuple(
                convert(arguments[name], dtype) for name, convert in converters
            )
            self._start(kernel, dtype, blocks, threads, values)

    def _start(self, kernel, dtype, blocks, threads, values) -> None:
        """Launch with the values of all parameters, in the kernel's order."""
        self._guard.require()
        self._function(kernel, dtype)((blocks,), (threads,), values)

    def _function(self, kernel: str, dtype: np.dtype):
        key = dtype.char  # `str(dtype)` would take longer than the launch
        if (kernel, key) not in self._functions:
            # per group and type: training in one precision does not wait for the other's compiler
            group = source.kernels()[kernel]
            names = source.names(group)
            expressions = [source.expression(name, str(dtype)) for name in names]
            begins, ends = self.observer
            begins()
            module = self._cupy.RawModule(
                code=source.source(group),
                options=source.OPTIONS,
                name_expressions=expressions,
            )
            for name, expression in zip(names, expressions, strict=True):
                self._functions[name, key] = module.get_function(expression)
            ends(len(names))
        return self._functions[kernel, key]


@cache
def _converters(kernel: str) -> tuple[tuple[str, Callable], ...]:
    """For each parameter: the name of its argument, and convert(argument, dtype)."""
    names = {parameter.name for parameter in source.parameters(kernel)}
    return tuple(_converter(kernel, each, names) for each in source.parameters(kernel))


def _converter(kernel: str, parameter: source.Parameter, names: set[str]):
    name, kind = parameter
    array, strided, axis = name.rpartition("_stride_")
    if strided:
        axis = int(axis)
        return array, lambda a, dtype: np.int64(
            0 if a is None else a.strides[axis] // a.itemsize
        )
    number = name.removesuffix("_at")
    pointer = partial(
        _pointer, f"{kernel}: {number}", kind, f"{name}_stride_0" in names
    )
    if number != name:
        of_kind = operator.methodcaller("astype", source.POINTED[kind], copy=False)
        return (
            number,
            lambda n, dtype: _NULL if host_knows(n) else pointer(of_kind(n), dtype),
        )
    if kind not in ("double", "long long"):
        return name, pointer
    # operator.index refuses a real number, which int64 would truncate
    convert = np.float64 if kind == "double" else lambda n: np.int64(operator.index(n))
    if f"{name}_at" in names:
        return name, lambda n, dtype: convert(n if host_knows(n) else 0)
    return name, lambda n, dtype: convert(n)


def host_knows(number) -> bool:
    """True if the host knows a number: else it is an array of shape () on the device."""
    return isinstance(number, (int, float, np.generic))


def _pointer(where: str, kind: str, strided: bool, array, dtype):
    if array is None:
        return _NULL
    expected = dtype if source.POINTED[kind] == "T" else source.POINTED[kind]
    if array.dtype != expected:
        raise TypeError(
            f"{where} is a {kind} for T = {dtype}, not an array of {array.dtype}"
        )
    if strided or array.flags.c_contiguous:
        return array
    if kind.startswith("const "):
        return array.copy(order="C")
    raise ValueError(f"{where} is written to, and must be contiguous")
