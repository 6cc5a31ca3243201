"""The benchmark's measurements of a device: every part of it, with models that take seconds."""

from __future__ import annotations

import json

import pytest
from benchmarks import device, launches, sweep
from benchmarks.device import SINGLE, TF32, Case, Plan

from snfnp.errors import DivergedError
from snfnp.ops import get_ops

pytestmark = pytest.mark.slow

SHAPE = (8, 8, 1)
COUNT = 24
BATCH = 6
SMALL_GLOW = {"levels": 1, "depth": 1, "width": 8}


@pytest.fixture
def tiny():
    """A plan of two models that the stand-in can do in seconds."""
    cases = (
        Case("tiny FC", "fc", 1e-9),
        Case("tiny FC", "fc", None, TF32),
        Case("tiny Glow", "glow", 1e9, TF32, SMALL_GLOW),
    )
    return Plan(
        cases,
        SHAPE,
        COUNT,
        BATCH,
        ((16, 24, 8),),
        copied=1 << 16,
        bursts=1,
        seconds=0.0,
    )


def cupy_ops(tf32=False):
    return get_ops("cupy", tf32=tf32)


def test_the_device_part_runs_end_to_end(tiny):
    """Each case's figures are written as soon as it is measured."""
    said = []
    saved = []
    device.report(
        cupy_ops, tiny, said.append, lambda found: saved.append(json.dumps(found))
    )
    *_, results = whole = list(map(json.loads, saved))
    name = cupy_ops(False).device.describe()["name"]
    assert results["device"] == name and all(name in text for text in said)
    steps = results["steps"]
    cases = (("tiny FC", SINGLE), ("tiny FC", TF32), ("tiny Glow", TF32))
    assert [len(each["steps"]) for each in whole] == [2, 4, 6]
    assert [(row["step"], row["precision"], row["how"]) for row in steps] == [
        (*case, how) for case in cases for how in ("eager", "graph")
    ]
    for row in steps:
        assert 0 < row["min ms"] <= row["median ms"] and row["host ms"] > 0
        assert row["floor: Adam ms"] > 0 and row["floor: operations ms"] > 0
    verdicts = [None, "MISSED", None, None, None, "reached"]
    assert [row["verdict"] for row in steps] == verdicts
    assert "cannot be recorded" not in "\n".join(said)


def test_the_sweep_runs_on_the_device(tiny):
    rows = sweep.sweep(cupy_ops(False), [(8,), (16,)], batch=4, budget=0.0)
    assert [row["D"] for row in rows] == [8, 16]
    assert all(row["exact ms"] > 0 and row["self-normalizing ms"] > 0 for row in rows)


def test_a_step_that_cannot_be_recorded_says_so(tiny, monkeypatch):
    """Otherwise its row would report figures of eager steps as a graph's."""
    said = []

    def waits(self, errors, squares, lam, number, out):
        self.device.to_host(out)

    monkeypatch.setattr(type(cupy_ops(False).step), "log_step", waits)
    case = Case("FC", "fc")
    device.report(
        cupy_ops, tiny._replace(cases=(case,)), said.append, lambda found: None
    )
    assert "the training step cannot be recorded" in "\n".join(said)


def test_a_run_that_diverges_is_not_reported(tiny):
    """After a failure a step leaves out the update, and its time would be wrong."""
    settings = {"lr": 1e30}
    case = Case("FC", "fc", settings=settings)
    with pytest.raises(DivergedError):
        device.report(cupy_ops, tiny._replace(cases=(case,)), *[lambda what: None] * 2)


def test_every_launch_of_a_step_is_timed_alone(tiny):
    """Our own kernels and the products; afterwards launches are what they were."""
    said = []
    saved = []
    ops = cupy_ops(False)
    start = ops.device.launch._start
    gemm = ops.device.cublas.gemm
    plan = tiny._replace(cases=(tiny.cases[0], tiny.cases[2]))
    launches.report(lambda tf32: ops, plan, said.append, saved.append)
    assert (ops.device.launch._start, ops.device.cublas.gemm) == (start, gemm)
    rows = saved[-1]["tiny FC, float32"]
    assert len(said) == 2 and "tiny FC, float32, batch 6: 31 launches" in said[0]
    assert sum(row["of them"] for row in rows) == 31
    products = [row for row in rows if row["launch"].startswith("product")]
    assert sum(row["of them"] for row in products) == 12
    # fmt: skip
    assert {row["launch"] for row in products} == {
        "product (6, 64) × (64, 64)",
        "product (64, 6) × (6, 64)",
    }
    for row in rows:
        assert row["µs"] > 0 and row["kB"] >= 0 and (row["blocks"] or row["TFLOP/s"])
    adam = next(row for row in rows if row["launch"] == "adam")
    # parameters; p, g, m and v of them, and the sum of squares
    flow = 2 * (2 * 64 * 64 + 64)
    assert adam["kB"] * 1e3 == pytest.approx(16 * flow, rel=0.01)
