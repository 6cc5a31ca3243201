"""Training steps on a GPU, beside what its hardware allows, the bars, and the paper's times.

A step is measured as training runs it: images on the device, the gathering of its batch included,
the host not waiting for the device between steps. So a burst of steps is timed as a whole (see
`measure_asynchronous`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from benchmarks.launches import count_kernels, memory_rate
from benchmarks.steps import BATCH, IMAGE, make_trainer
from benchmarks.timing import Timing, measure_asynchronous, table
from benchmarks.work import operations, traffic
from snfnp.errors import UsageError
from snfnp.training.batches import Batches
from snfnp.training.trainer import Trainer

SINGLE, TF32 = "float32", "TF32"
# How a step is started: launch by launch, as a graph, as one with the weights' gradients beside the
# rest (`--overlap`).
EAGER, GRAPH, OVERLAP = "eager", "graph", "overlap"


@dataclass(frozen=True)
class Case:
    """A model's self-normalizing step.

    bars: {precision: milliseconds} that it must reach as a graph on a GPU of the H100's class;
    kernels: how many it may launch without one; paper: milliseconds of the paper's Table 3, on a
    1080 Ti; settings: of the configuration, beside the model's own.
    """

    title: str
    model: str
    kernels: int | None
    bars: dict[str, float]
    paper: float | None
    precisions: tuple[str, ...]
    settings: dict = field(default_factory=dict)


CASES = (
    Case("FC 2 × 784", "fc", 60, {SINGLE: 0.20}, 18.7, (SINGLE, TF32)),
    Case("conv, 9 layers", "conv", 100, {SINGLE: 0.50}, 212.5, (SINGLE,)),
    Case("Glow 2L-16K", "glow", None, {SINGLE: 25.0, TF32: 10.0}, 476.4, (SINGLE, TF32)),
)


@dataclass(frozen=True)
class Plan:
    """A measurement: cases, sizes and repeats.

    products: (M, K, N) of the products whose rates are measured, large ones and the cases' own;
    copied: bytes of the copy that measures the memory, many times the size of any cache.
    """

    cases: tuple[Case, ...] = CASES
    shape: tuple[int, int, int] = IMAGE
    images: int = 50_000
    batch: int = BATCH
    products: tuple = ((4096, 4096, 4096), (BATCH * 14 * 14, 512, 512), (BATCH, 784, 784))
    copied: int = 1 << 30
    bursts: int = 9
    seconds: float = 0.2


QUICK = Plan(bursts=3, seconds=0.05)


def report(
    ops_of: Callable, plan: Plan, show: Callable[[str], None], comparison: Callable | None = None
) -> dict:
    """Every figure of this module as data; as text to `show`, model by model.

    ops_of(tf32, overlap) -> ops. comparison(trainer, images, tf32, graph) -> the same step in
    another framework, as a call without arguments; what it cannot do may be left out by raising.
    """
    precisions = [p for p in (SINGLE, TF32) if any(p in case.precisions for case in plan.cases)]
    backends, beside = (
        {each: ops_of(tf32=each == TF32, overlap=overlap) for each in precisions}
        for overlap in (False, True)
    )
    first = backends[precisions[0]]
    if not first.asynchronous:
        raise UsageError(f"the {first.name} backend has no device to measure")
    name = first.device.describe()["name"]
    limits = _limits(backends, plan)
    show(f"limits of {name}\n{_limits_text(limits)}\n")
    results = {"device": name, "limits": limits, "steps": []}
    ways = {EAGER: backends, GRAPH: backends, OVERLAP: beside}
    for case in plan.cases:
        rows, notes = _measure_case(ways, case, plan, limits, comparison)
        results["steps"] += rows
        lines = [
            f"{case.title} on {name}: training step, self-normalizing, batch {plan.batch}",
            table(rows, [key for key in _COLUMNS if any(row.get(key) is not None for row in rows)]),
            *notes,
            *_verdict(rows),
        ]
        show("\n".join(lines) + "\n")
    return results


# ---------------------------------------------------------------- what the hardware allows


def _limits(backends: dict, plan: Plan) -> dict:
    """Bytes per second of the device's memory, by its driver and by a large copy; operations per
    second of (M, K) × (K, N) products, by precision."""
    ops = next(iter(backends.values()))
    source = ops.xp.zeros(plan.copied, np.uint8)
    target = ops.xp.empty_like(source)
    stated = memory_rate(ops.xp)
    copy = 2e3 * plan.copied / _fastest(ops, lambda: target.__setitem__(..., source), plan)
    products, rng = [], np.random.default_rng(0)
    for rows, inner, columns in plan.products:
        products.append({"product": f"({rows}, {inner}) × ({inner}, {columns})"})
        for precision, ops in backends.items():
            a = ops.asarray(rng.standard_normal((rows, inner), np.float32))
            b = ops.asarray(rng.standard_normal((inner, columns), np.float32))
            out = ops.xp.empty((rows, columns), np.float32)
            fastest = _fastest(ops, partial(ops.linalg.matmul, a, b, out=out), plan)
            products[-1][precision] = 2e3 * rows * inner * columns / fastest
    return {
        "memory": stated or copy,
        "memory from": "its driver" if stated else "the copy",
        "copy": copy,
        "products": products,
        **{precision: max(row[precision] for row in products) for precision in backends},
    }


def _fastest(ops, call: Callable[[], object], plan: Plan) -> float:
    """Milliseconds of a call."""
    calls = {"call": call}
    timings = measure_asynchronous(calls, ops.device.synchronise, plan.bursts, plan.seconds)
    return timings["call"].minimum


def _limits_text(limits: dict) -> str:
    rows = [
        {"product": row["product"]}
        | {f"{p} TFLOP/s": row[p] / 1e12 for p in (SINGLE, TF32) if p in limits}
        for row in limits["products"]
    ]
    return (
        f"{table(rows)}\n"
        f"memory {limits['memory'] / 1e9:.1f} GB/s as {limits['memory from']} says; a large copy "
        f"reads and writes {limits['copy'] / 1e9:.1f} GB/s\n"
        "floors: bytes of parameters, gradient, moments and activations at the memory's rate (what "
        "fits in the\ncard's cache may beat it), operations of all products at the rate of the "
        "fastest product above"
    )


# ---------------------------------------------------------------- steps


def _measure_case(
    ways: dict, case: Case, plan: Plan, limits, comparison
) -> tuple[list[dict], list[str]]:
    """The rows of a model, and what is to be said about them. ways: {how: {precision: ops}}."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (plan.images, *plan.shape)).astype(np.uint8)
    rows, notes = [], []
    for precision in case.precisions:
        runs = {
            how: _Run(ops[precision], case, plan, images, precision, how)
            for how, ops in ways.items()
        }
        calls, eager = {how: run.step for how, run in runs.items()}, runs[EAGER]
        synchronise = eager.trainer.ops.device.synchronise
        timings = measure_asynchronous(calls, synchronise, plan.bursts, plan.seconds)
        for run in runs.values():
            run.finish()
        others = _compare(comparison, runs, images, precision, plan, notes)
        moved = traffic(eager.trainer, eager.batches(0))
        done, kernels = operations(eager.trainer.flow, plan.batch), eager.kernels()
        for how, run in runs.items():
            row = {"step": case.title, "precision": precision, "how": how}
            for prefix, timing in (("", timings[how]), ("PyTorch ", others.get(how))):
                if timing:
                    row[f"{prefix}min ms"], row[f"{prefix}median ms"] = (
                        timing.minimum,
                        timing.median,
                    )
            row |= {
                "kernels": kernels if how == EAGER else None,
                "kernels at most": case.kernels if how == EAGER else None,
                "bytes": moved,
                "operations": done,
                "floor: bytes ms": 1e3 * moved / limits["memory"],
                "floor: operations ms": 1e3 * done / limits[precision],
                "bar ms": case.bars.get(precision) if how == GRAPH else None,
                "1080 Ti ms": case.paper,
            }
            rows.append(row)
            notes += [f"{precision}, {how}: {note}" for note in run.notes]
    return rows, notes


_COLUMNS = ("precision", "how", "min ms", "median ms", "kernels", "kernels at most")
_COLUMNS += ("floor: bytes ms", "floor: operations ms", "bar ms")
_COLUMNS += ("PyTorch min ms", "PyTorch median ms", "1080 Ti ms")


class _Run:
    """A trainer with its images, and what it reported: why its step cannot be recorded."""

    def __init__(self, ops, case: Case, plan: Plan, images, precision: str, how: str):
        self.notes: list[str] = []
        settings = {"batch_size": plan.batch, "tf32": precision == TF32}
        settings |= {"graph": how != EAGER, "overlap": how == OVERLAP}
        which = (case.model, "self-normalizing", plan.shape, plan.images, self.notes.append)
        self.trainer: Trainer = make_trainer(ops, *which, **(settings | case.settings))
        self.batches = Batches(ops, images, self.trainer.config, self.trainer.flow.shape)
        self.trainer.initialise_from_data(self.batches(0))

    def step(self) -> None:
        self.trainer.training_step(self.batches(self.trainer.step))

    def kernels(self) -> int | None:
        """Count the kernels that a step launches, the gathering of its batch included."""
        self.batches(0)  # in this epoch's order there is nothing to be uploaded while recording
        step = self.trainer.training_step
        return count_kernels(self.trainer.ops.xp, lambda: step(self.batches(0)))

    def finish(self) -> None:
        """Raises DivergedError: from the step that failed on, steps do less than they should."""
        self.trainer.check(self.batches)


def _compare(comparison, runs, images, precision, plan: Plan, notes) -> dict[str, Timing]:
    """The other framework's timings, after ours: what fails there must not cost our figures."""
    timings = {}
    for how in (EAGER, GRAPH) if comparison else ():
        run = runs[how]
        synchronise = run.trainer.ops.device.synchronise
        try:
            step = comparison(run.trainer, images, tf32=precision == TF32, graph=how == GRAPH)
            timings |= measure_asynchronous({how: step}, synchronise, plan.bursts, plan.seconds)
        except Exception as error:  # whatever it was
            reason = (str(error).splitlines() or [""])[0]
            notes.append(
                f"{precision}, {how}: no comparison with PyTorch ({type(error).__name__}: {reason})"
            )
    return timings


def _verdict(rows: list[dict]) -> list[str]:
    """A line for every bar: the median reaches it or not, and so do the launches."""
    lines = []
    for row in rows:
        what = f"{row['precision']}, {row['how']}"
        if row["bar ms"]:
            word = "reached" if row["median ms"] <= row["bar ms"] else "MISSED"
            lines.append(f"{what}: {row['median ms']:.3f} ms, bar {row['bar ms']:.2f} ms: {word}")
        if row["kernels at most"] and row["kernels"] is not None:
            word = "reached" if row["kernels"] <= row["kernels at most"] else "MISSED"
            lines.append(f"{what}: {row['kernels']} kernels, bar {row['kernels at most']}: {word}")
    return lines
