"""Fig. 4: the time of one layer's step over the dimension; of a convolution as well."""

from __future__ import annotations

import math
from pathlib import Path

from benchmarks.sweep import growth, sweep

from reproduction import pictures, provenance
from reproduction.runs import Command
from reproduction.target import Target, digits, hardware, markdown

_CHANNELS, _BATCH = 4, 128  # the batch is the paper's (A.3)
# (dimensions of the dense layer, sides of the convolution's images, seconds for each point)
_PLANS = {
    "smoke": ((8, 16, 24), (4, 6, 8), 0.0),
    "hour": (range(32, 4065, 288), (4, 8, 12, 16, 20, 24, 28), 2.0),
    "paper": (range(32, 4065, 96), range(4, 33, 2), 10.0),
}
_FROM = {"smoke": 0}  # the growth is that above this dimension; 1000 at the other scales
_ORDERS = {"self-normalizing": "O(D²)", "exact": "O(D³)"}


class Figure4(Target):
    """Milliseconds over the dimension, measured by `benchmarks.sweep`."""

    title = "Fig. 4: milliseconds of a layer's step over the dimension D, batch 128"

    def collect(self, command: Command, outcomes: dict) -> dict:
        dimensions, sides, budget = _PLANS[command.scale]
        layers = []
        for label, shapes in (
            ("dense layer", [(dimension,) for dimension in dimensions]),
            (
                f"3x3 convolution of {_CHANNELS} channels",
                [(side, side, _CHANNELS) for side in sides],
            ),
        ):
            rows = sweep(command.ops, shapes, _BATCH, budget)
            above = _FROM.get(command.scale, 1000)
            exponents = {key: growth(rows, key, above) for key in rows[0] if key.endswith(" ms")}
            layers.append({"label": label, "rows": rows, "growth": exponents, "above": above})
        record = {"title": self.title, "scale": command.scale, "layers": layers}
        return record | {"made_with": provenance.of_now(command.ops)}

    def show(self, record: dict) -> str:
        table = [("layer", "gradient", "ours, by D", "ours grows as", "paper")]
        for layer in record["layers"]:
            rows, step = layer["rows"], math.ceil(len(layer["rows"]) / 4)
            shown = rows[::-1][::step][::-1]  # at most four, the last one among them
            for key, exponent in layer["growth"].items():
                gradient = key.removesuffix(" ms")
                times = ", ".join(f"{row['D']}: {digits(row[key])}" for row in shown)
                grows = "–" if exponent is None else f"D^{exponent:.1f}, D ≥ {layer['above']}"
                dense = layer is record["layers"][0]
                paper = _ORDERS[gradient] if dense else "not measured"
                table.append((layer["label"], gradient, times, grows, paper))
        notes = [
            hardware(record),
            "The paper's figure is a curve of the dense layer without printed figures; beside ours "
            "stand the orders that its text gives. Of a convolution, exact is block recursion, and "
            "exact-dense the whole matrix.",
        ]
        if record["scale"] == "smoke":
            notes.append("Tiny dimensions, timed three times: the figures mean nothing.")
        return markdown(record, table, notes)

    def draw(self, record: dict, path: Path) -> None:
        pictures.save_sweeps(path, {layer["label"]: layer["rows"] for layer in record["layers"]})
