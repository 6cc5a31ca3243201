"""Figs. 2, 3 and 5: samples, angles and likelihoods of one run of each row."""

import statistics
from pathlib import Path

import numpy as np

from reproduction import pictures
from reproduction.rows import GLOW_EPOCHS, NOT_GIVEN, TABLES, TITLES, Row
from reproduction.runs import Command, Run
from reproduction.target import Trained, grid, trained
from reproduction.times import FAMILIES
from snfnp.cli.compare import common_epochs
from snfnp.errors import DivergedError
from snfnp.training import curves, plots
from snfnp.training.runs.folder import RunFolder
from snfnp.training.runs.load import load_run


class _OneSeed(Trained):
    """A figure of one run of each row, with the first seed."""

    def plan(self, command: Command) -> list[Run]:
        planned = super().plan(command)
        return [run for run in planned if run.seed == planned[0].seed]


def _points(row: dict) -> list[list]:
    return row["runs"][0]["points"]


def _curves(record: dict) -> dict[str, tuple[dict, list[tuple]]]:
    """{model and its epochs: (its row, the columns of its points)}, for rows with points."""
    labelled = {}
    for row in filter(_points, record["rows"]):
        epochs = f"{row['runs'][0]['epochs']:,} of {row['paper_epochs']:,} epochs"
        columns = list(zip(*_points(row), strict=True))
        labelled[f"{row['cells'][0]}, {epochs}"] = (row, columns)
    return labelled


def thinned(points: list, most: int) -> list:
    """At most `most` of the points, evenly spread, with the first and the last."""
    indices = np.linspace(0, len(points) - 1, min(most, len(points)))
    return [points[round(index)] for index in indices]


_IMAGES = 64


class Figure2(_OneSeed):
    """Samples through the exact and through the learned inverse of a small Glow."""

    title = "Fig. 2: samples of self-normalizing Glow through the exact and the learned inverse"
    suffix = ".png"
    made_of_record = False
    options = {"model": "glow-2l-4k", "lam": 100.0}
    rows = (
        Row(
            "glow-2l-4k-lambda-100",
            ("SNF Glow 2L-4K",),
            options,
            NOT_GIVEN,
            GLOW_EPOCHS,
            ours=10,
        ),
    )

    def __init__(self):
        # of the last `measure`: the record has no samples
        self._panels: dict[str, np.ndarray] = {}

    def measure(self, run: Run) -> dict:
        loaded = load_run(run.folder)
        panels = {}
        try:
            for name in ("exact", "learned"):
                images = loaded.likelihood.sample(
                    _IMAGES, run.seed, exact=name == "exact"
                )
                panels[name] = images.reshape(-1, *loaded.image_shape)
        except DivergedError:  # none that are finite
            return {}
        self._panels |= {
            f"{TITLES[run.row.data]}, {name} inverse": images
            for name, images in panels.items()
        }
        exact, learned = (images.astype(float) for images in panels.values())
        apart = np.abs(exact - learned)
        drawn = np.maximum(exact, learned) > 1  # most of a digit's image is black
        same = apart <= 1
        return {
            "mean_difference": float(apart.mean()),
            "same_pixels": float(same.mean()),
            "same_drawn": float(same[drawn].mean()) if drawn.any() else None,
        }

    def show(self, record: dict) -> str:
        heads = (
            "data",
            "model",
            "epochs: ours / paper",
            "pixels within 1 level of 256",
            "of those not black in both",
            "mean difference in levels",
            "paper",
        )
        table = [heads]
        for row in record["rows"]:
            run = row["runs"][0]
            ours = ("no finite samples", "–", "–")
            if "same_pixels" in run:
                drawn = "–" if run["same_drawn"] is None else f"{run['same_drawn']:.1%}"
                ours = (
                    f"{run['same_pixels']:.1%}",
                    drawn,
                    f"{run['mean_difference']:.2f}",
                )
            model = (TITLES[row["data"]], row["cells"][0], trained(row))
            table.append((*model, *ours, '"nearly exact", no figure'))
        return grid(table)

    def draw(self, record: dict, path: Path) -> None:
        if self._panels:
            plots.save_samples(path, self._panels, "Samples, the same latents")


# The caption's words for these rows of Table 1, for all of training, and that in degrees.
_CAPTION = {"fc-snf": ("close to 0.1", 0.1), "conv-snf": ("less than 1", 1.0)}


class Figure3(_OneSeed):
    """The angle between the learned and the exact gradient, over the epochs."""

    title = "Fig. 3: angle in degrees between the learned and the exact gradient"
    rows = tuple(row for row in TABLES["table1"].rows if row.name in _CAPTION)

    def measure(self, run: Run) -> dict:
        points = []
        for line in RunFolder(run.folder).read_metrics():
            angles = [
                layer["angle"]
                for layer in line.get("layers", {}).values()
                if "angle" in layer
            ]
            if angles:
                mean = statistics.fmean(angles)
                spread = statistics.pstdev(angles)
                points.append([line["epoch"], mean, spread])
        largest = max(points, key=lambda point: point[1], default=None)
        below = [sum(mean < 1 for _, mean, _ in points), len(points)]
        return {"points": thinned(points, 1000), "largest": largest, "below": below}

    def show(self, record: dict) -> str:
        heads = (
            "model",
            "epochs: ours / paper",
            "largest",
            "below 1°",
            "at the end",
            "paper, throughout",
            "difference",
        )
        table = [heads]
        for row in record["rows"]:
            *ours, difference = ("diverged", "–", "–", "")
            words, degrees = _CAPTION[row["name"]]
            if points := _points(row):
                run = row["runs"][0]
                _, mean, spread = points[-1]
                epoch, largest, _ = run["largest"]
                below = "{:,} of {:,} epochs".format(*run["below"])
                ours = (
                    f"{largest:.2f}° at epoch {epoch:,}",
                    below,
                    f"{mean:.2f}° ± {spread:.2f}°",
                )
                difference = _difference(mean, words, degrees)
            table.append(
                (row["cells"][0], trained(row), *ours, f"{words}°", difference)
            )
        return grid(table)

    def draw(self, record: dict, path: Path) -> None:
        panels = {
            label: (_CAPTION[row["name"]], columns)
            for label, (row, columns) in _curves(record).items()
        }
        if panels:
            pictures.save_angles(path, panels)


def _difference(mean: float, words: str, degrees: float) -> str:
    """The last angle minus the paper's, which is a bound for one row, one digit for the other."""
    if words.startswith("less than"):
        return "less as well" if mean < degrees else "more"
    difference = round(mean, 1) - degrees
    return f"{difference:+.1f}°" if abs(difference) > 0.05 else "close to it as well"


# The times of the paper's figure, as shares of the exact gradient's, are those of its Table 3.
_SHARES = {"fc-exact": 1.0, "fc-snf": FAMILIES[0][2].batch[0] / FAMILIES[0][0].batch[0]}
_SHOWN = 5  # epochs


class Figure5(_OneSeed):
    """The validation likelihood over time and over epochs, learned against exact gradients."""

    title = "Fig. 5: exact validation NLL in nats on MNIST, over time and over epochs"
    rows = tuple(row for row in TABLES["table1"].rows if row.name in _SHARES)

    def measure(self, run: Run) -> dict:
        lines = RunFolder(run.folder).read_metrics()
        points = [[line[key] for key in curves.COMPARED] for line in lines]
        return {"points": thinned(points, 200)}

    def show(self, record: dict) -> str:
        rows = record["rows"]
        known = [[point[0] for point in _points(row)] for row in rows if _points(row)]
        epochs = common_epochs(known or [[]], _SHOWN)
        heads = (
            "model",
            "epochs: ours / paper",
            *(f"NLL at {epoch}" for epoch in epochs),
            "s / epoch",
            "time / exact's: ours",
            "paper",
            "difference in time",
        )
        table = [heads]
        # times of different machines do not compare
        machines = {each["processor"] for row in rows for each in row["made_with"]}
        base = next((_seconds(row) for row in rows if _SHARES[row["name"]] == 1), None)
        for row in rows:
            nll = {epoch: value for epoch, _, value in _points(row)}
            seconds = _seconds(row)
            paper = _SHARES[row["name"]]
            share = seconds / base if seconds and base and len(machines) == 1 else None
            cells = [
                row["cells"][0],
                trained(row),
                *(f"{nll[epoch]:.1f}" if nll else "–" for epoch in epochs),
                f"{seconds:.3g}" if seconds else "diverged",
                f"{share:.2f}" if share else "–",
                f"{paper:.2f}",
                f"{share - paper:+.2f}" if share else "",
            ]
            table.append(cells)
        return grid(table)

    def draw(self, record: dict, path: Path) -> None:
        lines = {
            label: dict(zip(curves.COMPARED, columns, strict=True))
            for label, (_, columns) in _curves(record).items()
        }
        if lines:
            curves.save_comparison(path, lines)


def _seconds(row: dict) -> float | None:
    """The seconds of an epoch, or None without points."""
    if not _points(row):
        return None
    epoch, seconds, _ = _points(row)[-1]
    return seconds / epoch
