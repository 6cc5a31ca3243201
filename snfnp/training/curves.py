"""The curves of a run: its metrics, evaluation by evaluation (curves.png)."""

from pathlib import Path
from typing import Any

import numpy as np

from snfnp.training import plots
from snfnp.training.plots import Row

# (figure of a record or of its layers, label of its row, how it is drawn)
ROWS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("validation_nll_nats", "exact validation NLL (nats)", {"log": False}),
    ("reconstruction", "reconstruction error\nΣ ‖g(f(h)) − h‖² per sample", {}),
    ("jacobian_error", "Jacobian error (Eq. 31)\nΣ ‖J_g J_f ν − ν‖² per probe", {}),
    ("lam", "λ: mean and range\nover the layers", {}),
    ("constraint", "constraint C: mean and\nrange over the layers", {}),
    ("rho", "ρ = ‖I − RW‖₂, from below:\nlargest and range", {"limit": 1.0}),
    ("angle", "angle of W's gradient to the\nexact one (°): largest and range", {}),
    ("inverse_angle", "angle of R's gradient to the\nexact one (°): largest and range", {}),
)
_BESIDE = {"validation_nll_nats": "training_nll_nats"}  # dashed, in the same row
_OF_INVERSES = ("reconstruction", "lam", "constraint")  # 0 in records of runs that learn none


def _point(record: dict, figure: str) -> tuple[float, float, float] | None:
    """A figure and the ends of its band: as recorded, or of the layers' figures the largest, and a
    band over all; None if there is none."""
    if figure in record:
        value, absent = record[figure], figure in _OF_INVERSES and not record["reconstruction"] > 0
        ends = record.get(f"{figure}_min", value), record.get(f"{figure}_max", value)
        return None if absent else (value, *ends)
    values = [own[figure] for own in record.get("layers", {}).values() if figure in own]
    return (max(values), min(values), max(values)) if values else None


def rows(records: list[dict]) -> list[Row]:
    """The rows that some record has a figure for; λ if it moves."""
    drawn = []
    for figure, label, style in ROWS:
        points = [_point(record, figure) for record in records]
        fixed = figure == "lam" and len({value for point in points for value in point or ()}) == 1
        if any(points) and not fixed:
            lines = np.array([point or [np.nan] * 3 for point in points]).T
            beside = [record.get(_BESIDE.get(figure), np.nan) for record in records]
            also = None if np.isnan(beside).all() else np.array(beside)
            drawn.append(Row(label, lines, also=also, **style))
    return drawn


def save_curves(path: Path, records: list[dict], title: str) -> None:
    """Draw all rows that a run has figures for, against epochs and training seconds."""
    axes = ("epoch", "epoch"), ("training seconds", "seconds")
    columns = {label: [record[key] for record in records] for label, key in axes}
    plots.save_rows(path, columns, rows(records), title)
