"""All CUDA C++ of the package, as text: compilers, tests and people read it without CuPy.

The kernels of a group are in its `kernels.cu`, shared parts in `.cuh` files. The conventions of all
kernels:

* `template <typename T> __global__ void name(...)`, instantiated for float and double.
* Integer parameters are `long long`, real ones `double`, whatever T is: offsets into large arrays
  do not overflow, and a launch cannot choose a wrong width.
* Launches name the parameters (`launch.py`). A number `a` that may be known on the device alone
  has two parameters, `a_at, a`: a pointer, or null and a value. An array `k` that need not be
  contiguous is followed by its strides `k_stride_0, k_stride_1, …`, one for each axis, in elements.
* All other arrays are C-contiguous and as the definitions describe them. No kernel writes outside
  of an array.
* A launch has any number of blocks. A block has 32 threads or a multiple, at most 256 (`THREADS`).
  Kernels over items take grid-sized strides, kernels over rows take one block per row.
* Sums are taken in an order that depends on shapes alone. (cuBLAS and CuPy's own reductions choose
  an order by the card: a run has the same bits again on the same card, but not on another one.)
"""

import re
from functools import cache
from importlib import resources
from typing import NamedTuple

TYPES = {"float32": "float", "float64": "double"}
# C types that a kernel's pointers point to, with NumPy's names of them; T is the type that the
# kernel is instantiated for.
_DTYPES = {
    "T": "T",
    "double": "float64",
    "unsigned char": "uint8",
    "unsigned int": "uint32",
    "long long": "int64",
    "unsigned long long": "uint64",
}
POINTED = {
    f"{const}{c_type}*": dtype
    for const in ("", "const ")
    for c_type, dtype in _DTYPES.items()
}
THREADS = 256
OPTIONS = ("-std=c++17",)  # no fast-math: infinities and NaN must be seen

_FOLDER = resources.files("snfnp.ops")
_FILE = "kernels.cu"
_INCLUDE = re.compile(r'^#include "\.\./(\w+/\w+\.cuh)"\n', re.MULTILINE)
_KERNEL = re.compile(
    r"template\s*<typename T>\s*__global__\s+void\s+(\w+)\s*\(([^)]*)\)"
)


class Parameter(NamedTuple):
    """A kernel's parameter, and its C type ("const T*", "long long")."""

    name: str
    kind: str


@cache
def groups() -> tuple[str, ...]:
    """The groups that have kernels."""
    return tuple(
        sorted(group.name for group in _FOLDER.iterdir() if (group / _FILE).is_file())
    )


@cache
def source(group: str) -> str:
    """The text of a group's kernels with the text of the headers in place of their includes."""
    text = (_FOLDER / group / _FILE).read_text(encoding="utf-8")
    return _INCLUDE.sub(
        lambda include: (_FOLDER / include[1]).read_text(encoding="utf-8"), text
    )


@cache
def kernels() -> dict[str, str]:
    """Every kernel's name and the group that it is in."""
    return {
        name: group for group in groups() for name, _ in _KERNEL.findall(source(group))
    }


def names(group: str) -> list[str]:
    """The names of a group's kernels."""
    return [name for name, owner in kernels().items() if owner == group]


@cache
def parameters(kernel: str) -> tuple[Parameter, ...]:
    """The parameters of a kernel, in order. KeyError for a kernel that does not exist."""
    signatures = dict(_KERNEL.findall(source(kernels()[kernel])))
    declarations = signatures[kernel].split(",")
    split = (text.replace("__restrict__", " ").split() for text in declarations)
    return tuple(Parameter(name, " ".join(kind)) for *kind, name in split)


@cache
def constant(group: str, name: str) -> int:
    """A constant of a group's kernels that a launch has to know."""
    return int(re.search(rf"const(?:expr)? int {name} = (\d+)\b", source(group))[1])


def expression(name: str, dtype: str) -> str:
    """The C++ name of a kernel for arrays of a NumPy type: "adam<float>"."""
    return f"{name}<{TYPES[str(dtype)]}>"
