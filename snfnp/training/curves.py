"""Curves of a run's metrics, and of several runs in one picture."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from snfnp.training.plots import picture, plain


@dataclass(frozen=True)
class CurveRow:
    """A row of curves.

    lines: (3, records), per record a value and the ends of a band around it, NaN for a record
    without; training: the same figure of training data (records,), dashed; log: a logarithmic axis,
    if all is positive; limit: a level that is marked."""

    label: str
    lines: np.ndarray
    training: np.ndarray | None
    log: bool = True
    limit: float | None = None


# (figure of a record or of its layers, label of its row, how it is drawn)
ROWS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("validation_nll_nats", "exact validation NLL (nats)", {"log": False}),
    ("reconstruction", "reconstruction error\nΣ ‖g(f(h)) − h‖² per sample", {}),
    ("jacobian_error", "Jacobian error (Eq. 31)\nΣ ‖J_g J_f ν − ν‖² per probe", {}),
    ("lam", "λ: mean and range\nover the layers", {}),
    ("constraint", "constraint C: mean and\nrange over the layers", {}),
    ("rho", "ρ = ‖I − RW‖₂, from below:\nlargest and range", {"limit": 1.0}),
    ("angle", "angle of W's gradient to the\nexact one (°): largest and range", {}),
    (
        "inverse_angle",
        "angle of R's gradient to the\nexact one (°): largest and range",
        {},
    ),
)
# {figure: another one, drawn dashed in its row}
_DASHED = {"validation_nll_nats": "training_nll_nats"}
# 0 in records of runs that learn none
_OF_INVERSES = ("reconstruction", "lam", "constraint")
_DECADE = 10  # between the ends of a logarithmic axis, which else has hardly a label


def _point(record: dict[str, Any], figure: str) -> tuple[float, float, float] | None:
    """A figure and the ends of its band: as recorded, or of the layers' figures the largest, and a
    band over all; None if there is none."""
    if figure in record:
        if figure in _OF_INVERSES and not record["reconstruction"] > 0:
            return None
        value = record[figure]
        return (
            value,
            record.get(f"{figure}_min", value),
            record.get(f"{figure}_max", value),
        )
    layers = record.get("layers", {}).values()
    values = [figures[figure] for figures in layers if figure in figures]
    return (max(values), min(values), max(values)) if values else None


def rows(records: list[dict[str, Any]]) -> list[CurveRow]:
    """The rows that some record has a figure for; λ if it moves."""
    drawn = []
    for figure, label, style in ROWS:
        points = [_point(record, figure) for record in records]
        is_fixed = (
            figure == "lam"
            and len({value for point in points for value in point or ()}) == 1
        )
        if is_fixed or not any(points):
            continue
        lines = np.array([point or [np.nan] * 3 for point in points]).T
        dashed = np.array(
            [record.get(_DASHED.get(figure, ""), np.nan) for record in records]
        )
        training = None if np.isnan(dashed).all() else dashed
        drawn.append(CurveRow(label, lines, training, **style))
    return drawn


def save_curves(path: Path, records: list[dict[str, Any]], title: str) -> None:
    """Draw the metrics of a run against epochs: a row for each that it has figures for."""
    drawn = rows(records)
    epochs = [record["epoch"] for record in records]
    with picture(path, title, (7.5, 2.7 * len(drawn) + 0.4)) as figure:
        axes = figure.subplots(len(drawn), sharex=True, squeeze=False)[:, 0]
        for index, (axis, row) in enumerate(zip(axes, drawn, strict=True)):
            _draw_row(axis, epochs, row, f"C{index}")
            axis.set_ylabel(row.label)
        seconds = f"{records[-1]['seconds']:,.1f} training seconds in all"
        _label(axes[-1], "epoch", f" ({seconds})")


def _draw_row(axis: Any, x: list[float], row: CurveRow, color: str) -> None:
    value, low, high = row.lines
    axis.plot(x, value, marker=_marker(x), color=color)
    axis.fill_between(x, low, high, color=color, alpha=0.2, linewidth=0)
    if row.training is not None:
        axis.plot(
            x, row.training, "--", color=color, linewidth=1, label="of training rows"
        )
        axis.legend(fontsize="small")
    if row.limit is not None:
        axis.axhline(row.limit, color="gray", linestyle="--", linewidth=1)
    axis.grid(alpha=0.3, which="both")
    values = row.lines[np.isfinite(row.lines)]
    if row.log and values.max() > _DECADE * values.min() > 0:
        axis.set_yscale("log")


# The figures of a run's metrics that a comparison draws: the x of both panels, then their y.
COMPARED = ("epoch", "seconds", "validation_nll_nats")


def save_comparison(
    path: Path, lines: dict[str, dict[str, list[float]]], label: str
) -> None:
    """Runs in one picture, by name, against epochs and against training seconds. The legend is
    below, where long names have room.

    The first evaluations, far above all others, are left out if they would flatten the rest.
    """
    *columns, y = COMPARED
    with picture(path, "", (11, 4.6 + 0.2 * len(lines))) as figure:
        axes = figure.subplots(1, len(columns), sharey=True)
        for axis, x in zip(axes, columns, strict=True):
            for name, line in lines.items():
                axis.plot(
                    line[x],
                    line[y],
                    marker=_marker(line[x]),
                    label=plain(name),
                    linewidth=1,
                )
            _label(axis, x)
            axis.grid(alpha=0.3)
        values = [line[y] for line in lines.values()]
        lowest = min(min(each) for each in values)
        settled = max(each[len(each) // 5] for each in values)
        margin = 0.05 * (settled - lowest)
        if margin > 0:
            axes[0].set_ylim(lowest - margin, settled + margin)
        axes[0].set_ylabel(label)
        entries = axes[0].get_legend_handles_labels()
        figure.legend(*entries, loc="outside lower center", fontsize="small")


def _label(axis: Any, key: str, addition: str = "") -> None:
    label = "epoch" if key == "epoch" else "training seconds"
    axis.set_xlabel(label + addition)
    axis.xaxis.get_major_locator().set_params(integer=key == "epoch")


def _marker(x: list[float]) -> str | None:
    """A point on every value of a line that has few."""
    return "." if len(x) < 50 else None
