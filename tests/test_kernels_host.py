"""The CUDA kernels on a CPU, against the definitions: parity, stores outside, order of threads.

The GPU's groups run here on NumPy arrays, with their kernels compiled by g++
(`support.host_kernels`). What differs on a GPU is left to `tests/gpu`: the rounding of mathematical
functions, and CuPy.
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support import host_kernels
from support import operation_calls as calls
from support.host_kernels import Launcher, hold, host_ops
from support.operation_cases import NEVER_EMPTY, OVERRIDES

from snfnp.ops import overrides
from snfnp.ops.gpu import source

pytestmark = [pytest.mark.hostcuda, pytest.mark.slow]

NAMES = [name for name in OVERRIDES if name in calls.overridden(overrides("gpu"))]
ORDERS = {"forwards": False, "backwards": True}


@pytest.fixture(scope="session")
def folder(request, tmp_path_factory):
    """Where compiled kernels are kept from one session to the next, if pytest keeps anything."""
    cache = getattr(request.config, "cache", None)
    folder = (
        Path(cache.mkdir("hostcuda")) if cache else tmp_path_factory.mktemp("hostcuda")
    )
    host_kernels.compile_all(folder)
    return folder


@pytest.fixture(scope="module", params=ORDERS)
def ops(request, folder):
    return host_ops(Launcher(folder, ORDERS[request.param]))


@pytest.mark.filterwarnings("ignore:invalid value encountered in multiply")  # is_finite
@pytest.mark.parametrize("name", NAMES)
def test_kernels_match_the_definition(ops, name):
    """At sizes that were chosen, and at random ones; of these templates, one type in each order."""
    dtype = calls.FLOATS[ops.device.launch.backwards]
    for seed, size in (
        *((0, size) for size in calls.SIZES),
        *enumerate(calls.random_sizes(3, 8)),
    ):
        hold(ops, name, OVERRIDES[name](calls.Draw(dtype, size, seed)))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("name", NAMES)
def test_kernels_take_any_layout_no_samples_and_nan_which_spreads_as_defined(ops, name):
    for size in calls.TWO_SIZES:
        for layout in (calls.every_second, calls.transposed):
            hold(
                ops,
                name,
                OVERRIDES[name](calls.Draw(np.float64, size, 1)),
                layout,
            )
        call = OVERRIDES[name](calls.Draw(np.float32, size))
        calls.assert_nan_spreads_as_defined(
            ops, name, call, calls.in_order(ops.device.guarded)
        )
        ops.device.check(name)
    for size in calls.NO_SAMPLES if name not in NEVER_EMPTY else ():
        hold(ops, name, OVERRIDES[name](calls.Draw(np.float32, size)))


def test_step_scalars_and_images(ops):
    host_kernels.hold_scalars(ops)
    host_kernels.hold_images(ops)


# ---------------------------------------------------------------- these tests can fail

# Where a kernel stores what it computes, and one store too many.
STORE, TOO_MANY = (f"i {less} n; i += item_stride())\n    out" for less in ("<", "<="))
BEFORE_LOOP = "const T a_ = T(value(a_at, a))"
FEW, MANY = (5, 37), (3, 16_411)  # values for one block, and for several


@pytest.mark.parametrize(
    "name, size, old, new, message",
    [
        # barriers before partial sums are read, and before it is known which block is the last
        (
            "linalg.sum_squares",
            FEW,
            "= v;\n  __syncthreads();",
            "= v;",
            "beyond the bound",
        ),
        (
            "linalg.sum_squares",
            MANY,
            "__syncthreads();\n  return",
            "return",
            "divergent",
        ),
        # two tiles of channels count their blocks together
        (
            "coupling.bias_relu_backward",
            (300, 40),
            "arrived + at.tile",
            "arrived",
            "beyond",
        ),
        # one store too many, one too few, and a digit of 2π
        ("linalg.axpby", FEW, STORE, TOO_MANY, "stored outside"),
        ("random.uniform", FEW, "i < n)", "i < n - 1)", "beyond the bound"),
        (
            "random.rademacher",
            FEW,
            "word(four, lane) >> 31",
            "word(four, 0) >> 31",
            "beyond",
        ),
        # the block that the first element is in the midst of
        ("random.uniform", FEW, "i >= 0 && i < n", "i < n", "stored outside"),
        (
            "random.normal",
            FEW,
            "first_word / 4 +",
            "(first_word + 3) / 4 +",
            "beyond the bound",
        ),
        ("images.preprocess", FEW, "lane - first_word", "lane", "beyond the bound"),
        (
            "random.normal",
            FEW,
            "6.28318530717958",
            "6.28318530717948",
            "beyond the bound",
        ),
        # where CUDA would hang, or what it does is not defined
        *(
            ("linalg.axpby", FEW, BEFORE_LOOP, f"{code}\n{BEFORE_LOOP}", "divergent")
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
def test_a_wrong_kernel_is_found(folder, name, size, old, new, message):
    """At least one order of the threads shows it."""
    found = []
    for backwards in ORDERS.values():
        text_of = host_kernels.patched(name.partition(".")[0], old, new)
        ops = host_ops(Launcher(folder, backwards, text_of))
        try:
            hold(ops, name, OVERRIDES[name](calls.Draw(np.float64, size)))
        except AssertionError as error:
            found.append(str(error))
    assert any(message in each for each in found), found


def test_a_wrong_argument_is_found(ops):
    """Before anything is launched."""
    x = np.ones((2, 3))
    y = np.ones((2, 3))
    kernel = ("axpby", np.float64, 1)
    right = {"a": 1, "x": x, "b": np.array(2.0), "out": y, "n": x.size}
    launch = ops.device.launch
    right |= {"second_a": 1.0, "second_x": None, "second_out": None, "m": 0}
    launch(*kernel, **right)
    assert np.all(y == 3.0)
    ops.device.launch.launched.clear()
    for wrong, error, message in [
        ({"k": 1}, TypeError, "kernel axpby has other .*: k$"),
        ({"b_at": None}, TypeError, "kernel axpby has other .*: b_at$"),
        ({"n": 6.0}, TypeError, "float"),
        (
            {"x": x.astype(np.float32)},
            TypeError,
            "axpby: x is .* not an array of float32",
        ),
        (
            {"out": np.ones((3, 2)).T},
            ValueError,
            "axpby: out is written to, .* contiguous",
        ),
        ({"out": x}, AssertionError, "axpby: out and x overlap"),
    ]:
        with pytest.raises(error, match=message):
            launch(*kernel, **right | wrong)
    for name in right:
        rest = {other: value for other, value in right.items() if other != name}
        for blocks in (0, 1):
            with pytest.raises(TypeError, match=f"kernel axpby has other .*: {name}$"):
                launch("axpby", np.float64, blocks, **rest)
    with pytest.raises(AssertionError):
        launch(*kernel, **right, threads=48)


# ---------------------------------------------------------------- every kernel, and sanitizers


def under_sanitizers(folder, *patch):
    """host_kernels.py as a program: all kernels, compiled before the sanitizers slow a compiler."""
    runtime = subprocess.getoutput("g++ -print-file-name=libasan.so")
    if not Path(runtime).is_absolute():
        pytest.skip("g++ has no AddressSanitizer")
    text_of = host_kernels.patched(*patch) if patch else source.source
    host_kernels.compile_all(folder, host_kernels.SANITIZE, text_of)
    # fibers have stacks of their own; naming functions takes a second
    options = "detect_leaks=0:detect_stack_use_after_return=0:symbolize=0"
    environment = os.environ | {"LD_PRELOAD": runtime, "ASAN_OPTIONS": options}
    command = [sys.executable, "-m", host_kernels.__name__, str(folder), *patch]
    tests = Path(host_kernels.__file__).parents[1]
    return subprocess.run(
        command, cwd=tests, env=environment, capture_output=True, text=True
    )


def test_every_kernel_runs_under_the_sanitizers(folder):
    done = under_sanitizers(folder)
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) == set(source.kernels())


@pytest.mark.parametrize(
    "patch, message",
    [
        # a store behind an array, and an index beyond a row of shared memory
        (("linalg", STORE, TOO_MANY), "heap-buffer-overflow"),
        (
            ("linalg", "rows[MOST_ROWS][MOST_ROWS + 1]", "rows[MOST_ROWS][2]"),
            "out of bounds",
        ),
    ],
)
def test_the_sanitizers_would_find_it(folder, patch, message):
    done = under_sanitizers(folder, *patch)
    assert done.returncode != 0 and message in done.stderr
