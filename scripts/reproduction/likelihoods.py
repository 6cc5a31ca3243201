"""A table of likelihoods as a record of results, in Markdown and as a picture."""

import statistics
from pathlib import Path

from reproduction import pictures, provenance
from reproduction.results import distinct, finished
from reproduction.rows import DIVERGED, NOT_GIVEN, TITLES, Row, Table
from reproduction.runs import Command, Run, lost, plan
from reproduction.target import SMOKE, Target, grid, markdown
from snfnp.training.runs.folder import RunFolder

# The epochs of which the validation likelihood is kept, and those that are shown.
_EPOCHS = {digit * scale for digit in range(1, 10) for scale in (10, 100, 1000)}
_SHOWN_EPOCHS = (10, 30, 60, 100, 200, 300, 500, 1000, 2000, 6000)
# What presets fill in differently from commit to commit.
_RESOLVED = ("lr", "lam", "objective", "coordinates", "lr_schedule", "warmup_epochs", "bias_init")
_LOST = (
    "Lost: the exact validation NLL went more than a tenth above its best and stayed there; the "
    "figure is that of the best epoch. Beside it the largest ρ = ‖I − RW‖₂ of a layer at the "
    "evaluation before, from below: an early warning (derivations/23-monitors-and-certificates.md)."
)


class LikelihoodTable(Target):
    """One of the tables of `reproduction.rows`."""

    def __init__(self, table: Table):
        self.table, self.title, self.rows = table, table.title, table.rows

    def plan(self, command: Command) -> list[Run]:
        return plan(self.rows, command, self.table.seeds)

    def collect(self, command: Command, outcomes: dict[Path, dict]) -> dict:
        runs, heads, notes = self.plan(command), list(self.table.heads), list(self.table.notes)
        rows = [
            _record(row, [run for run in runs if run.row == row], outcomes, command)
            for row in command.wanted(self.rows)
        ]
        return self.record(command, heads=heads, rows=rows, notes=notes)

    def show(self, record: dict) -> str:
        heads = (*record["heads"], "ours", "seeds", "epochs: ours / paper", "paper", "difference")
        table = [heads, *((*_labels(row), *compared(row)) for row in record["rows"])]
        return markdown(record, table, _notes(record)) + _learning_table(record)

    def draw(self, record: dict, path: Path) -> None:
        lines = [line for row in record["rows"] for line in _in_picture(record["heads"], row)]
        labels, ours, papers = map(list, zip(*lines, strict=True))
        unit, figures = record["rows"][0]["unit"], {"ours": ours, "the paper's": papers}
        pictures.save_beside(path, labels, figures, f"test NLL ({unit})")


def _record(row: Row, runs: list[Run], outcomes: dict, command: Command) -> dict:
    record = {"name": row.name, "cells": list(row.cells), "stand_in": row.instead}
    record |= {"unit": row.unit, "paper": row.paper, "paper_spread": row.spread}
    record["paper_epochs"] = row.epochs
    if not row.epochs_given:
        record["paper_epochs_given"] = False
    if command.is_missing(row.data):
        return record | {"missing": True}
    dataset, found = command.dataset(row.data), []
    key = "validation_nll_nats" if row.unit == "nats" else "validation_bits_per_dimension"
    for run in runs:
        lines = RunFolder(run.folder).read_metrics()
        kept = (line for line in lines if key in line and line["epoch"] in _EPOCHS)
        own = {"seed": run.seed, "validation": [[line["epoch"], line[key]] for line in kept]}
        own |= outcomes[run.folder]
        found.append(own | ({"lost": lost(lines)} if "value" in own else {}))
    data = {"name": row.data, "training_images": len(dataset.train)}
    record |= {"config": row.options, "data": data | {"is_sample": dataset.is_sample}}
    config = runs[0].config(len(dataset.train), command.ops.name)
    record["resolved"] = {name: getattr(config, name) for name in _RESOLVED}
    made_with = distinct([provenance.of_run(run.folder) for run in runs])
    return record | {"runs": found, "made_with": made_with}


def learning(row: dict) -> dict[int, float]:
    """{epoch: validation NLL}, the mean over the seeds, at the epochs that all of them have."""
    found = [dict(run.get("validation", [])) for run in row.get("runs", [])]
    common = set.intersection(*map(set, found)) if found else set()
    return {epoch: statistics.fmean(own[epoch] for own in found) for epoch in sorted(common)}


def _printed(row: dict) -> float | None:
    """The paper's likelihood, None if it has none."""
    return None if isinstance(row["paper"], str) else row["paper"]


def nlls(row: dict) -> list[float]:
    """The test NLLs of the runs that did not diverge."""
    return [run["value"] for run in finished(row)]


def _labels(row: dict) -> list[str]:
    *others, last = row["cells"]
    return [*others, f"{last} (stand-in: {row['stand_in']})" if row["stand_in"] else last]


def _in_picture(heads: list[str], row: dict) -> list[tuple]:
    """(label, ours, the paper's) for each line of a row in a picture; a stand-in has its own line.
    Labels say how long both were trained, and whether ours is a likelihood that did not last."""
    named = zip(heads, row["cells"], strict=True)
    label = ", ".join(f"λ = {cell}" if head == "λ" else cell for head, cell in named)
    ours, paper, none = _mean(nlls(row)), (_printed(row), row["paper_spread"]), (None, None)
    if "runs" not in row:
        return [(label, ours, paper)]
    lost = ", then lost" * any(run.get("lost") for run in row["runs"])
    if row["stand_in"]:
        stand_in = f"stand-in {row['stand_in']}\n{_epochs(row)} epochs{lost}"
        return [(f"{label}\n{_paper_epochs(row)} epochs", none, paper), (stand_in, ours, none)]
    given = row.get("paper_epochs_given", True)
    epochs = f" of {_paper_epochs(row)} epochs" if given else " epochs, the paper's not given"
    return [(f"{label}\n{_epochs(row)}{epochs}{lost}", ours, paper)]


def _epochs(row: dict) -> str:
    """Epochs of the runs that did not diverge; if all did, those in which they did."""
    epochs = sorted({run["epochs"] for run in finished(row) or row["runs"]})
    return "–".join(f"{count:,}" for count in dict.fromkeys((epochs[0], epochs[-1])))


def _paper_epochs(row: dict) -> str:
    return f"{row['paper_epochs']:,}" if row.get("paper_epochs_given", True) else NOT_GIVEN


def _mean(values: list[float]) -> tuple[float | None, float | None]:
    """Mean and standard deviation, as far as there are."""
    mean = statistics.fmean(values) if values else None
    return mean, statistics.stdev(values) if values[1:] else None


def compared(row: dict) -> tuple[str, ...]:
    """The cells of a row beside its labels: ours, seeds, epochs, the paper's, difference."""
    paper = row["paper"]
    if not isinstance(paper, str):
        paper = _number(row, paper, row["paper_spread"])
    if "missing" in row:
        return "no data", "", f"0 / {_paper_epochs(row)}", paper, ""
    values, runs = nlls(row), row["runs"]
    ours = [_number(row, *_mean(values))] if values else []
    lost_runs = []
    for run in runs:
        several = f"seed {run['seed']}" * bool(runs[1:])
        if "value" not in run:
            said = f"diverged at step {run['diverged_at'] or 'unknown'}"
            ours.append(_with_monitors(said + f" ({several})" * bool(several), run["before"] or {}))
        elif run.get("lost"):
            said = f"{several}: " * bool(several) + f"best at epoch {run['best_epoch']}, lost from "
            said += f"step {run['lost']['step']} on"
            lost_runs.append(_with_monitors(said, run["lost"]["before"]))
    seeds, epochs = ", ".join(str(run["seed"]) for run in runs), _epochs(row)
    said = "; ".join([" and ".join(ours), *lost_runs])
    return said, seeds, f"{epochs} / {_paper_epochs(row)}", paper, _difference(row, values)


def _difference(row: dict, values: list[float]) -> str:
    """Ours minus the paper's if that means anything, or why it does not."""
    if row["data"]["is_sample"]:
        return "other data"
    if row["stand_in"]:
        return "another model"
    went = ["value" not in run or run.get("lost") for run in row["runs"]]
    if row["paper"] == DIVERGED and all(went):
        return "diverges here as well"
    said = []
    if values and _printed(row) is not None:
        said.append(_number(row, statistics.fmean(values) - row["paper"], sign="+"))
    given = row.get("paper_epochs_given", True)
    if values and given and min(run["epochs"] for run in finished(row)) < row["paper_epochs"]:
        better = _printed(row) is not None and statistics.fmean(values) < row["paper"]
        said.append("(although not trained as long)" if better else "(not trained as long)")
    return " ".join(said)


def _with_monitors(said: str, before: dict) -> str:
    if "rho" not in before:
        return said
    return f"{said}, after epoch {before['epoch']}: ρ ≥ {before['rho']:.3g}"


def _number(row: dict, mean: float, spread: float | None = None, sign: str = "") -> str:
    form = f".{1 if row['unit'] == 'nats' else 3}f"
    return f"{mean:{sign}{form}}" + ("" if spread is None else f" ± {spread:{form}}")


def _learning_table(record: dict) -> str:
    """A second table: the likelihood over the epochs, of the rows that have more than one."""
    curves = [(row, learning(row)) for row in record["rows"]]
    curves = [(row, curve) for row, curve in curves if len(curve) > 1]
    epochs = [epoch for epoch in _SHOWN_EPOCHS if any(epoch in curve for _, curve in curves)]
    if not curves:
        return ""
    table = [(*record["heads"], *(f"epoch {epoch:,}" for epoch in epochs))]
    for row, curve in curves:
        own = (_number(row, curve[epoch]) if epoch in curve else "" for epoch in epochs)
        table.append((*_labels(row), *own))
    unit = curves[0][0]["unit"]
    said = f"Exact validation NLL in {unit} while training (mean over the seeds):"
    return f"\n\n{said}\n\n{grid(table)}"


def _notes(record: dict) -> list[str]:
    notes, images = [], {}
    for row in record["rows"]:
        if "missing" in row:
            notes.append(f"Not trained, for want of images: {', '.join(row['cells'])}.")
        else:
            images[row["data"]["name"]] = row["data"]
    for name, data in images.items():
        sample = ", a sample of it" if data["is_sample"] else ""
        count = data["training_images"]
        notes.append(f"Ours: {count:,} training images of {TITLES[name]}{sample}.")
    if record["scale"] == "smoke":
        notes.append(SMOKE)
    elif any(data["is_sample"] for data in images.values()):
        notes.append("The paper's data are 50,000 images: the figures cannot be compared.")
    if any(run.get("lost") for row in record["rows"] for run in row.get("runs", [])):
        notes.append(_LOST)
    return [*notes, *record["notes"]]
