"""A table of likelihoods as a record of results, in Markdown and as a picture."""

from __future__ import annotations

import statistics
from pathlib import Path

from reproduction import pictures, provenance
from reproduction.rows import DIVERGED, NOT_GIVEN, TITLES, Row, Table, names
from reproduction.runs import Result, Run, lost, plan, settings
from reproduction.setting import Setting
from snfnp.training.run import RunFolder

# The epochs of which the validation likelihood is kept, and those that are shown.
_EPOCHS = {digit * scale for digit in range(1, 10) for scale in (10, 100, 1000)}
_SHOWN_EPOCHS = (10, 30, 60, 100, 200, 300, 500, 1000, 2000, 6000)
_LOST = (
    "Lost: the exact validation NLL went more than a tenth above its best and stayed there; the "
    "figure is that of the best epoch. Beside it the largest ρ = ‖I − RW‖₂ of a layer at the "
    "evaluation before, from below: an early warning (derivations/23-monitors-and-certificates.md)."
)


class LikelihoodTable:
    """A target of `reproduce.py` (see `reproduction.targets`): one of `reproduction.tables`."""

    suffix = ".svg"
    shows_paper = True
    parts = "rows"
    made_of_runs = False

    def __init__(self, table: Table):
        self.table, self.title = table, table.title

    def names(self, scale: str) -> list[str]:
        return names(self.table.rows, scale)

    def identities(self) -> list[tuple[str, ...]]:
        return [row.cells for row in self.table.rows]

    def identity(self, row: dict) -> tuple[str, ...]:
        return tuple(row["cells"])

    def plan(self, setting: Setting) -> list[Run]:
        return plan(self.table.rows, setting, self.table.seeds)

    def collect(self, setting: Setting, results: dict[Path, Result]) -> dict:
        """results: by the run's folder."""
        runs = self.plan(setting)
        rows = []
        for row in filter(setting.wants, (row.at(setting.scale) for row in self.table.rows)):
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
        lines += ["", *(f"* {note}" for note in _notes(record)), *_learning_table(record)]
        return "\n".join(lines)

    def draw(self, record: dict, path: Path, setting: Setting) -> None:
        rows = record["rows"]
        pictures.save_beside(
            path,
            [_in_picture(record["heads"], row) for row in rows],
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
    if not row.epochs_given:
        record["paper_epochs_given"] = False
    if setting.missing(row.data):
        return record | {"missing": True}
    dataset = setting.dataset(row.data)
    images = len(dataset.train)
    made_with = [provenance.of_run(run.folder) for run, _ in found]
    return record | {
        "config": settings(Run(row, 0, row.epochs, setting.folder), setting),
        "data": {
            "name": row.data,
            "training_images": images,
            "is_sample": dataset.is_sample or setting.scale == "smoke",
        },
        "runs": [_run_record(run, result, row.unit) for run, result in found],
        "made_with": provenance.distinct(made_with),
    }


def _run_record(run: Run, result: Result, unit: str) -> dict:
    lines = RunFolder(run.folder).read_metrics()
    common = {"seed": run.seed, "epochs": result.epochs, "validation": _curve(lines, unit)}
    if result.nll is None:
        how = {"asked": result.asked, "diverged_at": result.diverged_at, "before": result.before}
        return common | how
    value = result.nll if unit == "nats" else result.bits
    return common | {"value": value, "best_epoch": result.best_epoch, "lost": lost(lines)}


def _curve(lines: list[dict], unit: str) -> list[list]:
    """[epoch, exact validation NLL] at some epochs, the same for all runs.

    lines: of the run's metrics.jsonl.
    """
    key = "validation_nll_nats" if unit == "nats" else "validation_bits_per_dimension"
    kept = (line for line in lines if key in line and line["epoch"] in _EPOCHS)
    return [[line["epoch"], line[key]] for line in kept]


def learning(row: dict) -> dict[int, float]:
    """{epoch: validation NLL}, the mean over the seeds, at the epochs that all of them have."""
    found = [dict(run.get("validation", [])) for run in row.get("runs", [])]
    common = set.intersection(*map(set, found)) if found else set()
    return {epoch: statistics.fmean(own[epoch] for own in found) for epoch in sorted(common)}


# ---------------------------------------------------------------- the words of a row


def _labels(row: dict) -> list[str]:
    *others, last = row["cells"]
    return [*others, f"{last} (stand-in: {row['stand_in']})" if row["stand_in"] else last]


def _in_picture(heads: list[str], row: dict) -> str:
    """The row's label in a picture, which has no heads, how long it was trained, and whether its
    point is that of a likelihood that did not last."""
    named = zip(heads, _labels(row), strict=True)
    said = [f"λ = {cell}" if head == "λ" else cell for head, cell in named]
    if "runs" in row:
        said.append(f"{_epochs(row)} epochs")
        said += ["then lost"] * any(run.get("lost") for run in row["runs"])
    return ", ".join(said)


def finished(row: dict) -> list[dict]:
    """The runs of a row that did not diverge."""
    return [run for run in row.get("runs", []) if "value" in run]


def _epochs(row: dict) -> str:
    """Of the runs that did not diverge; where all did, the epochs in which they did."""
    epochs = sorted({run["epochs"] for run in finished(row) or row["runs"]})
    return "–".join(f"{count:,}" for count in dict.fromkeys((epochs[0], epochs[-1])))


def _paper_epochs(row: dict) -> str:
    return f"{row['paper_epochs']:,}" if row.get("paper_epochs_given", True) else NOT_GIVEN


def nlls(row: dict) -> list[float]:
    return [run["value"] for run in finished(row)]


def _mean_and_deviation(row: dict) -> tuple[float, float] | None:
    values = nlls(row)
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
        return "no data", "", f"0 / {_paper_epochs(row)}", paper, ""
    values, runs = nlls(row), row["runs"]
    ours = []
    if values:
        deviation = statistics.stdev(values) if values[1:] else None
        ours.append(_number(row, statistics.fmean(values), deviation))
    ours += [_diverged(run, bool(runs[1:])) for run in runs if "value" not in run]
    lost_runs = [_lost(run, bool(runs[1:])) for run in runs if run.get("lost")]
    seeds = ", ".join(str(run["seed"]) for run in runs)
    return (
        "; ".join([" and ".join(ours), *lost_runs]),
        seeds,
        f"{_epochs(row)} / {_paper_epochs(row)}",
        paper,
        _difference(row, values),
    )


def _difference(row: dict, values: list[float]) -> str:
    """Ours minus the paper's where that means anything, or why it does not."""
    if row["data"]["is_sample"]:
        return "other data"
    if row["stand_in"]:
        return "another model"
    if row["paper"] == DIVERGED and all(
        "value" not in run or run.get("lost") for run in row["runs"]
    ):
        return "diverges here as well"
    said = []
    if values and not isinstance(row["paper"], str):
        digits = 1 if row["unit"] == "nats" else 3
        said.append(f"{statistics.fmean(values) - row['paper']:+.{digits}f}")
    given = row.get("paper_epochs_given", True)
    if values and given and min(run["epochs"] for run in finished(row)) < row["paper_epochs"]:
        better = not isinstance(row["paper"], str) and statistics.fmean(values) < row["paper"]
        said.append("(although not trained as long)" if better else "(not trained as long)")
    return " ".join(said)


def _lost(run: dict, several: bool) -> str:
    of = f"seed {run['seed']}: " if several else ""
    said = f"{of}best at epoch {run['best_epoch']}, lost from step {run['lost']['step']} on"
    return _with_monitors(said, run["lost"]["before"])


def _diverged(run: dict, several: bool) -> str:
    said = f"diverged at step {run['diverged_at'] or 'unknown'}"
    if several:
        said += f" (seed {run['seed']})"
    return _with_monitors(said, run["before"] or {})


def _with_monitors(said: str, before: dict) -> str:
    if "rho" not in before:
        return said
    return f"{said}, after epoch {before['epoch']}: ρ ≥ {before['rho']:.3g}"


def _number(row: dict, mean: float, spread: float | None) -> str:
    digits = 1 if row["unit"] == "nats" else 3
    return f"{mean:.{digits}f}" if spread is None else f"{mean:.{digits}f} ± {spread:.{digits}f}"


def _learning_table(record: dict) -> list[str]:
    """A second table: the likelihood over the epochs, of the rows that have more than one."""
    found = [(row, learning(row)) for row in record["rows"]]
    found = [(row, curve) for row, curve in found if len(curve) > 1]
    epochs = [epoch for epoch in _SHOWN_EPOCHS if any(epoch in curve for _, curve in found)]
    if not found:
        return []
    cells = [(*record["heads"], *(f"epoch {epoch:,}" for epoch in epochs))]
    cells.append(("---",) * len(cells[0]))
    for row, curve in found:
        own = (_number(row, curve[epoch], None) if epoch in curve else "" for epoch in epochs)
        cells.append((*_labels(row), *own))
    said = f"Exact validation NLL in {found[0][0]['unit']} while training (mean over the seeds):"
    return ["", said, "", *(f"| {' | '.join(own)} |" for own in cells)]


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
        notes.append(
            f"Ours: {data['training_images']:,} training images of {TITLES[name]}{sample}."
        )
    if record["scale"] == "smoke":
        notes.append("These show that everything runs; their figures mean nothing.")
    elif any(data["is_sample"] for data in images.values()):
        notes.append("The paper's data are 50,000 images: the figures cannot be compared.")
    if any(run.get("lost") for row in record["rows"] for run in row.get("runs", [])):
        notes.append(_LOST)
    return [*notes, *record["notes"]]
