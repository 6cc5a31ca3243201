"""A table of likelihoods as a record of results, in Markdown and as a picture."""

from __future__ import annotations

import statistics
from pathlib import Path

from reproduction import pictures, provenance
from reproduction.rows import Row, Table
from reproduction.runs import Result, Run, plan
from reproduction.setting import Setting

# Options that say how long a run is, which one of several, and where: each run has its own.
_NOT_OF_A_ROW = ("epochs", "seed", "backend", "data_dir", "out", "eval_every", "checkpoint_every")
_NOT_OF_A_ROW += ("tensorboard",)


class LikelihoodTable:
    """A target of `reproduce.py` (see `reproduction.targets`): one of `reproduction.tables`."""

    suffix = ".svg"

    def __init__(self, table: Table):
        self.table, self.title = table, table.title

    def plan(self, setting: Setting) -> list[Run]:
        return plan(self.table.rows, setting, self.table.seeds)

    def collect(self, setting: Setting, results: dict[Path, Result]) -> dict:
        """results: by the run's folder."""
        runs = self.plan(setting)
        rows = []
        for row in (row.at(setting.scale) for row in self.table.rows):
            found = [(run, results[run.folder]) for run in runs if run.row == row]
            rows.append(_record(row, found, setting))
        return {
            "title": self.title,
            "scale": setting.scale,
            "heads": list(self.table.heads),
            "rows": rows,
            "notes": list(self.table.notes),
        }

    def show(self, record: dict) -> str:
        heads = (*record["heads"], "ours", "seeds", "epochs: ours / paper", "paper", "difference")
        lines = [f"**{record['title']}** (scale: {record['scale']})", ""]
        cells = [heads, ("---",) * len(heads)]
        cells += [(*_labels(row), *_figures(row)) for row in record["rows"]]
        lines += [f"| {' | '.join(own)} |" for own in cells]
        return "\n".join([*lines, "", *(f"* {note}" for note in _notes(record))])

    def draw(self, record: dict, path: Path, setting: Setting) -> None:
        rows = record["rows"]
        pictures.save_beside(
            path,
            [_label(record["heads"], row) for row in rows],
            {
                "ours": [_mean_and_deviation(row) for row in rows],
                "the paper's": [_paper(row) for row in rows],
            },
            f"test NLL ({rows[0]['unit']})",
        )


def _record(row: Row, found: list[tuple[Run, Result]], setting: Setting) -> dict:
    record = {
        "name": row.name,
        "cells": list(row.cells),
        "stand_in": row.instead,
        "unit": row.unit,
        "paper": row.paper,
        "paper_spread": row.spread,
        "paper_epochs": row.epochs,
    }
    if setting.missing(row.data):
        return record | {"missing": True}
    dataset = setting.dataset(row.data)
    images = len(dataset.train)
    config = Run(row, 0, row.epochs, setting.folder).config(images, setting.ops.name)
    made_with = [provenance.of_run(run.folder) for run, _ in found]
    return record | {
        "config": {
            name: value
            for name, value in config.as_dict().items()
            if value is not None and name not in _NOT_OF_A_ROW
        },
        "data": {
            "name": row.data,
            "training_images": images,
            "is_sample": dataset.is_sample or setting.scale == "smoke",
        },
        "runs": [_run_record(run, result, row.unit) for run, result in found],
        "made_with": [own for i, own in enumerate(made_with) if own not in made_with[:i]],
    }


def _run_record(run: Run, result: Result, unit: str) -> dict:
    common = {"seed": run.seed, "epochs": result.epochs}
    if result.nll is None:
        return common | {"diverged_at": result.diverged_at, "before": result.before}
    value = result.nll if unit == "nats" else result.bits
    return common | {"value": value, "best_epoch": result.best_epoch}


# ---------------------------------------------------------------- the words of a row


def _labels(row: dict) -> list[str]:
    *others, last = row["cells"]
    return [*others, f"{last} (stand-in: {row['stand_in']})" if row["stand_in"] else last]


def _label(heads: list[str], row: dict) -> str:
    """The row's in a picture, which has no heads."""
    named = zip(heads, _labels(row), strict=True)
    return ", ".join(f"λ = {cell}" if head == "λ" else cell for head, cell in named)


def _values(row: dict) -> list[float]:
    return [run["value"] for run in row.get("runs", []) if "value" in run]


def _mean_and_deviation(row: dict) -> tuple[float, float] | None:
    values = _values(row)
    if not values:
        return None
    return statistics.fmean(values), statistics.stdev(values) if values[1:] else 0.0


def _paper(row: dict) -> tuple[float, float] | None:
    return None if isinstance(row["paper"], str) else (row["paper"], row["paper_spread"] or 0.0)


def _figures(row: dict) -> tuple[str, ...]:
    """ours, seeds, epochs, the paper's, difference."""
    paper = row["paper"]
    if not isinstance(paper, str):
        paper = _number(row, paper, row["paper_spread"])
    if "missing" in row:
        return "no data", "", f"0 / {row['paper_epochs']:,}", paper, ""
    values, runs = _values(row), row["runs"]
    ours = []
    if values:
        deviation = statistics.stdev(values) if values[1:] else None
        ours.append(_number(row, statistics.fmean(values), deviation))
    ours += [_diverged(run, bool(runs[1:])) for run in runs if "value" not in run]
    epochs = sorted({run["epochs"] for run in runs})
    trained = "–".join(f"{count:,}" for count in dict.fromkeys((epochs[0], epochs[-1])))
    seeds = ", ".join(str(run["seed"]) for run in runs)
    return (
        " and ".join(ours),
        seeds,
        f"{trained} / {row['paper_epochs']:,}",
        paper,
        _difference(row, values, epochs[0]),
    )


def _difference(row: dict, values: list[float], epochs: int) -> str:
    """Ours minus the paper's where that means anything, or why it does not."""
    if row["data"]["is_sample"]:
        return "other data"
    if row["stand_in"]:
        return "another model"
    said = []
    if values and not isinstance(row["paper"], str):
        digits = 1 if row["unit"] == "nats" else 3
        said.append(f"{statistics.fmean(values) - row['paper']:+.{digits}f}")
    if values and epochs < row["paper_epochs"]:
        said.append("(not trained as long)")
    return " ".join(said)


def _diverged(run: dict, several: bool) -> str:
    said = f"diverged at step {run['diverged_at'] or 'unknown'}"
    if several:
        said += f" (seed {run['seed']})"
    before = run["before"] or {}
    figures = [
        f"{symbol} {before[name]:.3g}"
        for name, symbol in (("rho", "ρ"), ("margin", "λσ²_min"))
        if name in before
    ]
    return f"{said}, after epoch {before['epoch']}: {', '.join(figures)}" if figures else said


def _number(row: dict, mean: float, spread: float | None) -> str:
    digits = 1 if row["unit"] == "nats" else 3
    return f"{mean:.{digits}f}" if spread is None else f"{mean:.{digits}f} ± {spread:.{digits}f}"


def _notes(record: dict) -> list[str]:
    notes = []
    images = {}
    for row in record["rows"]:
        if "missing" in row:
            notes.append(f"Not trained, for want of images: {', '.join(row['cells'])}.")
        else:
            images[row["data"]["name"]] = row["data"]
    for name, data in images.items():
        sample = ", a sample of it" if data["is_sample"] else ""
        notes.append(f"Ours: {data['training_images']:,} training images of {name}{sample}.")
    if record["scale"] == "smoke":
        notes.append("These show that everything runs; their figures mean nothing.")
    elif any(data["is_sample"] for data in images.values()):
        notes.append("The paper's data are 50,000 images: the figures cannot be compared.")
    return [*notes, *record["notes"]]
