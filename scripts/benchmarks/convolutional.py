"""The 9-layer convolutional models of Table 1: steps, exact evaluation, samples, determinants."""

from __future__ import annotations

from functools import partial

import numpy as np

from benchmarks.steps import (
    BATCH,
    make_trainer,
    profile,
    random_images,
    step_call,
)
from benchmarks.timing import measure, table, threads
from snfnp.likelihood import Likelihood
from snfnp.maps import Conv2d
from snfnp.ops import RandomKey

# (model, gradient): the rows of Table 1 that have convolutions.
_STEPS = (
    ("conv", "self-normalizing"),
    ("conv", "exact"),
    ("emerging", "exact"),
    ("conv-exponential", "exact"),
)
# Other learned inverses of the same reach, beside the paper's of 3×3 (A.4).
_INVERSES = {
    "self-normalizing, inverse 5x5": {"inverse_kernel": 5},
    "self-normalizing, inverse of two 3x3": {"inverse_depth": 2},
    "recipe: least squares, 5x5": {"recipe": "least-squares"},
}
# The images that the nine convolutions see, (H, W, C).
_SHAPES = ((28, 28, 1), (14, 14, 4), (7, 7, 16))


def steps(ops, thread_counts, repeats: int) -> list[dict]:
    """Whole training steps (batch 100, float32), and the paper's dense baseline a few times."""
    rows = []
    for count in thread_counts:
        with threads(count):
            calls = {case: step_call(ops, *case) for case in _STEPS}
            for name, settings in _INVERSES.items():
                calls["conv", name] = step_call(ops, "conv", "self-normalizing", **settings)
            timings = measure(calls, repeats)
            dense = ("conv", "exact-dense")
            timings |= measure({dense: step_call(ops, *dense)}, repeats=2, warmup=1)
        for (model, gradient), timing in timings.items():
            rows.append(
                {
                    "model": model,
                    "gradient": gradient,
                    "threads": count,
                    "min ms": timing.minimum,
                    "median ms": timing.median,
                    "steps/s": 1e3 / timing.median,
                }
            )
    return rows


def inference(ops, thread_counts, repeats: int) -> list[dict]:
    """Exact evaluation of 100 images, all nine determinants included, and one sample."""
    rows = []
    trainer = make_trainer(ops, "conv", "self-normalizing")
    images = random_images(ops, trainer)
    snapshot = trainer.likelihood()
    for count in thread_counts:
        with threads(count):
            calls = {
                "nine determinants": trainer.likelihood,
                "exact evaluation of 100 images, determinants included": lambda: Likelihood(
                    ops, trainer.flow, trainer.layout, trainer.p
                ).log_prob(images, RandomKey(0, 1)),
                "one sample, learned inverse": lambda: snapshot.sample(1, seed=0),
                "one sample, refined inverse": lambda: snapshot.sample(1, seed=0, refined=True),
                "one sample, exact inverse": lambda: snapshot.sample(1, seed=0, exact=True),
            }
            for what, timing in measure(calls, repeats).items():
                rows.append(
                    {
                        "what (float64)": what,
                        "threads": count,
                        "min ms": timing.minimum,
                        "median ms": timing.median,
                    }
                )
    return rows


def determinants(ops, repeats: int) -> list[dict]:
    """Block recursion against the whole matrix, 3×3 kernels at the paper's initialisation."""
    rng = np.random.default_rng(0)
    rows = []
    for shape in _SHAPES:
        channels = shape[2]
        block = Conv2d((3, 3), channels)
        dense = Conv2d((3, 3), channels, exact="dense")
        w = block.identity() + 0.01 * np.sqrt(2 / sum(block.fans)) * rng.standard_normal(
            block.weight_shape
        )
        for what in ("log_det", "log_det_grad"):
            calls = {
                name: partial(getattr(f, what), ops, w, shape)
                for name, f in (("block", block), ("dense", dense))
            }
            timings = measure({"block": calls["block"]}, repeats)
            timings |= measure({"dense": calls["dense"]}, max(3, repeats // 10), warmup=1)
            rows.append(
                {
                    "(H, W, C)": str(shape),
                    "what": what,
                    "block ms": timings["block"].median,
                    "dense ms": timings["dense"].median,
                    "dense / block": timings["dense"].median / timings["block"].median,
                }
            )
    return rows


def report(ops, thread_counts, quick: bool) -> tuple[dict, str]:
    """Every figure of this module as data and as text."""
    repeats = 10 if quick else 60
    most = max(thread_counts)
    results = {
        "steps": steps(ops, thread_counts, repeats),
        "inference": inference(ops, thread_counts, repeats),
    }
    with threads(most):
        results["determinants"] = determinants(ops, repeats)
        results["profile"] = profile(ops, "conv", "self-normalizing", repeats)
    text = (
        f"training step, 9-layer convolutional models, batch {BATCH}, float32\n"
        f"{table(results['steps'])}\n\n"
        f"{table(results['inference'])}\n\n"
        f"exact determinants, float64, {most} threads, median\n"
        f"{table(results['determinants'])}\n\n"
        f"where a self-normalizing step's time goes ({most} threads)\n"
        f"{table(results['profile'])}\n"
        f"sum of the parts {sum(part['min ms'] for part in results['profile']):.2f} ms"
    )
    return results, text
