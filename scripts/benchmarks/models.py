"""Training steps of the fully connected, convolutional and Glow models, and what is beside them."""

import tracemalloc
from collections.abc import Callable
from functools import partial

import numpy as np

from benchmarks.steps import BATCH, IMAGE, make_trainer, random_images, step_call
from benchmarks.timing import measure, table, threads
from benchmarks.work import PRODUCTS, operations
from snfnp.layers.linear import xavier
from snfnp.likelihood import Likelihood
from snfnp.maps import Conv2d
from snfnp.training.batches import Repeated

# {row: (gradient, settings, products of a step)} of the fully connected model. The exact rule's
# inverse is no product: its share says how much the inverse costs. Noise takes five products with
# its 8 vectors, whitening the images one.
_SNF, _D = "self-normalizing", int(np.prod(IMAGE))
_WHITE = {"coordinates": "white"}
_FC = {gradient: (gradient, {}, products) for gradient, products in PRODUCTS.items()} | {
    "self-normalizing, white": (_SNF, _WHITE, 6 + 1),
    "variational": (_SNF, {"objective": "variational", "noise_vectors": 8}, 6 + 5 * 8 / BATCH),
}
# {row: (model, gradient, settings)}: Table 1's convolutions, and a larger learned inverse beside
# the paper's of 3×3 (A.4).
_CONV = {
    "conv, self-normalizing": ("conv", _SNF, {}),
    "conv, self-normalizing, white": ("conv", _SNF, _WHITE),
    "conv, exact": ("conv", "exact", {}),
    "emerging, exact": ("emerging", "exact", {}),
    "conv-exponential, exact": ("conv-exponential", "exact", {}),
    "conv, self-normalizing, inverse 5x5": ("conv", _SNF, {"inverse_kernel": 5}),
}
_SHAPES = ((28, 28, 1), (14, 14, 4), (7, 7, 16))  # the images that nine convolutions see, (H, W, C)


def _timed(thread_counts, calls: dict[str, Callable], repeats: int, head: str) -> list[dict]:
    """A row for every call and thread count. head: of the column with the calls' names."""
    rows = []
    for count in thread_counts:
        with threads(count):
            timings = measure(calls, repeats)
        for name, timing in timings.items():
            row = {head: name, "threads": count}
            rows.append(row | {"min ms": timing.minimum, "median ms": timing.median})
    return rows


def _rates(rows: list[dict], products: int, work: dict) -> list[dict]:
    """The rows of steps, beside the rate of the products alone, a call of the same run.

    products: their operations; work: {step: operations}.
    """
    medians = {row["threads"]: row["median ms"] for row in rows if row["step"] == "products"}
    for row in rows:
        if row["step"] in work:
            rate = work[row["step"]] / row["median ms"] / 1e6
            gemm = products / medians[row["threads"]] / 1e6
            row |= {"GFLOP": work[row["step"]] / 1e9, "GFLOP/s": rate, "sgemm GFLOP/s": gemm}
            row["share"] = rate / gemm
    return [row for row in rows if row["step"] in work]


def _products(rows: int, inner: int, columns: int) -> Callable[[], None]:
    """The three kinds of product of a step: X Wᵀ, δ W, δᵀ X, in single precision."""
    rng = np.random.default_rng(0)
    shapes = (rows, inner), (columns, inner), (rows, columns)
    x, w, delta = (rng.standard_normal(shape, np.float32) for shape in shapes)
    z, dx, gradient = np.empty_like(delta), np.empty_like(x), np.empty_like(w)

    def run():
        np.matmul(x, w.T, out=z)
        np.matmul(delta, w, out=dx)
        np.matmul(delta.T, x, out=gradient)

    return run


def fully_connected(ops, thread_counts, quick: bool) -> tuple[dict, str]:
    """Whole steps (forward, backward, reconstruction, Adam) of the 2-layer flow, D = 784, beside
    the same matrix products alone, on the same shapes in the same run."""
    repeats, unit = 20 if quick else 100, 2 * BATCH * _D**2
    calls = {"products": _products(BATCH, _D, _D)}
    calls |= {name: step_call(ops, "fc", own, **more) for name, (own, more, _) in _FC.items()}
    work = {name: 2 * products * unit for name, (*_, products) in _FC.items()}
    rows = _rates(_timed(thread_counts, calls, repeats, "step"), 3 * unit, work)
    renewals = _renewals(ops, thread_counts, "fc", repeats // 10)
    text = f"training step, FC 2 x {_D}, batch {BATCH}, float32\n{table(rows)}"
    return {"steps": rows, "renewals": renewals}, f"{text}\n\n{table(renewals)}"


def _renewals(ops, thread_counts, model: str, repeats: int) -> list[dict]:
    """Renewals of white coordinates, which come beside their steps, once in 500."""
    trainer = make_trainer(ops, model, _SNF, **_WHITE)
    images = random_images(ops, trainer)
    renewal = {f"{model}, renewal": partial(trainer.renew, lambda step: images)}
    return _timed(thread_counts, renewal, repeats, "once in 500 steps")


def convolutional(ops, thread_counts, quick: bool) -> tuple[dict, str]:
    """The 9-layer models of Table 1: steps, exact evaluation, samples, determinants."""
    repeats, most = 10 if quick else 60, max(thread_counts)
    calls = {name: step_call(ops, *which, **more) for name, (*which, more) in _CONV.items()}
    steps = _timed(thread_counts, calls, repeats, "step")
    dense = {"conv, exact-dense": step_call(ops, "conv", "exact-dense")}  # the paper's, slow
    steps += _timed(thread_counts, dense, 2, "step")
    trainer = make_trainer(ops, "conv", _SNF)
    images, snapshot = ops.to_host(random_images(ops, trainer)), trainer.likelihood()
    own = (ops, trainer.flow, trainer.layout, trainer.p)
    whole = "exact evaluation of 100 images, determinants included"
    calls = {"nine determinants": trainer.likelihood}
    calls[whole] = lambda: Likelihood(*own).log_prob(images)
    for name, how in (("learned", {}), ("refined", {"refined": True}), ("exact", {"exact": True})):
        calls[f"one sample, {name} inverse"] = partial(snapshot.sample, 1, seed=0, **how)
    inference = _timed(thread_counts, calls, repeats, "what (float64)")
    with threads(most):
        exact = determinants(ops, repeats)
    renewals = _renewals(ops, thread_counts, "conv", repeats // 10)
    text = f"training step, 9-layer convolutional models, batch {BATCH}, float32\n{table(steps)}\n"
    text += f"\n{table(renewals)}\n\n{table(inference)}\n\n"
    text += f"exact determinants, float64, {most} threads, median\n"
    found = {"steps": steps, "renewals": renewals, "inference": inference, "determinants": exact}
    return found, text + table(exact)


def determinants(ops, repeats: int) -> list[dict]:
    """Block recursion against the whole matrix, 3×3 kernels at the paper's initialisation."""
    rng, rows = np.random.default_rng(0), []
    for shape in _SHAPES:
        block, dense = (Conv2d((3, 3), shape[2], exact=how) for how in ("block", "dense"))
        noise = rng.standard_normal(block.weight_shape)
        w = block.identity() + xavier(block.weight_shape, 0.01) * noise
        for what in ("log_det", "log_det_grad"):
            fast, slow = ({what: partial(getattr(f, what), ops, w, shape)} for f in (block, dense))
            ours = measure(fast, repeats)[what].median
            theirs = measure(slow, max(3, repeats // 10), warmup=1)[what].median
            row = {"(H, W, C)": str(shape), "what": what, "block ms": ours, "dense ms": theirs}
            rows.append(row | {"dense / block": theirs / ours})
    return rows


def glow(ops, thread_counts, quick: bool) -> tuple[dict, str]:
    """MNIST 2L-16K: the whole step, the operations of its products, and the rate of those that they
    mostly consist of, in the same run; what recomputation saves."""
    trainer = make_trainer(ops, "glow", _SNF)
    images, width = random_images(ops, trainer), trainer.config.width
    trainer.begin(Repeated(images))
    pixels = BATCH * 14 * 14
    calls = {"products": _products(pixels, width, width)}
    calls["2L-16K"] = partial(trainer.training_step, Repeated(images))
    rows = _timed(thread_counts, calls, 2 if quick else 5, "step")
    work = {"2L-16K": operations(trainer.flow, BATCH)}
    rows = _rates(rows, 6 * pixels * width**2, work)
    with threads(max(thread_counts)):
        memory = [] if quick else recomputation(ops)
    text = f"training step, self-normalizing Glow, batch {BATCH}, float32\n{table(rows)}"
    if memory:
        text += f"\n\nmemory, batch {BATCH}\n{table(memory)}"
    return {"steps": rows, "recomputation": memory}, text


def recomputation(ops) -> list[dict]:
    """The most that the forward and backward pass of 3L-32K on 32×32×3 images hold beyond the
    parameters' buffers, with and without recomputing layer inputs."""
    rows = []
    for recompute in (False, True):
        trainer = make_trainer(ops, "glow-3l-32k", _SNF, (32, 32, 3), recompute=recompute)
        images = random_images(ops, trainer)
        tracemalloc.start()
        timing = measure({"step": partial(trainer.training_step, images)}, 1, 0)["step"]
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        how = "recomputed" if recompute else "stored"
        rows.append({"glow 3L-32K": how, "peak MB": peak / 1e6, "s per step": timing.minimum / 1e3})
        del trainer
    return rows


PARTS = {"fc": fully_connected, "conv": convolutional, "glow": glow}
