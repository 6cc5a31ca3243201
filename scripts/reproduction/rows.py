"""What a row of one of the paper's tables is: our run, and the paper's figure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

DIVERGED, NOT_GIVEN = "–", "not given"  # the paper's sign, and ours for what it does not say
FC_EPOCHS, CONV_EPOCHS, GLOW_EPOCHS = 6000, 1000, 250  # A.3
CIFAR_EPOCHS, IMAGENET_EPOCHS = 1000, 15
TITLES = {"mnist": "MNIST", "cifar-10": "CIFAR-10", "imagenet32": "ImageNet32"}


@dataclass(frozen=True)
class StandIn:
    """A smaller model that is trained in the place of a row's, below the paper's scale.

    name, options, hour: as in `Row`; label: what tables call it.
    """

    name: str
    label: str
    options: dict = field(hash=False)
    hour: int


@dataclass(frozen=True)
class Row:
    """One model of a table.

    name: of its runs' folders; cells: what the table says of it before the figures; options: of
    the training run (`TrainConfig`) that are not the preset's; paper: its test NLL, or what stands
    there instead; spread: its standard deviation, where the paper has one; hour: epochs at
    `--scale hour`; epochs: the paper's, or what is taken for them where it gives none
    (`epochs_given`); stand_in: what is trained below the paper's scale, where that is another
    model; instead: its label, in a row that has been replaced by it (`at`).
    """

    name: str
    cells: tuple[str, ...]
    options: dict = field(hash=False)
    paper: float | str
    hour: int
    epochs: int
    spread: float | None = None
    stand_in: StandIn | None = None
    instead: str | None = None
    epochs_given: bool = True

    @property
    def data(self) -> str:
        return self.options.get("data", "mnist")

    @property
    def unit(self) -> str:
        """What likelihoods are given in: the paper counts those of colour images in bits."""
        return "nats" if self.data == "mnist" else "bits/dim"

    def at(self, scale: str) -> Row:
        """The row as it is trained at a scale."""
        small = self.stand_in
        if small is None or scale == "paper":
            return self
        how = {"name": small.name, "options": small.options, "hour": small.hour}
        return replace(self, **how, stand_in=None, instead=small.label)


def names(rows: Iterable[Row], scale: str) -> list[str]:
    """Of the rows, as they are trained at a scale."""
    return [row.at(scale).name for row in rows]


@dataclass(frozen=True)
class Table:
    """title: what it shows; heads: of the rows' cells; seeds: how many at `--scale hour` (the paper
    scale has at least three); notes: what a reader has to know beside the figures."""

    title: str
    heads: tuple[str, ...]
    rows: tuple[Row, ...]
    seeds: int
    notes: tuple[str, ...]
