"""Training steps on a CPU beside their floors; evaluations, samples and determinants."""

from collections.abc import Callable
from functools import partial

import numpy as np

from benchmarks.steps import (
    ADAM_BYTES,
    BATCH,
    IMAGE,
    make_trainer,
    operations,
    random_images,
)
from benchmarks.timing import measure, parallel_copy, table
from snfnp.layers.linear import xavier
from snfnp.likelihood import Likelihood
from snfnp.maps import Conv2d
from snfnp.step.batches import Repeated
from snfnp.threads import limited

_SNF = "self-normalizing"
_D = int(np.prod(IMAGE))
_WHITE = {"coordinates": "white"}
# {row: (gradient, settings, products of the two layers)}; inverses and noise are no products.
_FC = {
    "self-normalizing": (_SNF, {}, 12),
    "relative": ("relative", {}, 10),
    "exact": ("exact", {}, 6),
    "self-normalizing, white": (_SNF, _WHITE, 15),
    "variational": (_SNF, {"objective": "variational", "noise_vectors": 8}, 12),
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
# the images that nine convolutions see, (H, W, C)
_SHAPES = ((28, 28, 1), (14, 14, 4), (7, 7, 16))


def _timed(
    thread_counts, calls: dict[str, Callable], repeats: int, head: str
) -> list[dict]:
    """A row for every call and thread count. head: of the column with the calls' names."""
    rows = []
    for count in thread_counts:
        with limited(count):
            timings = measure(calls, repeats)
        for name, timing in timings.items():
            row = {
                head: name,
                "threads": count,
                "min ms": timing.minimum,
                "median ms": timing.median,
            }
            rows.append(row)
    return rows


def floor_calls(shape: tuple[int, int, int], parameters: int) -> dict[str, Callable]:
    """The calls of which `with_floors` makes a floor: twelve products of (rows, inner) × (inner,
    columns) and a copy that moves as many bytes as Adam; and the copy alone.

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


def with_floors(rows: list[dict], shape: tuple, work: dict[str, float]) -> list[dict]:
    """The rows of steps with their floors, from rows that have the calls of `floor_calls` as well.

    work: {step: its operations}, at the rate of the products. A floor is a sum of minima of the
    same run, and the ratio that of the step's minimum to it.
    """
    least = {(row["step"], row["threads"]): row["min ms"] for row in rows}
    of_products = 12 * 2 * np.prod(shape, dtype=float)
    steps = []
    for row in rows:
        if row["step"] in work:
            adam = least["copy", row["threads"]]
            products = (
                (least["both", row["threads"]] - adam) * work[row["step"]] / of_products
            )
            floors = {
                "products ms": products,
                "Adam ms": adam,
                "min / floor": row["min ms"] / (products + adam),
            }
            steps.append(row | floors)
    return steps


def _steps(ops, thread_counts, cases: dict, repeats: int, floor: tuple = (), work=None):
    """Rows of whole steps (forward, backward, reconstruction, Adam), with floors if a shape of
    products is given, and the text that shows them. work: operations by case, if not the flow's."""
    trainers = {}
    calls = {}
    for name, (model, gradient, settings) in cases.items():
        trainers[name] = trainer = make_trainer(ops, model, gradient, **settings)
        batches = Repeated(random_images(ops, trainer))
        trainer.begin(batches)
        calls[name] = partial(trainer.training_step, batches)
    if floor:
        calls |= floor_calls(floor, trainer.flow.layout.count)
    rows = _timed(thread_counts, calls, repeats, "step")
    if floor:
        work = work or {
            name: operations(trainer.flow, BATCH) for name, trainer in trainers.items()
        }
        rows = with_floors(rows, floor, work)
    return rows, f"training step, batch {BATCH}, float32\n{table(rows)}"


def fully_connected(ops, thread_counts, quick: bool) -> tuple[dict, str]:
    """The 2-layer flow, D = 784."""
    shape = (BATCH, _D, _D)
    repeats = 20 if quick else 100
    work = {
        name: 2.0 * products * np.prod(shape) for name, (*_, products) in _FC.items()
    }
    cases = {name: ("fc", gradient, more) for name, (gradient, more, _) in _FC.items()}
    steps, text = _steps(ops, thread_counts, cases, repeats, shape, work)
    renewals = _renewals(ops, thread_counts, "fc", repeats // 10)
    return {"steps": steps, "renewals": renewals}, f"{text}\n\n{table(renewals)}"


def _renewals(ops, thread_counts, model: str, repeats: int) -> list[dict]:
    """Renewals of white coordinates, once in 500 steps."""
    trainer = make_trainer(ops, model, _SNF, **_WHITE)
    images = random_images(ops, trainer)
    renewal = {f"{model}, renewal": partial(trainer.renew, Repeated(images))}
    return _timed(thread_counts, renewal, repeats, "once in 500 steps")


def convolutional(ops, thread_counts, quick: bool) -> tuple[dict, str]:
    """The 9-layer models of Table 1: steps, exact evaluation, samples, determinants."""
    repeats = 10 if quick else 60
    steps, text = _steps(ops, thread_counts, _CONV, repeats)
    dense = {"conv, exact-dense": ("conv", "exact-dense", {})}  # the paper's, slow
    slow, slow_text = _steps(ops, thread_counts, dense, 2)
    trainer = make_trainer(ops, "conv", _SNF)
    images = ops.to_host(random_images(ops, trainer))
    snapshot = trainer.likelihood()
    sample = partial(snapshot.sample, 1, seed=0)
    calls = {
        "nine determinants": trainer.likelihood,
        "exact evaluation of 100 images, determinants included": lambda: Likelihood(
            ops, trainer.flow, trainer.p
        ).log_prob(images),
        "one sample, learned inverse": partial(sample, exact=False),
        "one sample, exact inverse": partial(sample, exact=True),
    }
    others = {
        "renewals": _renewals(ops, thread_counts, "conv", repeats // 10),
        "inference": _timed(thread_counts, calls, repeats, "what (float64)"),
    }
    with limited(max(thread_counts)):
        others["determinants"] = determinants(ops, repeats)
    tables = map(table, others.values())
    return {"steps": steps + slow, **others}, "\n\n".join([text, slow_text, *tables])


def determinants(ops, repeats: int) -> list[dict]:
    """Block recursion against the whole matrix, 3×3 kernels at the paper's initialisation."""
    rng = np.random.default_rng(0)
    rows = []
    for shape in _SHAPES:
        block, dense = (
            Conv2d((3, 3), shape[2], exact=each) for each in ("block", "dense")
        )
        noise = rng.standard_normal(block.weight_shape)
        w = block.identity() + xavier(block.weight_shape, 0.01) * noise
        for what in ("log_det", "log_det_grad"):
            ours, theirs = (
                measure({what: partial(getattr(f, what), ops, w, shape)}, count, 1)[
                    what
                ].median
                for f, count in ((block, repeats), (dense, max(3, repeats // 10)))
            )
            row = {
                "exact determinants, float64": f"{what} {shape}",
                "block ms": ours,
                "dense ms": theirs,
                "dense / block": theirs / ours,
            }
            rows.append(row)
    return rows


def glow(ops, thread_counts, quick: bool) -> tuple[dict, str]:
    """MNIST 2L-16K, beside the products of its couplings."""
    shape = (BATCH * 14 * 14, 512, 512)
    repeats = 2 if quick else 5
    steps, text = _steps(
        ops, thread_counts, {"2L-16K": ("glow", _SNF, {})}, repeats, shape
    )
    return {"steps": steps}, text


PARTS = {"fc": fully_connected, "conv": convolutional, "glow": glow}
