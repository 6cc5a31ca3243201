"""Compiling the rooms' kernels with CuPy on first use, and launching them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from snfnp.ops.gpu import source
from snfnp.ops.gpu.home import Home


class Strided(NamedTuple):
    """An array that is not contiguous, for a kernel that is given its strides as well."""

    array: object


def strides(array) -> list[int]:
    """In values, not bytes."""
    return [stride // array.itemsize for stride in array.strides]


class Launcher:
    """launch(name, dtype, blocks, *arguments), on the device that was current when this was made
    and CuPy's current stream."""

    def __init__(self, cupy):
        self._cupy, self._home = cupy, Home(cupy)
        self._kernels = {}

    def __call__(self, name: str, dtype, blocks: int, *arguments, threads: int = source.THREADS):
        """Launch a kernel for arrays of `dtype`; blocks = 0 (an empty array) does nothing.

        arguments, in the kernel's order: arrays, Python or NumPy numbers, None for a null pointer.
        A GPU would read an array or a number of another type than the kernel's as garbage.
        """
        if blocks:
            self._home.require()
            dtype = np.dtype(dtype)
            types = source.parameters(name)
            converted = tuple(
                _argument(argument, kind, dtype)
                for argument, kind in zip(arguments, types, strict=True)
            )
            self._kernel(name, str(dtype))((blocks,), (threads,), converted)

    def _kernel(self, name: str, dtype: str):
        if (name, dtype) not in self._kernels:
            # per room and type: training in one precision does not wait for the other's compiler
            room = source.kernels()[name]
            names = [each for each, place in source.kernels().items() if place == room]
            expressions = [source.expression(each, dtype) for each in names]
            module = self._cupy.RawModule(
                code=source.source(room), options=source.OPTIONS, name_expressions=expressions
            )
            for each, expression in zip(names, expressions, strict=True):
                self._kernels[each, dtype] = module.get_function(expression)
        return self._kernels[name, dtype]


def _argument(argument, kind: str, dtype):
    """An argument as a kernel declares it: `kind` is its C type, T stands for `dtype`."""
    if kind == "long long":
        return np.int64(argument)
    if kind == "double":
        return np.float64(argument)
    if argument is None:
        return np.uint64(0)
    strided = isinstance(argument, Strided)
    array = argument.array if strided else argument
    if array.dtype != (dtype if source.POINTED[kind] == "T" else source.POINTED[kind]):
        raise TypeError(f"a kernel takes a {kind} for T = {dtype}, not an array of {array.dtype}")
    if not (strided or array.flags.c_contiguous):
        raise ValueError("a kernel takes contiguous arrays only")
    return array
