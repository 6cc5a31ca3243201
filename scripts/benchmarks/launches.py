"""Every launch of a training step alone: its time, its blocks, and the bytes of its arrays.

A kernel far above the time that its bytes take, at the rate of a large copy, is worth a look. The
launches of kernels that CuPy makes are counted and not timed: their time is what is left of the
step's.
"""

from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import NamedTuple
from unittest.mock import patch

from benchmarks.device import TF32, Case, Plan
from benchmarks.steps import make_trainer, random_images
from benchmarks.timing import measure, table
from snfnp.step.batches import Repeated


class Launch(NamedTuple):
    """A kernel, or a product, on arrays of one size: its blocks (None: cuBLAS chooses), the bytes
    of its arrays, and the operations of a product."""

    name: str
    blocks: int | None
    bytes: int
    operations: int = 0


Launches = dict[Launch, list[Callable]]  # and how to repeat each


def report(ops_of: Callable, plan: Plan, show: Callable, save: Callable) -> None:
    """Tables of all cases: as text to `show`, and all so far to `save`. ops_of(tf32) -> ops."""
    results = {}
    for case in plan.cases:
        ops = ops_of(tf32=case.precision == TF32)
        launches = launches_of_a_step(ops, case, plan)
        title = f"{case.title}, {case.precision}"
        results[title] = summary(ops, launches)
        total = sum(row["all µs"] for row in results[title])
        count = sum(map(len, launches.values()))
        show(
            f"{title}, batch {plan.batch}: {count} launches of our own kernels and of products, "
            f"{total:.0f} µs one by one\n{table(results[title])}\n"
        )
        save(results)


def launches_of_a_step(ops, case: Case, plan: Plan) -> Launches:
    """The launches of a step after its warm-up."""
    trainer = make_trainer(
        ops,
        case.model,
        "self-normalizing",
        plan.shape,
        graph=False,
        batch_size=plan.batch,
        tf32=case.precision == TF32,
        **case.settings,
    )
    batches = Repeated(random_images(ops, trainer))
    trainer.begin(batches)
    for _ in range(3):
        trainer.training_step(batches)
    launches: Launches = defaultdict(list)
    launcher = ops.device.launch
    cublas = ops.device.cublas
    start = launcher._start
    gemm = cublas.gemm

    def note_kernel(kernel, dtype, blocks, threads, values):
        size = sum(
            value.nbytes for value in values if isinstance(value, ops.xp.ndarray)
        )
        repeat = partial(start, kernel, dtype, blocks, threads, values)
        launches[Launch(kernel, blocks, size)].append(repeat)
        repeat()

    def note_product(a, b, out, beta=0.0):
        name = f"product ({len(a)}, {a.shape[1]}) × ({a.shape[1]}, {b.shape[1]})"
        size = a.nbytes + b.nbytes + out.nbytes
        repeat = partial(gemm, a, b, out, beta)
        launches[Launch(name, None, size, 2 * a.size * b.shape[1])].append(repeat)
        repeat()

    with (
        patch.object(launcher, "_start", note_kernel),
        patch.object(cublas, "gemm", note_product),
    ):
        trainer.training_step(batches)
    trainer.check(batches)
    return launches


def summary(ops, launches: Launches) -> list[dict]:
    """A row for every kernel and size, those first that take longest in all."""
    rows = []
    for launch, calls in launches.items():
        timings = measure(
            dict(enumerate(calls)), 1, 0.005, ops.device.synchronise, warmup=1
        )
        total = sum(1e3 * timing.minimum for timing in timings.values())
        mean = total / len(calls)
        row = {
            "launch": launch.name,
            "of them": len(calls),
            "blocks": launch.blocks,
            "kB": launch.bytes / 1e3,
            "µs": mean,
            "all µs": total,
            "GB/s": 1e-3 * launch.bytes / max(mean, 1e-9),
            "TFLOP/s": 1e-6 * launch.operations / max(mean, 1e-9) or None,
        }
        rows.append(row)
    return sorted(rows, key=lambda row: -row["all µs"])
