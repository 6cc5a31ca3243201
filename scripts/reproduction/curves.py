"""What the figures over epochs share."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from reproduction import provenance
from reproduction.rows import Row, names
from reproduction.runs import Result, Run, plan, settings
from reproduction.setting import Setting


def one_seed(rows: Iterable[Row], setting: Setting, hour: int | None = None) -> list[Run]:
    """A run of each row, with the first seed. hour: epochs at that scale, if not the rows'."""
    if hour is not None:
        rows = [replace(row, hour=hour) for row in rows]
    planned = plan(rows, setting)
    return [run for run in planned if run.seed == planned[0].seed]


class Curves:
    """What Figs. 3 and 5 share: a record of curves, each of one run of a row, by its model."""

    parts = "curves"
    made_of_runs = False
    rows: tuple[Row, ...]

    def names(self, scale: str) -> list[str]:
        return names(self.rows, scale)

    def identities(self) -> list[str]:
        return [row.cells[0] for row in self.rows]

    def identity(self, curve: dict) -> str:
        return curve["model"]


def describe(run: Run, result: Result, setting: Setting) -> dict:
    """What a record says of a run: the model, how long it was trained, on what, and with what."""
    diverged = {"asked": result.asked, "diverged_at": result.diverged_at}
    return {
        "name": run.row.name,
        "model": run.row.instead or run.row.cells[0],
        "config": settings(run, setting),
        "data": run.row.data,
        "is_sample": setting.dataset(run.row.data).is_sample or setting.scale == "smoke",
        "seed": run.seed,
        "epochs": result.epochs,
        "paper_epochs": run.row.epochs,
        "made_with": provenance.of_run(run.folder),
        **(diverged if result.nll is None else {}),
    }


def notes(record: dict, described: list[dict]) -> list[str]:
    """What has to be said of runs on other images than the paper's."""
    if record["scale"] == "smoke":
        return ["These show that everything runs; their figures mean nothing."]
    if any(own["is_sample"] for own in described):
        return ["Trained on a sample of MNIST: the figures cannot be compared with the paper's."]
    return []


def thinned(points: list, most: int = 200, keep=None) -> list:
    """So many of them, evenly spread, the first and the last among them; and the point `keep`."""
    if len(points) <= most:
        return list(points)
    spread = {round(i * (len(points) - 1) / (most - 1)) for i in range(most)}
    return [own for index, own in enumerate(points) if index in spread or own == keep]


def trained(record: dict) -> str:
    """Epochs of ours / of the paper, and a word where ours are fewer."""
    ours, paper = record["epochs"], record["paper_epochs"]
    why = "diverged there" if "diverged_at" in record else "not trained as long"
    return f"{ours:,} / {paper:,}{'' if ours >= paper else f' ({why})'}"
