"""The curves of a run: its metrics, evaluation by evaluation (curves.png)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from snfnp.training import plots
from snfnp.training.plots import Point, Row


def _learns(record: dict) -> bool:
    return record["reconstruction"] > 0


def _reconstruction(record: dict) -> Point:
    return (record["reconstruction"],) if _learns(record) else None


def _figure(name: str) -> Callable[[dict], Point]:
    """A figure that some records have."""
    return lambda record: (record[name],) if name in record else None


def _over_layers(name: str) -> Callable[[dict], Point]:
    """A figure's mean over the layers, and between its smallest and its largest a band, as
    controllers of λ record them; or the figure alone."""

    def point(record: dict) -> Point:
        if name not in record or not _learns(record):
            return None
        return tuple(record[key] for key in (name, f"{name}_min", f"{name}_max") if key in record)

    return point


def _of_layers(figure: str, worst: Callable) -> Callable[[dict], Point]:
    """The worst of a monitor's figures over the layers, and a band over all of them."""

    def point(record: dict) -> Point:
        layers = record.get("layers", {}).values()
        values = [figures[figure] for figures in layers if figure in figures]
        return (worst(values), min(values), max(values)) if values else None

    return point


# {label of a row: (its point of a record, how it is drawn)}
ROWS: dict[str, tuple[Callable[[dict], Point], dict]] = {
    "exact validation NLL (nats)": (_figure("validation_nll_nats"), {"log": False}),
    "reconstruction error\nΣ ‖g(f(h)) − h‖² per image": (_reconstruction, {}),
    "Jacobian error (Eq. 31)\nΣ ‖J_g J_f ν − ν‖² per probe": (_figure("jacobian_error"), {}),
    "λ: mean and range\nover the layers": (_over_layers("lam"), {}),
    "constraint C: mean and\nrange over the layers": (_over_layers("constraint"), {}),
    "ρ = ‖I − RW‖₂, from below:\nlargest and range": (_of_layers("rho", max), {"limit": 1.0}),
    "angle of W's gradient to the\nexact one (°): largest and range": (
        _of_layers("angle", max),
        {},
    ),
    "angle of R's gradient to the\nexact one (°): largest and range": (
        _of_layers("inverse_angle", max),
        {},
    ),
}


def rows(records: list[dict]) -> list[Row]:
    """The rows that some record has a figure for."""
    drawn = []
    for label, (point, style) in ROWS.items():
        points = [point(record) for record in records]
        if any(points):
            drawn.append(Row(label, points, **style))
    return drawn


def save_curves(path: Path, records: list[dict], title: str) -> None:
    """Draw all rows that a run has figures for, against epochs and training seconds."""
    columns = {
        label: [record[key] for record in records]
        for label, key in (("epoch", "epoch"), ("training seconds", "seconds"))
    }
    plots.save_rows(path, columns, rows(records), title)
