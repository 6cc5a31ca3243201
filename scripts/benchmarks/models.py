"""Training steps on a CPU beside their floors."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np

from benchmarks.steps import (
    ADAM_BYTES,
    BATCH,
    make_trainer,
    operations,
    random_images,
)
from benchmarks.timing import Timing, measure, parallel_copy
from snfnp.context import BackwardContext
from snfnp.flow import Flow
from snfnp.step.batches import Repeated
from snfnp.step.trainer import Trainer
from snfnp.threads import cores, limited

_SNF = "self-normalizing"
_WHITE = {"coordinates": "white"}
# Copies of a batch, each two passes over its values, for those of a linear layer's step between its
# products: z = z₀ + b (2), E (3), both Δ (6), Σ δ_z (1).
_COPIES = 6


class Part(NamedTuple):
    """Steps that are timed alternately.

    cases: {row: (model, gradient, settings)}; repeats: of each; product: the sizes (rows, inner,
    columns) of the products whose rate makes the floor (`floor_calls`), empty: the floor is of each
    layer's own products (`layer_calls`).
    """

    cases: dict[str, tuple[str, str, dict]]
    repeats: int
    product: tuple[int, ...] = ()


PARTS = {
    "fc": Part(
        {
            "self-normalizing": ("fc", _SNF, {}),
            "relative": ("fc", "relative", {}),
            "exact": ("fc", "exact", {}),
            "self-normalizing, white": ("fc", _SNF, _WHITE),
            "variational": (
                "fc",
                _SNF,
                {"objective": "variational", "noise_vectors": 8},
            ),
        },
        repeats=100,
        product=(BATCH, 784, 784),
    ),
    # a larger learned inverse beside the paper's of 3×3 (A.4); Table 3 times other convolutions
    "conv": Part(
        {
            "self-normalizing": ("conv", _SNF, {}),
            "self-normalizing, white": ("conv", _SNF, _WHITE),
            "self-normalizing, inverse 5x5": ("conv", _SNF, {"inverse_kernel": 5}),
        },
        repeats=60,
    ),
    # beside the products of its couplings
    "glow": Part({"2L-16K": ("glow", _SNF, {})}, 5, (BATCH * 14 * 14, 512, 512)),
}


def floor_calls(shape: tuple[int, ...], parameters: int) -> dict[str, Callable]:
    """The calls of which `floor` makes a floor: twelve products of (rows, inner) × (inner, columns)
    and a copy that moves as many bytes as Adam; and the copy alone.

    Products: X Wᵀ, Z Rᵀ, E R, δ W, Δᵀ X, Δᵀ Z of two layers. The copy before them removes their
    matrices from the cache, where a step does not find them either.
    """
    rng = np.random.default_rng(0)
    rows, inner, columns = shape
    x, z = (rng.standard_normal((rows, size), np.float32) for size in (inner, columns))
    w = rng.standard_normal((2, 2, columns, inner), np.float32)  # W and R of two layers
    dx = np.empty_like(x)
    dz = np.empty_like(z)
    gradients = np.empty_like(w)
    # read once, written once
    moved = np.zeros((2, parameters * ADAM_BYTES // 2 // 4), np.float32)

    def products():
        for layer in range(2):
            for which in range(2):
                np.matmul(x, w[layer, which].T, out=dz)
                np.matmul(z, w[layer, which], out=dx)
                np.matmul(z.T, x, out=gradients[layer, which])

    copy = parallel_copy()

    def both():
        copy(*moved)
        products()

    return {"both": both, "copy": partial(copy, *moved)}


def layer_calls(trainer: Trainer) -> dict[str, Callable]:
    """{column: call}, whose minima are the floor of a convolutional step: the products of all
    layers, with W and R, as the step makes them (by BLAS or direct kernels); splines and squeezes,
    forward and backward; and copies of a batch, of as many bytes as Adam and the passes between.

    Each finds its arrays in the cache sooner than a step does. Left out are encoding, sums
    (densities, errors, norms), R's term in W's gradient and W's in R's, and white coordinates.
    """
    ops = trainer.ops
    flow = trainer.flow
    params = trainer.params
    linear = flow.learned_inverses()
    others = (each for each in flow.layers if each[0] not in linear)
    splines = Flow(flow.shape, tuple(others))
    batch = np.ones((BATCH, *flow.shape), np.float32)  # no time depends on its values
    ctx = BackwardContext.of(ops, batch[:, 0, 0, 0])
    copy = parallel_copy()
    copied = np.empty((2, batch.size), np.float32)
    copies = ADAM_BYTES * flow.layout.count // copied.nbytes + _COPIES * len(linear)

    def all_products():
        for name, (layer, shape) in linear.items():
            x = batch.reshape(-1, *shape)
            for f, weight in zip(layer.maps, "WR", strict=True):
                f.apply(ops, params[name][weight], x)
                f.adjoint(ops, params[name][weight], x)
                f.weight_grad(ops, x, x, trainer.grads[name][weight])

    def all_splines():
        latents, _, caches = splines.forward(ops, params, batch)
        splines.backward(ctx, params, caches, latents, trainer.grads)

    def all_bytes():
        for _ in range(copies):
            copy(*copied)

    return {
        "products ms": all_products,
        "splines ms": all_splines,
        "bytes ms": all_bytes,
    }


def floor(timings: dict[str, Timing], shape: tuple[int, ...], work: float) -> dict:
    """The least milliseconds of a step with so many operations, from the minima of `floor_calls` in
    the same run."""
    adam = timings["copy"].minimum
    rate = 12 * 2 * np.prod(shape, dtype=float) / (timings["both"].minimum - adam)
    return {"products ms": work / rate, "Adam ms": adam}


def steps(part: Part, ops, quick: bool) -> list[dict]:
    """Rows of whole steps in float32 (forward, backward, reconstruction, Adam), on one and on two
    threads, with their floors."""
    calls = {}
    work = {}
    learned = {}
    floors = {}
    for name, (model, gradient, settings) in part.cases.items():
        trainer = make_trainer(ops, model, gradient, **settings)
        batches = Repeated(random_images(ops, trainer))
        trainer.begin(batches)
        calls[name] = partial(trainer.training_step, batches)
        work[name] = operations(trainer.flow, BATCH, gradient)
        learned[name] = trainer.flow.layout.count
        if not part.product:
            floors[name] = layer_calls(trainer)
            for column, call in floors[name].items():
                calls[name, column] = call
    if part.product:
        calls |= floor_calls(part.product, max(learned.values()))
    rows = []
    for count in sorted({1, min(2, cores())}):
        with limited(count):
            timings = measure(calls, part.repeats // 5 + 1 if quick else part.repeats)
        for name in part.cases:
            timing = timings[name]
            row = {
                "step": name,
                "threads": count,
                "min ms": timing.minimum,
                "median ms": timing.median,
            }
            if part.product:
                least = floor(timings, part.product, work[name])
                # without an R Adam moves half of the bytes
                least["Adam ms"] *= learned[name] / max(learned.values())
            else:
                least = {
                    column: timings[name, column].minimum for column in floors[name]
                }
            row |= least
            row["min / floor"] = timing.minimum / sum(least.values())
            rows.append(row)
    return rows
