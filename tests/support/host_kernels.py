"""Running the CUDA kernels on the CPU: the GPU's groups on NumPy arrays, through g++.

Every group's kernels are compiled after `hostcuda.h`, once for both types, into a library that is
kept under a name made of its content.
"""

import ctypes
import hashlib
import math
import os
import platform
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from scipy.linalg import get_lapack_funcs

from snfnp.ops import Ops, RandomKey, assemble, get_ops, overrides
from snfnp.ops.gpu import launch, source
from snfnp.ops.gpu.device import Gpu
from snfnp.ops.linalg.gpu import GpuLinearAlgebra
from support.operation_calls import FLOATS, SIZES, Draw, assert_as_defined, in_order
from support.operation_cases import OVERRIDES

HEADER = Path(__file__).with_name("hostcuda.h")
# Contraction of a·b + c as on a GPU, where this CPU has the instruction.
FLAGS = ("-std=c++17", "-O1", "-march=native", "-ffp-contract=fast")
# everywhere, as some compilers define it by themselves
FLAGS += ("-D_FORTIFY_SOURCE=2",)
SANITIZE = ("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined")
SANITIZE += ("-g1", "-O0")  # lines; compiling would take longer than running
GUARD = 64  # bytes on both sides of an array
# One of these is in all bytes of an array's guards: numbers from 12 to 1e16, or from 2e6 to 1e127.
# Neighbours have different ones, so that a value that is read outside and stored outside shows.
_GUARD_BYTES = range(0x41, 0x5B)

_SHARED = re.compile(r"__shared__\s+([\w\s<>*]+?)\s*\b(\w+)((?:\[[^\]]*\])*);")


class Launcher(launch.Launcher):
    """`snfnp.ops.gpu.launch.Launcher` on NumPy arrays.

    folder: where libraries are kept; backwards: the order of threads and blocks; text_of: the text
    of a group's kernels; launched: the names of the kernels that ran. What CuPy would accept is an
    error here: arrays that overlap where a kernel declares that they do not.
    """

    def __init__(self, folder, backwards=False, text_of=source.source, flags=()):
        self._folder = folder
        self.backwards = backwards
        self._text_of = text_of
        self._flags = flags
        self._libraries: dict[str, ctypes.CDLL] = {}
        self.launched: set[str] = set()

    def _start(self, kernel, dtype, blocks, threads, values) -> None:
        assert isinstance(blocks, int) and 0 <= blocks < 2**31, blocks
        assert threads in range(32, source.THREADS + 1, 32), threads
        function = getattr(
            self.library(source.kernels()[kernel]), _symbol(kernel, dtype)
        )
        function.restype = ctypes.c_char_p
        _check_overlap(kernel, values)
        kinds = (parameter.kind for parameter in source.parameters(kernel))
        self.launched.add(kernel)
        error = function(
            blocks, threads, int(self.backwards), *map(_converted, values, kinds)
        )
        assert error is None, f"{kernel}: {error.decode()}"

    def library(self, group: str) -> ctypes.CDLL:
        if group not in self._libraries:
            path = compile_group(group, self._text_of(group), self._folder, self._flags)
            self._libraries[group] = ctypes.CDLL(str(path))
        return self._libraries[group]


def compile_all(folder: Path, flags=(), text_of=source.source) -> None:
    """Compile what is not in the folder yet, two groups at a time."""
    groups = source.groups()
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda g: compile_group(g, text_of(g), folder, flags), groups))


def compile_group(group: str, text: str, folder: Path, flags=()) -> Path:
    """The library with all kernels of a group, of this text."""
    names = [name for name, place in source.kernels().items() if place == group]
    text = _SHARED.sub(r"static \1 \2\3; hostcuda::poison(\2);", text)
    assert "__shared__" not in text, "declare one shared array per line"
    text = f'#include "{HEADER}"\n{text}'
    text += "".join(
        _entry_point(name, dtype) for name in names for dtype in source.TYPES
    )
    command = [
        "g++",
        *FLAGS,
        *flags,
        "-fPIC",
        "-shared",
        "-fvisibility=hidden",
        "-fno-gnu-unique",
    ]
    # the name of the machine: libraries are for its processor
    content = (text, HEADER.read_text(), *command, platform.node())
    name = f"{group}-{hashlib.sha256(repr(content).encode()).hexdigest()[:16]}"
    library = Path(folder, f"{name}.so")
    if not library.exists():
        code = library.with_suffix(".cpp")
        code.write_text(text)
        unfinished = library.with_suffix(f".{os.getpid()}")
        subprocess.run([*command, str(code), "-o", str(unfinished)], check=True)
        unfinished.rename(library)
    return library


def _symbol(name, dtype) -> str:
    return f"{name}_{source.TYPES[str(dtype)]}"


def _entry_point(name, dtype) -> str:
    """A C function that launches a kernel for one type."""
    real = source.TYPES[dtype]
    types = [re.sub(r"\bT\b", real, p.kind) for p in source.parameters(name)]
    declarations = "".join(f", {kind} a{i}" for i, kind in enumerate(types))
    arguments = ", ".join(f"a{i}" for i in range(len(types)))
    return (
        '\nextern "C" __attribute__((visibility("default"))) const char* '
        f"{_symbol(name, dtype)}(unsigned int blocks, unsigned int threads, int backwards"
        f"{declarations}) {{\n  return hostcuda::launch(blocks, threads, backwards, "
        f"[=] {{ {name}<{real}>({arguments}); }});\n}}\n"
    )


def _converted(value, kind: str):
    """A value for ctypes."""
    if isinstance(value, np.ndarray):
        return ctypes.c_void_p(value.ctypes.data)
    if kind.endswith("*"):
        return ctypes.c_void_p()
    return ctypes.c_double(value) if kind == "double" else ctypes.c_longlong(value)


def _check_overlap(kernel, values) -> None:
    """`__restrict__` promises that nothing else leads to what is written."""
    parameters = zip(source.parameters(kernel), values, strict=True)
    arrays = [(p, value) for p, value in parameters if isinstance(value, np.ndarray)]
    (text,) = re.findall(
        rf"void {kernel}\(([^)]*)\)", source.source(source.kernels()[kernel])
    )
    for written, array in arrays:
        promised = re.search(rf"__restrict__ {written.name}\b", text)
        for other, another in arrays:
            if (
                promised
                and not written.kind.startswith("const ")
                and other != written
                and np.may_share_memory(array, another)
            ):
                raise AssertionError(
                    f"{kernel}: {written.name} and {other.name} overlap"
                )


class _Cublas:
    """`snfnp.ops.gpu.cublas.Cublas` on NumPy arrays."""

    def gemm(self, a, b, out, beta=0.0):
        assert a.dtype == b.dtype == out.dtype and out.flags.c_contiguous
        out[...] = a @ b + (beta * out if beta else 0)


class HostGpu(Gpu):
    """The GPU's device on the CPU: NumPy's array namespace, and the kernels through `Launcher`.

    Arrays that kernels fill are made full of NaN and between guard cells; `check` looks at these,
    and at the counters. guard: bytes on each side (0 where a sanitizer guards arrays).
    """

    def __init__(self, launcher: Launcher, guard: int = GUARD):
        self.xp = np
        self.tf32 = False
        self.launch = launcher
        self.cublas = _Cublas()
        self._guard = guard
        self._blocks = []
        self.counters = np.zeros(8, np.uint32)

    def empty(self, shape, dtype):
        shape = (shape,) if isinstance(shape, int) else tuple(shape)
        size = math.prod(shape) * np.dtype(dtype).itemsize
        byte = _GUARD_BYTES[len(self._blocks) % len(_GUARD_BYTES)]
        block = np.full(size + 3 * self._guard, byte, np.uint8)
        start = self._guard
        # aligned as a GPU's arrays are, at a multiple of the guard's size
        if self._guard:
            start += -(block.ctypes.data) % self._guard
        self._blocks.append((block, start, size, byte))
        array = block[start : start + size]
        array[...] = 0xFF  # NaN
        return array.view(dtype).reshape(shape)

    def to_host(self, array):
        return np.asarray(array)

    def fuse(self, function):
        return function

    def free_memory(self):
        return 1 << 20

    def constant(self, host, dtype=np.float64):
        return self.asarray(host, dtype)

    def guarded(self, array):
        """A copy of a C-contiguous array between guard cells."""
        copy = self.empty(array.shape, array.dtype)
        copy[...] = array
        return copy

    def check(self, where: str) -> None:
        for block, start, size, byte in self._blocks:
            around = np.delete(block, np.s_[start : start + size])
            assert np.all(around == byte), (
                f"{where} stored outside an array of {size} bytes"
            )
        self._blocks.clear()
        assert not self.counters.any(), f"{where} left the counters at {self.counters}"


class _HostLinearAlgebra(GpuLinearAlgebra):
    """LAPACK's solver instead of cuSOLVER's."""

    def _solve(self, a, rows):
        gesv = get_lapack_funcs("gesv", (a, rows))
        lu, _, x, _ = gesv(a, rows.T)
        return np.ascontiguousarray(x.T), lu.diagonal()


def host_ops(launcher: Launcher, guard: int = GUARD) -> Ops:
    """The GPU's operations on a `HostGpu`."""
    return assemble(
        HostGpu(launcher, guard), overrides("gpu") | {"linalg": _HostLinearAlgebra}
    )


def run_all(ops: Ops, group="") -> None:
    """Every case of the table (of a group), each size in one type, and other launches of kernels.
    Not of more samples, each of which takes a block: their fibers are slow under the sanitizers."""
    sizes = [size for size in SIZES if math.prod(size) < 800]
    for name, case in OVERRIDES.items():
        for dtype, size in zip(FLOATS * len(sizes), sizes, strict=False):
            if name.startswith(group):
                hold(ops, name, case(Draw(dtype, size)))
    hold_scalars(ops)
    hold_images(ops)


def hold(ops: Ops, name: str, call, layout=None) -> None:
    """An operation does what the definition says, and stores nothing outside its arrays."""
    assert_as_defined(ops, name, call, in_order(ops.device.guarded), layout)
    ops.device.check(name)


def hold_scalars(ops: Ops) -> None:
    scalars = ops.step.scalars()
    scalars.set(2**40 + 3, 0.25, 12)
    found = [
        float(each)
        for each in (scalars.step, scalars.number, scalars.lr, scalars.first)
    ]
    assert found == [2**40 + 3, 2**40 + 4, 0.25, 12]


def hold_images(ops: Ops) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (9, 5, 7, 3)).astype(np.uint8)
    order = rng.permutation(9)
    for key in (None, RandomKey(3, 1, 4), RandomKey(3, 1, 4, first=5)):
        sources = [each.images.source(images) for each in (ops, get_ops("numpy"))]
        for each in sources:
            each.reorder(order)
            each.stage(2, 6)
        np.testing.assert_array_equal(*(each.take(2, 6, key) for each in sources))
        ops.device.check("images")


def patched(group: str, old: str, new: str):
    """source.source with a change to one group's kernels: what the tests must notice."""
    assert old in source.source(group), f"{group} has no {old!r}"
    changed = source.source(group).replace(old, new)
    return lambda name: changed if name == group else source.source(name)


def main(folder: str, *patch: str) -> None:
    """Run all kernels under the sanitizers, which this process was started with.

    patch: arguments of `patched`, of whose group alone the operations are run. Prints the names of
    the kernels that ran.
    """
    text_of = patched(*patch) if patch else source.source
    ops = host_ops(Launcher(folder, text_of=text_of, flags=SANITIZE), guard=0)
    run_all(ops, *patch[:1])
    print(*sorted(ops.device.launch.launched))


if __name__ == "__main__":
    main(*sys.argv[1:])
