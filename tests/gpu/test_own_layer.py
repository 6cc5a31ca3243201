"""Layers and maps are checked on the device as on a CPU, those of one's own included."""

import numpy as np
import pytest
from support.beyond_checks import ALL_CHECKS
from support.own_layer import own

from snfnp.gradcheck import check_layer, check_map


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_the_pages_layer_passes_its_check(ops, dtype):
    check_layer(own("Planar")(), shape=(4,), ops=ops, dtype=dtype)
    check_map(own("Diagonal")(4), shape=(4,), ops=ops, dtype=dtype)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("check", ALL_CHECKS, ids=lambda check: f"{check.kind} {check.name}")
def test_every_layer_rule_and_map_passes_its_check(ops, check, dtype):
    check.run(ops=ops, dtype=dtype)
