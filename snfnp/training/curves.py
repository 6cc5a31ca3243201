"""The curves of a run: what its metrics say, evaluation by evaluation (curves.png)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from snfnp.training import plots

# What is drawn at one evaluation: a figure, and where there is a band, its lower and upper end.
Point = tuple[float, ...] | None


@dataclass(frozen=True)
class Panel:
    """A row of the picture. point(record): what a line of the metrics has for it; None: nothing.

    The row is left out where no record has anything. log, limit: see `plots.Row`.
    """

    label: str
    point: Callable[[dict], Point]
    log: bool = True
    limit: float | None = None

    def row(self, records: list[dict]) -> plots.Row | None:
        points = [self.point(record) for record in records]
        size = max((len(point) for point in points if point), default=0)
        if not size:
            return None
        absent = (math.nan,) * size
        # a figure that has no band has one of no width beside others that have one
        whole = [absent if not p else p if len(p) == size else p * size for p in points]
        lines = map(list, zip(*whole, strict=True))
        return plots.Row(self.label, *lines, log=self.log, limit=self.limit)


def _learns(record: dict) -> bool:
    return record["reconstruction"] > 0


def _reconstruction(record: dict) -> Point:
    return (record["reconstruction"],) if _learns(record) else None


def _drift(record: dict) -> Point:
    return (record["log_det_drift"],) if "log_det_drift" in record else None


def _jacobian_error(record: dict) -> Point:
    return (record["jacobian_error"],) if "jacobian_error" in record else None


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
        values = [own[figure] for own in record.get("layers", {}).values() if figure in own]
        return (worst(values), min(values), max(values)) if values else None

    return point


PANELS = (
    Panel("exact validation NLL (nats)", lambda r: (r["validation_nll_nats"],), log=False),
    Panel("reconstruction error\nΣ ‖g(f(h)) − h‖² per image", _reconstruction),
    Panel("Jacobian error (Eq. 31)\nΣ ‖J_g J_f ν − ν‖² per probe", _jacobian_error),
    Panel("λ: mean and range\nover the layers", _over_layers("lam")),
    Panel("constraint C: mean and\nrange over the layers", _over_layers("constraint")),
    Panel("drift of the estimated\nΣ log|W| (nats)", _drift, log=False, limit=0.0),
    Panel("ρ = ‖I − RW‖₂, from below:\nlargest and range", _of_layers("rho", max), limit=1.0),
    Panel(
        "angle of W's gradient to the\nexact one (°): largest and range", _of_layers("angle", max)
    ),
    Panel(
        "angle of R's gradient to the\nexact one (°): largest and range",
        _of_layers("inverse_angle", max),
    ),
)


def save_curves(path: Path, records: list[dict], title: str) -> None:
    """All panels that a run has figures for, against epochs and training seconds."""
    columns = {
        label: [record[key] for record in records]
        for label, key in (("epoch", "epoch"), ("training seconds", "seconds"))
    }
    rows = [row for row in (panel.row(records) for panel in PANELS) if row]
    plots.save_rows(path, columns, rows, title)
