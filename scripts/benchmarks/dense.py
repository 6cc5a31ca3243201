"""The fully connected model's training step, and the paper's Fig. 4 over the dimension."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.steps import BATCH, IMAGE, profile, step_call
from benchmarks.sweep import growth, sweep
from benchmarks.timing import measure, table, threads
from benchmarks.work import PRODUCTS

# What is timed beside a step of every gradient: the settings, and how many products it has. Noise
# takes five products with its 8 vectors.
VARIANTS = {
    # R's update is one product where its gradient is two, and N² D for the batch's Gram matrix
    # and for what is made of it
    "recipe: projection": ({"recipe": "least-squares"}, 5 + 2 * BATCH / np.prod(IMAGE)),
    "variational": ({"objective": "variational", "noise_vectors": 8}, 6 + 5 * 8 / BATCH),
}


def training_step(ops, thread_counts, repeats: int = 60) -> list[dict]:
    """The whole step (forward, backward, reconstruction, Adam) of the 2-layer FC flow, D = 784.

    Beside each rule's step: the same matrix products alone, on the same shapes in the same run,
    and what share of that throughput the step reaches. The exact rule's inverse is not counted
    among the products: its share says how much the inverse costs.
    """
    dimension = int(np.prod(IMAGE))
    flops = 2 * BATCH * dimension**2
    rows = []
    for count in thread_counts:
        with threads(count):
            calls = {"products": _products(np.random.default_rng(0), dimension)}
            calls |= {gradient: step_call(ops, "fc", gradient) for gradient in PRODUCTS}
            calls |= {
                name: step_call(ops, "fc", "self-normalizing", **settings)
                for name, (settings, _) in VARIANTS.items()
            }
            timings = measure(calls, repeats)
        product = timings["products"]
        counts = PRODUCTS | {name: products for name, (_, products) in VARIANTS.items()}
        for gradient, products in counts.items():
            step, work = timings[gradient], 2 * products * flops
            rows.append(
                {
                    "gradient": gradient,
                    "threads": count,
                    "min ms": step.minimum,
                    "median ms": step.median,
                    "steps/s": 1e3 / step.median,
                    "GFLOP": work / 1e9,
                    "GFLOP/s": work / step.median / 1e6,
                    "sgemm GFLOP/s": 3 * flops / product.median / 1e6,
                    "share": work / step.median * product.median / (3 * flops),
                }
            )
    return rows


def _products(rng, dimension):
    """The three kinds of product of a step: X Wᵀ, δ W, δᵀ X, in single precision."""
    x, delta = (rng.standard_normal((BATCH, dimension), np.float32) for _ in range(2))
    w = rng.standard_normal((dimension, dimension), np.float32)
    z, gradient = np.empty_like(x), np.empty_like(w)

    def run():
        np.matmul(x, w.T, out=z)
        np.matmul(delta, w, out=z)
        np.matmul(delta.T, x, out=gradient)

    return run


def plot_sweep(rows: list[dict], path: Path, title: str) -> None:
    """Time per batch against the dimension, as the paper's Fig. 4."""
    from snfnp.training.plots import save_lines

    x = [row["D"] for row in rows]
    lines = {
        "exact gradient": [row["exact ms"] for row in rows],
        "self-normalizing": [row["self-normalizing ms"] for row in rows],
    }
    save_lines(path, x, lines, "dimension D", "time per batch of 128 (ms)", title)


def report(ops, thread_counts, quick: bool) -> tuple[dict, str]:
    """The FC step for each thread count, and where its time goes."""
    rows = training_step(ops, thread_counts, repeats=20 if quick else 100)
    with threads(max(thread_counts)):
        parts = profile(ops, "fc", "self-normalizing", repeats=20 if quick else 100)
    text = (
        f"training step, FC 2 x {int(np.prod(IMAGE))}, batch {BATCH}, float32\n"
        f"{table(rows)}\n\n"
        f"where a self-normalizing step's time goes ({max(thread_counts)} threads)\n"
        f"{table(parts)}\n"
        f"sum of the parts {sum(part['min ms'] for part in parts):.2f} ms"
    )
    return {"steps": rows, "parts": parts}, text


def report_sweep(ops, thread_counts, quick: bool, plot: Path | None) -> tuple[dict, str]:
    """Fig. 4 at the largest thread count, or on a device."""
    step = 96 * (6 if quick else 3)
    shapes = [(dimension,) for dimension in range(32, 4065, step)]
    with threads(max(thread_counts)):
        rows = sweep(ops, shapes, budget=0.5 if quick else 2.0)
    place = f"{max(thread_counts)} threads"
    if ops.asynchronous:
        place = ops.device.describe()["name"]
    slower = [row["D"] for row in rows if row["D"] >= 300 and row["exact / learned"] <= 1]
    exponents = {k: growth(rows, k, 1000) for k in ("self-normalizing ms", "exact ms")}
    text = (
        f"Fig. 4: one dense layer, batch 128, float32, {place}, median\n"
        f"{table(rows)}\n"
        f"self-normalizing is slower than exact at D >= 300: {slower or 'nowhere'}\n"
        f"growth over D >= 1000: self-normalizing D^{exponents['self-normalizing ms']:.2f}, "
        f"exact D^{exponents['exact ms']:.2f}"
    )
    if plot:
        plot_sweep(rows, plot, "One dense layer, forward and backward")
        text += f"\nplot: {plot}"
    return {"rows": rows, "growth": exponents}, text
