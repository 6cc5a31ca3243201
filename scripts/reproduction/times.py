"""Table 3 and Fig. 4: times of models, and of layers over D, each measured in one run."""

import math
from functools import partial
from pathlib import Path
from typing import NamedTuple

from benchmarks.steps import make_trainer, random_images
from benchmarks.sweep import growth, sweep
from benchmarks.timing import digits, measure

from reproduction import pictures, provenance
from reproduction.runs import Command
from reproduction.target import Target, grid
from snfnp.step.batches import Repeated

_MNIST = (28, 28, 1)
_COLOUR = (32, 32, 3)


class Timed(NamedTuple):
    """A row: what `make_trainer` takes, and the paper's mean and deviation of both times in ms."""

    label: str
    data: str
    model: str
    gradient: str
    batch: tuple[float, float] | None
    sample: tuple[float, float] | None


_SNF = "self-normalizing"
# Families that are compared, the exact gradient first. Rows in brackets are not the paper's.
# fmt: off
FAMILIES = tuple(tuple(Timed(label, data, *row) for label, *row in rows) for data, rows in (
    ("MNIST", (
        ("Exact FC 2-Layer", "fc", "exact", (44.9, 4.4), (61.5, 5.8)),
        ("Relative Gradient FC 2-Layer", "fc", "relative", (7.0, 0.4), (69.2, 5.6)),
        ("Self Normalizing FC 2-Layer", "fc", _SNF, (18.7, 0.8), (38.6, 3.1)),
    )),
    ("MNIST", (
        ("Exact Conv. 9-Layer", "conv", "exact-dense", (372.2, 24.5), (241.6, 12.9)),
        ("(Exact Conv. 9-Layer by block recursion)", "conv", "exact", None, None),
        ("Emerging Conv. 9-Layer", "emerging", "exact", (305.0, 14.5), (71.7, 8.8)),
        ("Conv. Exponential 9-Layer", "conv-exponential", "exact", (304.4, 11.9), (84.2, 9.2)),
        ("Self Normalizing Conv. 9-Layer", "conv", _SNF, (212.5, 37.3), (29.9, 6.3)),
    )),
    ("MNIST", (
        ("Glow 2L-16K", "glow", "exact", (583.4, 21.2), (163.1, 21.8)),
        ("Self Normalizing Glow 2L-16K", "glow", _SNF, (476.4, 16.7), (30.6, 2.2)),
    )),
    ("CIFAR-10", (
        ("Glow 3L-32K", "glow-3l-32k", "exact", (1841.3, 85.4), (126.3, 13.9)),
        ("Self Normalizing Glow 3L-32K", "glow-3l-32k", _SNF, (1761.2, 104.5), (97.8, 12.9)),
    )),
    ("ImageNet 32x32", (
        ("Glow 3L-48K", "glow-3l-48k", "exact", (2397.2, 204.0), (174.8, 16.7)),
        ("Self Normalizing Glow 3L-48K", "glow-3l-48k", _SNF, (2047.9, 152.8), (150.7, 20.8)),
    )),
))
# fmt: on
BATCH = {"ImageNet 32x32": 64}  # A.3; 100 for the others
# Timed calls of each family. Steps on colour images take a minute on a CPU: only a GPU times them.
_REPEATS = (60, 20, 3, 3, 3)


class Table3(Target):
    """Milliseconds of a step and of a sample, as shares of the exact gradient's."""

    title = "Table 3: milliseconds of a training step, and of one sample"

    def collect(self, command: Command, runs: list, outcomes: dict) -> dict:
        rows = []
        for family, repeats in zip(FAMILIES, _REPEATS, strict=True):
            repeats = (
                repeats if command.ops.asynchronous or family[0].data == "MNIST" else 0
            )
            times = _times(family, command.ops, repeats) if repeats else {}
            exact = family[0]
            for row in family:
                own = {"label": row.label, "data": row.data}
                for kind in ("batch", "sample"):
                    mean, spread = getattr(row, kind) or (None, None)
                    share = mean and mean / getattr(exact, kind)[0]
                    own[kind] = {
                        "paper": mean,
                        "paper_spread": spread,
                        "paper_of_exact": share,
                    }
                    if times:
                        found = times[row, kind]
                        base = times[exact, kind]
                        own[kind] |= {"median": found.median, "minimum": found.minimum}
                        own[kind]["of_exact"] = found.median / base.median
                rows.append(own)
        return {"rows": rows, "made_with": [provenance.of_now(command.ops)]}

    def show(self, record: dict) -> str:
        heads = ["model", "data"]
        for kind in ("step", "sample"):
            heads += [
                f"{kind}, ms: ours",
                "paper's",
                f"{kind} / exact's: ours",
                "paper's",
            ]
        table = [heads]
        measured = [row for row in record["rows"] if "median" in row["batch"]]
        for row in measured:
            table.append(
                [
                    row["label"],
                    row["data"],
                    *_cells(row["batch"]),
                    *_cells(row["sample"]),
                ]
            )
        return grid(table)


def _cells(times: dict) -> list[str]:
    ours = f"{digits(times['median'])} ({digits(times['minimum'])})"
    share = f"{times['of_exact']:.2f}"
    paper = paper_share = "–"
    if times["paper"]:
        paper = "{paper:.1f} ± {paper_spread:.1f}".format(**times)
        paper_share = f"{times['paper_of_exact']:.2f}"
    return [ours, paper, share, paper_share]


def _times(family: tuple[Timed, ...], ops, repeats: int) -> dict:
    """{(row, "batch" or "sample"): its Timing}, measured alternately."""
    calls = {}
    for row in family:
        shape = _MNIST if row.data == "MNIST" else _COLOUR
        count = BATCH.get(row.data, 100)
        trainer = make_trainer(ops, row.model, row.gradient, shape, batch_size=count)
        images = random_images(ops, trainer)
        trainer.begin(Repeated(images))
        likelihood = trainer.likelihood()
        exact = not trainer.flow.has_learned_inverse
        calls[row, "batch"] = partial(trainer.training_step, Repeated(images))
        calls[row, "sample"] = partial(likelihood.sample, 1, seed=0, exact=exact)
    # calls on a device overlap; those of a CPU are timed one by one
    seconds = 0.1 if ops.asynchronous else 0.0
    return measure(calls, repeats, seconds, ops.device.synchronise, warmup=1)


_CHANNELS = 4
# Dimensions of the dense layer, sides of the convolution's images, seconds for each point.
_PLAN = (range(32, 4065, 288), (4, 8, 12, 16, 20, 24, 28), 2.0)
_LARGE = 1000  # the growth is that of D from there on
_ORDERS = {"self-normalizing": "O(D²)", "exact": "O(D³)"}


class Figure4(Target):
    """Milliseconds over the dimension, measured by `benchmarks.sweep`."""

    title = "Fig. 4: milliseconds of a layer's step over the dimension D, batch 128"

    def collect(self, command: Command, runs: list, outcomes: dict) -> dict:
        dimensions, sides, budget = _PLAN
        shapes = {
            "dense layer": [(dimension,) for dimension in dimensions],
            f"3x3 convolution of {_CHANNELS} channels": [
                (n, n, _CHANNELS) for n in sides
            ],
        }
        rows = []
        for label, own in shapes.items():
            # 128 images are the paper's (A.3)
            points = sweep(command.ops, own, budget=budget)
            keys = [key for key in points[0] if key.endswith(" ms")]
            exponents = {key: growth(points, key, _LARGE) for key in keys}
            rows.append({"label": label, "points": points, "growth": exponents})
        return {"rows": rows, "made_with": [provenance.of_now(command.ops)]}

    def show(self, record: dict) -> str:
        table = [("layer", "gradient", "ours, by D", "ours grows as", "paper")]
        for layer in record["rows"]:
            points = layer["points"]
            step = math.ceil(len(layer["points"]) / 4)
            shown = points[::-1][::step][::-1]  # at most four, the last one among them
            for key, exponent in layer["growth"].items():
                gradient = key.removesuffix(" ms")
                times = ", ".join(f"{own['D']}: {digits(own[key])}" for own in shown)
                grows = "–" if exponent is None else f"D^{exponent:.1f}, D ≥ {_LARGE}"
                dense = layer is record["rows"][0]
                paper = _ORDERS[gradient] if dense else "not measured"
                table.append((layer["label"], gradient, times, grows, paper))
        return grid(table)

    def draw(self, record: dict, path: Path) -> None:
        pictures.save_sweeps(
            path, {layer["label"]: layer["points"] for layer in record["rows"]}
        )
