"""Fig. 3: the angle between the learned and the exact gradient, over the epochs."""

from __future__ import annotations

import statistics
from pathlib import Path

from reproduction import pictures
from reproduction.curves import Curves, describe, notes, one_seed, thinned, trained
from reproduction.runs import Result, Run
from reproduction.setting import Setting
from reproduction.tables import TABLES
from snfnp.training.run import RunFolder

_MOST = 1000  # points of a curve: every epoch of the convolution's
# What the caption says of these rows of Table 1, for all of training, and that in degrees.
_SAID = {"fc-snf": ("close to 0.1", 0.1), "conv-snf": ("less than 1", 1.0)}


class Figure3(Curves):
    """A target of `reproduce.py` (see `reproduction.targets`)."""

    title = "Fig. 3: angle in degrees between the learned and the exact gradient"
    suffix = ".svg"
    shows_paper = True
    rows = tuple(row for row in TABLES["table1"].rows if row.name in _SAID)

    def plan(self, setting: Setting) -> list[Run]:
        return one_seed(self.rows, setting)

    def collect(self, setting: Setting, results: dict[Path, Result]) -> dict:
        curves = []
        for run in self.plan(setting):
            words, degrees = _SAID[run.row.name]
            points = []
            for line in RunFolder(run.folder).read_metrics():
                angles = [own["angle"] for own in line.get("layers", {}).values() if "angle" in own]
                if angles:
                    mean, spread = statistics.fmean(angles), statistics.pstdev(angles)
                    points.append([line["epoch"], mean, spread])
            largest = max(points, key=lambda point: point[1], default=None)
            curves.append(
                {
                    **describe(run, results[run.folder], setting),
                    "paper": words,
                    "paper_degrees": degrees,
                    "points": thinned(points, _MOST, largest),
                    "largest": largest,
                    "below": [sum(mean < 1 for _, mean, _ in points), len(points)],
                }
            )
        return {"title": self.title, "scale": setting.scale, "curves": curves}

    def show(self, record: dict) -> str:
        lines = [
            f"**{record['title']}** (scale: {record['scale']})",
            "",
            "| model | epochs: ours / paper | largest | below 1° | at the end | paper, throughout "
            "| difference |",
            "| --- | --- | --- | --- | --- | --- | --- |",
        ]
        for curve in record["curves"]:
            figures = ("diverged", "–", "–", "")
            if curve["points"]:
                epoch, largest, _ = curve["largest"]
                _, mean, spread = curve["points"][-1]
                below, evaluated = curve["below"]
                figures = (
                    f"{largest:.2f}° at epoch {epoch:,}",
                    f"{below:,} of {evaluated:,} epochs",
                    f"{mean:.2f}° ± {spread:.2f}°",
                    "other data" if curve["is_sample"] else _difference(mean, curve),
                )
            *ours, difference = figures
            cells = (curve["model"], trained(curve), *ours, f"{curve['paper']}°", difference)
            lines.append(f"| {' | '.join(cells)} |")
        said = [
            "Mean and standard deviation over the layers, as in the figure, at the end of every "
            "epoch on one batch; the figure averages over the steps of an epoch.",
            "The paper's are from the figure's caption, for all of training. Its text says that "
            "the angle decreases to less than 1° over the course of training for both models. How "
            "long they were trained for the figure is not said: its epochs are Table 1's.",
        ]
        said += notes(record, record["curves"])
        return "\n".join([*lines, "", *(f"* {note}" for note in said)])

    def draw(self, record: dict, path: Path, setting: Setting) -> None:
        panels = {
            curve["model"]: (
                [list(values) for values in zip(*curve["points"], strict=True)],
                (curve["paper"], curve["paper_degrees"]),
            )
            for curve in record["curves"]
            if curve["points"]
        }
        if panels:
            pictures.save_angles(path, panels)


def _difference(mean: float, curve: dict) -> str:
    """Of the last angle and the paper's, of which one is a bound, and the other has one digit."""
    if curve["paper"].startswith("less than"):
        return "less as well" if mean < curve["paper_degrees"] else "more"
    apart = round(mean, 1) - curve["paper_degrees"]
    return f"{apart:+.1f}°" if abs(apart) > 0.05 else "close to it as well"
