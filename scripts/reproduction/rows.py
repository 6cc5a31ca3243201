"""The paper's tables of likelihoods, with a row for every model in them.

A new table is one more entry of `TABLES`, a new row one more `Row`. Rows of the same configuration
have the same name, and are trained once.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from snfnp.models import PRESETS

DIVERGED = "–"  # the paper's sign
NOT_GIVEN = "not given"  # where the paper has no figure
# Epochs of the paper (A.3).
FC_EPOCHS = 6000
CONV_EPOCHS = 1000
GLOW_EPOCHS = 250
TITLES = {"mnist": "MNIST", "cifar-10": "CIFAR-10", "imagenet32": "ImageNet32"}


@dataclass(frozen=True)
class Row:
    """A model of a table.

    name: of its runs' folders; cells: its labels in the table; options: the fields of `TrainConfig`
    that differ from the preset's; paper: its test NLL, or a sign in its place; epochs: how long the
    paper trained it (an assumption where it does not say: `epochs_given`); spread: the paper's
    standard deviation; ours: how long it is trained here if no --epochs is given, 0: not at all.
    """

    name: str
    cells: tuple[str, ...]
    options: dict = field(hash=False)
    paper: float | str
    epochs: int
    spread: float | None = None
    ours: int = 30
    epochs_given: bool = True

    @property
    def settings(self) -> dict:
        """Its options, and the paper's whole warm-up, which shorter runs than these do not have."""
        if "recipe" in self.options:
            return self.options
        return {
            "warmup_epochs": PRESETS[self.options["model"]].warmup_epochs
        } | self.options

    @property
    def data(self) -> str:
        return self.options.get("data", "mnist")

    @property
    def unit(self) -> str:
        """The unit of its likelihoods: bits for colour images, as in the paper."""
        return "nats" if self.data == "mnist" else "bits/dim"


class Table(NamedTuple):
    """title: printed above it; heads: of the rows' cells; seeds: how many if none are given."""

    title: str
    heads: tuple[str, ...]
    rows: tuple[Row, ...]
    seeds: int = 1


EXACT = {"gradient": "exact"}
# Both are in Tables 1 and 4; Fig. 3 needs their angle, whose computation changes no parameter.
FC_SNF = ("fc-snf", {"model": "fc", "track_angle": 1})
CONV_SNF = ("conv-snf", {"model": "conv", "track_angle": 1})


def _glow(lam: float, cells: tuple, nats: float, spread=None) -> Row:
    """The self-normalizing MNIST Glow with this λ."""
    options = {"model": "glow", "lam": lam}
    return Row(
        f"glow-lambda-{lam:g}", cells, options, nats, GLOW_EPOCHS, spread, ours=0
    )


# fmt: off
_TABLE_1 = (
    ("Relative Grad. FC 2-Layer", "fc-relative", {"model": "fc", "gradient": "relative"},
     1096.5, 0.5, FC_EPOCHS),
    ("Exact Gradient FC 2-Layer", "fc-exact", {"model": "fc"} | EXACT, 947.6, 0.2, FC_EPOCHS),
    ("SNF FC 2-Layer", *FC_SNF, 947.1, 0.2, FC_EPOCHS),
    ("Emerging Conv. 9-Layer", "emerging", {"model": "emerging"}, 645.7, 3.6, CONV_EPOCHS),
    ("SNF Conv. 9-Layer", *CONV_SNF, 638.6, 0.9, CONV_EPOCHS),
    ("Conv. Exponential 9-Layer", "conv-exponential", {"model": "conv-exponential"},
     638.1, 1.0, CONV_EPOCHS),
    ("Exact Gradient Conv. 9-Layer", "conv-exact", {"model": "conv"} | EXACT,
     637.4, 0.2, CONV_EPOCHS),
)
# fmt: on


def _table_1() -> Iterator[Row]:
    for label, name, options, nats, spread, epochs in _TABLE_1:
        yield Row(name, (label,), options, nats, epochs, spread)
    glow = {"model": "glow"} | EXACT
    yield Row("glow-exact", ("Glow 2L-16K",), glow, 575.7, GLOW_EPOCHS, 0.8, ours=0)
    yield _glow(100.0, ("SNF Glow 2L-16K",), 575.4, 1.4)


def _table_2() -> Iterator[Row]:
    for data, model, epochs, figures in (
        ("cifar-10", "glow-3l-32k", 1000, ((3.36, 0.002), (3.37, 0.004))),
        ("imagenet32", "glow-3l-48k", 15, ((4.12, 0.002), (4.14, 0.007))),
    ):
        rules = (("Glow", "exact", EXACT), ("SNF Glow", "snf", {}))
        for (label, suffix, rule), (bits, spread) in zip(rules, figures, strict=True):
            cells = (label, TITLES[data])
            options = {"model": model, "data": data} | rule
            yield Row(f"{model}-{suffix}", cells, options, bits, epochs, spread, ours=0)


def _table_4() -> Iterator[Row]:
    for model, label, epochs, snf, nats in (
        ("fc", "2L FC", FC_EPOCHS, FC_SNF, (946.3, 954.6, 1007.4, 1039.8)),
        ("conv", "9L Conv.", CONV_EPOCHS, CONV_SNF, (639.6, 642.9, 646.3, 660.6)),
    ):
        lams = (0.05, 0.1, 0.3, 1, 10, 100, 1000)
        figures = (DIVERGED, DIVERGED, NOT_GIVEN, *nats)
        for lam, figure in zip(map(float, lams), figures, strict=True):
            name = f"{model}-lambda-{lam:g}"
            options = {"model": model, "lam": lam}
            if lam == 1:
                name, options = snf
            yield Row(name, (label, f"{lam:g}"), options, figure, epochs)
    for lam, nats in ((100.0, 574.1), (1000.0, 574.8)):
        yield _glow(lam, ("2L-16K Glow", f"{lam:g}"), nats)


# GECO as A.5 has it, without a tolerance, and with the settings of the authors' code.
_GECO = {
    "lam": 1.0,
    "lambda_control": "geco",
    "constraint": "absolute",
    "tolerance": 0.0,
    "lambda_rate": 1e-3,
    "lambda_smoothing": 0.9,
}


def _table_5() -> Iterator[Row]:
    large = {**_GECO, "kernel": 5, "init": "authors"}
    for name, label, options, nats, spread in (
        ("glow-1x1-exact", "Glow 1x1", EXACT, 678.3, 2.0),
        ("glow-1x1-geco", "SNF 1x1", _GECO, 678.3, 9.7),
        ("glow-5x5-geco", "SNF 5x5", large, 669.9, 2.8),
    ):
        yield Row(
            name,
            (label,),
            {"model": "glow-2l-4k"} | options,
            nats,
            GLOW_EPOCHS,
            spread,
            10,
            epochs_given=False,
        )


# Table 1's models and Table 5's by the recipe: {the paper's row: {our name: our epochs}}.
_WHITE = {
    "fc-snf": {
        "fc-white-20": 20,
        "fc-white-60": 60,
        "fc-white-120": 120,
        "fc-white": 300,
    },
    "fc-exact": {"fc-white-exact": 20},
    "conv-snf": {"conv-white-10": 10, "conv-white-60": 60, "conv-white": 150},
    "conv-exact": {"conv-white-exact": 60},
    "emerging": {"emerging-white": 100},
    "conv-exponential": {"conv-exponential-white": 100},
    "glow-1x1-exact": {"glow-1x1-white-exact-40": 40, "glow-1x1-white-exact": 100},
    "glow-1x1-geco": {"glow-1x1-white-40": 40, "glow-1x1-white": 100},
    "glow-5x5-geco": {"glow-5x5-white-40": 40, "glow-5x5-white": 100},
}
# options that are not the recipe's
_OF_MODELS = ("model", "gradient", "kernel", "init")


def _white() -> Iterator[Row]:
    rows = {row.name: row for row in (*_table_1(), *_table_5())}
    for paper, named in _WHITE.items():
        row = rows[paper]
        options = {key: row.options[key] for key in _OF_MODELS if key in row.options}
        label = (
            row.cells[0].replace("SNF ", "SNF Glow ")
            if "glow" in row.name
            else row.cells[0]
        )
        for name, ours in named.items():
            yield replace(
                row,
                name=name,
                cells=(f"{label}, {ours} epochs",),
                ours=ours,
                options=options | {"recipe": "white"},
            )


TABLES = {
    "table1": Table(
        "Table 1: test NLL in nats on MNIST", ("model",), tuple(_table_1())
    ),
    "table2": Table(
        "Table 2: test bits/dim of Glow 3L-32K on CIFAR-10 and 3L-48K on ImageNet32",
        ("model", "data"),
        tuple(_table_2()),
    ),
    "table4": Table(
        "Table 4: test NLL in nats on MNIST for self-normalizing flows with different λ",
        ("model", "λ"),
        tuple(_table_4()),
    ),
    "table5": Table(
        "Table 5: test NLL in nats on MNIST of Glow 2L-4K of width 16 with larger kernels",
        ("model",),
        tuple(_table_5()),
        3,
    ),
    "white": Table(
        "The recipe: test NLL in nats on MNIST with --recipe white, beside the paper's rows",
        ("model",),
        tuple(_white()),
    ),
}
