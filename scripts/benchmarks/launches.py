"""Every launch of a training step alone: its time, its blocks, and the bytes of its arrays.

A kernel far above the time that its bytes take, at the rate of a large copy, is worth a look. The
launches of kernels that CuPy makes are counted and not timed: their time is what is left of the
step's.
"""

from collections.abc import Callable
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np

from benchmarks.steps import BATCH, IMAGE, make_trainer, random_images
from benchmarks.timing import table
from snfnp.errors import UsageError
from snfnp.step.batches import Repeated

CASES = {
    "fc": ("fc", {}),
    "fc, white": ("fc", {"coordinates": "white"}),
    "conv": ("conv", {}),
    "glow": ("glow", {}),
    "glow, TF32": ("glow", {"tf32": True}),
}


class Launch(NamedTuple):
    """One launch: the kernel's name, how to repeat it, its blocks (None: cuBLAS chooses), the bytes
    of its arrays and the operations of a product."""

    name: str
    repeat: Callable[[], object]
    blocks: int | None
    bytes: int
    operations: int = 0


def report(
    ops_of: Callable,
    show: Callable,
    save: Callable,
    cases: dict = CASES,
    shape: tuple[int, int, int] = IMAGE,
    batch: int = BATCH,
    repeats: int = 100,
) -> None:
    """Tables of all cases: as text to `show`, and all so far to `save`. ops_of(tf32) -> ops."""
    results = {}
    for title, (model, settings) in cases.items():
        ops = ops_of(tf32=settings.get("tf32", False))
        if not ops.asynchronous:
            raise UsageError(
                f"the {ops.name} backend has no launches: give --backend cupy"
            )
        launches = launches_of_a_step(ops, model, shape, batch, settings)
        rows = summary(
            launches, [microseconds(ops.xp, each.repeat, repeats) for each in launches]
        )
        results[title] = rows
        total = sum(row["all µs"] for row in rows)
        count = f"{len(launches)} launches of our own kernels and of products"
        show(
            f"{title}, batch {batch}: {count}, {total:.0f} µs one by one\n{table(rows)}\n"
        )
        save(results)


def launches_of_a_step(ops, model, shape, batch, settings) -> list[Launch]:
    """The launches of a step after its warm-up, with their arguments."""
    settings = {"graph": False, "batch_size": batch} | settings
    trainer = make_trainer(ops, model, "self-normalizing", shape, **settings)
    batches = Repeated(random_images(ops, trainer))
    trainer.begin(batches)
    for _ in range(3):
        trainer.training_step(batches)
    with noted(ops) as launches:
        trainer.training_step(batches)
    trainer.check(batches)
    return launches


@contextmanager
def noted(ops):
    """The list of launches in this context, in their order."""
    launches: list[Launch] = []
    launcher = ops.device.launch
    cublas = ops.device.cublas
    start = launcher._start
    gemm = cublas.gemm

    def note_kernel(kernel, dtype, blocks, threads, values):
        arrays = [value.nbytes for value in values if isinstance(value, ops.xp.ndarray)]
        repeat = lambda: start(kernel, dtype, blocks, threads, values)  # noqa: E731
        launches.append(Launch(kernel, repeat, blocks, sum(arrays)))
        repeat()

    def note_product(a, b, out, beta=0.0):
        repeat = lambda: gemm(a, b, out, beta)  # noqa: E731
        size = f"({len(a)}, {a.shape[1]}) × ({a.shape[1]}, {b.shape[1]})"
        operations = 2 * a.size * b.shape[1]
        moved = a.nbytes + b.nbytes + out.nbytes
        launches.append(Launch(f"product {size}", repeat, None, moved, operations))
        repeat()

    launcher._start = note_kernel
    cublas.gemm = note_product
    try:
        yield launches
    finally:
        del launcher._start, cublas.gemm


def microseconds(xp, call: Callable, repeats: int) -> float:
    """The time of a call on the device, by events around `repeats` of them."""
    begin = xp.cuda.Event()
    end = xp.cuda.Event()
    call()
    begin.record()
    for _ in range(repeats):
        call()
    end.record()
    end.synchronize()
    return 1e3 * xp.cuda.get_elapsed_time(begin, end) / repeats


def summary(launches: list[Launch], times: list[float]) -> list[dict]:
    """A row for every kernel and size, those first that take longest in all."""
    groups: dict = {}
    for launch, time in zip(launches, times, strict=True):
        key = launch.name, launch.blocks, launch.bytes, launch.operations
        groups.setdefault(key, []).append(time)
    rows = []
    for (name, blocks, size, operations), each in groups.items():
        mean = float(np.mean(each))
        row = {
            "launch": name,
            "of them": len(each),
            "blocks": blocks,
            "kB": size / 1e3,
            "µs": mean,
            "all µs": float(np.sum(each)),
            "GB/s": 1e-3 * size / max(mean, 1e-9),
            "TFLOP/s": 1e-6 * operations / max(mean, 1e-9) if operations else None,
        }
        rows.append(row)
    return sorted(rows, key=lambda row: -row["all µs"])
