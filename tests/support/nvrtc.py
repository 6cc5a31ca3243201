"""NVIDIA's run-time compiler, as CuPy calls it, without a GPU."""

import re
from importlib.util import find_spec
from typing import NamedTuple

# With each compilation CuPy passes its caller's options, these, and the card's architecture.
CUPY_OPTIONS = ("-ftz=true", "--device-as-default-execution-space")

_ENTRY = re.compile(
    r"Compiling entry function '(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, "
    r"(\d+) bytes spill loads.*?Used (\d+) registers",
    re.DOTALL,
)


class CompileError(Exception):
    """The compiler refused; its log is the message."""


class Usage(NamedTuple):
    """The resources of one kernel: registers per thread, and bytes of local memory per thread."""

    registers: int
    stack: int
    spills: int


def compile_kernels(
    text: str, expressions: list[str], arch: str, options=()
) -> dict[str, Usage]:
    """Compile CUDA C++ for `arch` ("sm_90"); what each of the kernels named in C++ takes.

    Raises CompileError.
    """
    from cupy_backends.cuda.libs import nvrtc  # after a stand-in for the driver

    program = nvrtc.createProgram(text, "kernels.cu", (), ())
    try:
        for expression in expressions:
            nvrtc.addNameExpression(program, expression)
        try:
            given = (f"-arch={arch}", "--ptxas-options=-v", *CUPY_OPTIONS, *options)
            nvrtc.compileProgram(program, given)
        except nvrtc.NVRTCError:
            raise CompileError(nvrtc.getProgramLog(program)) from None
        found = {}
        for name, *counts in _ENTRY.findall(nvrtc.getProgramLog(program)):
            stack, stores, loads, registers = map(int, counts)
            found[name] = Usage(registers, stack, stores + loads)
        return {
            each: found[nvrtc.getLoweredName(program, each)] for each in expressions
        }
    finally:
        nvrtc.destroyProgram(program)


def ptx_instructions(
    text: str, expression: str, arch: str, options=()
) -> tuple[int, int]:
    """The instructions of one kernel in PTX: those that a thread executes once, and those of its
    only loop, whose label is the last target of a branch back."""
    from cupy_backends.cuda.libs import nvrtc

    program = nvrtc.createProgram(text, "kernels.cu", (), ())
    try:
        nvrtc.addNameExpression(program, expression)
        nvrtc.compileProgram(program, (f"-arch={arch}", *CUPY_OPTIONS, *options))
        name = nvrtc.getLoweredName(program, expression)
        ptx = nvrtc.getPTX(program)
    finally:
        nvrtc.destroyProgram(program)
    ptx = ptx if isinstance(ptx, str) else ptx.decode()
    body = ptx[ptx.index(f".entry {name}") :]
    lines = [
        line.strip() for line in body[body.index("{") : body.index("\n}")].splitlines()
    ]
    lines = [
        line for line in lines if line.endswith((";", ":")) and not line.startswith(".")
    ]
    labels = {
        line[:-1]: place for place, line in enumerate(lines) if line.endswith(":")
    }
    back = [
        (labels[target], place)
        for place, line in enumerate(lines)
        for target in labels
        if f"bra \t{target};" in line.replace("bra ", "bra \t").replace("\t\t", "\t")
        and labels[target] < place
    ]
    ((first, last),) = back
    loop = last - first
    return len(lines) - len(labels) - loop, loop


def missing() -> str | None:
    """The reason why this module cannot be used, or None."""
    if find_spec("cupy") is None:
        return "CuPy is not installed"
    wheels = ("nvidia.cu13", "nvidia.cuda_nvrtc") if find_spec("nvidia") else ()
    if any(map(find_spec, wheels)):
        return None
    return "libnvrtc is missing (pip install 'nvidia-cuda-nvrtc==13.0.*')"
