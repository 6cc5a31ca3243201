"""Every operation on the device, against its definition on the CPU."""

import numpy as np
import pytest
from support import operation_calls as calls
from support.operation_cases import CASES, NEVER_EMPTY, OVERRIDES
from support.operation_values import OperationValues
from test_maps import EVERY_CASE

from gpu.standin import run_alone
from snfnp.errors import SingularMatrixError
from snfnp.ops import overrides

pytestmark = pytest.mark.slow

NAMES = [*CASES]  # those of the CPU alone too: the device then runs the definition
FACTORISING = [
    f"linalg.{name}" for name in ("inverse", "solve", "inverse_and_log_abs_det")
]
KERNELS = sorted(
    (calls.overridden(overrides("gpu")) & OVERRIDES.keys()) - {*FACTORISING}
)


@pytest.mark.parametrize("dtype", calls.FLOATS)
@pytest.mark.parametrize("name", NAMES)
def test_operation_is_the_definition(ops, name, dtype):
    for size in calls.SIZES:
        call = CASES[name](calls.Draw(dtype, size))
        calls.assert_as_defined(ops, name, call, calls.in_order(ops.asarray))


@pytest.mark.parametrize("name", NAMES)
def test_operation_takes_strided_and_transposed_arguments_and_no_samples(ops, name):
    for size in calls.TWO_SIZES:
        for layout in (calls.every_second, calls.transposed):
            call = CASES[name](calls.Draw(np.float64, size, 1))
            calls.assert_as_defined(
                ops, name, call, calls.in_order(ops.asarray), layout
            )
    for size in calls.NO_SAMPLES if name not in NEVER_EMPTY else ():
        call = CASES[name](calls.Draw(np.float32, size))
        calls.assert_as_defined(ops, name, call, calls.in_order(ops.asarray))


def test_a_product_into_an_array_of_another_precision_is_cast(ops):
    """cuBLAS is told one type for all three: it would read past the end of the factors."""
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal(shape).astype(np.float32) for shape in ((3, 5), (5, 4)))
    for dtype in (np.float64, np.float32):
        out = ops.asarray(np.full((3, 4), np.nan, dtype))
        found = ops.linalg.matmul(ops.asarray(a), ops.asarray(b), out=out)
        assert found is out
        np.testing.assert_allclose(
            ops.to_host(out), a.astype(np.float64) @ b, atol=1e-5
        )


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("name", KERNELS)
def test_nan_spreads_as_defined(ops, name):
    for size in calls.TWO_SIZES:
        call = OVERRIDES[name](calls.Draw(np.float32, size))
        calls.assert_nan_spreads_as_defined(
            ops, name, call, calls.in_order(ops.asarray)
        )


_ALONE = """
import sys, warnings
import numpy as np
from support.operation_calls import TWO_SIZES, Draw, assert_nan_spreads_as_defined, in_order
from support.operation_cases import OVERRIDES
from snfnp.ops import get_ops
warnings.simplefilter("ignore", RuntimeWarning)
ops = get_ops("cupy")
for name in sys.argv[1:]:
    for size in TWO_SIZES:
        call = OVERRIDES[name](Draw(np.float32, size))
        assert_nan_spreads_as_defined(ops, name, call, in_order(ops.asarray))
    print(name)
"""


def test_nan_spreads_as_defined_where_a_matrix_is_factorised():
    assert run_alone(_ALONE, *FACTORISING).split() == FACTORISING


@pytest.mark.parametrize("case", EVERY_CASE)
def test_a_singular_weight_is_an_error(ops, case):
    """CuPy's inverse of a singular matrix is infinite, and no error."""
    f = case.map
    w = ops.asarray(case.singular(case.map))
    z = ops.xp.ones((1, *f.output_shape(case.shape)))
    small = f.inverse_is_same_map  # its gradient does not wait
    assert not small or np.isnan(ops.to_host(f.log_det_grad(ops, w, case.shape))).all()
    members = (("log_det", case.shape), ("solve", z), ("log_det_grad", case.shape))
    for name, last in members[: 2 if small else 3]:
        with pytest.raises(SingularMatrixError, match="singular"):
            getattr(f, name)(ops, w, last)


@pytest.mark.parametrize(
    "name", ["inverse", "solve", "inverse_and_log_abs_det", "log_abs_det"]
)
@pytest.mark.parametrize("dtype", calls.FLOATS)
def test_a_singular_matrix_is_an_error(ops, name, dtype):
    # of which every factor is exact, read by rows or by columns: the last pivot is 0
    a = ops.asarray([[2, 4, 2], [4, 2, 4], [2, 4, 2]], dtype)
    if name == "inverse":  # of a small one, for which the host does not wait
        assert np.isnan(ops.to_host(ops.linalg.inverse(a))).all()
        a = ops.xp.ones((50, 50), dtype)
    arguments = (a, ops.xp.ones((2, 3), dtype)) if name == "solve" else (a,)
    with pytest.raises(SingularMatrixError, match="singular"):
        getattr(ops.linalg, name)(*arguments)


class TestValues(OperationValues):
    """On the device."""
