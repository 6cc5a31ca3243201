"""Curves of a run's metrics, and of several runs in one picture."""

import math
import textwrap
from pathlib import Path
from typing import Any

import numpy as np

from snfnp.files import Json
from snfnp.training.plots import picture, plain

_NLL = "validation_nll_nats"
# {figure of a record or of its layers: label of its row}
LABELS = {
    _NLL: "exact validation NLL (nats)",
    "reconstruction": "reconstruction error\nΣ ‖g(f(h)) − h‖² per sample",
    "jacobian_error": "Jacobian error (Eq. 31)\nΣ ‖J_g J_f ν − ν‖² per probe",
    "lam": "λ: mean and range\nover the layers",
    "constraint": "constraint C: mean and\nrange over the layers",
    "rho": "ρ = ‖I − RW‖₂, from below:\nlargest and range",
    "angle": "angle of W's gradient to the\nexact one (°): largest and range",
    "inverse_angle": "angle of R's gradient to the\nexact one (°): largest and range",
}
# 0 in records of runs that learn none
_OF_INVERSES = ("reconstruction", "lam", "constraint")
_NONE = (math.nan,) * 3
_DECADE = 10  # between the ends of a logarithmic axis, which else has hardly a label


def _point(record: Json, figure: str) -> tuple[float, ...]:
    """A figure and the ends of its band: as recorded, or of the layers' figures the largest, and a
    band over all; NaN if there is none."""
    if figure in record:
        if figure in _OF_INVERSES and not record["reconstruction"] > 0:
            return _NONE
        value = record[figure]
        return (
            value,
            record.get(f"{figure}_min", value),
            record.get(f"{figure}_max", value),
        )
    layers = record.get("layers", {}).values()
    values = [figures[figure] for figures in layers if figure in figures]
    return (max(values), min(values), max(values)) if values else _NONE


def rows(records: list[Json]) -> dict[str, np.ndarray]:
    """The figures that some record has, and λ if it moves: per record the value and the ends of a
    band around it, (3, records), NaN for a record without."""
    drawn = {}
    for figure in LABELS:
        lines = np.array([_point(record, figure) for record in records]).T
        distinct = len(np.unique(lines[np.isfinite(lines)]))
        if distinct > 1 or distinct and figure != "lam":
            drawn[figure] = lines
    return drawn


def save_curves(path: Path, records: list[Json], title: str) -> None:
    """Draw the metrics of a run against epochs: a row for each that it has figures for."""
    drawn = rows(records)
    epochs = [record["epoch"] for record in records]
    with picture(path, title, (7.5, 2.7 * len(drawn) + 0.4)) as figure:
        axes = figure.subplots(len(drawn), sharex=True, squeeze=False)[:, 0]
        for index, (axis, name) in enumerate(zip(axes, drawn, strict=True)):
            lines = drawn[name]
            color = f"C{index}"
            axis.plot(epochs, lines[0], marker=_marker(epochs), color=color)
            axis.fill_between(epochs, *lines[1:], color=color, alpha=0.2, linewidth=0)
            axis.set_ylabel(LABELS[name])
            axis.grid(alpha=0.3, which="both")
            if name == "rho":
                axis.axhline(1.0, color="gray", linestyle="--", linewidth=1)
            if name == _NLL:
                nll = [record.get("training_nll_nats", math.nan) for record in records]
                if np.isfinite(nll).any():
                    axis.plot(
                        epochs,
                        nll,
                        "--",
                        color=color,
                        linewidth=1,
                        label="of training rows",
                    )
                    axis.legend(fontsize="small")
            elif np.nanmax(lines) > _DECADE * np.nanmin(lines) > 0:
                axis.set_yscale("log")
        _label(
            axes[-1],
            "epoch",
            f" ({records[-1]['seconds']:,.1f} training seconds in all)",
        )


# The figures of a run's metrics that a comparison draws: the x of both panels, then their y.
COMPARED = ("epoch", "seconds", _NLL)


def save_comparison(path: Path, lines: dict[str, dict[str, list[float]]]) -> None:
    """Runs in one picture, by name, against epochs and against training seconds. The legend is
    below, where long names have room.

    The first evaluations, far above all others, are left out if they would flatten the rest.
    """
    with picture(path, "", (11, 4.6 + 0.2 * len(lines))) as figure:
        axes = figure.subplots(1, 2, sharey=True)
        for axis, x in zip(axes, COMPARED, strict=False):
            for name, line in lines.items():
                axis.plot(
                    line[x],
                    line[_NLL],
                    marker=_marker(line[x]),
                    label=textwrap.fill(plain(name), 130),
                    linewidth=1,
                )
            _label(axis, x)
            axis.grid(alpha=0.3)
        values = [line[_NLL] for line in lines.values()]
        lowest = min(map(min, values))
        settled = max(max(each[len(each) // 5 :]) for each in values)
        margin = 0.05 * (settled - lowest)
        if margin > 0:
            axes[0].set_ylim(lowest - margin, settled + margin)
        axes[0].set_ylabel(LABELS[_NLL])
        entries = axes[0].get_legend_handles_labels()
        figure.legend(*entries, loc="outside lower center", fontsize="small")


def _label(axis: Any, key: str, addition: str = "") -> None:
    label = "epoch" if key == "epoch" else "training seconds"
    axis.set_xlabel(label + addition)
    axis.xaxis.get_major_locator().set_params(integer=key == "epoch")


def _marker(x: list[float]) -> str | None:
    """A point on every value of a line that has few."""
    return "." if len(x) < 50 else None
