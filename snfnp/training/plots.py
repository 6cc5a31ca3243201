"""The pictures of a run, and views of a flow of 2-D data: density, samples, latents, and a square
grid's image. Curves are in `curves.py`. Matplotlib is imported here alone.

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
from typing import Any

import numpy as np
from PIL import Image

from snfnp.errors import DivergedError, printable
from snfnp.files import write_by
from snfnp.likelihood import Likelihood
from snfnp.training.progress import Record

SUFFIXES = (".png", ".pdf", ".svg", ".jpg", ".jpeg", ".tif", ".tiff", ".webp")
LONGEST = 4096  # pixels of the side of a grid of images
_DPI = 110
_PANEL = 440  # pixels of a panel's side; for a larger grid of images the figure grows
_INK = "0.55"  # the data's colour
_DOTS = {"s": 4, "linewidths": 0}
# Samples of the learned inverse, as circles around those of the exact one.
_RINGS = {"s": 16, "linewidths": 0.6, "facecolors": "none"}
_SIDE = 128  # points of a density along each axis
_LINES = 11  # lines of the square grid along each axis
_REACH = 2.5  # the grid's lines go from -2.5 to 2.5
_SHOWN = 600  # points of the data
_FRAMES = 48  # the most frames of an animation: one more, and every second is dropped


# If no home can be written, Matplotlib makes a folder for a cache of fonts, and need not warn.
_log = logging.getLogger("matplotlib")
_level = _log.level
_log.setLevel("ERROR")

from matplotlib import style  # noqa: E402
from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: E402
from matplotlib.collections import LineCollection  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402, no pyplot: the user's backend stays
from matplotlib.patches import Circle  # noqa: E402

_log.setLevel(_level)


@dataclass(frozen=True)
class View:
    """A flow of 2-D data.

    Attributes:
        extent: left, right, bottom, top.
        density: the exact density per unit of area, (side, side), the lowest row first.
        data: points of the data (n, 2).
        latents: f(data), (n, 2).
        samples: {inverse g: g(z)}, (n, 2), with the same latents z for every inverse.
        grid: g(lines of a square grid), (lines, points, 2), g the first of these inverses.
    """

    extent: tuple[float, float, float, float]
    density: np.ndarray
    data: np.ndarray
    latents: np.ndarray
    samples: dict[str, np.ndarray]
    grid: np.ndarray

    @classmethod
    def of(
        cls,
        likelihood: Likelihood,
        data: np.ndarray,
        inverses: Sequence[str],
        seed: int = 0,
    ) -> "View":
        """The view of a flow with `data` (n, 2), through these inverses, "learned" or "exact".
        Raises DivergedError if an inverse is not finite."""
        data = np.asarray(data[:: max(1, len(data) // _SHOWN)], np.float64)
        left, right, bottom, top = extent = _extent(data)
        x = np.linspace(left, right, _SIDE)
        y = np.linspace(bottom, top, _SIDE)
        points = np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)
        density = np.exp(likelihood.log_prob(points)).reshape(_SIDE, _SIDE)
        along = np.linspace(-_REACH, _REACH, 101)
        across = np.linspace(-_REACH, _REACH, _LINES)
        lines = np.stack(np.meshgrid(along, across), axis=-1)
        lines = np.concatenate([lines, lines[..., ::-1]])
        latents = (likelihood.ops.asarray(lines.reshape(-1, 2)),)
        samples = {
            name: likelihood.sample(len(data), seed, exact=name == "exact")
            for name in inverses
        }
        exact = inverses[0] == "exact"
        grid = likelihood.sample(lines.size // 2, latents=latents, exact=exact)
        z = likelihood.ops.to_host(likelihood.latents(data)[0])
        return cls(extent, density, data, z, samples, grid.reshape(lines.shape))


def _extent(data: np.ndarray) -> tuple[float, float, float, float]:
    """Left, right, bottom and top of a picture of points (n, 2)."""
    low, high = np.quantile(data, (0.01, 0.99), axis=0)
    half = 0.65 * (high - low)
    half[half == 0] = half.max() or 1.0  # where there is one point, or a line of points
    if half.max() < 4 * half.min():  # the units are comparable: shapes stay as they are
        half[:] = half.max()
    left, bottom = (low + high) / 2 - half
    right, top = (low + high) / 2 + half
    return left, right, bottom, top


class Animation:
    """Views of a flow while it trains: a callback of `snfnp.train`, which sees each evaluation.

    data: points (n, 2); frames: (title, view) of every evaluation, or, in a long run, of every
    second, fourth, … one.
    """

    def __init__(self, data: np.ndarray):
        self.data = data
        self.frames: list[tuple[str, View]] = []
        self._every = 1
        self._seen = 0

    def __call__(self, record: Record) -> None:
        likelihood = record.likelihood
        if likelihood is None:  # between evaluations
            return
        self._seen += 1
        if (self._seen - 1) % self._every:
            return
        title = f"epoch {record.epoch}: exact validation NLL {record.nll:.3f} nats"
        inverse = "learned" if likelihood.flow.has_learned_inverse else "exact"
        with suppress(DivergedError):  # training may recover
            self.frames.append((title, View.of(likelihood, self.data, [inverse])))
        if len(self.frames) > _FRAMES:
            self.frames = self.frames[::2]
            self._every *= 2


@contextmanager
def _defaults() -> Iterator[None]:
    """Matplotlib's own settings: a user's may ask for LaTeX, which is not everywhere."""
    # Matplotlib warns, for example, of characters that no font has
    with (
        warnings.catch_warnings(action="ignore"),
        style.context(["default", {"svg.hashsalt": "snfnp"}]),
    ):
        yield


@contextmanager
def picture(
    path: Path,
    title: str,
    size: tuple[float, float],
    tight: bool = False,
) -> Iterator[Figure]:
    """A figure under its title, which is saved at the end. tight: without the margins that square
    panels leave."""
    with _defaults():
        figure = Figure(figsize=size, layout=None if tight else "constrained")
        yield figure
        if title:
            figure.suptitle(plain(title))
        if tight:
            figure.tight_layout()
        suffix = path.suffix[1:].lower()
        # no date: the same figure has the same bytes
        undated = {"Date": None} if suffix == "svg" else None
        write_by(
            path,
            figure.savefig,
            format=suffix,
            dpi=_DPI,
            bbox_inches="tight" if tight else None,
            metadata=undated,
        )


def plain(name: str) -> str:
    """A name as Matplotlib shows it: no formula, no character that cannot be printed, and not
    hidden from a legend, as one that begins with "_" would be."""
    shown = printable(name).replace("$", r"\$") or "the run"
    return f" {shown}" if shown[0] == "_" else shown


def _grid(count: int) -> tuple[int, int]:
    """The rows and columns in which a picture of images is about as wide as high."""
    columns = math.isqrt(count - 1) + 1
    return -(-count // columns), columns


def grid_size(count: int, shape: tuple[int, ...]) -> tuple[int, int]:
    """Height and width in pixels of the `image_grid` of `count` images (H, W, C)."""
    rows, columns = _grid(count)
    return rows * (shape[0] + 1) - 1, columns * (shape[1] + 1) - 1


def image_grid(images: np.ndarray) -> np.ndarray:
    """Images (N, H, W, C) as one picture, row by row, with a line of white between them."""
    count, height, width, channels = images.shape
    rows, columns = _grid(count)
    missing = rows * columns - count
    tiles = np.pad(images, ((0, missing), (0, 1), (0, 1), (0, 0)), constant_values=255)
    tiles = tiles.reshape(rows, columns, height + 1, width + 1, channels).swapaxes(1, 2)
    return tiles.reshape(rows * (height + 1), -1, channels)[:-1, :-1]


def save_samples(path: Path, panels: dict[str, np.ndarray], title: str) -> None:
    """Panels {name: images (N, H, W, C)} side by side, each under its name (the paper's Fig. 2). No
    pixel of an image is lost: a figure grows with its panels.
    """
    grids = {}
    for name, images in panels.items():
        grid = image_grid(images)
        # of images that are not RGB or RGBA, the first channel
        grids[name] = grid if grid.shape[-1] in (3, 4) else grid[..., 0]
    height, width = np.max([grid.shape[:2] for grid in grids.values()], axis=0)
    grow = max(1.0, height / _PANEL, width / _PANEL)
    inches = 0.6 + 4.6 * min(1, height / width)
    size = (4.6 * len(panels) * grow, inches * grow)
    with picture(path, title, size, tight=True) as figure:
        axes = figure.subplots(1, len(panels), squeeze=False)
        for axis, (name, grid) in zip(axes[0], grids.items(), strict=True):
            axis.imshow(grid, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
            axis.set_title(plain(name))
            axis.axis("off")


def save_view(
    path: Path, view: View, title: str, columns: Sequence[str] | None = None
) -> None:
    """A flow of 2-D data: density, samples, the bent grid, and the data as latents. columns: the
    names of the two axes."""
    with picture(path, title, (9.2, 9.6)) as figure:
        _draw_view(figure, view, view)
        if columns:
            for axis in figure.axes[:3]:
                axis.set(xlabel=plain(columns[0]), ylabel=plain(columns[1]))


@_defaults()
def save_animation(path: Path, frames: list[tuple[str, View]]) -> None:
    """Views under their titles as a looping GIF of six seconds, which rests on the last."""
    pictures = []
    for title, view in frames:
        figure = Figure(figsize=(6, 6.5), dpi=72)
        canvas = FigureCanvasAgg(figure)
        figure.subplots_adjust(0.01, 0.01, 0.99, 0.9, 0.03, 0.12)
        _draw_view(figure, view, frames[-1][1], xticks=[], yticks=[])
        figure.suptitle(plain(title))
        canvas.draw()
        pictures.append(Image.fromarray(np.array(canvas.buffer_rgba())).convert("RGB"))
    palette = pictures[-1].quantize(48)  # one for all, or the colours would flicker
    first, *rest = (each.quantize(palette=palette, dither=0) for each in pictures)
    times = [round(6000 / len(frames))] * len(rest) + [3000]  # milliseconds
    write_by(
        path,
        first.save,
        format="GIF",
        save_all=True,
        append_images=rest,
        duration=times,
        loop=0,
    )


def _draw_view(figure: Figure, view: View, last: View, **ticks: Any) -> None:
    # not the maximum: a peak would darken the rest
    brightest = np.quantile(last.density, 0.995)
    (density, samples), (grid, latents) = figure.subplots(2, 2, subplot_kw=ticks)
    shades = density.imshow(
        view.density,
        extent=view.extent,
        origin="lower",
        aspect="auto",
        interpolation="bilinear",
        cmap="magma",
        vmin=0,
        vmax=brightest,
    )
    density.set_title("density, exact, per unit of area")
    if not ticks:
        scale = density.inset_axes((0.05, 0.09, 0.45, 0.02))
        figure.colorbar(shades, cax=scale, orientation="horizontal")
        scale.tick_params(colors="white", labelsize="small")
    for axis, points in (
        (samples, view.data),
        (grid, view.data),
        (latents, view.latents),
    ):
        axis.scatter(*points.T, **_DOTS, color=_INK, label="data")
        axis.set(xlim=view.extent[:2], ylim=view.extent[2:])
    for index, (name, points) in enumerate(view.samples.items()):
        color = f"C{index}"
        marks = {**_DOTS, "color": color}
        # rings: exact samples would hide dots
        if len(view.samples) > 1 and name == "learned":
            marks = {**_RINGS, "edgecolors": color}
        samples.scatter(*points.T, **marks, label=f"{name} inverse")
    samples.set_title("samples, of the same latents")
    samples.legend(fontsize="small", markerscale=2, loc="upper right")
    grid.add_collection(LineCollection(list(view.grid), colors="C1", linewidths=0.7))
    grid.set_title(f"a grid through the {next(iter(view.samples))} inverse")
    for radius in (1, 2):
        latents.add_patch(Circle((0, 0), radius, fill=False, color="C2"))
    latents.set(xlim=(-3.5, 3.5), ylim=(-3.5, 3.5), title="data as latents: 1 and 2 σ")
