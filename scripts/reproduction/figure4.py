"""Fig. 4: the time of one layer's step over the dimension; of a convolution as well."""

from __future__ import annotations

import math
from pathlib import Path

from benchmarks.sweep import growth, sweep

from reproduction import pictures
from reproduction.measured import digits, hardware, measured
from reproduction.setting import Setting

NAME = "figure4"
_CHANNELS, _BATCH = 4, 128  # the batch is the paper's (A.3)
# (dimensions of the dense layer, sides of the convolution's images, seconds for each point)
_PLANS = {
    "smoke": ((8, 16, 24), (4, 6, 8), 0.0),
    "hour": (range(32, 4065, 288), (4, 8, 12, 16, 20, 24, 28), 2.0),
    "paper": (range(32, 4065, 96), range(4, 33, 2), 10.0),
}
_FROM = {"smoke": 0}  # the growth is that above this dimension; 1000 at the other scales
_RULES = {"self-normalizing": "O(D²)", "exact": "O(D³)"}


class Figure4:
    """A target of `reproduce.py` (see `reproduction.targets`)."""

    title = "Fig. 4: milliseconds of a layer's step over the dimension D, batch 128"
    suffix = ".svg"
    shows_paper = False
    parts = None
    made_of_runs = False

    def names(self, scale: str) -> list[str]:
        return []

    def plan(self, setting: Setting) -> list:
        return []

    def collect(self, setting: Setting, results: dict) -> dict:
        return measured(setting, NAME, lambda: self._measure(setting))

    def _measure(self, setting: Setting) -> dict:
        dimensions, sides, budget = _PLANS[setting.scale]
        shapes = {
            "dense layer": [(dimension,) for dimension in dimensions],
            f"3x3 convolution of {_CHANNELS} channels": [(side, side, _CHANNELS) for side in sides],
        }
        layers = []
        for label, own in shapes.items():
            rows = sweep(setting.ops, own, _BATCH, budget)
            above = _FROM.get(setting.scale, 1000)
            exponents = {key: growth(rows, key, above) for key in rows[0] if key.endswith(" ms")}
            layers.append({"label": label, "rows": rows, "growth": exponents, "above": above})
        return {"title": self.title, "layers": layers}

    def show(self, record: dict) -> str:
        lines = [
            f"**{record['title']}** (scale: {record['scale']})",
            "",
            "| layer | gradient | ours, by D | ours grows as | paper |",
            "| --- | --- | --- | --- | --- |",
        ]
        for layer in record["layers"]:
            shown = _spread(layer["rows"])
            for key, exponent in layer["growth"].items():
                gradient = key.removesuffix(" ms")
                times = ", ".join(f"{row['D']}: {digits(row[key])}" for row in shown)
                grows = "–" if exponent is None else f"D^{exponent:.1f}, D ≥ {layer['above']}"
                dense = layer is record["layers"][0]
                paper = _RULES[gradient] if dense else "not measured"
                lines.append(f"| {layer['label']} | {gradient} | {times} | {grows} | {paper} |")
        notes = [
            hardware(record),
            "The paper's figure is a curve of the dense layer without printed figures; beside ours "
            "stand the orders that its text gives. Of a convolution, exact is block recursion, and "
            "exact-dense the whole matrix.",
        ]
        if record["scale"] == "smoke":
            notes.append("Tiny dimensions, timed three times: the figures mean nothing.")
        return "\n".join([*lines, "", *(f"* {note}" for note in notes)])

    def draw(self, record: dict, path: Path, setting: Setting) -> None:
        pictures.save_sweeps(path, {layer["label"]: layer["rows"] for layer in record["layers"]})


def _spread(rows: list[dict], most: int = 4) -> list[dict]:
    """At most so many rows, evenly spread, the last one among them."""
    step = math.ceil(len(rows) / most)
    return rows[::-1][::step][::-1]
