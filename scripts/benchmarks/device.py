"""Training steps on a GPU, beside what its hardware allows, and the bars.

A step is measured as training runs it: images on the device, the gathering of its batch included,
the host not waiting for the device between steps. So a burst of steps is timed as a whole (see
`measure`).
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np

from benchmarks.steps import ADAM_BYTES, BATCH, IMAGE, make_trainer, operations
from benchmarks.timing import Timing, measure, table
from snfnp.step.batches import Batches

SINGLE = "float32"
TF32 = "TF32"


class Case(NamedTuple):
    """A model's self-normalizing step, by products of this precision.

    bar: milliseconds that it must reach as a graph on an H100 SXM (one for PCIe has three quarters
    of its rate); settings: other fields of its configuration.
    """

    title: str
    model: str
    bar: float | None = None
    precision: str = SINGLE
    settings: dict = {}


_WHITE = {"coordinates": "white"}
CASES = (
    Case("FC 2 × 784", "fc", 0.20),
    Case("FC 2 × 784", "fc", None, TF32),
    Case("FC 2 × 784, white", "fc", settings=_WHITE),
    Case("conv, 9 layers", "conv", 0.45),
    Case("conv, 9 layers, white", "conv", settings=_WHITE),
    Case("Glow 2L-16K", "glow", 22.0),
    Case("Glow 2L-16K", "glow", 12.0, TF32),
)


class Plan(NamedTuple):
    """A measurement: cases, sizes and repeats.

    products: (M, K, N) of the products whose rates are measured, large ones and the cases' own;
    copied: bytes of the copy that measures the memory, many times the size of any cache.
    """

    cases: tuple[Case, ...] = CASES
    shape: tuple[int, int, int] = IMAGE
    images: int = 50_000
    batch: int = BATCH
    products: tuple = (
        (4096, 4096, 4096),
        (BATCH * 14 * 14, 512, 512),
        (BATCH, 784, 784),
    )
    copied: int = 1 << 30
    bursts: int = 9
    seconds: float = 0.2

    def time(self, ops, calls: dict[str, Callable]) -> dict[str, Timing]:
        return measure(calls, self.bursts, self.seconds, ops.device.synchronise)


QUICK = Plan(bursts=3, seconds=0.05)


def report(ops_of: Callable, plan: Plan, show: Callable, save: Callable) -> None:
    """Every figure of this module, case by case: as text to `show`, and all so far to `save`.
    ops_of(tf32) -> ops."""
    limits = _limits(ops_of, plan)
    device = ops_of().device.describe()["name"]
    results = {"device": device, "limits": limits, "steps": []}
    show(
        f"products on {device}, in TFLOP/s\n{table(limits['products'])}\n"
        f"memory: a large copy reads and writes {limits['memory'] / 1e9:.1f} GB/s\n"
        "floors: Adam's bytes at the memory's rate (what fits in the card's cache may beat it), "
        "operations of\nall products at the rate of the fastest product above\n"
    )
    for case in plan.cases:
        rows = _measure(ops_of, case, plan, limits, show)
        results["steps"] += rows
        save(results)
        title = f"{case.title} on {device}, self-normalizing step, batch {plan.batch}"
        show(f"{title}\n{table(rows)}\n")


def _limits(ops_of: Callable, plan: Plan) -> dict:
    """Bytes per second of the device's memory, by a large copy; TFLOP/s of (M, K) × (K, N)
    products by precision, and the fastest of them."""
    ops = ops_of()
    source = ops.xp.zeros(plan.copied, np.uint8)
    target = ops.xp.empty_like(source)
    copies = plan.time(ops, {"copy": lambda: target.__setitem__(..., source)})
    products = []
    rng = np.random.default_rng(0)
    for rows, inner, columns in plan.products:
        a = ops.asarray(rng.standard_normal((rows, inner), np.float32))
        b = ops.asarray(rng.standard_normal((inner, columns), np.float32))
        out = ops.xp.empty((rows, columns), np.float32)
        row = {"product": f"({rows}, {inner}) × ({inner}, {columns})"}
        for precision in (SINGLE, TF32):
            linalg = ops_of(tf32=precision == TF32).linalg
            call = partial(linalg.matmul, a, b, out=out)
            fastest = plan.time(ops, {"product": call})["product"].minimum
            row[precision] = 2e-9 * rows * inner * columns / fastest
        products.append(row)
    return {
        "memory": 2e3 * plan.copied / copies["copy"].minimum,
        "products": products,  # in TFLOP/s
        SINGLE: max(row[SINGLE] for row in products),
        TF32: max(row[TF32] for row in products),
    }


def _measure(
    ops_of, case: Case, plan: Plan, limits: dict, show: Callable
) -> list[dict]:
    """The rows of a case; its trainers report to `show`."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (plan.images, *plan.shape)).astype(np.uint8)
    tf32 = case.precision == TF32
    ops = ops_of(tf32=tf32)
    calls = {}
    runs = []
    for mode in ("eager", "graph"):
        trainer = make_trainer(
            ops,
            case.model,
            "self-normalizing",
            plan.shape,
            plan.images,
            show,
            batch_size=plan.batch,
            tf32=tf32,
            graph=mode == "graph",
            **case.settings,
        )
        batches = Batches(ops, images, trainer.config, trainer.flow.shape)
        trainer.begin(batches)
        runs.append((trainer, batches))
        calls[mode] = partial(trainer.training_step, batches)
    timings = plan.time(ops, calls)
    for trainer, batches in runs:  # after a failure steps do less than they should
        trainer.check(batches)
    products = 1e-9 * operations(trainer.flow, plan.batch) / limits[case.precision]
    rows = []
    for mode, timing in timings.items():
        bar = case.bar if mode == "graph" else None
        row = {
            "step": case.title,
            "precision": case.precision,
            "how": mode,
            "min ms": timing.minimum,
            "median ms": timing.median,
            "host ms": timing.host,
            "floor: Adam ms": 1e3 * ADAM_BYTES * trainer.m.size / limits["memory"],
            "floor: operations ms": products,
            "bar ms": bar,
            "verdict": bar and ("reached" if timing.median <= bar else "MISSED"),
        }
        rows.append(row)
    return rows
