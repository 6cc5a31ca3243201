"""Layers and maps are checked on the device as on a CPU, those of one's own included."""

import numpy as np
import pytest
from support.beyond_checks import ALL_CHECKS
from support.own_layer import RULES, own
from support.runs import assert_same_run
from support.trainers import run_training

from snfnp.gradcheck import check_layer, check_map, check_rule
from snfnp.maps import Dense


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_the_pages_layer_passes_its_check(ops, dtype):
    check_layer(own("Planar")(), shape=(4,), ops=ops, dtype=dtype)
    check_map(own("Diagonal")(4), shape=(4,), ops=ops, dtype=dtype)


def test_the_pages_optimiser_and_rule_do_the_same_in_a_recorded_step(ops, tmp_path):
    runs, said = [], []
    for graph in (True, False):
        settings = {"optimiser": own("Momentum", RULES)(), "lr": 1e-5, "graph": graph}
        settings["report"] = said.append
        runs.append(run_training(tmp_path / str(graph), backend="cupy", **settings)[0].path)
    assert_same_run(*runs)
    assert not any("graph" in line for line in said), said
    check_rule(own("Newton", RULES)(), Dense(4), (4,), ops=ops)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("check", ALL_CHECKS, ids=lambda check: f"{check.kind} {check.name}")
def test_every_layer_rule_and_map_passes_its_check(ops, check, dtype):
    check.run(ops=ops, dtype=dtype)
