"""Every operation on the device, against its definition on the CPU."""

import numpy as np
import pytest
from opcalls import (
    FLOATS,
    NO_SAMPLES,
    SIZES,
    assert_as_defined,
    assert_nan_spreads_as_defined,
    every_second,
    in_order,
    overridden,
    transposed,
)
from opcases import NEVER_EMPTY, OVERRIDES
from opvalues import OperationValues

from snfnp.ops.cupy_ops import CupyOps

NAMES = [name for name in OVERRIDES if name in overridden(CupyOps)]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", NAMES)
def test_operation_is_the_definition(ops, name, dtype, size):
    call = OVERRIDES[name](np.random.default_rng(0), dtype, size)
    assert_as_defined(ops, name, call, in_order(ops.asarray))


@pytest.mark.parametrize("layout", [every_second, transposed])
@pytest.mark.parametrize("size", [(5, 37), (3, 5, 7, 2)], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_operation_takes_strided_and_transposed_arguments(ops, name, size, layout):
    call = OVERRIDES[name](np.random.default_rng(1), np.float64, size)
    assert_as_defined(ops, name, call, in_order(ops.asarray), layout)


@pytest.mark.parametrize("size", NO_SAMPLES, ids=str)
@pytest.mark.parametrize("name", [name for name in NAMES if name not in NEVER_EMPTY])
def test_operation_takes_no_samples(ops, name, size):
    call = OVERRIDES[name](np.random.default_rng(0), np.float32, size)
    assert_as_defined(ops, name, call, in_order(ops.asarray))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("size", [(5, 37), (3, 5, 7, 2)], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_nan_spreads_as_defined(ops, name, size):
    call = OVERRIDES[name](np.random.default_rng(0), np.float32, size)
    assert_nan_spreads_as_defined(ops, name, call, in_order(ops.asarray))


class TestValues(OperationValues):
    """On the device."""
