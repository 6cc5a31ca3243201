"""The paper's Fig. 4: one linear layer, forward and backward, over the dimension."""

import math

import numpy as np

from benchmarks.timing import measure
from snfnp.context import BackwardContext
from snfnp.flow import Flow
from snfnp.layers import Linear
from snfnp.maps import Conv2d, Dense
from snfnp.rules import Exact, SelfNormalizing

# The gradients of log|det| that are timed, by the number of axes of an input: (D,) or (H, W, C).
_GRADIENTS = {
    1: ("self-normalizing", "exact"),
    3: ("self-normalizing", "exact", "exact-dense"),
}


def sweep(ops, shapes, batch: int = 128, budget: float = 2.0) -> list[dict]:
    """A dense layer for a shape (D,), a 3×3 convolution for (H, W, C), without bias or activation.

    Exact gradients against learned ones; those of a convolution by block recursion (exact) and
    through the whole matrix (exact-dense). budget: seconds for each point, about.
    """
    rng = np.random.default_rng(0)
    rows = []
    for shape in shapes:
        x = ops.asarray(rng.standard_normal((batch, *shape)), np.float32)
        calls = {
            gradient: _layer_step(ops, gradient, x)
            for gradient in _GRADIENTS[len(shape)]
        }
        timings = measure(calls, 5, budget / 10, ops.device.synchronise)
        medians = {f"{gradient} ms": timings[gradient].median for gradient in calls}
        rows.append({"D": math.prod(shape)} | medians)
    return rows


def _layer_step(ops, gradient: str, x):
    shape = x.shape[1:]
    exact = "dense" if gradient == "exact-dense" else "block"
    f = Dense(*shape) if len(shape) == 1 else Conv2d((3, 3), shape[2], exact=exact)
    layer = Linear(
        f, SelfNormalizing() if gradient == "self-normalizing" else Exact(), bias=False
    )
    flow = Flow(shape, (("linear", layer),))
    flat = ops.asarray(flow.layout.pack(flow.init(0), np.float32))
    params, grads = map(flow.layout.views, (flat, ops.xp.zeros_like(flat)))
    weights = ops.xp.full(len(x), 1 / len(x), np.float32)

    def step():
        latents, _, caches = flow.forward(ops, params, x)
        ctx = BackwardContext.of(ops, weights, lam=1.0)
        flow.backward(ctx, params, caches, flow.latent_gradients(latents), grads)

    return step


def growth(rows: list[dict], key: str, above: int) -> float | None:
    """The exponent p of time ~ D^p, by least squares in the logarithms over D >= above."""
    points = [(row["D"], row[key]) for row in rows if row["D"] >= above]
    if len(points) < 3:
        return None
    dimension, time = np.log(np.array(points)).T
    return float(np.polyfit(dimension, time, 1)[0])
