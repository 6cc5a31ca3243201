"""Training steps on a GPU, beside what its hardware allows, the bars, and the paper's times.

A step is measured as training runs it: images on the device, the gathering of its batch included,
the host not waiting for the device between steps. So a burst of steps is timed as a whole (see
`measure_asynchronous`).
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np

from benchmarks.steps import ADAM_BYTES, BATCH, IMAGE, make_trainer, operations
from benchmarks.timing import Timing, measure_asynchronous, table
from snfnp.errors import UsageError
from snfnp.step.batches import Batches

SINGLE = "float32"
TF32 = "TF32"
WAYS = {"eager": {"graph": False}, "graph": {}}  # to run our step


class Case(NamedTuple):
    """A model's self-normalizing step. bars: {precision: milliseconds} that it must reach on an
    H100 SXM, recorded (one for PCIe has three quarters of its rate); settings: its own."""

    title: str
    model: str
    bars: dict[str, float]
    precisions: tuple[str, ...]
    settings: dict = {}


CASES = (
    Case("FC 2 × 784", "fc", {SINGLE: 0.20}, (SINGLE, TF32)),
    Case("FC 2 × 784, white", "fc", {}, (SINGLE,), {"coordinates": "white"}),
    Case("conv, 9 layers", "conv", {SINGLE: 0.45}, (SINGLE,)),
    Case("conv, 9 layers, white", "conv", {}, (SINGLE,), {"coordinates": "white"}),
    Case("Glow 2L-16K", "glow", {SINGLE: 22.0, TF32: 12.0}, (SINGLE, TF32)),
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
        return measure_asynchronous(
            calls, ops.device.synchronise, self.bursts, self.seconds
        )


QUICK = Plan(bursts=3, seconds=0.05)


def report(ops_of: Callable, plan: Plan, show: Callable, save: Callable) -> None:
    """Every figure of this module, model by model: as text to `show`, and all so far to `save`.
    ops_of(tf32) -> ops."""
    first = ops_of(tf32=False)
    if not first.asynchronous:
        raise UsageError(f"the {first.name} backend has no device to measure")
    precisions = [
        p for p in (SINGLE, TF32) if any(p in case.precisions for case in plan.cases)
    ]
    limits = _limits({each: ops_of(tf32=each == TF32) for each in precisions}, plan)
    results = {"device": first.device.describe()["name"], "limits": limits, "steps": []}
    show(
        f"limits of {results['device']}\n{table(limits['products'])}\n"
        f"memory: a large copy reads and writes {limits['memory'] / 1e9:.1f} GB/s\n"
        "floors: Adam's bytes at the memory's rate (what fits in the card's cache may beat it), "
        "operations of\nall products at the rate of the fastest product above\n"
    )
    for case in plan.cases:
        rows = []
        notes = []
        for precision in case.precisions:
            timed, warnings = _measure(ops_of, case, precision, plan, limits)
            rows += timed
            notes += [f"{precision}, {warning}" for warning in warnings]
        results["steps"] += rows
        save(results)
        title = f"{case.title} on {results['device']}, self-normalizing step, batch {plan.batch}"
        show("\n".join([title, table(rows), *notes, *_verdict(rows)]) + "\n")


def _limits(backends: dict, plan: Plan) -> dict:
    """Bytes per second of the device's memory, by a large copy; TFLOP/s of (M, K) × (K, N)
    products by precision, and the fastest of them."""
    ops = next(iter(backends.values()))
    source = ops.xp.zeros(plan.copied, np.uint8)
    target = ops.xp.empty_like(source)
    copies = plan.time(ops, {"copy": lambda: target.__setitem__(..., source)})
    products = []
    rng = np.random.default_rng(0)
    for rows, inner, columns in plan.products:
        products.append({"product": f"({rows}, {inner}) × ({inner}, {columns})"})
        for precision, ops in backends.items():
            a = ops.asarray(rng.standard_normal((rows, inner), np.float32))
            b = ops.asarray(rng.standard_normal((inner, columns), np.float32))
            call = partial(
                ops.linalg.matmul, a, b, out=ops.xp.empty((rows, columns), np.float32)
            )
            fastest = plan.time(ops, {"product": call})["product"].minimum
            products[-1][f"{precision} TFLOP/s"] = (
                2e-9 * rows * inner * columns / fastest
            )
    rates = {p: max(row[f"{p} TFLOP/s"] for row in products) for p in backends}
    return {
        "memory": 2e3 * plan.copied / copies["copy"].minimum,
        "products": products,
        **rates,
    }


def _measure(ops_of, case: Case, precision: str, plan: Plan, limits):
    """The rows of a model in one precision, and what its trainers report."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (plan.images, *plan.shape)).astype(np.uint8)
    calls = {}
    runs = []
    notes = []
    for how, way in WAYS.items():
        tf32 = precision == TF32
        ops = ops_of(tf32=tf32)
        trainer = make_trainer(
            ops,
            case.model,
            "self-normalizing",
            plan.shape,
            plan.images,
            partial(lambda how, text: notes.append(f"{how}: {text}"), how),
            batch_size=plan.batch,
            tf32=tf32,
            **way,
            **case.settings,
        )
        batches = Batches(ops, images, trainer.config, trainer.flow.shape)
        trainer.begin(batches)
        runs.append((trainer, batches))
        calls[how] = partial(trainer.training_step, batches)
    timings = plan.time(trainer.ops, calls)
    for trainer, batches in runs:  # after a failure steps do less than they should
        trainer.check(batches)
    adam = 1e3 * ADAM_BYTES * trainer.p.size / limits["memory"]
    products = 1e-9 * operations(trainer.flow, plan.batch) / limits[precision]
    rows = []
    for how, timing in timings.items():
        row = {
            "step": case.title,
            "precision": precision,
            "how": how,
            "min ms": timing.minimum,
            "median ms": timing.median,
            "host ms": timing.host,
            "floor: Adam ms": adam,
            "floor: operations ms": products,
            "bar ms": case.bars.get(precision) if how == "graph" else None,
        }
        rows.append(row)
    return rows, notes


def _verdict(rows: list[dict]) -> list[str]:
    """A line for every bar: the step reaches it or not."""
    lines = []
    for row in rows:
        median = row["median ms"]
        bar = row["bar ms"]
        if bar:
            verdict = "reached" if median <= bar else "MISSED"
            times = f"{row['precision']}: {median:.3f} ms, bar {bar:.2f} ms"
            lines.append(f"{times}: {verdict}")
    return lines
