"""Table 3 and Fig. 4, which are measured in one run: times of models, and of layers over D."""

import math
from pathlib import Path
from typing import NamedTuple

from benchmarks.steps import make_trainer, random_images
from benchmarks.sweep import growth, sweep
from benchmarks.timing import measure, measure_asynchronous

from reproduction import pictures, provenance
from reproduction.runs import Command
from reproduction.target import Target, markdown

_MNIST, _COLOUR = (28, 28, 1), (32, 32, 3)
_SMALL = {"levels": 2, "depth": 1, "width": 8}  # of Glows at the smoke scale, on images of 8 x 8


class Timed(NamedTuple):
    """A row: what `make_trainer` takes, and the paper's mean and deviation of both times in ms."""

    label: str
    data: str
    model: str
    gradient: str
    batch: tuple[float, float] | None
    sample: tuple[float, float] | None


_SNF = "self-normalizing"
# Families that are compared with each other, the exact gradient first. In brackets: not the paper's
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
# Timed calls of each family. Colour images take minutes on a CPU: at the paper's scale only.
_REPEATS = {"smoke": (2, 2, 2, 2, 2), "hour": (60, 20, 3, 0, 0), "paper": (200, 60, 10, 3, 3)}


class Table3(Target):
    """Milliseconds of a step and of a sample, as shares of the exact gradient's."""

    title = "Table 3: milliseconds of a training step, and of one sample"

    def collect(self, command: Command, outcomes: dict) -> dict:
        rows = []
        for family, repeats in zip(FAMILIES, _REPEATS[command.scale], strict=True):
            times, exact = _times(family, command, repeats) if repeats else {}, family[0]
            for row in family:
                own = {"label": row.label, "data": row.data}
                for kind in ("batch", "sample"):
                    mean, spread = getattr(row, kind) or (None, None)
                    share = mean and mean / getattr(exact, kind)[0]
                    own[kind] = {"paper": mean, "paper_spread": spread, "paper_of_exact": share}
                    if times:
                        found, base = times[row, kind], times[exact, kind]
                        own[kind] |= {"median": found.median, "minimum": found.minimum}
                        own[kind]["of_exact"] = found.median / base.median
                rows.append(own)
        return self.record(command, rows=rows, made_with=provenance.of_now(command.ops))

    def show(self, record: dict) -> str:
        heads = ["model", "data"]
        for kind in ("step", "sample"):
            heads += [f"{kind}, ms: ours", "paper's", f"{kind} / exact's: ours", "paper's"]
        table = [heads]
        for row in record["rows"]:
            table.append([row["label"], row["data"], *_cells(row["batch"]), *_cells(row["sample"])])
        notes = [
            _hardware(record),
            "Ours: the median, and in brackets the minimum. Whole steps of 100 images (64 for "
            "ImageNet) in float32; one sample in float64, through the learned inverse where there "
            "is one, else through the exact one.",
            "The paper measured MNIST on a GeForce 1080Ti and the others on a Titan X (A.3): "
            "compare shares of the exact gradient's time, not milliseconds.",
            "The row in brackets is not the paper's: exact gradients by rows of the image "
            "(derivations/10-block-tridiagonal.md).",
        ]
        if record["scale"] == "smoke":
            notes.append("Small images and models, timed twice: the figures mean nothing.")
        elif record["scale"] == "hour":
            notes.append("Rows without our figures are measured at --scale paper.")
        return markdown(record, table, notes)

    def draw(self, record: dict, path: Path) -> None:
        keys, rows = {"ours": "of_exact", "the paper's": "paper_of_exact"}, record["rows"]
        batches = [row["batch"] for row in rows]
        series = {name: [(own.get(key), None) for own in batches] for name, key in keys.items()}
        labels = [f"{row['label']}, {row['data']}" for row in rows]
        what = "time of a training step / that with the exact gradient"
        pictures.save_beside(path, labels, series, what)


def _cells(times: dict) -> list[str]:
    ours = share = paper = paper_share = "–"
    if "median" in times:
        ours = f"{_digits(times['median'])} ({_digits(times['minimum'])})"
        share = f"{times['of_exact']:.2f}"
    if times["paper"]:
        paper = "{paper:.1f} ± {paper_spread:.1f}".format(**times)
        paper_share = f"{times['paper_of_exact']:.2f}"
    return [ours, paper, share, paper_share]


def _times(family: tuple[Timed, ...], command: Command, repeats: int) -> dict:
    """{(row, "batch" or "sample"): its Timing}, all in turn."""
    ops, calls = command.ops, {}
    for row in family:
        shape = _MNIST if row.data == "MNIST" else _COLOUR
        count, settings = BATCH.get(row.data, 100), {}
        if command.scale == "smoke":
            shape, count = (8, 8, shape[2]), 10
            settings = _SMALL if row.model.startswith("glow") else {}
        settings |= {"report": lambda text: None, "batch_size": count}
        trainer = make_trainer(ops, row.model, row.gradient, shape, **settings)
        images = random_images(ops, trainer)
        trainer.initialise_from_data(images)
        likelihood, exact = trainer.likelihood(), not trainer.flow.has_learned_inverse
        calls[row, "batch"] = lambda own=trainer, x=images: own.training_step(x)
        calls[row, "sample"] = lambda own=likelihood, how=exact: own.sample(1, seed=0, exact=how)
    if ops.asynchronous:
        bursts = max(3, math.ceil(repeats / 10))
        return measure_asynchronous(calls, ops.device.synchronise, bursts, seconds=0.5)
    return measure(calls, repeats, warmup=1)


_CHANNELS = 4
# (dimensions of the dense layer, sides of the convolution's images, seconds for each point)
_PLANS = {
    "smoke": ((8, 16, 24), (4, 6, 8), 0.0),
    "hour": (range(32, 4065, 288), (4, 8, 12, 16, 20, 24, 28), 2.0),
    "paper": (range(32, 4065, 96), range(4, 33, 2), 10.0),
}
_ORDERS = {"self-normalizing": "O(D²)", "exact": "O(D³)"}


class Figure4(Target):
    """Milliseconds over the dimension, measured by `benchmarks.sweep`."""

    title = "Fig. 4: milliseconds of a layer's step over the dimension D, batch 128"

    def collect(self, command: Command, outcomes: dict) -> dict:
        dimensions, sides, budget = _PLANS[command.scale]
        shapes = {
            "dense layer": [(dimension,) for dimension in dimensions],
            f"3x3 convolution of {_CHANNELS} channels": [(n, n, _CHANNELS) for n in sides],
        }
        above, layers = 0 if command.scale == "smoke" else 1000, []  # growth: of D from there on
        for label, own in shapes.items():
            rows = sweep(command.ops, own, budget=budget)  # 128 images are the paper's (A.3)
            exponents = {key: growth(rows, key, above) for key in rows[0] if key.endswith(" ms")}
            layers.append({"label": label, "rows": rows, "growth": exponents, "above": above})
        return self.record(command, layers=layers, made_with=provenance.of_now(command.ops))

    def show(self, record: dict) -> str:
        table = [("layer", "gradient", "ours, by D", "ours grows as", "paper")]
        for layer in record["layers"]:
            rows, step = layer["rows"], math.ceil(len(layer["rows"]) / 4)
            shown = rows[::-1][::step][::-1]  # at most four, the last one among them
            for key, exponent in layer["growth"].items():
                gradient = key.removesuffix(" ms")
                times = ", ".join(f"{row['D']}: {_digits(row[key])}" for row in shown)
                grows = "–" if exponent is None else f"D^{exponent:.1f}, D ≥ {layer['above']}"
                dense = layer is record["layers"][0]
                paper = _ORDERS[gradient] if dense else "not measured"
                table.append((layer["label"], gradient, times, grows, paper))
        notes = [
            _hardware(record),
            "The paper's figure is a curve of the dense layer without printed figures; beside ours "
            "stand the orders that its text gives. Of a convolution, exact is block recursion, and "
            "exact-dense the whole matrix.",
        ]
        if record["scale"] == "smoke":
            notes.append("Tiny dimensions, timed three times: the figures mean nothing.")
        return markdown(record, table, notes)

    def draw(self, record: dict, path: Path) -> None:
        pictures.save_sweeps(path, {layer["label"]: layer["rows"] for layer in record["layers"]})


def _hardware(record: dict) -> str:
    """A line that says what a record's times were measured on."""
    made_with = record["made_with"]
    name = made_with["device"].get("name") or made_with["processor"]
    threads = f", threads: {made_with['threads']}" if not made_with["device"] else ""
    return f"Measured on {name}{threads}, {made_with['backend']} backend, in one run."


def _digits(milliseconds: float) -> str:
    """Three digits, or all before the point."""
    return f"{milliseconds:.3g}" if milliseconds < 999.5 else f"{milliseconds:,.0f}"
