"""The pictures of a run. Matplotlib is imported here and nowhere else in the package."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # files only: works without a display
import matplotlib.pyplot as plt
import numpy as np


def image_grid(images: np.ndarray, columns: int) -> np.ndarray:
    """Images (N, H, W, C) as one picture, row by row, with a line of white between them."""
    count, height, width, channels = images.shape
    rows = -(-count // columns)
    grid = np.full((rows * (height + 1) - 1, columns * (width + 1) - 1, channels), 255, np.uint8)
    for index, image in enumerate(images):
        y, x = divmod(index, columns)
        top, left = y * (height + 1), x * (width + 1)
        grid[top : top + height, left : left + width] = image
    return grid


def save_samples(path: Path, panels: dict[str, np.ndarray], title: str, columns: int = 8) -> None:
    """Panels of images (N, H, W, C) side by side, each under its name (the paper's Fig. 2)."""
    figure, axes = plt.subplots(1, len(panels), figsize=(4.6 * len(panels), 5.2), squeeze=False)
    for axis, (name, images) in zip(axes[0], panels.items(), strict=True):
        grid = image_grid(images, columns)
        axis.imshow(grid.squeeze(), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
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
    figure, axes = plt.subplots(
        len(rows), 2, figsize=(9.5, 3 * len(rows) + 0.4), sharex="col", sharey="row", squeeze=False
    )
    for column, (key, label) in enumerate((("epoch", "epoch"), ("seconds", "training seconds"))):
        x = [record[key] for record in records]
        for row, y in enumerate(rows.values()):
            axis = axes[row, column]
            axis.plot(x, y, marker="." if len(x) < 50 else None, color=f"C{row}")
            axis.grid(alpha=0.3, which="both")
            if row == 1:
                axis.set_yscale("log")
        axes[-1, column].set_xlabel(label)
    for row, label in enumerate(rows):
        axes[row, 0].set_ylabel(label)
    figure.suptitle(title)
    figure.tight_layout()
    _save(figure, path)


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
    figure.savefig(path, dpi=110)
    plt.close(figure)
