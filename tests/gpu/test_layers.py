"""The contract of every layer (see `test_layers.py` beside this folder) on the device."""

import pytest
from test_layers import EVERY_CASE, RTOL, moved_parameters

from snfnp.gradcheck import check_layer


@pytest.mark.parametrize("case", EVERY_CASE)
def test_contract(case, ops):
    report = check_layer(case.layer, case.shape, ops=ops, rtol=RTOL, **case.settings)
    checked = {"inverse(forward(x))", "log-determinant", "x", *moved_parameters(case)}
    assert set(report.errors) == checked
    assert max(report.errors.values()) <= RTOL
