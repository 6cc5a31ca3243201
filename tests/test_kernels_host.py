"""The CUDA kernels on a CPU, against the definitions: parity, stores outside, order of threads.

`CupyOps` runs here as it is, on NumPy arrays and with its kernels compiled by g++ (hostcuda.py).
What a GPU does otherwise is left to `tests/gpu`: rounding of its mathematical functions, CuPy.
"""

import os
import subprocess
import sys
from pathlib import Path

import hostcuda
import numpy as np
import pytest
from hostcuda import HostCudaOps, Launcher, hold
from opcalls import (
    FLOATS,
    NO_SAMPLES,
    SIZES,
    assert_nan_spreads_as_defined,
    every_second,
    in_order,
    overridden,
    random_sizes,
    transposed,
)
from opcases import NEVER_EMPTY, OVERRIDES

from snfnp.ops import RandomKey, cuda
from snfnp.ops.cupy_ops import CupyOps

pytestmark = pytest.mark.hostcuda

NAMES = [name for name in OVERRIDES if name in overridden(CupyOps)]
ORDERS = {"forwards": False, "backwards": True}


@pytest.fixture(scope="session")
def folder(request, tmp_path_factory):
    """Where compiled kernels are kept from one session to the next, if pytest keeps anything."""
    cache = getattr(request.config, "cache", None)
    folder = Path(cache.mkdir("hostcuda")) if cache else tmp_path_factory.mktemp("hostcuda")
    hostcuda.compile_all(folder)
    return folder


@pytest.fixture(scope="module", params=ORDERS)
def ops(request, folder):
    return HostCudaOps(Launcher(folder, ORDERS[request.param]))


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", NAMES)
def test_kernels_do_what_the_definition_says(ops, name, dtype, size):
    hold(ops, name, OVERRIDES[name](np.random.default_rng(0), dtype, size))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", NAMES)
def test_kernels_at_random_shapes(ops, name, dtype):
    for seed, size in enumerate(random_sizes(3, 8)):
        hold(ops, name, OVERRIDES[name](np.random.default_rng(seed), dtype, size))


@pytest.mark.parametrize("layout", [every_second, transposed])
@pytest.mark.parametrize("size", [(5, 37), (3, 5, 7, 2)], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_kernels_take_strided_and_transposed_arguments(ops, name, size, layout):
    hold(ops, name, OVERRIDES[name](np.random.default_rng(1), np.float64, size), layout)


@pytest.mark.parametrize("size", NO_SAMPLES, ids=str)
@pytest.mark.parametrize("name", [name for name in NAMES if name not in NEVER_EMPTY])
def test_kernels_take_no_samples(ops, name, size):
    hold(ops, name, OVERRIDES[name](np.random.default_rng(0), np.float32, size))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("size", [(5, 37), (3, 5, 7, 2)], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_nan_spreads_as_defined(ops, name, size):
    call = OVERRIDES[name](np.random.default_rng(0), np.float32, size)
    assert_nan_spreads_as_defined(ops, name, call, in_order(ops.guarded))
    ops.check(name)


@pytest.mark.parametrize("draw", ["uniform", "normal"])
def test_the_step_of_a_key_may_be_on_the_device(ops, draw):
    step = 2**63 + 2**40 + 3
    drawn, expected = (
        getattr(ops, draw)(RandomKey(2**63 + 5, 1, each), (5, 7), np.float64)
        for each in (np.array(step, np.uint64), step)
    )
    np.testing.assert_array_equal(drawn, expected)


def test_dials_and_images(ops):
    hostcuda.hold_dials(ops)
    hostcuda.hold_images(ops)


# ---------------------------------------------------------------- these tests can fail

BEFORE_BLEND = "const T a_ = T(value(a_at, a))"
FEW, MANY = (5, 37), (3, 16_411)  # values for one block, and for several


@pytest.mark.parametrize(
    "name, size, file, old, new, said",
    [
        # barriers before partial sums are read, and before it is known which block is the last
        ("sum_squares", FEW, "steps.cu", "= v;\n  __syncthreads();", "= v;", "beyond the bound"),
        ("sum_squares", MANY, "steps.cu", "__syncthreads();\n  return", "return", "divergent"),
        # one store too many, one too few, and a digit of 2π
        ("blend", FEW, "elementwise.cu", "i < n", "i <= n", "stored outside"),
        ("uniform", FEW, "random.cu", "lane < n)", "lane < n - 1)", "beyond the bound"),
        ("normal", FEW, "random.cu", "6.28318530717958", "6.28318530717948", "beyond the bound"),
        # where CUDA would hang, or do anything
        *(
            ("blend", FEW, "elementwise.cu", BEFORE_BLEND, f"{code}\n{BEFORE_BLEND}", "divergent")
            for code in (
                "if (threadIdx.x != 7) __syncthreads();",
                "if (threadIdx.x < 32) __syncthreads();",
                "if (threadIdx.x == 255) return; __syncthreads();",
                "if (threadIdx.x & 1) __shfl_xor_sync(0xffffffffu, 0.0, 1);",
                "if (threadIdx.x & 1)\n__syncthreads(); else\n__syncthreads();",
            )
        ),
    ],
)
def test_a_wrong_kernel_is_found(folder, name, size, file, old, new, said):
    """In one order of threads at least."""
    found = []
    for backwards in ORDERS.values():
        ops = HostCudaOps(Launcher(folder, backwards, hostcuda.patched(file, old, new)))
        try:
            hold(ops, name, OVERRIDES[name](np.random.default_rng(0), np.float64, size))
        except AssertionError as error:
            found.append(str(error))
    assert any(said in message for message in found), found


def test_a_wrong_argument_is_found(ops):
    x, y = np.ones((2, 3)), np.ones((2, 3))
    ops.launch("blend", x.dtype, 1, x, None, 1.0, y, None, 2.0, x.size)
    for arguments, said in [
        ((x, None, 1, y, None, 2.0, x.size), "1 is not real"),
        ((x, None, 1.0, y, None, 2.0, float(x.size)), "6.0 is no integer"),
        ((x, None, 1.0, y.astype(np.float32), None, 2.0, x.size), "float32 instead of float64"),
        ((x, None, 1.0, y.T, None, 2.0, x.size), "not contiguous"),
        ((x, None, 1.0, x, None, 2.0, x.size), "arguments 0 and 3 overlap"),
        ((x, None, 1.0, y, None, x.size), "takes 7 arguments"),
    ]:
        with pytest.raises(AssertionError, match=said):
            ops.launch("blend", x.dtype, 1, *arguments)
    with pytest.raises(AssertionError):
        ops.launch("blend", x.dtype, 1, x, None, 1.0, y, None, 2.0, x.size, threads=48)


# ---------------------------------------------------------------- every kernel, and sanitizers


def test_every_kernel_has_run(ops):
    """By now, and where this test runs on its own, after all the others' work."""
    if not set(cuda.kernels()) <= ops.launch.launched:
        hostcuda.run_all(ops)
    assert set(cuda.kernels()) - ops.launch.launched == set()


def under_sanitizers(folder, *patch):
    """hostcuda.py as a program: all kernels, in a process that starts with the sanitizers."""
    runtime = subprocess.run(
        ["g++", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True
    ).stdout.strip()
    if not Path(runtime).is_absolute():
        pytest.skip("g++ has no AddressSanitizer")
    options = "detect_leaks=0:detect_stack_use_after_return=0"  # fibers have stacks of their own
    environment = os.environ | {"LD_PRELOAD": runtime, "ASAN_OPTIONS": options}
    return subprocess.run(
        [sys.executable, hostcuda.__file__, str(folder), *patch],
        env=environment,
        capture_output=True,
        text=True,
    )


def test_every_kernel_runs_under_the_sanitizers(folder):
    done = under_sanitizers(folder)
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) == set(cuda.kernels())


@pytest.mark.parametrize(
    "patch, said",
    [
        # a store behind an array, and an index beyond a row of shared memory
        (("elementwise.cu", "i < n", "i <= n"), "heap-buffer-overflow"),
        (("elementwise.cu", "tile[32][33]", "tile[32][31]"), "out of bounds"),
    ],
    ids=["store", "index"],
)
def test_the_sanitizers_would_say(folder, patch, said):
    done = under_sanitizers(folder, *patch)
    assert done.returncode != 0
    assert said in done.stderr
