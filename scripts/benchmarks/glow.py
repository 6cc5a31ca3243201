"""Self-normalizing Glow: the step against the machine's own products, samples, recomputation."""

from __future__ import annotations

import tracemalloc
from functools import partial

import numpy as np

from benchmarks.steps import BATCH, make_trainer, profile, random_images
from benchmarks.timing import measure, table, threads
from benchmarks.work import operations
from snfnp.ops import RandomKey
from snfnp.training.config import TrainConfig
from snfnp.training.trainer import Trainer


def training_step(ops, thread_counts, repeats: int) -> list[dict]:
    """MNIST 2L-16K, batch 100, float32: the whole step, the operations of its products, and the
    rate of the one that they mostly consist of, in the same run."""
    trainer = make_trainer(ops, "glow", "self-normalizing")
    images = random_images(ops, trainer)
    trainer.initialise_from_data(images)
    rng = np.random.default_rng(0)
    pixels, width = BATCH * 14 * 14, trainer.config.width
    a, out = rng.standard_normal((pixels, width), np.float32), np.empty((pixels, width), np.float32)
    w = rng.standard_normal((width, width), np.float32)
    product_work, work = 2 * pixels * width**2, operations(trainer.flow, BATCH)
    rows = []
    for count in thread_counts:
        with threads(count):
            product = measure({"product": lambda: np.matmul(a, w, out=out)}, 30)["product"]
            step = measure({"step": lambda: trainer.training_step(images)}, repeats, 1)["step"]
        rate = product_work / product.median / 1e9
        rows.append(
            {
                "model": "glow 2L-16K",
                "threads": count,
                "min s": step.minimum / 1e3,
                "median s": step.median / 1e3,
                "GFLOP": work / 1e9,
                "GFLOP/s": work / step.median / 1e6,
                "sgemm GFLOP/s": 1e3 * rate,
                "share": work / step.median / 1e9 / rate,
            }
        )
    return rows


def samples(ops, thread_counts, repeats: int) -> list[dict]:
    """One sample of MNIST 2L-16K through the learned inverses: in the precision of training, from
    given latents, and as `Likelihood.sample` draws it, in double precision."""
    trainer = make_trainer(ops, "glow", "self-normalizing")
    flow, snapshot = trainer.flow, trainer.likelihood()
    latents = tuple(
        ops.random.normal(RandomKey(0, 0, index), (1, *shape), np.float32)
        for index, shape in enumerate(flow.latent_shapes)
    )

    def single():
        return flow.decode(ops, flow.inverse(ops, trainer.params, latents))

    calls = {"float32": single, "float64": lambda: snapshot.sample(1, seed=0)}
    rows = []
    for count in thread_counts:
        with threads(count):
            timings = measure(calls, repeats)
        for precision, timing in timings.items():
            rows.append(
                {
                    "one sample, learned inverse": precision,
                    "threads": count,
                    "min ms": timing.minimum,
                    "median ms": timing.median,
                }
            )
    return rows


def recomputation(ops) -> list[dict]:
    """What the forward and backward pass of 3L-32K on 32×32×3 images hold at most, beyond the
    parameters' buffers, with and without recomputing layer inputs."""
    rows = []
    for recompute in (False, True):
        config = TrainConfig(model="glow-3l-32k", lr=1e-6, recompute=recompute).resolve(40_000)
        trainer = Trainer(ops, config.build_flow((32, 32, 3)), config, 400)
        images = random_images(ops, trainer)
        tracemalloc.start()
        timing = measure({"step": partial(trainer.training_step, images)}, 1, 0)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        rows.append(
            {
                "glow 3L-32K": "recomputed" if recompute else "stored",
                "peak MB": peak / 1e6,
                "s per step": timing["step"].minimum / 1e3,
            }
        )
        del trainer
    return rows


def report(ops, thread_counts, quick: bool) -> tuple[dict, str]:
    """Every figure of this module as data and as text."""
    most = max(thread_counts)
    results = {
        "steps": training_step(ops, thread_counts, 2 if quick else 5),
        "samples": samples(ops, thread_counts, 5 if quick else 30),
    }
    with threads(most):
        results["profile"] = profile(ops, "glow", "self-normalizing", 1 if quick else 3)
        results["recomputation"] = [] if quick else recomputation(ops)
    text = (
        f"training step, self-normalizing Glow, batch {BATCH}, float32\n"
        f"{table(results['steps'])}\n\n"
        f"{table(results['samples'])}\n\n"
        f"where the step's time goes ({most} threads)\n"
        f"{table(results['profile'])}"
    )
    if results["recomputation"]:
        text += f"\n\nmemory, batch {BATCH}\n{table(results['recomputation'])}"
    return results, text
