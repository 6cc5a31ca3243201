"""The pictures of a run, and views of a flow of 2-D data: density, samples, latents, and a square
grid's image. Matplotlib is imported here and nowhere else in the package.

A picture has the format that its name ends in, and is written whole or not at all.
Derivation: derivations/01-a-plane.md.
"""

import logging
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from snfnp.errors import DivergedError, printable
from snfnp.files import write_by
from snfnp.likelihood import Likelihood
from snfnp.training.progress import Record

SUFFIXES = (".png", ".pdf", ".svg", ".jpg", ".jpeg", ".tif", ".tiff", ".webp")
LONGEST = 2**12  # pixels of the side of a grid of images
_DPI = 110
_PANEL = 440  # pixels of a panel's side in a figure that has not grown
_INK, _DOTS = "0.55", {"s": 4, "linewidths": 0}  # the data's colour; points
_SIDE = 128  # places of a density along each axis
_LINES, _REACH, _SHOWN = 11, 2.5, 600  # of the grid: lines each way, and their ends; points shown
_FRAMES = 48  # of an animation, at most; at least half as many once there were more


# If no home can be written, Matplotlib makes a folder for a cache of fonts, and need not warn.
_log = logging.getLogger("matplotlib")
_level = _log.level
_log.setLevel(logging.ERROR)

import matplotlib  # noqa: E402
from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: E402
from matplotlib.collections import LineCollection  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402, no pyplot: the user's backend stays
from matplotlib.patches import Circle  # noqa: E402

_log.setLevel(_level)


@dataclass(frozen=True)
class View:
    """A flow of 2-D data.

    extent: left, right, bottom, top; density: exact, in 1/area, (side, side), the lowest row first;
    data, latents: points of the data and f of these, (n, 2); samples, grid: {inverse: g of the same
    latents}, (n, 2), and of a square grid's lines, (lines, points, 2)."""

    extent: tuple[float, float, float, float]
    density: np.ndarray
    data: np.ndarray
    latents: np.ndarray
    samples: dict[str, np.ndarray]
    grid: dict[str, np.ndarray]

    @classmethod
    def of(cls, likelihood: Likelihood, data, inverses: Sequence[str], seed: int = 0) -> "View":
        """The view of a flow with `data` (n, 2), through these inverses, "learned" or "exact".
        Raises DivergedError if an inverse is not finite."""
        ops = likelihood.ops
        data = np.asarray(data[:: max(1, len(data) // _SHOWN)], np.float64)
        low, high = np.quantile(data, (0.01, 0.99), axis=0)
        middle, half = (low + high) / 2, 0.65 * (high - low)
        half[half == 0] = half.max() or 1.0  # of a single point, or points on a line
        if half.max() < 4 * half.min():  # in comparable units: shapes stay as they are
            half[:] = half.max()
        (left, bottom), (right, top) = middle - half, middle + half
        x, y = np.linspace(left, right, _SIDE), np.linspace(bottom, top, _SIDE)
        places = np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)
        density = np.exp(likelihood.log_prob(places)).reshape(_SIDE, _SIDE)
        sides = (np.linspace(-_REACH, _REACH, count) for count in (101, _LINES))
        along, across = np.meshgrid(*sides)
        lines = np.stack([along, across], axis=-1)
        lines = np.concatenate([lines, lines[..., ::-1]])
        latents = (ops.asarray(lines.reshape(-1, 2)),)
        samples, grid = {}, {}
        for name in inverses:
            exact = name == "exact"
            samples[name] = likelihood.sample(len(data), seed, exact=exact)
            bent = likelihood.sample(lines.size // 2, latents=latents, exact=exact)
            grid[name] = bent.reshape(lines.shape)
        found = ops.to_host(likelihood.latents(data)[0])
        return cls((left, right, bottom, top), density, data, found, samples, grid)


class Animation:
    """Views of a flow while it trains: a callback of `snfnp.train`, which sees each evaluation.

    data: points (n, 2); frames: (title, view), of a long run of every second, fourth, … evaluation.
    """

    def __init__(self, data: np.ndarray):
        self.data, self.frames, self._every, self._seen = data, [], 1, 0

    def __call__(self, record: Record) -> None:
        likelihood = record.likelihood
        self._seen += likelihood is not None  # None: between evaluations
        if likelihood is None or (self._seen - 1) % self._every:
            return
        title = f"epoch {record.epoch}: exact validation NLL {record.nll:.3f} nats"
        inverse = "learned" if likelihood.flow.has_learned_inverse else "exact"
        with suppress(DivergedError):  # training may recover
            self.frames.append((title, View.of(likelihood, self.data, [inverse])))
        if len(self.frames) > _FRAMES:
            self.frames, self._every = self.frames[::2], 2 * self._every


@contextmanager
def _defaults() -> Iterator[None]:
    """Matplotlib's own settings: a user's may ask for LaTeX, which is not everywhere."""
    with warnings.catch_warnings(action="ignore"):  # as of signs in a name that no font has
        settings: Any = {k: v for k, v in matplotlib.rcParamsDefault.items() if k != "backend"}
        with matplotlib.rc_context({**settings, "svg.hashsalt": "snfnp"}):
            yield


@contextmanager
def _picture(path: Path, title: str, size, layout: Any = "constrained", **how) -> Iterator[Figure]:
    """A figure under its title, which is saved at the end. how: of `Figure.savefig`."""
    with _defaults():
        yield (figure := Figure(figsize=size, layout=layout))
        if title:
            figure.suptitle(_plain(title))
        if layout is None:
            figure.tight_layout()
        kind = path.suffix[1:].lower()
        undated = {"Date": None} if kind == "svg" else None  # the same bytes for the same figure
        how |= {"format": kind, "dpi": _DPI, "metadata": undated}
        write_by(path, lambda file: figure.savefig(file, **how))


def _plain(name: str) -> str:
    """A name as Matplotlib shows it: no formula, no character that cannot be printed, and not
    hidden from a legend, as one that begins with "_" would be."""
    shown = printable(name).replace("$", r"\$") or "the run"
    return f" {shown}" if shown[0] == "_" else shown


def default_columns(count: int) -> int:
    """The images in a row with which a picture is about as wide as high."""
    return max(1, math.isqrt(count - 1) + 1)


def grid_size(count: int, columns: int, shape: tuple[int, ...]) -> tuple[int, int]:
    """Height and width in pixels of `count` images (H, W, C) in rows, with a line between them."""
    return -(-count // columns) * (shape[0] + 1) - 1, columns * (shape[1] + 1) - 1


def image_grid(images: np.ndarray, columns: int) -> np.ndarray:
    """Images (N, H, W, C) as one picture, row by row, with a line of white between them."""
    count, height, width, channels = images.shape
    rows = -(-count // columns)
    padding = (0, rows * columns - count), (0, 1), (0, 1), (0, 0)
    tiles = np.pad(images, padding, constant_values=255)
    tiles = tiles.reshape(rows, columns, height + 1, width + 1, channels).swapaxes(1, 2)
    return tiles.reshape(rows * (height + 1), columns * (width + 1), channels)[:-1, :-1]


def save_samples(path: Path, panels: dict, title: str, columns: int | None = None) -> None:
    """Panels {name: images (N, H, W, C)} side by side, each under its name (the paper's Fig. 2), or
    {name: 2-D points (N, 2)}.

    columns: images in a row (default: `default_columns`). No pixel of an image is lost: a figure
    grows with its panels.
    """
    if next(iter(panels.values())).ndim == 2:
        save_points(path, panels, title)
        return
    grids = {}
    for name, images in panels.items():
        grid = image_grid(images, columns or default_columns(len(images)))
        grids[name] = grid if grid.shape[-1] in (3, 4) else grid[..., 0]  # the first channel
    height, width = (max(grid.shape[axis] for grid in grids.values()) for axis in (0, 1))
    grow = max(1.0, height / _PANEL, width / _PANEL)
    high = 0.6 + 4.6 * min(1, height / width)
    size = (4.6 * len(panels) * grow, high * grow)
    # square panels leave a margin below them
    with _picture(path, title, size, layout=None, bbox_inches="tight") as figure:
        axes = figure.subplots(1, len(panels), squeeze=False)
        for axis, (name, grid) in zip(axes[0], grids.items(), strict=True):
            axis.imshow(grid, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
            axis.set_title(_plain(name))
            axis.axis("off")


def save_points(path: Path, panels: dict, title: str) -> None:
    """Panels {name: points (n, 2)} side by side."""
    with _picture(path, title, (4.8 * len(panels), 5.2)) as figure:
        axes = figure.subplots(1, len(panels), squeeze=False)[0]
        for axis, (name, points) in zip(axes, panels.items(), strict=True):
            axis.plot(*points.T, marker=".", markersize=3, linewidth=0)
            axis.set_title(_plain(name))


def save_view(path: Path, view: View, title: str, columns=None) -> None:
    """A flow of 2-D data: density, samples, the bent grid, and the data as latents. columns: the
    names of the two axes."""
    with _picture(path, title, (9.2, 9.6)) as figure:
        _draw_view(figure, view, view)
        if columns:
            for axis in figure.axes[:3]:
                axis.set(xlabel=_plain(columns[0]), ylabel=_plain(columns[1]))


@_defaults()
def save_animation(path: Path, frames: list[tuple[str, View]], seconds: float = 6) -> None:
    """Views under their titles as a looping GIF of so many seconds, which rests on the last."""
    pictures = []
    for title, view in frames:
        canvas = FigureCanvasAgg(figure := Figure(figsize=(6, 6.5), dpi=72))
        figure.subplots_adjust(0.01, 0.01, 0.99, 0.9, 0.03, 0.12)
        _draw_view(figure, view, frames[-1][1], xticks=[], yticks=[])
        figure.suptitle(_plain(title))
        canvas.draw()
        pictures.append(Image.fromarray(np.array(canvas.buffer_rgba())).convert("RGB"))
    palette = pictures[-1].quantize(48)  # one for all, or the colours would flicker
    first, *rest = (each.quantize(palette=palette, dither=0) for each in pictures)
    times = [round(1e3 * seconds / len(frames))] * len(rest) + [3000]
    how = {"save_all": True, "append_images": rest, "duration": times, "loop": 0}
    write_by(path, lambda file: first.save(file, "GIF", **how))


def _draw_view(figure, view: View, last: View, **ticks) -> None:
    brightest = np.quantile(last.density, 0.995)  # so that a peak does not darken the rest
    (density, samples), (grid, latents) = figure.subplots(2, 2, subplot_kw=ticks)
    how = {"origin": "lower", "aspect": "auto", "cmap": "magma", "vmin": 0, "vmax": brightest}
    density.imshow(view.density, extent=view.extent, interpolation="bilinear", **how)
    density.set_title("density, exact")
    for axis, points in ((samples, view.data), (grid, view.data), (latents, view.latents)):
        axis.scatter(*points.T, **_DOTS, color=_INK, label="data")
        axis.set(xlim=view.extent[:2], ylim=view.extent[2:])
    for name, points in view.samples.items():
        samples.scatter(*points.T, **_DOTS, label=f"{name} inverse")
    samples.set_title("samples, of the same latents")
    samples.legend(fontsize="small", markerscale=3, loc="upper right")
    name, lines = next(iter(view.grid.items()))
    grid.add_collection(LineCollection(list(lines), colors="C1", linewidths=0.7))
    grid.set_title(f"a grid through the {name} inverse")
    for radius in (1, 2):
        latents.add_patch(Circle((0, 0), radius, fill=False, color="C2"))
    latents.set(xlim=(-3.5, 3.5), ylim=(-3.5, 3.5), title="data as latents: 1 and 2 σ")


class Row(NamedTuple):
    """A row of curves: per record a value and the ends of a band around it, lines (3, records), NaN
    for a record without; also: the same figure of training data (records,), dashed; log: a
    logarithmic axis, if all is positive; limit: a level that is marked."""

    label: str
    lines: np.ndarray
    also: np.ndarray | None
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
    ("inverse_angle", "angle of R's gradient to the\nexact one (°): largest and range", {}),
)
_BESIDE = {"validation_nll_nats": "training_nll_nats"}  # dashed, in the same row
_OF_INVERSES = ("reconstruction", "lam", "constraint")  # 0 in records of runs that learn none


def _point(record: dict, figure: str) -> tuple[float, float, float] | None:
    """A figure and the ends of its band: as recorded, or of the layers' figures the largest, and a
    band over all; None if there is none."""
    if figure in record:
        value, absent = record[figure], figure in _OF_INVERSES and not record["reconstruction"] > 0
        ends = record.get(f"{figure}_min", value), record.get(f"{figure}_max", value)
        return None if absent else (value, *ends)
    values = [own[figure] for own in record.get("layers", {}).values() if figure in own]
    return (max(values), min(values), max(values)) if values else None


def rows(records: list[dict]) -> list[Row]:
    """The rows that some record has a figure for; λ if it moves."""
    drawn = []
    for figure, label, style in ROWS:
        points = [_point(record, figure) for record in records]
        fixed = figure == "lam" and len({value for point in points for value in point or ()}) == 1
        if any(points) and not fixed:
            lines = np.array([point or [np.nan] * 3 for point in points]).T
            beside = [record.get(_BESIDE.get(figure), np.nan) for record in records]
            also = None if np.isnan(beside).all() else np.array(beside)
            drawn.append(Row(label, lines, also, **style))
    return drawn


def save_curves(path: Path, records: list[dict], title: str) -> None:
    """Draw the metrics of a run, all rows that it has figures for, against epochs and seconds."""
    drawn = rows(records)
    with _picture(path, title, (9.5, 3 * len(drawn) + 0.4)) as figure:
        axes = figure.subplots(len(drawn), 2, sharex="col", sharey="row", squeeze=False)
        for column, key in enumerate(("epoch", "seconds")):
            x = [record[key] for record in records]
            for number, row in enumerate(drawn):
                axis, color = axes[number, column], f"C{number}"
                axis.plot(x, row.lines[0], marker=_marker(x), color=color)
                axis.fill_between(x, *row.lines[1:], color=color, alpha=0.2, linewidth=0)
                if row.also is not None:
                    axis.plot(x, row.also, "--", color=color, linewidth=1, label="of training rows")
                    axis.legend(fontsize="small")
                if row.limit is not None:
                    axis.axhline(row.limit, color="gray", linestyle="--", linewidth=1)
                axis.grid(alpha=0.3, which="both")
                if row.log and not (row.lines <= 0).any():
                    axis.set_yscale("log")
            _label(axes[-1, column], key)
        for axis, row in zip(axes[:, 0], drawn, strict=True):
            axis.set_ylabel(row.label)


# The figures of a run's metrics that a comparison draws: the x of both panels, then their y.
COMPARED = ("epoch", "seconds", "validation_nll_nats")


def save_comparison(path: Path, lines: dict[str, dict[str, list[float]]], label: str) -> None:
    """Runs in one picture, by name, against epochs and against training seconds.

    The first evaluations, far above all others, are left out if they would flatten the rest.
    """
    *columns, y = COMPARED
    with _picture(path, "", (11, 4.6)) as figure:
        axes = figure.subplots(1, len(columns), sharey=True)
        for axis, x in zip(axes, columns, strict=True):
            for name, own in lines.items():
                axis.plot(own[x], own[y], marker=_marker(own[x]), label=_plain(name), linewidth=1)
            _label(axis, x)
            axis.grid(alpha=0.3)
        lowest = min(min(own[y]) for own in lines.values())
        settled = max(own[y][len(own[y]) // 5] for own in lines.values())
        if (span := settled - lowest) > 0:
            axes[0].set_ylim(lowest - 0.05 * span, settled + 0.05 * span)
        axes[0].set_ylabel(label)
        axes[-1].legend(fontsize="small")


def _label(axis, key: str) -> None:
    axis.set_xlabel("epoch" if key == "epoch" else "training seconds")
    axis.xaxis.get_major_locator().set_params(integer=key == "epoch")


def _marker(x) -> str | None:
    """A point on every value of a line that has few."""
    return "." if len(x) < 50 else None
