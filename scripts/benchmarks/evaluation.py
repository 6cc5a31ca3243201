"""What an exact evaluation costs, and what its monitors add."""

from __future__ import annotations

import numpy as np

from benchmarks.steps import IMAGE, make_trainer, random_images
from benchmarks.timing import measure, table, threads
from snfnp.training.inspection import Inspection

MODELS = ("fc", "conv", "glow-2l-4k")


def monitors(ops, thread_counts, images: int, repeats: int) -> list[dict]:
    """The evaluation of so many images, determinants included, without and with its monitors."""
    rows = []
    pixels = np.random.default_rng(0).integers(0, 256, (images, *IMAGE)).astype(np.uint8)
    for model in MODELS:
        trainer = make_trainer(ops, model, "self-normalizing")
        batch = random_images(ops, trainer)
        trainer.initialise_from_data(batch)
        inspection = Inspection(trainer, lambda step, batch=batch: batch)

        def evaluate(trainer=trainer):
            trainer.likelihood().evaluate(pixels, 0)

        def evaluate_and_inspect(trainer=trainer, inspection=inspection):
            likelihood = trainer.likelihood()
            likelihood.evaluate(pixels, 0, watch=inspection.watch(images))
            inspection.figures(likelihood)

        for count in thread_counts:
            with threads(count):
                calls = {"evaluation": evaluate, "with monitors": evaluate_and_inspect}
                found = measure(calls, repeats, warmup=1)
            plain, whole = (found[name].median for name in calls)
            rows.append(
                {
                    "model": model,
                    "threads": count,
                    "evaluation ms": plain,
                    "monitors ms": whole - plain,
                    "monitors / evaluation": (whole - plain) / plain,
                }
            )
    return rows


def report(ops, thread_counts, quick: bool) -> tuple[dict, str]:
    """Exact evaluations of as many images as MNIST's validation set has, and their monitors."""
    images = 1000 if quick else 10_000
    rows = monitors(ops, thread_counts, images, repeats=3 if quick else 5)
    text = f"exact evaluation of {images:,} images, float64\n{table(rows)}"
    return {"monitors": rows}, text
