"""The figures' common style: colours that are legible on white and on black, boxes and arrows."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

# Grey in the middle: a contrast of 4 with white and of 4.5 with the dark pages' background.
INK = "#7a828c"
BLUE, ORANGE, GREEN, RED, PURPLE = "#3b82d6", "#d0722a", "#2b9a66", "#d6455d", "#8f6bd1"

plt.rcParams.update(
    {
        "font.size": 10,
        "mathtext.fontset": "dejavusans",
        "svg.hashsalt": "snfnp",
        "axes.facecolor": "none",
        "figure.facecolor": "none",
        "savefig.facecolor": "none",
        "text.color": INK,
        "axes.edgecolor": INK,
        "axes.labelcolor": INK,
        "axes.titlesize": 10,
        "xtick.color": INK,
        "ytick.color": INK,
        "grid.color": INK,
        "grid.alpha": 0.25,
        "legend.frameon": False,
        "lines.linewidth": 1.8,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
)


def canvas(width: float, height: float):
    """A figure without axes, whose coordinates are inches."""
    figure, axis = plt.subplots(figsize=(width, height))
    axis.set(xlim=(0, width), ylim=(0, height), aspect="equal")
    axis.axis("off")
    figure.subplots_adjust(0, 0, 1, 1)
    return figure, axis


def box(axis, x, y, width, height, label, color=INK, size=10, alpha=0.14):
    """A rounded box around (x, y) with a label."""
    corner = (x - width / 2, y - height / 2)
    for face, edge in (((color, alpha), "none"), ("none", color)):
        patch = FancyBboxPatch(
            corner,
            width,
            height,
            boxstyle="round,pad=0,rounding_size=0.08",
            facecolor=face,
            edgecolor=edge,
            linewidth=1.3,
        )
        axis.add_patch(patch)
    axis.text(x, y, label, ha="center", va="center", fontsize=size)


def arrow(axis, start, end, label="", color=INK, curve=0.0, offset=(0, 0.14), size=10, style="-|>"):
    """An arrow with a label above its middle (moved by `offset`)."""
    axis.add_patch(
        FancyArrowPatch(
            start,
            end,
            arrowstyle=style,
            mutation_scale=12,
            color=color,
            linewidth=1.5,
            shrinkA=0,
            shrinkB=0,
            connectionstyle=f"arc3,rad={curve}",
        )
    )
    middle = [(a + b) / 2 + d for a, b, d in zip(start, end, offset, strict=True)]
    if label:
        axis.text(*middle, label, color=color, ha="center", va="center", fontsize=size)


def save(figure, path: Path) -> Path:
    """Write a figure, the same bytes for the same figure, and close it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(
        path, metadata={"Date": None, "Creator": None}, bbox_inches="tight", pad_inches=0.05
    )
    plt.close(figure)
    return path
