"""The pictures of a run. Matplotlib is imported here and nowhere else in the package.

A picture has the format that its name ends in, and is written whole or not at all.
"""

import io
import math
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from snfnp import paths
from snfnp.errors import printable
from snfnp.training.animation import View
from snfnp.training.files import write_atomically

SUFFIXES = (".png", ".pdf", ".svg", ".jpg", ".jpeg", ".tif", ".tiff", ".webp")
LARGE_SUFFIX = ".png"  # of a picture of a grid that `is_large`
_DPI = 110
_PANEL = 440  # pixels of a panel's side in a figure that has not grown
_LARGEST_PANEL = 2000
_INK, _DOTS = "0.55", {"s": 4, "linewidths": 0}  # the data's colour; points


# If its own folder for a cache of fonts cannot be written, Matplotlib gets another.
_home = Path(os.path.expanduser("~"))
_usual = (("XDG_CONFIG_HOME", ".config"), ("XDG_CACHE_HOME", ".cache"))
if "MPLCONFIGDIR" not in os.environ and not all(
    paths.is_writable(Path(os.environ.get(name) or _home / usual)) for name, usual in _usual
):
    _folder = paths.private_folder("matplotlib")
    if _folder:
        os.environ["MPLCONFIGDIR"] = str(_folder)

import matplotlib  # noqa: E402
from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: E402
from matplotlib.collections import LineCollection  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402, no pyplot: the user's backend stays
from matplotlib.patches import Circle  # noqa: E402


@contextmanager
def _quiet() -> Iterator[None]:
    """Without warnings, as of signs in a name that no font has."""
    with warnings.catch_warnings(action="ignore"):
        yield


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


def is_large(height: int, width: int) -> bool:
    """Say whether a grid gets a picture of its own, pixel by pixel, and no place in a figure."""
    return max(height, width) > _LARGEST_PANEL


def image_grid(images: np.ndarray, columns: int) -> np.ndarray:
    """Images (N, H, W, C) as one picture, row by row, with a line of white between them."""
    count, height, width, channels = images.shape
    rows = -(-count // columns)
    padding = (0, rows * columns - count), (0, 1), (0, 1), (0, 0)
    tiles = np.pad(images, padding, constant_values=255)
    tiles = tiles.reshape(rows, columns, height + 1, width + 1, channels).swapaxes(1, 2)
    return tiles.reshape(rows * (height + 1), columns * (width + 1), channels)[:-1, :-1]


@_quiet()
def save_samples(path: Path, panels: dict, title: str, columns: int | None = None) -> None:
    """Panels {name: images (N, H, W, C)} side by side, each under its name (the paper's Fig. 2), or
    {name: points of a plane (N, 2)}.

    columns: images in a row (default: `default_columns`). No pixel of an image is lost: a figure
    grows with its panels, and a single panel that `is_large` is written alone, without its name.
    """
    if next(iter(panels.values())).ndim == 2:
        save_points(path, panels, title)
        return
    grids = {
        name: image_grid(images, columns or default_columns(len(images))).squeeze()
        for name, images in panels.items()
    }
    height, width = (max(grid.shape[axis] for grid in grids.values()) for axis in (0, 1))
    if len(grids) == 1 and is_large(height, width):
        (grid,), content = grids.values(), io.BytesIO()
        Image.fromarray(grid).save(content, format="PNG")
        write_atomically(path, content.getvalue())
        return
    grow = max(1.0, height / _PANEL, width / _PANEL)
    high = 0.6 + 4.6 * min(1, height / width)
    figure = Figure(figsize=(4.6 * len(panels) * grow, high * grow))
    axes = figure.subplots(1, len(panels), squeeze=False)
    for axis, (name, grid) in zip(axes[0], grids.items(), strict=True):
        axis.imshow(grid, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        axis.set_title(_plain(name))
        axis.axis("off")
    figure.suptitle(_plain(title))
    figure.tight_layout()
    _save(figure, path, bbox_inches="tight")  # square panels leave a margin below them


@_quiet()
def save_points(path: Path, panels: dict, title: str, data=()) -> None:
    """Points of a plane side by side, {name: points (n, 2), or paths (paths, steps, 2)}; data
    (n, 2): what the first are drawn over."""
    figure = Figure(figsize=(4.8 * len(panels), 5.2), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    if len(data):
        axes[0].scatter(*data.T, **_DOTS, color=_INK)
    for axis, (name, points) in zip(axes, panels.items(), strict=True):
        axis.plot(*points.T, marker=".", markersize=3, linewidth=points.ndim - 2)
        axis.set_title(_plain(name))
    figure.suptitle(_plain(title))
    _save(figure, path)


@_quiet()
def save_view(path: Path, view: View, title: str, columns=None) -> None:
    """A view of the plane: density, samples, the bent grid, and the data as latents. columns: the
    names of the two axes."""
    figure = Figure(figsize=(9.2, 9.6), layout="constrained")
    _draw_view(figure, view, title, view)
    if columns:
        for axis in figure.axes[:3]:
            axis.set(xlabel=_plain(columns[0]), ylabel=_plain(columns[1]))
    _save(figure, path)


@_quiet()
def save_animation(path: Path, frames: list[tuple[str, View]], seconds: float = 6) -> None:
    """Views, each under its title, as a GIF that lasts so long, rests, and begins again."""
    pictures = []
    for title, view in frames:
        canvas = FigureCanvasAgg(figure := Figure(figsize=(6, 6.5), dpi=72))
        figure.subplots_adjust(0.01, 0.01, 0.99, 0.9, 0.03, 0.12)
        _draw_view(figure, view, title, frames[-1][1], xticks=[], yticks=[])
        canvas.draw()
        pictures.append(Image.fromarray(np.array(canvas.buffer_rgba())).convert("RGB"))
    palette = pictures[-1].quantize(48)  # one for all, or the colours would flicker
    first, *rest = (each.quantize(palette=palette, dither=0) for each in pictures)
    times = [round(1e3 * seconds / len(frames))] * len(rest) + [3000]
    content = io.BytesIO()
    first.save(content, "GIF", save_all=True, append_images=rest, duration=times, loop=0)
    write_atomically(path, content.getvalue())


def _draw_view(figure, view: View, title: str, last: View, **ticks) -> None:
    brightest = np.quantile(last.density, 0.995)  # a peak would leave the rest in the dark
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
    figure.suptitle(_plain(title))


@_quiet()
def save_histograms(path: Path, values: dict[str, np.ndarray], label: str, title: str) -> None:
    """Histograms {name: values (n,)} in one frame, of what is finite."""
    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    axis = figure.subplots()
    finite = {name: each[np.isfinite(each)] for name, each in values.items()}
    bins = list(np.histogram_bin_edges(np.concatenate(list(finite.values())), 80))
    for name, each in finite.items():
        axis.hist(each, bins, density=len(each) > 0, alpha=0.6, label=_plain(name))
    axis.set(xlabel=label, yticks=[], title=_plain(title))
    axis.legend()
    _save(figure, path)


@dataclass(frozen=True)
class Row:
    """A row of curves: its label, and per record a value and the ends of a band around it, lines
    (3, records), NaN for a record without.

    log: a logarithmic axis, if all is positive; limit: a level that is marked; also: the same
    figure of training data (records,), dashed.
    """

    label: str
    lines: np.ndarray
    log: bool = True
    limit: float | None = None
    also: np.ndarray | None = None


@_quiet()
def save_rows(path: Path, columns: dict[str, list[float]], rows: list[Row], title: str) -> None:
    """Every row against every x axis: {its label: x of each record}."""
    # constrained: a title of its own height above any number of rows
    figure = Figure(figsize=(9.5, 3 * len(rows) + 0.4), layout="constrained")
    shared = {"sharex": "col", "sharey": "row", "squeeze": False}
    axes = figure.subplots(len(rows), len(columns), **shared)
    for column, (label, x) in enumerate(columns.items()):
        for number, row in enumerate(rows):
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
        axes[-1, column].set_xlabel(label)
        axes[-1, column].xaxis.get_major_locator().set_params(integer=label == "epoch")
    for number, row in enumerate(rows):
        axes[number, 0].set_ylabel(row.label)
    figure.suptitle(_plain(title))
    _save(figure, path)


# The figures of a run's metrics that a comparison draws: the x of both panels, then their y.
COMPARED = ("epoch", "seconds", "validation_nll_nats")


@_quiet()
def save_comparison(path: Path, lines: dict[str, dict[str, list[float]]], label: str) -> None:
    """Runs in one picture, by name, against epochs and against training seconds.

    The first evaluations, far above all others, are left out if they would flatten the rest.
    """
    *columns, y = COMPARED
    figure = Figure(figsize=(11, 4.6))
    axes = figure.subplots(1, len(columns), sharey=True)
    for axis, x in zip(axes, columns, strict=True):
        for name, figures in lines.items():
            axis.plot(
                figures[x], figures[y], marker=_marker(figures[x]), label=_plain(name), linewidth=1
            )
        axis.set_xlabel("epoch" if x == "epoch" else "training seconds")
        axis.xaxis.get_major_locator().set_params(integer=x == "epoch")
        axis.grid(alpha=0.3)
    lowest = min(min(figures[y]) for figures in lines.values())
    settled = max(figures[y][len(figures[y]) // 5] for figures in lines.values())
    if settled > lowest:
        axes[0].set_ylim(lowest - 0.05 * (settled - lowest), settled + 0.05 * (settled - lowest))
    axes[0].set_ylabel(label)
    axes[-1].legend(fontsize="small")
    figure.tight_layout()
    _save(figure, path)


def _marker(x) -> str | None:
    """A point on every value of a line that has few."""
    return "." if len(x) < 50 else None


def _save(figure, path: Path, **settings) -> None:
    content, kind = io.BytesIO(), path.suffix[1:].lower()
    undated = {"Date": None} if kind == "svg" else None  # the same bytes for the same figure
    with matplotlib.rc_context({"svg.hashsalt": "snfnp"}):
        figure.savefig(content, format=kind, dpi=_DPI, metadata=undated, **settings)
    write_atomically(path, content.getvalue())
