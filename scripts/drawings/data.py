"""The curves' data: angles of short runs, epoch by epoch, and likelihoods from other runs' folders.

Both files are lists of runs with "points", one for each epoch.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np

import snfnp
from snfnp.diagnostics import gradient_angles
from snfnp.likelihood import EVALUATION_NOISE

HERE = Path(__file__).parent
ANGLES, LIKELIHOODS = HERE / "angles.json", HERE / "likelihoods.json"
_IMAGES = 500  # of the training set, that the angles are measured on


def measure(folder: Path, epochs: int) -> None:
    """Train fc and conv, and measure the angles of all their layers (degrees) after every epoch."""
    data, runs = snfnp.load_dataset("mnist"), []
    for model in ("fc", "conv"):
        path = folder / model
        run = snfnp.RunFolder.create(path)
        config = snfnp.TrainConfig(model=model, epochs=epochs).resolve(len(data.train))
        runs.append({"model": model, "images": len(data.train), "points": []})
        for epoch in range(1, epochs + 1):
            ops = snfnp.get_ops(config.backend)
            snfnp.train(replace(config, epochs=epoch), data, ops, run, resume=epoch > 1)
            found = [round(angle, 4) for angle in _angles(path, data.train[:_IMAGES])]
            runs[-1]["points"].append({"epoch": epoch, "angles": found})
            _write(ANGLES, runs)


def _angles(path: Path, images) -> list[float]:
    run = snfnp.load_run(path, "last")
    key = snfnp.RandomKey(0, EVALUATION_NOISE)
    x, _ = run.flow.encode(run.ops, run.ops.asarray(images), key, np.float64)
    return [layer.angle for layer in gradient_angles(run.ops, run.flow, run.params, x, run.lam)]


def collect(folders: list[Path]) -> None:
    """Validation likelihoods by epoch, from the metrics of finished or unfinished runs."""
    runs = []
    for path in folders:
        folder, record = snfnp.RunFolder.open(path)
        config = record["config"]
        points = [
            {"epoch": line["epoch"], "nll": round(line["validation_nll_nats"], 3)}
            for line in folder.read_metrics()
        ]
        names = ("model", "gradient", "recipe", "bias_init", "seed")
        runs.append({name: config.get(name) for name in names} | {"points": points})
    _write(LIKELIHOODS, runs)


def _write(path: Path, runs: list[dict]) -> None:
    rows = ",\n".join(json.dumps(run) for run in runs)
    path.write_text(f"[\n{rows}\n]\n", encoding="utf-8")
