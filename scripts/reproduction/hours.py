"""The hours that rows take, from the milliseconds of Table 3: training steps alone, of one seed."""

import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from reproduction.rows import Row
from reproduction.target import grid
from reproduction.times import FAMILIES
from snfnp.training.options import TrainConfig

_IMAGES = {"mnist": 50_000}  # training images of the data whose steps were timed
# options that change the time of no training step
_WITHOUT = {"model", "gradient", "data", "lam", "track_angle"}


class Cost(NamedTuple):
    """The hours that rows of a target take.

    names: of the rows; milliseconds: of a step, NaN: not measured; steps: of an epoch; ours: the
    epochs by default, 0: the rows have to be named; paper: the paper's, None: it does not say.
    """

    names: list[str]
    milliseconds: float
    steps: int
    ours: int
    paper: int | None

    def time(self, epochs: int | None) -> str:
        """The time of so many epochs in words; –: there is no such run."""
        if not epochs:
            return "–"
        if math.isnan(self.milliseconds):
            return "not measured"
        hours = self.milliseconds * self.steps * epochs / 3.6e6
        return f"{60 * hours:.0f} min" if hours < 1 else f"{hours:.1f} h"


def costs(rows: Iterable[Row], records: dict[str, dict]) -> Iterator[Cost]:
    """The hours that rows take, those of the same model and length together."""
    alike: dict[tuple, list[str]] = {}
    for row in rows:
        config = TrainConfig(**row.options).filled()
        steps = _IMAGES.get(row.data, 0) // config.batch_size
        time = math.nan  # the one object: as a key, a NaN equals itself alone
        if steps and set(row.options) <= _WITHOUT:
            time = milliseconds(records, config.model, config.gradient)
        key = time, steps, row.ours, row.epochs if row.epochs_given else None
        alike.setdefault(key, []).append(row.name)
    for key, names in alike.items():
        yield Cost(names, *key)


def milliseconds(records: dict[str, dict], model: str, gradient: str) -> float:
    """The milliseconds of a training step by Table 3, NaN: not measured."""
    labels = {(own.model, own.gradient): own.label for own in sum(FAMILIES, ())}
    for row in records.get("table3", {}).get("rows", []):
        if row["label"] == labels.get((model, gradient)):
            return row.get("batch", {}).get("median", math.nan)
    return math.nan


def table(costs: Iterable[Cost]) -> str:
    """The hours of rows, in Markdown."""
    cells = [("rows", "epochs by default", "time", "the paper's epochs", "time")]
    for cost in costs:
        names = ", ".join(f"`{name}`" for name in cost.names)
        ours = (str(cost.ours or "–"), cost.time(cost.ours))
        paper = f"{cost.paper:,}" if cost.paper else "–"
        cells.append((names, *ours, paper, cost.time(cost.paper)))
    return grid(cells)
