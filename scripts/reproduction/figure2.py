"""Fig. 2: samples of self-normalizing Glow through the exact and through the learned inverse."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from reproduction.curves import describe, notes, one_seed, trained
from reproduction.rows import TITLES, names
from reproduction.runs import Result, Run
from reproduction.setting import Setting
from reproduction.tables import TABLES
from snfnp.errors import DivergedError
from snfnp.training import plots
from snfnp.training.runs.load import load_run

_IMAGES = 64
_PANELS = (("exact", True), ("learned", False))


class Figure2:
    """A target of `reproduce.py` (see `reproduction.targets`)."""

    title = "Fig. 2: samples of self-normalizing Glow through the exact and the learned inverse"
    suffix = ".png"
    shows_paper = False
    parts = None
    made_of_runs = True
    rows = (TABLES["table1"].rows[-1], TABLES["table2"].rows[1])

    def names(self, scale: str) -> list[str]:
        return names(self.rows, scale)

    def plan(self, setting: Setting) -> list[Run]:
        """One run of Table 1's and, where its images are there, of Table 2's."""
        return one_seed(self.rows, setting)

    def collect(self, setting: Setting, results: dict[Path, Result]) -> dict:
        rows = []
        for run in self.plan(setting):
            row = describe(run, results[run.folder], setting)
            panels = _samples(run)
            if panels:
                exact, learned = (panels[name].astype(float) for name, _ in _PANELS)
                apart = np.abs(exact - learned)
                row["mean_difference"] = float(apart.mean())
                row["same_pixels"] = float((apart <= 1).mean())
                drawn = np.maximum(exact, learned) > 1  # most of a digit's image is black
                row["same_drawn"] = float((apart <= 1)[drawn].mean()) if drawn.any() else None
            rows.append(row)
        return {"title": self.title, "scale": setting.scale, "rows": rows}

    def show(self, record: dict) -> str:
        lines = [
            f"**{record['title']}** (scale: {record['scale']})",
            "",
            "| data | model | epochs: ours / paper | pixels within 1 level of 256 | of "
            "those not black in both | mean difference in levels | paper |",
            "| --- | --- | --- | --- | --- | --- | --- |",
        ]
        for row in record["rows"]:
            ours = ("no finite samples", "–", "–")
            if "same_pixels" in row:
                drawn = row.get("same_drawn")  # older records do not have it
                ours = (
                    f"{row['same_pixels']:.1%}",
                    "–" if drawn is None else f"{drawn:.1%}",
                    f"{row['mean_difference']:.2f}",
                )
            model = (TITLES[row["data"]], row["model"], trained(row))
            cells = (*model, *ours, '"nearly exact", no figure')
            lines.append(f"| {' | '.join(cells)} |")
        said = [f"{_IMAGES} samples, the same latents through both inverses."]
        said += notes(record, record["rows"])
        return "\n".join([*lines, "", *(f"* {note}" for note in said)])

    def draw(self, record: dict, path: Path, setting: Setting) -> None:
        panels = {}
        for run in self.plan(setting):
            for name, images in _samples(run).items():
                panels[f"{TITLES[run.row.data]}, {name} inverse"] = images
        if panels:
            plots.save_samples(path, panels, "Samples, the same latents")


def _samples(run: Run) -> dict[str, np.ndarray]:
    """{"exact", "learned": images}, {} where a run has none that are finite."""
    try:
        loaded = load_run(run.folder)
        return {
            name: loaded.likelihood.sample(_IMAGES, run.seed, exact=exact).reshape(
                -1, *loaded.image_shape
            )
            for name, exact in _PANELS
        }
    except DivergedError:
        return {}
