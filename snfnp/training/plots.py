"""The pictures of a run. Matplotlib is imported here and nowhere else in the package.

A picture has the format that its name ends in, and is written whole or not at all.
"""

from __future__ import annotations

import io
import math
import os
from pathlib import Path

import numpy as np
from PIL import Image

from snfnp import folders
from snfnp.training.files import write_atomically

SUFFIXES = (".png", ".pdf", ".svg", ".jpg", ".jpeg", ".tif", ".tiff", ".webp")
LARGE_SUFFIX = ".png"  # of a picture of a grid that `is_large`
_DPI = 110
_PANEL = 440  # pixels of a panel's side in a figure that has not grown
_LARGEST_PANEL = 2000


def _settle_matplotlib() -> None:
    """Find Matplotlib a folder for what it knows of fonts, where its own cannot be written."""
    home = Path(os.path.expanduser("~"))
    usual = (
        Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config"),
        Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache"),
    )
    if "MPLCONFIGDIR" in os.environ or all(map(folders.is_writable, usual)):
        return
    folder = folders.private_folder("matplotlib")
    if folder:
        os.environ["MPLCONFIGDIR"] = str(folder)


_settle_matplotlib()
import matplotlib  # noqa: E402

matplotlib.use("Agg")  # files only: works without a display
import matplotlib.pyplot as plt  # noqa: E402


def default_columns(count: int) -> int:
    """How many images make a row, so that the picture is about as wide as high."""
    return max(1, math.isqrt(count - 1) + 1)


def grid_size(count: int, columns: int, shape: tuple[int, ...]) -> tuple[int, int]:
    """Height and width in pixels of `count` images (H, W, C) in rows, with a line between them."""
    return -(-count // columns) * (shape[0] + 1) - 1, columns * (shape[1] + 1) - 1


def is_large(height: int, width: int) -> bool:
    """Whether a grid gets a picture of its own, pixel by pixel, instead of a place in a figure."""
    return max(height, width) > _LARGEST_PANEL


def image_grid(images: np.ndarray, columns: int) -> np.ndarray:
    """Images (N, H, W, C) as one picture, row by row, with a line of white between them."""
    count, height, width, channels = images.shape
    grid = np.full((*grid_size(count, columns, images.shape[1:]), channels), 255, np.uint8)
    for index, image in enumerate(images):
        y, x = divmod(index, columns)
        top, left = y * (height + 1), x * (width + 1)
        grid[top : top + height, left : left + width] = image
    return grid


def save_samples(
    path: Path, panels: dict[str, np.ndarray], title: str, columns: int | None = None
) -> None:
    """Panels of images (N, H, W, C) side by side, each under its name (the paper's Fig. 2).

    columns: images in a row (default: `default_columns`). No pixel of an image is lost: a figure
    grows with its panels, and a single panel that `is_large` is written alone, without its name.
    """
    grids = {
        name: image_grid(images, columns or default_columns(len(images))).squeeze()
        for name, images in panels.items()
    }
    height, width = (max(grid.shape[axis] for grid in grids.values()) for axis in (0, 1))
    if len(grids) == 1 and is_large(height, width):
        content = io.BytesIO()
        Image.fromarray(*grids.values()).save(content, format="PNG")
        write_atomically(path, content.getvalue())
        return
    grow = max(1.0, height / _PANEL, width / _PANEL)
    size = (4.6 * len(panels) * grow, 5.2 * grow)
    figure, axes = plt.subplots(1, len(panels), figsize=size, squeeze=False)
    for axis, (name, grid) in zip(axes[0], grids.items(), strict=True):
        axis.imshow(grid, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        axis.set_title(name)
        axis.axis("off")
    figure.suptitle(title)
    figure.tight_layout()
    _save(figure, path)


def save_curves(path: Path, records: list[dict], title: str) -> None:
    """Exact validation NLL, and the reconstruction error where a layer learned its inverse,
    against epochs and training seconds."""
    rows = {"exact validation NLL (nats)": [record["validation_nll_nats"] for record in records]}
    if any(record["reconstruction"] > 0 for record in records):
        rows["reconstruction error\nΣ ‖g(f(h)) − h‖² per image"] = [
            record["reconstruction"] for record in records
        ]
    controlled = {} if "constraint" not in records[0] else _CONTROLLED
    count = len(rows) + len(controlled)
    figure, axes = plt.subplots(
        count, 2, figsize=(9.5, 3 * count + 0.4), sharex="col", sharey="row", squeeze=False
    )
    for column, (key, label) in enumerate((("epoch", "epoch"), ("seconds", "training seconds"))):
        x = [record[key] for record in records]
        for row, y in enumerate(rows.values()):
            axis = axes[row, column]
            axis.plot(x, y, marker="." if len(x) < 50 else None, color=f"C{row}")
            axis.grid(alpha=0.3, which="both")
            if row == 1:
                axis.set_yscale("log")
        for row, name in enumerate(controlled.values(), start=len(rows)):
            _draw_over_layers(axes[row, column], x, records, name, color=f"C{row}")
        axes[-1, column].set_xlabel(label)
    for row, label in enumerate((*rows, *controlled)):
        axes[row, 0].set_ylabel(label)
    figure.suptitle(title)
    figure.tight_layout()
    _save(figure, path)


# What a controller of λ adds to a run's curves: a label, and the name in the metrics.
_CONTROLLED = {"λ: mean and range\nover the layers": "lam"}
_CONTROLLED["constraint C: mean and\nrange over the layers"] = "constraint"


def _draw_over_layers(axis, x, records: list[dict], name: str, color: str) -> None:
    """A figure's mean over the layers, and between its smallest and its largest a band."""
    mean, low, high = (
        [record[name + suffix] for record in records] for suffix in ("", "_min", "_max")
    )
    axis.plot(x, mean, marker="." if len(x) < 50 else None, color=color)
    axis.fill_between(x, low, high, color=color, alpha=0.2, linewidth=0)
    axis.grid(alpha=0.3, which="both")
    if min(low) > 0:
        axis.set_yscale("log")


def save_lines(path: Path, x, lines: dict, x_label: str, y_label: str, title: str) -> None:
    """Several lines over the same x, in double-logarithmic axes."""
    figure, axis = plt.subplots(figsize=(6.4, 4.4))
    for name, y in lines.items():
        axis.loglog(x, y, marker=".", label=name)
    axis.set_xlabel(x_label)
    axis.set_ylabel(y_label)
    axis.set_title(title)
    axis.grid(alpha=0.3, which="both")
    axis.legend()
    figure.tight_layout()
    _save(figure, path)


def _save(figure, path: Path) -> None:
    content = io.BytesIO()
    figure.savefig(content, format=path.suffix[1:].lower(), dpi=_DPI)
    plt.close(figure)
    write_atomically(path, content.getvalue())
