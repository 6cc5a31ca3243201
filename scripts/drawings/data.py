"""What the curves of training are drawn from: a few numbers of every epoch, from runs' folders."""

from __future__ import annotations

import json
from pathlib import Path

from snfnp.training.run import RunFolder

FOLDER = Path(__file__).parent
FIGURES = ("angles", "likelihoods")
_ABOUT = ("data", "model", "gradient", "recipe", "bias_init", "seed")


def collect(figure: str, folders: list[Path]) -> Path:
    """Write figure.json: for every run its settings and "points", one for each evaluation.

    nll: exact validation NLL in nats; angles: of the layers, in degrees (`--track-angle`).
    """
    runs = []
    for path in folders:
        folder, record = RunFolder.open(path)
        points = []
        for line in folder.read_metrics():
            point = {"epoch": line["epoch"], "nll": round(line["validation_nll_nats"], 3)}
            angles = [found.get("angle") for found in line.get("layers", {}).values()]
            if angles and None not in angles:
                point["angles"] = [round(angle, 4) for angle in angles]
            points.append(point)
        config = record["config"]
        about = {name: config.get(name) for name in _ABOUT}
        runs.append({**about, "images": folder.data(record)[0][0], "points": points})
    path = FOLDER / f"{figure}.json"
    path.write_text("[\n" + ",\n".join(map(json.dumps, runs)) + "\n]\n", encoding="utf-8")
    return path


def read(figure: str) -> list[dict]:
    """The runs of figure.json."""
    return json.loads((FOLDER / f"{figure}.json").read_text(encoding="utf-8"))
