"""What the benchmark says a step must do, how it measures, and that it prints its figures."""

import json
from pathlib import Path

import benchmark
import numpy as np
import pytest
from benchmarks import device, models, timing
from benchmarks.device import SINGLE
from benchmarks.steps import make_trainer
from benchmarks.work import operations

from snfnp import threads
from snfnp.errors import UsageError
from snfnp.ops import get_ops

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
SHAPE, COUNT, BATCH = (8, 8, 1), 24, 6
SMALL_GLOW = {"levels": 2, "depth": 1, "width": 8}


def small_trainer(model, ops=None, gradient="self-normalizing", **settings):
    ops = ops or get_ops("numpy")
    settings = {"batch_size": BATCH, "warmup_epochs": 0} | settings
    return make_trainer(ops, model, gradient, SHAPE, COUNT, **settings)


def random_images(count=COUNT):
    return np.random.default_rng(0).integers(0, 256, (count, *SHAPE)).astype(np.uint8)


@pytest.mark.parametrize("gradient,products", [("self-normalizing", 6), ("exact", 3)])
def test_operations_of_the_fully_connected_step(gradient, products):
    flow = small_trainer("fc", gradient=gradient).flow
    assert operations(flow, BATCH, gradient) == 2 * products * 2 * BATCH * 64**2


def test_operations_of_the_convolutional_and_the_glow_step():
    """Three image sizes, three 3×3 convolutions each: (8, 8, 1), (4, 4, 4), (2, 2, 16). Glow, per
    level: six products of 1×1, and a coupling's network three times; the split is one more; images
    are (4, 4, 4) and then (2, 2, 8)."""

    def network(channels, width=8):
        return 9 * channels // 2 * width + width**2 + 9 * width * channels

    conv = sum(6 * 3 * 9 * pixels * c**2 for pixels, c in ((64, 1), (16, 4), (4, 16)))
    glow = 16 * (6 * 4**2 + 2 * 3 * network(4)) + 4 * (6 * 8**2 + 3 * network(8))
    assert operations(small_trainer("conv").flow, BATCH) == 2 * BATCH * conv
    assert operations(small_trainer("glow", **SMALL_GLOW).flow, BATCH) == 2 * BATCH * glow


def test_threads_are_given_back_after_an_exception():
    numba = pytest.importorskip("numba")
    before = numba.get_num_threads()
    assert before > 1 or numba.config.NUMBA_NUM_THREADS == 1
    with pytest.raises(ZeroDivisionError), threads.restored():
        threads.limit(1)
        assert numba.get_num_threads() == 1
        raise ZeroDivisionError
    assert numba.get_num_threads() == before


def test_a_table_shows_three_digits_or_all_before_the_point():
    rows = [{"a": "x", "ms": 0.12345, "n": 7}, {"a": "long", "ms": 12345.6, "n": None}]
    assert timing.table(rows) == "a         ms  n\nx      0.123  7\nlong  12,346  -"


def test_steps_stand_beside_their_floors():
    """Of minima: products at the rate of the products alone, Adam's bytes at that of a copy."""
    times = {"fc": 3.0, "thin": 1.5, "both": 2.5, "copy": 0.5}
    rows = [
        {"step": name, "threads": count, "min ms": ms / count, "median ms": 9.0}
        for count in (1, 2)
        for name, ms in times.items()
    ]
    work = {"fc": 12 * 2 * 100.0 * 20 * 30, "thin": 6 * 2 * 100.0 * 20 * 30}
    one, thin, two, _ = models.with_floors(rows, (100, 20, 30), work)
    assert (one["products ms"], one["Adam ms"], one["min / floor"]) == (2.0, 0.5, 1.2)
    assert (thin["products ms"], thin["min / floor"]) == (1.0, 1.0)
    assert (two["products ms"], two["min / floor"]) == (1.0, 1.2)


def test_the_calls_of_a_floor_are_twelve_products_and_adams_bytes(monkeypatch):
    moved, products = [], []
    monkeypatch.setattr("numba.njit", lambda **_: lambda copy: lambda *of: moved.append(of))
    monkeypatch.setattr(np, "matmul", lambda a, b, out: products.append((a @ b, out)))
    calls = models.floor_calls((5, 4, 4), 1000)
    calls["both"]()
    assert len(products) == 12 and all(found.shape == out.shape for found, out in products)
    calls["copy"]()
    for source, target in moved:
        assert source.nbytes + target.nbytes == 28 * 1000 and not np.shares_memory(source, target)
    assert len(moved) == 2


def test_a_backend_without_a_device_is_refused():
    with pytest.raises(UsageError, match="no device"):
        device.report(lambda tf32, overlap: get_ops("numpy"), device.QUICK, print, print)


@pytest.mark.parametrize("overlap, verdict", [(0.3, "MISSED"), (0.2, "reached")])
def test_a_verdict_for_every_bar_by_the_faster_recorded_way(overlap, verdict):
    times = {"eager": 0.1, "graph": 0.201, "overlap": overlap, "PyTorch": 0.1}
    rows = [{"precision": SINGLE, "how": how, "median ms": ms} for how, ms in times.items()]
    rows = [row | {"bar ms": 0.2 if row["how"] == "graph" else None} for row in rows]
    rows += [row | {"precision": device.TF32, "median ms": 0.05, "bar ms": None} for row in rows]
    found, how = min((0.201, "graph"), (overlap, "overlap"))
    assert device._verdict(rows) == [f"{SINGLE}, {how}: {found:.3f} ms, bar 0.20 ms: {verdict}"]


@pytest.mark.parametrize(
    "arguments,message",
    [
        ("conv --backend cupy", "no benchmark of cupy is called conv: choose from device, or"),
        ("device", "no benchmark of numba is called device: choose from fc, conv, glow, or"),
    ],
)
def test_parts_that_make_no_sense_are_refused(arguments, message):
    with pytest.raises(UsageError, match=message):
        benchmark.main(arguments.split())


def test_the_benchmark_prints_and_writes_its_figures(tmp_path, monkeypatch, capsys):
    """Each call of a few is timed: once is enough."""
    file = tmp_path / "figures.json"
    monkeypatch.setattr(models, "measure", lambda calls, repeats: timing.measure(calls, 1, 0))
    benchmark.main(["fc", "--quick", "--json", str(file)])
    out, results = capsys.readouterr().out, json.loads(file.read_text())
    names = {"self-normalizing", "exact", "relative", "variational", "self-normalizing, white"}
    assert {row["step"] for row in results["fc"]["steps"]} == names
    times = (*results["fc"]["steps"], *results["fc"]["renewals"])
    assert all(0 < row["min ms"] <= row["median ms"] for row in times)
    assert all(row["min / floor"] > 0 for row in results["fc"]["steps"]) and "Adam ms" in out
