"""Training steps on a GPU, beside what its hardware allows, the bars, and the paper's times.

A step is measured as training runs it: images on the device, the gathering of its batch included,
the host not waiting for the device between steps. So a burst of steps is timed as a whole (see
`measure_asynchronous`).
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np

from benchmarks.steps import BATCH, IMAGE, make_trainer
from benchmarks.timing import Timing, measure_asynchronous, table
from benchmarks.work import operations, traffic
from snfnp.errors import UsageError
from snfnp.training.batches import Batches
from snfnp.training.trainer import Trainer

SINGLE, TF32 = "float32", "TF32"
# How a step is started: launch by launch, as a graph, as one with `--overlap`.
EAGER, GRAPH, OVERLAP = "eager", "graph", "overlap"


class Case(NamedTuple):
    """A model's self-normalizing step.

    bars: {precision: milliseconds} that it must reach, recorded, on an H100 SXM (one for PCIe has
    three quarters of its rate in float32); paper: milliseconds of the paper's Table 3, on a 1080
    Ti; settings: of the configuration, beside the model's own.
    """

    title: str
    model: str
    bars: dict[str, float]
    paper: float | None
    precisions: tuple[str, ...]
    settings: dict = {}


CASES = (
    Case("FC 2 × 784", "fc", {SINGLE: 0.20}, 18.7, (SINGLE, TF32)),
    Case("conv, 9 layers", "conv", {SINGLE: 0.45}, 212.5, (SINGLE,)),
    Case("Glow 2L-16K", "glow", {SINGLE: 22.0, TF32: 9.0}, 476.4, (SINGLE, TF32)),
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
    products: tuple = ((4096, 4096, 4096), (BATCH * 14 * 14, 512, 512), (BATCH, 784, 784))
    copied: int = 1 << 30
    bursts: int = 9
    seconds: float = 0.2

    def time(self, ops, calls: dict[str, Callable]) -> dict[str, Timing]:
        synchronise = ops.device.synchronise
        return measure_asynchronous(calls, synchronise, self.bursts, self.seconds)


QUICK = Plan(bursts=3, seconds=0.05)


def report(
    ops_of: Callable, plan: Plan, show: Callable, save: Callable, rivals: dict | None = None
) -> None:
    """Every figure of this module, model by model: as text to `show`, and all so far to `save`.

    ops_of(tf32, overlap) -> ops. rivals: {how: (trainer, images, tf32) -> the same step in another
    framework, as a call without arguments, to be timed in turn with ours; it may raise}.
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
        rows, notes = _measure_case(ways, case, plan, limits, rivals or {})
        results["steps"] += rows
        save(results)
        shown = [key for key in _COLUMNS if any(row.get(key) is not None for row in rows)]
        title = f"{case.title} on {name}: training step, self-normalizing, batch {plan.batch}"
        show("\n".join([title, table(rows, shown), *notes, *_verdict(rows)]) + "\n")


def _limits(backends: dict, plan: Plan) -> dict:
    """Bytes per second of the device's memory, by a large copy; operations per second of
    (M, K) × (K, N) products, by precision."""
    ops = next(iter(backends.values()))
    source = ops.xp.zeros(plan.copied, np.uint8)
    target = ops.xp.empty_like(source)
    copy = plan.time(ops, {"copy": lambda: target.__setitem__(..., source)})["copy"].minimum
    products, rng = [], np.random.default_rng(0)
    for rows, inner, columns in plan.products:
        products.append({"product": f"({rows}, {inner}) × ({inner}, {columns})"})
        for precision, ops in backends.items():
            a = ops.asarray(rng.standard_normal((rows, inner), np.float32))
            b = ops.asarray(rng.standard_normal((inner, columns), np.float32))
            out = ops.xp.empty((rows, columns), np.float32)
            call = {"product": partial(ops.linalg.matmul, a, b, out=out)}
            fastest = plan.time(ops, call)["product"].minimum
            products[-1][precision] = 2e3 * rows * inner * columns / fastest
    rates = {precision: max(row[precision] for row in products) for precision in backends}
    return {"memory": 2e3 * plan.copied / copy, "products": products, **rates}


def _limits_text(limits: dict) -> str:
    rates, rows = [p for p in (SINGLE, TF32) if p in limits], []
    for row in limits["products"]:
        rows.append({"product": row["product"]} | {f"{p} TFLOP/s": row[p] / 1e12 for p in rates})
    return (
        f"{table(rows)}\n"
        f"memory: a large copy reads and writes {limits['memory'] / 1e9:.1f} GB/s\n"
        "floors: bytes of parameters, gradient, moments and activations at the memory's rate (what "
        "fits in the\ncard's cache may beat it), operations of all products at the rate of the "
        "fastest product above"
    )


def _measure_case(ways: dict, case: Case, plan: Plan, limits, rivals):
    """The rows of a model, and what is to be said about them. ways: {how: {precision: ops}}."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (plan.images, *plan.shape)).astype(np.uint8)
    rows, notes = [], []
    for precision in case.precisions:
        own = (case, plan, images, precision)
        runs = {how: _Run(ops[precision], *own, how) for how, ops in ways.items()}
        eager, calls = runs[EAGER].trainer, {how: run.step for how, run in runs.items()}
        for how, make in rivals.items():
            try:
                step = make(eager, images, tf32=precision == TF32)
                step()
                calls[how] = step
            except Exception as error:  # whatever it was
                reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
                notes.append(f"{precision}: nothing of {how} ({reason})")
        timings = plan.time(eager.ops, calls)
        for how, run in runs.items():  # after a failure steps do less than they should: raises
            run.trainer.check(run.batches)
            notes += [f"{precision}, {how}: {note}" for note in run.notes]
        moved, done = traffic(eager, runs[EAGER].batches(0)), operations(eager.flow, plan.batch)
        for how, timing in timings.items():
            row = {
                "step": case.title,
                "precision": precision,
                "how": how,
                "min ms": timing.minimum,
                "median ms": timing.median,
                "bytes": moved,
                "operations": done,
                "floor: bytes ms": 1e3 * moved / limits["memory"],
                "floor: operations ms": 1e3 * done / limits[precision],
                "bar ms": case.bars.get(precision) if how == GRAPH else None,
                "1080 Ti ms": case.paper,
            }
            rows.append(row)
    return rows, notes


_COLUMNS = ("precision", "how", "min ms", "median ms", "floor: bytes ms", "floor: operations ms")
_COLUMNS += ("bar ms", "1080 Ti ms")


class _Run:
    """A trainer with its images, and what it reported: why its step cannot be recorded."""

    def __init__(self, ops, case: Case, plan: Plan, images, precision: str, how: str):
        self.notes: list[str] = []
        settings = {"batch_size": plan.batch, "tf32": precision == TF32}
        settings |= {"graph": how != EAGER, "overlap": how == OVERLAP}
        which = (case.model, "self-normalizing", plan.shape, plan.images, self.notes.append)
        self.trainer: Trainer = make_trainer(ops, *which, **(settings | case.settings))
        self.batches = Batches(ops, images, self.trainer.config, self.trainer.flow.shape)
        self.trainer.begin(self.batches)

    def step(self) -> None:
        self.trainer.training_step(self.batches)


def _verdict(rows: list[dict]) -> list[str]:
    """A line for every bar: the faster of the recorded ways reaches it or not."""
    said = []
    for precision, bar in ((row["precision"], row["bar ms"]) for row in rows if row["bar ms"]):
        ways = [r for r in rows if r["precision"] == precision and r["how"] in (GRAPH, OVERLAP)]
        found, how = min((row["median ms"], row["how"]) for row in ways)
        reached = "reached" if found <= bar else "MISSED"
        said.append(f"{precision}, {how}: {found:.3f} ms, bar {bar:.2f} ms: {reached}")
    return said
