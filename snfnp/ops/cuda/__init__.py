"""All CUDA C++ of the package, as text: compilers, tests and people read it without CuPy.

Each `.cu` file is compiled behind `common.cuh`. What all kernels keep to:

* `template <typename T> __global__ void name(...)`, instantiated for float and double.
* Integer arguments are `long long`, real ones `double`, whatever T is: offsets into large arrays
  do not overflow, and a launch has no choice of widths to get wrong.
* Arrays are C-contiguous and as `snfnp.ops.numpy_ops` describes them; every store is inside.
* Launched with any number of blocks of a multiple of 32 threads, at most 256 (`THREADS`): kernels
  over items take grid-sized strides, kernels over rows take one block per row.
* Sums are taken in an order that depends on shapes alone: the same run gives the same numbers.
"""

from __future__ import annotations

import re
from functools import cache
from importlib import resources

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

_KERNEL = re.compile(r"template\s*<typename T>\s*__global__\s+void\s+(\w+)\s*\(([^)]*)\)")


@cache
def source(file: str) -> str:
    """The text of one `.cu` file with what all of them share before it."""
    folder = resources.files(__name__)
    return (folder / "common.cuh").read_text() + (folder / file).read_text()


@cache
def kernels() -> dict[str, str]:
    """Every kernel's name and the file that it is in."""
    return {
        name: file.name
        for file in sorted(resources.files(__name__).iterdir(), key=lambda path: path.name)
        if file.name.endswith(".cu")
        for name, _ in _KERNEL.findall(file.read_text())
    }


@cache
def parameters(name: str) -> tuple[str, ...]:
    """The C types of a kernel's parameters in order, such as "const T*" and "long long"."""
    found = dict(_KERNEL.findall(source(kernels()[name])))[name]
    declarations = (text.replace("__restrict__", " ").split() for text in found.split(","))
    return tuple(" ".join(words[:-1]) for words in declarations)


@cache
def constant(file: str, name: str) -> int:
    """A constant of the kernels that a launch has to know; it is written down in their file."""
    return int(re.search(rf"const(?:expr)? int {name} = (\d+)\b", source(file))[1])


def expression(name: str, dtype: str) -> str:
    """How C++ names a kernel for arrays of a NumPy type: "adam<float>"."""
    return f"{name}<{TYPES[str(dtype)]}>"
