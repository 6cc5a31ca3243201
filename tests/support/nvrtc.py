"""NVIDIA's run-time compiler through ctypes: what CuPy compiles with, without CuPy and a GPU."""

import ctypes
import re
import site
import sysconfig
from functools import cache
from pathlib import Path
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


def compile_kernels(text: str, expressions: list[str], arch: str, options=()) -> dict[str, Usage]:
    """Compile CUDA C++ for `arch` ("sm_90"); what each of the kernels named in C++ takes.

    Raises CompileError.
    """
    library, program = _library(), ctypes.c_void_p()

    def call(function, *arguments):
        status = getattr(library, function)(*arguments)
        if status:
            raise CompileError(library.nvrtcGetErrorString(status).decode())

    def text_of(size_function, function):
        size = ctypes.c_size_t()
        call(size_function, program, ctypes.byref(size))
        buffer = ctypes.create_string_buffer(size.value)
        call(function, program, buffer)
        return buffer.value.decode()

    call("nvrtcCreateProgram", ctypes.byref(program), text.encode(), b"kernels.cu", 0, None, None)
    try:
        for expression in expressions:
            call("nvrtcAddNameExpression", program, expression.encode())
        given = (f"-arch={arch}", "--ptxas-options=-v", *CUPY_OPTIONS, *options)
        array = (ctypes.c_char_p * len(given))(*(option.encode() for option in given))
        try:
            call("nvrtcCompileProgram", program, len(given), array)
        except CompileError:
            log = text_of("nvrtcGetProgramLogSize", "nvrtcGetProgramLog")
            raise CompileError(log) from None
        found = {}
        for name, *counts in _ENTRY.findall(
            text_of("nvrtcGetProgramLogSize", "nvrtcGetProgramLog")
        ):
            stack, stores, loads, registers = map(int, counts)
            found[name] = Usage(registers, stack, stores + loads)
        usage, mangled = {}, ctypes.c_char_p()
        for expression in expressions:
            call("nvrtcGetLoweredName", program, expression.encode(), ctypes.byref(mangled))
            usage[expression] = found[mangled.value.decode()]
        return usage
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(program))


def missing() -> str | None:
    """The reason why this module cannot be used, or None."""
    return None if _find() else "libnvrtc is missing (pip install 'nvidia-cuda-nvrtc==13.0.*')"


def _find() -> Path | None:
    """The library of the wheel, of CUDA 13 or else 12."""
    for folder in (sysconfig.get_path("purelib"), *site.getsitepackages()):
        for place in ("cu13/lib/libnvrtc.so.13", "cuda_nvrtc/lib/libnvrtc.so.12"):
            if (path := Path(folder, "nvidia", place)).exists():
                return path
    return None


@cache
def _library() -> ctypes.CDLL:
    path = _find()
    for builtins in path.parent.glob("libnvrtc-builtins.so*"):
        ctypes.CDLL(str(builtins), ctypes.RTLD_GLOBAL)  # it is looked for by name alone
    library = ctypes.CDLL(str(path))
    library.nvrtcGetErrorString.restype = ctypes.c_char_p
    return library
