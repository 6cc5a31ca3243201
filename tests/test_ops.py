"""Operations: random numbers, every override against its definition, and extreme inputs.

`OVERRIDES` needs one case per operation that Numba or CuPy overrides; a test finds the
overrides by introspection, so that a kernel without a case cannot land.
"""

import math
import platform
from types import SimpleNamespace

import numba
import numpy as np
import pytest
from numpy.random import default_rng
from numpy.testing import assert_allclose, assert_array_equal
from support import operation_calls as calls
from support.arrays import normal
from support.operation_cases import OVERRIDES, call_linalg_matmul_add
from support.operation_values import OperationValues
from support.processes import python

from snfnp import threads
from snfnp.errors import SingularMatrixError, UsageError
from snfnp.ops import BACKENDS, DEFINITIONS, RandomKey, assemble, get_ops, overrides
from snfnp.ops.activation.definition import Activation
from snfnp.ops.host import HostDevice
from snfnp.ops.random import definition as philox

NUMBA = get_ops("numba")

# ---------------------------------------------------------------- the generator

# philox4x32-10 in Random123's kat_vectors: counter and key, result
KNOWN = {
    "0 0 0 0 0 0": "6627e8d5 e169c58d bc57ac4c 9b00dbd8",
    " ".join(["ffffffff"] * 6): "408f276d 41c83b0e a20bc7c6 6d5451fd",
    "243f6a88 85a308d3 13198a2e 03707344 a4093822 299f31d0": "d16cfe09 94fdcceb 5001e420 24126ea1",
}
OF_NUMBA = [name for name in OVERRIDES if name in calls.overridden(overrides("cpu"))]
each_kernel = pytest.mark.parametrize("name", OF_NUMBA)
# Of few channels it is a product of whole planes, where a pixel meets the padding of other rows: 0
# times NaN. The step fails all the same.
WIDER = {"conv.weight_grad"}
# They take no arrays, or such as are always contiguous.
CONTIGUOUS = {f"random.{name}" for name in ("uniform", "normal", "rademacher")}
CONTIGUOUS |= {
    "step.adam",
    "step.log_step",
    "step.apply_block_matrices",
    "linalg.inverse_root",
}


def test_philox_known_answers():
    for counter_and_key, expected in KNOWN.items():
        numbers = [np.uint64(int(word, 16)) for word in counter_and_key.split()]
        words = philox.philox4x32(tuple(numbers[:4]), tuple(map(int, numbers[4:])))
        assert words == tuple(int(word, 16) for word in expected.split())


def test_signs_are_the_highest_bits(ops):
    """Every one of them 1 or −1, below 0 where the uniform number of the same word is ½ or more."""
    key = RandomKey(1, 2, 3)
    signs = ops.random.rademacher(key, (11, 7), np.float32)
    assert (signs.dtype, signs.shape) == (np.float32, (11, 7))
    half = ops.random.uniform(key, (11, 7), np.float64) >= 0.5
    assert_array_equal(signs, np.where(half, -1, 1))
    assert 20 < half.sum() < 57


def test_uniform_stays_below_one_and_normal_is_finite_for_the_extreme_words(
    monkeypatch,
):
    for word in (0, 2**32 - 1):
        four = np.full((4, 1), word, np.uint64)
        monkeypatch.setattr(philox, "philox4x32", lambda *_, four=four: four)
        for dtype in calls.FLOATS:
            assert (
                calls.DEFINITION.random.uniform(RandomKey(0, 0), (2,), dtype) < 1
            ).all()
            assert np.isfinite(
                calls.DEFINITION.random.normal(RandomKey(0, 0), (2,), dtype)
            ).all()


@pytest.mark.parametrize(
    "distribution, mean, variance, fourth",
    # E (x - mean)^4: 1/80 for U[0, 1), 3 for N(0, 1), 1 for signs
    [
        ("uniform", 1 / 2, 1 / 12, 1 / 80),
        ("normal", 0.0, 1.0, 3.0),
        ("rademacher", 0.0, 1.0, 1.0),
    ],
)
def test_moments(ops, distribution, mean, variance, fourth):
    count = 200_000  # the central limit theorem: five standard errors
    sigmas = 5
    draws = (
        getattr(ops.random, distribution)(RandomKey(11, 1, 5), (count,), np.float64)
        - mean
    )
    assert abs(draws.mean()) < sigmas * math.sqrt(variance / count)
    assert abs((draws**2).mean() - variance) <= sigmas * math.sqrt(
        (fourth - variance**2) / count
    )
    for lag in (1, 2, 3, 4):  # inside one block of four words and across
        assert abs((draws[lag:] * draws[:-lag]).mean()) < sigmas * variance / math.sqrt(
            count - lag
        )


# ---------------------------------------------------------------- overrides and definitions

# What groups of CuPy define and the table of cases cannot hold, and why.
NO_RESULT = "gives no arrays to compare: see test_steps.py and gpu/test_training.py"
WITHOUT_CASE = {
    "images.source": NO_RESULT,
    "step.scalars": NO_RESULT,
    "linalg.chain_of_products": "changes no result",
}


def test_every_override_has_a_definition_and_a_case():
    for kind in ("cpu", "gpu"):
        assert all(
            issubclass(made, DEFINITIONS[g]) for g, made in overrides(kind).items()
        )
    assert calls.overridden(overrides("cpu")) <= set(OVERRIDES)
    assert WITHOUT_CASE.keys() <= calls.overridden(overrides("gpu"))
    cases = (
        calls.overridden(overrides("cpu"))
        | calls.overridden(overrides("gpu")) - WITHOUT_CASE.keys()
    )
    names = (case.split(".") for case in cases)
    assert all(hasattr(DEFINITIONS[group], name) for group, name in names)
    assert cases == set(OVERRIDES)


@pytest.mark.parametrize(
    "groups", [overrides("cpu"), overrides("gpu")], ids=["numba", "cupy"]
)
def test_an_override_without_a_case_would_be_found(groups, monkeypatch):
    monkeypatch.setattr(
        groups["linalg"], "log_abs_det", lambda self, w: 0.0, raising=False
    )
    assert "linalg.log_abs_det" in calls.overridden(groups) - set(OVERRIDES)


def assert_as_defined(name, dtype, sizes):
    for size in sizes:
        calls.assert_as_defined(NUMBA, name, OVERRIDES[name](calls.Draw(dtype, size)))


@pytest.mark.slow
@pytest.mark.parametrize("name", OVERRIDES)
def test_override_matches_its_definition(name):
    """In the precision of training, also by parallel loops."""
    assert_as_defined(name, np.float32, calls.SIZES)


@pytest.mark.slow
@each_kernel
def test_override_in_double_precision_matches_its_definition(name, alone):
    """Where bounds are tightest."""
    assert_as_defined(name, np.float64, calls.SIZES)


@each_kernel
def test_a_kernel_without_its_parallel_loop_matches_its_definition(name, alone):
    """In the quick tier: each kernel once. The convolutions of these sizes take planes, patches and
    tiles."""
    assert_as_defined(name, np.float64, [(5, 37), (300, 3), (96, 8)])


@pytest.mark.slow
@each_kernel
def test_the_number_of_threads_does_not_change_a_bit(name, monkeypatch):
    """On two threads, which even short kernels take here, the bits are those on one."""
    if numba.config.NUMBA_NUM_THREADS < 2:
        pytest.skip("one thread only")
    arguments = [OVERRIDES[name](calls.Draw(np.float32, size)) for size in calls.SIZES]
    monkeypatch.setattr("snfnp.ops.jit._SHORT", 0)
    actual = []
    with threads.limited():
        for count in (1, 2):
            numba.set_num_threads(count)
            actual.append(
                [
                    result
                    for call in arguments
                    for result in calls.run(NUMBA, name, call)
                ]
            )
    for one, two in zip(*actual, strict=True):
        assert_array_equal(one, two)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@each_kernel
def test_nan_spreads_as_defined(name):
    for size in calls.TWO_SIZES:
        call = OVERRIDES[name](calls.Draw(np.float32, size))
        calls.assert_nan_spreads_as_defined(NUMBA, name, call, wider=WIDER)


@pytest.mark.slow
@pytest.mark.parametrize("layout", [calls.every_second, calls.transposed])
@pytest.mark.parametrize("name", sorted(OVERRIDES.keys() - CONTIGUOUS))
def test_override_takes_strided_and_transposed_arguments(name, layout):
    for size in calls.TWO_SIZES:
        call = OVERRIDES[name](calls.Draw(np.float64, size, 1))
        assert call.strided
        for ops in (calls.DEFINITION, NUMBA):
            calls.assert_as_defined(ops, name, call, layout=layout)


# Arrays of other shapes than TWO_SIZES choose other kernels for them.
KERNELS = {
    "conv.correlate": [(1, 13), (3, 16_411), (96, 8)],
    "conv.weight_grad": [(96, 8), (17, 2)],
}


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@each_kernel
def test_override_takes_arguments_that_disagree_as_its_definition_does(name, alone):
    """Rows, channels, axes and precisions that do not belong together: kernels do not look."""
    for size in calls.TWO_SIZES + KERNELS.get(name, []):
        call = OVERRIDES[name](calls.Draw(np.float64, size, 3))
        for what, other in calls.disagreeing(call):
            calls.assert_disagreement_as_defined(NUMBA, name, f"{what}, {size}", other)


def test_matmul_add_leaves_the_rest_of_the_flat_buffer_alone(ops):
    a, b, start = call_linalg_matmul_add(calls.Draw(np.float64, (5, 9), 2)).args
    flat = np.full(start.size + 32, 7.0)
    view = flat[16:-16].reshape(start.shape)
    view[...] = start
    ops.linalg.matmul_add(a, b, view)
    assert_allclose(view, start + a @ b, rtol=1e-12, atol=1e-12)
    assert_array_equal(np.delete(flat, np.s_[16:-16]), 7.0)


@pytest.mark.parametrize("size", [7, 150])  # LAPACK is called in two ways
def test_linear_algebra(ops, size):
    rng = default_rng(0)
    w = rng.standard_normal((size, size))
    z = rng.standard_normal((5, size))
    w = w / math.sqrt(size) + 3 * np.eye(size)
    inverse, log_abs_det = ops.linalg.inverse_and_log_abs_det(w)
    assert_array_equal(ops.linalg.inverse(w), inverse)
    assert_allclose(inverse @ w, np.eye(size), atol=1e-13)
    assert_allclose(ops.linalg.solve(w, z) @ w.T, z, atol=1e-13)
    for actual in (log_abs_det, ops.linalg.log_abs_det(w)):
        assert_allclose(actual, np.linalg.slogdet(w)[1], rtol=1e-13)
    out = np.empty((5, size))
    assert ops.linalg.matmul(z, w, out=out) is out
    for sums in (np.asfortranarray(out), np.repeat(out, 2, axis=0)[::2], out):
        assert np.shares_memory(ops.linalg.matmul_add(z, w, sums), sums)
        assert_allclose(sums, 2 * (z @ w), rtol=1e-12, atol=1e-13 * size)


def test_a_sum_of_squares_is_in_double_precision_over_many_blocks(ops):
    x = normal(3, 7, 4001).astype(np.float32)
    wide = math.fsum((x.astype(np.float64) ** 2).ravel())
    assert ops.linalg.sum_squares(x) == pytest.approx(wide, rel=1e-6)


def test_a_singular_matrix_is_an_error(ops):
    linalg = ops.linalg
    for call in (
        linalg.inverse,
        linalg.log_abs_det,
        lambda w: linalg.solve(w, np.ones((1, 3))),
    ):
        with pytest.raises(SingularMatrixError, match="singular"):
            call(np.zeros((3, 3)))


def test_host_and_device(ops):
    host = np.arange(6.0).reshape(2, 3).T
    device = ops.asarray(host, np.float32)
    assert device.dtype == np.float32
    assert device.flags.c_contiguous
    assert_array_equal(ops.to_host(device), host)


class TestValues(OperationValues):
    """On every CPU backend."""


@pytest.mark.parametrize("alpha", [0.01, 0.3, 0.99])
@pytest.mark.parametrize("dtype", calls.FLOATS)
def test_smooth_leaky_relu_inverse_converges_on_a_wide_grid(ops, alpha, dtype):
    sizes = np.logspace(-8, 4, 400)
    y = np.concatenate([-sizes[::-1], [0], sizes, np.linspace(-3, 3, 601)]).astype(
        dtype
    )
    x = ops.activation.smooth_leaky_relu_inverse(y, alpha)
    assert x.dtype == dtype
    wide = x.astype(np.float64)
    residual = alpha * wide + (1 - alpha) * np.logaddexp(0, wide) - y
    # 2 eps (|y| + 1) is the stopping rule; evaluating f rounds about three terms of that size
    assert np.all(np.abs(residual) <= (2 + 3) * calls.eps_of(dtype) * (np.abs(y) + 1))


class Counting:
    """NumPy, and how often its `log1p` was called."""

    calls = 0

    def log1p(self, x):
        self.calls += 1
        return np.log1p(x)

    def __getattr__(self, name):
        return getattr(np, name)


def test_smooth_leaky_relu_inverse_is_newtons_method():
    """Quadratic convergence: a wrong slope would come to the same root, in many more steps."""
    activation = Activation(SimpleNamespace(xp=Counting()))
    activation.smooth_leaky_relu_inverse(np.linspace(-30, 30, 1001), 0.01)
    assert 3 <= activation.xp.calls <= 8


def test_preprocess_survives_a_draw_next_to_one(monkeypatch):
    """255 + u rounds to 256 in single precision; in double precision nothing is lost."""
    nearly_one = np.array([[1 - 2.0**-32]])
    monkeypatch.setattr(
        "snfnp.ops.images.definition.uniform", lambda xp, key, shape: nearly_one
    )
    images = np.array([[255]], np.uint8)
    x, ldj = calls.DEFINITION.images.preprocess(
        images, RandomKey(0, 0), 1e-6, 256, np.float32
    )
    one_minus_s = 1e-6 + (1 - 2e-6) * 2.0**-32 / 256
    assert_allclose(x[0, 0], math.log((1 - one_minus_s) / one_minus_s), rtol=2**-23)
    assert np.isfinite(ldj).all()


def test_numpy_needs_no_numba():
    assert (
        get_ops().name == get_ops("numba").name == "numba"
        and get_ops("numpy").name == "numpy"
    )
    code = "import sys, snfnp.ops; snfnp.ops.get_ops('numpy'); assert 'numba' not in sys.modules"
    assert python(code).returncode == 0


FAULTS = """
import resource
import numpy as np
from snfnp.ops import get_ops
get_ops("numpy")
def faults():
    arrays = [np.ones(80_000, np.float32) for _ in range(40)]
    del arrays
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
before = faults()
print(faults() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator")
def test_a_step_has_the_memory_that_the_step_before_has_freed():
    """Arrays of 3,125 pages in all; without a backend each would be a page fault again."""
    for code, kept in ((FAULTS, True), (FAULTS.replace("get_ops(", "str("), False)):
        assert (int(python(code).stdout) < 300) == kept


def test_an_unknown_backend_is_a_usage_error():
    with pytest.raises(
        UsageError, match=f"^backend is 'tpu': choose .* {', '.join(BACKENDS)}$"
    ):
        get_ops("tpu")


def test_a_host_array_of_multiples_is_moved_to_the_device():
    """The m of a convolution depends on shapes alone and is a host array."""

    class Device(HostDevice):
        moved = ()

        def asarray(self, host, dtype=None):
            self.moved += (host,)
            return super().asarray(host, dtype)

    device = Device("numpy")
    multiple = np.full((3, 3, 1, 1), 2.0)
    linalg = assemble(device, DEFINITIONS).linalg
    w = np.ones((3, 3, 2, 2), np.float32)
    out = linalg.scale_into(np.empty_like(w), 0.5, w, multiple)
    assert device.moved[0] is multiple and (out == 1).all() and out.dtype == np.float32
