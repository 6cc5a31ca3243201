"""All CUDA C++ of the package, as text: compilers, tests and people read it without CuPy.

A room's kernels are in its `kernels.cu`, what several rooms need is in `.cuh` files. What all
kernels keep to:

* `template <typename T> __global__ void name(...)`, instantiated for float and double.
* Integer arguments are `long long`, real ones `double`, whatever T is: offsets into large arrays
  do not overflow, and a launch cannot choose a wrong width.
* Arrays are C-contiguous and as the rooms' definitions describe them; every store is inside.
* Launched with any number of blocks of a multiple of 32 threads, at most 256 (`THREADS`): kernels
  over items take grid-sized strides, kernels over rows take one block per row.
* Sums are taken in an order that depends on shapes alone: the same run gives the same numbers.
"""

from __future__ import annotations

import re
from functools import cache
from importlib import resources

from snfnp.ops.step.control import cuda_rows
from snfnp.ops.step.log import cuda_enum

TYPES = {"float32": "float", "float64": "double"}
# What a kernel's pointers point to, by NumPy's names; T is the type it is instantiated for.
POINTED = {
    qualifier + name + "*": kind
    for qualifier in ("", "const ")
    for name, kind in {
        "T": "T",
        "double": "float64",
        "unsigned char": "uint8",
        "unsigned int": "uint32",
        "long long": "int64",
        "unsigned long long": "uint64",
    }.items()
}
THREADS = 256
OPTIONS = ("-std=c++17",)  # no fast-math: infinities and NaN must be seen

_FILE = "kernels.cu"
_INCLUDE = re.compile(r'^#include "\.\./(\w+/\w+\.cuh)"\n', re.MULTILINE)
_KERNEL = re.compile(r"template\s*<typename T>\s*__global__\s+void\s+(\w+)\s*\(([^)]*)\)")
# What stands before a room's kernels and is written down elsewhere.
_BEFORE = {"step": lambda: cuda_enum() + cuda_rows()}


def _folder():
    return resources.files("snfnp.ops")


@cache
def rooms() -> tuple[str, ...]:
    """The rooms that have kernels."""
    return tuple(sorted(room.name for room in _folder().iterdir() if (room / _FILE).is_file()))


@cache
def source(room: str) -> str:
    """The text of a room's kernels with the text of the headers in place of their includes."""
    own = (_folder() / room / _FILE).read_text()
    text = _INCLUDE.sub(lambda include: (_folder() / include[1]).read_text(), own)
    return _BEFORE[room]() + text if room in _BEFORE else text


@cache
def kernels() -> dict[str, str]:
    """Every kernel's name and the room that it is in."""
    return {name: room for room in rooms() for name, _ in _KERNEL.findall(source(room))}


@cache
def parameters(name: str) -> tuple[str, ...]:
    """The C types of a kernel's parameters in order, such as "const T*" and "long long"."""
    found = dict(_KERNEL.findall(source(kernels()[name])))[name]
    declarations = (text.replace("__restrict__", " ").split() for text in found.split(","))
    return tuple(" ".join(words[:-1]) for words in declarations)


@cache
def constant(room: str, name: str) -> int:
    """A constant of a room's kernels that a launch has to know; it is written down with them."""
    return int(re.search(rf"const(?:expr)? int {name} = (\d+)\b", source(room))[1])


def expression(name: str, dtype: str) -> str:
    """How C++ names a kernel for arrays of a NumPy type: "adam<float>"."""
    return f"{name}<{TYPES[str(dtype)]}>"
