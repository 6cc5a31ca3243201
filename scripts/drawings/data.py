"""Data of the curves of training: a few numbers of every epoch, from runs' folders."""

from __future__ import annotations

import json
from pathlib import Path

from snfnp.training.runs.folder import RunFolder

FOLDER = Path(__file__).parent
NAME = "likelihoods.json"
_ABOUT = ("data", "model", "gradient", "recipe", "bias_init", "seed")


def collect(folders: list[Path]) -> Path:
    """Write likelihoods.json: for every run its settings and "points", one for each evaluation.

    nll: exact validation NLL in nats.
    """
    runs = []
    for path in folders:
        folder, record = RunFolder.open(path)
        points = [
            {"epoch": line["epoch"], "nll": round(line["validation_nll_nats"], 3)}
            for line in folder.read_metrics()
        ]
        config = record["config"]
        about = {name: config.get(name) for name in _ABOUT}
        runs.append({**about, "images": folder.data(record)[0][0], "points": points})
    path = FOLDER / NAME
    path.write_text("[\n" + ",\n".join(map(json.dumps, runs)) + "\n]\n", encoding="utf-8")
    return path


def read() -> list[dict]:
    """The runs of likelihoods.json."""
    return json.loads((FOLDER / NAME).read_text(encoding="utf-8"))
