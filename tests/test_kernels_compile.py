"""The CUDA kernels through NVIDIA's compiler, for cards from Turing to Blackwell; and their text.

A kernel that spills registers runs at the speed of memory, and one with too many of them leaves
most of the card idle: both are seen here, without a card.
"""

import importlib.util
import re
from pathlib import Path

import pytest
from support import nvrtc

from snfnp.ops.gpu import source
from snfnp.ops.gpu.device import _MOST_BLOCKS

pytestmark = pytest.mark.slow

# Registers that a kernel for float may use on the oldest cards, an H100 and the newest ones; for
# double it is twice as many. Of 64, 1024 threads share a multiprocessor's 65,536; the oldest run no
# more at once, and of 72 three blocks of 256.
# (In every kernel, sm_86 uses what sm_89 does.)
ARCHITECTURES = {
    "sm_75": 72,
    "sm_80": 64,
    "sm_89": 64,
    "sm_90": 64,
    "sm_100": 64,
    "sm_120": 64,
}
# For double, where at most 74 of the 128 are used, the oldest, an H100 and the newest are enough.
DOUBLE = ("sm_75", "sm_90", "sm_120")
# Bytes of local memory that are no spill: sine and cosine in double precision keep a table for
# arguments beyond 2**31, which Box-Muller's do not come near.
STACK = {"normal": 40}


def compiled(text, names, arch, dtypes=tuple(source.TYPES)):
    expressions = [source.expression(name, dtype) for name in names for dtype in dtypes]
    return nvrtc.compile_kernels(text, expressions, arch, source.OPTIONS)


def complaints(usage, arch) -> list[str]:
    """What is wrong with the use of registers and memory, one line per kernel."""
    found = []
    for expression, used in usage.items():
        name, _, real = expression.rstrip(">").partition("<")
        most = nvrtc.Usage(
            ARCHITECTURES[arch] * {"float": 1, "double": 2}[real], STACK.get(name, 0), 0
        )
        if any(value > limit for value, limit in zip(used, most, strict=True)):
            found.append(f"{expression}: {used}, where {most} is allowed")
    return found


@pytest.mark.nvrtc
@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("group", source.groups())
def test_kernels_compile_and_do_not_spill(group, arch):
    names = source.names(group)
    dtypes = ("float32", "float64") if arch in DOUBLE else ("float32",)
    usage = compiled(source.source(group), names, arch, dtypes)
    assert len(usage) == len(dtypes) * len(names)
    assert complaints(usage, arch) == []


@pytest.mark.nvrtc
def test_the_dense_scaling_takes_few_instructions_an_element():
    """Of 784² elements, in the launch that they get; a quotient of 64 bits alone takes 40."""
    once, each = nvrtc.ptx_instructions(
        source.source("linalg"), "scaled<float>", "compute_90", source.OPTIONS
    )
    assert each >= 4  # a load, a product, a store and a branch
    items = 784**2
    threads = min(-(-(784**2) // source.THREADS), _MOST_BLOCKS) * source.THREADS
    assert each + once * threads / items <= 20


def test_the_compilers_options_are_cupys():
    """Beside the caller's: for one, denormal numbers of single precision become 0."""
    if (cupy := importlib.util.find_spec("cupy")) is None:
        pytest.skip("CuPy is not installed")
    text = Path(cupy.submodule_search_locations[0], "cuda", "compiler.py").read_text()
    assert all(f"options += ('{option}',)" in text for option in nvrtc.CUPY_OPTIONS)


KERNEL = """
template <typename T>
__global__ void bad(T* __restrict__ x, long long n) {
  %s
}
"""


ALIVE = """T s[150] = {}; for (long long i = 0; i < n; ++i)
#pragma unroll
for (int k = 0; k < 150; ++k) s[k] += x[i * k];
#pragma unroll
for (int k = 0; k < 150; ++k) x[k] = s[k];"""  # sums that are all alive at once
# by a variable
INDEXED = "T s[40]; for (int k = 0; k < 40; ++k) s[k] = x[k]; x[0] = s[n];"
TOO_MUCH = {"registers": ALIVE, "stack": INDEXED, "spills": ALIVE.replace("150", "300")}


@pytest.mark.nvrtc
@pytest.mark.parametrize("field, body", TOO_MUCH.items(), ids=TOO_MUCH)
def test_a_kernel_that_takes_too_much_is_found(field, body):
    usage = compiled(KERNEL % body, ["bad"], "sm_90")
    assert getattr(usage["bad<double>"], field) > {"registers": 128}.get(field, 0)
    assert any(line.startswith("bad<double>") for line in complaints(usage, "sm_90"))


@pytest.mark.nvrtc
@pytest.mark.parametrize(
    "body", ["x[0] = M_PI;", "int64_t i = 0; x[i] = T(0);", "y[0] = T(0);"]
)
def test_the_compilers_log_is_the_error(body):
    """Also for code that other compilers accept and this one does not."""
    with pytest.raises(
        nvrtc.CompileError, match=r"kernels.cu\(4\): error: .* undefined"
    ):
        compiled(KERNEL % body, ["bad"], "sm_80")


FORBIDDEN = {
    r"fast_?math|__(exp|log|sin|cos|tan|pow|f?div)\w*f?\b|__saturatef": "less accurate arithmetic",
    r"(?<![\w.])\d+\s*/\s*\d+(?![\w.])": "a quotient of integers",
    r"(?<![\w.])\d+\.\d*f|(?<![\w.])\.\d+f": "a single-precision literal",
    r"\b(expf|logf|sqrtf|tanhf|fabsf|powf|fmaxf|fminf)\b": "a function of single precision",
    r"#\s*include|\bINFINITY\b|\bNAN\b|\bM_PI\b|\bu?int\d+_t\b": "what NVRTC does not have",
    r"__launch_bounds__|extern\s+__shared__": "what launches do not expect",
    r"atomicAdd\((?!arrived)": "a sum in an order of chance",
}


def code_of(group):
    """The text of a group's kernels without comments."""
    return re.sub(r"//.*|/\*.*?\*/", "", source.source(group))


@pytest.mark.parametrize("pattern", FORBIDDEN, ids=FORBIDDEN.values())
def test_no_kernel_has(pattern):
    assert [
        group for group in source.groups() if re.search(pattern, code_of(group))
    ] == []


BAD = [
    "x * 1/2",
    "1 / 3 * x",
    "__expf(x)",
    "0.5f",
    "expf(x)",
    "atomicAdd(sum, x)",
    "int64_t n",
]
GOOD = ["x / 2", "T(1) / T(2)", "1.0 / n", "0x1p-24f", "(n + 31) / 32"]


def test_forbidden_text_would_be_found_and_other_text_not():
    for text in BAD + GOOD:
        assert any(re.search(pattern, text) for pattern in FORBIDDEN) == (
            text in BAD
        ), text


def test_numbers_are_long_long_or_double():
    for name in source.kernels():
        scalars = {p.kind for p in source.parameters(name) if not p.kind.endswith("*")}
        assert scalars <= {"long long", "double"}, name


def test_every_global_function_is_found():
    """A kernel declared in another way would be missing from every test."""
    for group in source.groups():
        names = re.findall(r"__global__\s+void\s+(\w+)", code_of(group))
        assert code_of(group).count("__global__") == len(names)
        assert set(names) == set(source.names(group))
