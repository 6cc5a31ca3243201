"""The figures' common style: colours that are legible on white and on black, boxes and
arrows, and lines that move."""

import runpy
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from snfnp.ops import get_ops

# Grey in the middle: a contrast of 4 with white and of 4.5 with the dark pages' background.
INK = "#7a828c"
BLUE = "#3b82d6"
ORANGE = "#d0722a"
GREEN = "#2b9a66"
RED = "#d6455d"
PURPLE = "#8f6bd1"
THIN = {"color": INK, "linewidth": 0.8, "alpha": 0.8}  # of lines that guide the eye
PAGES = Path(__file__).parents[2] / "derivations"
OPS = get_ops("numpy")

for names, value in (
    (
        "text.color axes.edgecolor axes.labelcolor xtick.color ytick.color grid.color",
        INK,
    ),
    ("axes.facecolor figure.facecolor savefig.facecolor", "none"),
    ("axes.spines.top axes.spines.right legend.frameon", False),
):
    plt.rcParams.update(dict.fromkeys(names.split(), value))
plt.rcParams.update(
    {
        "backend": "Agg",
        "axes.prop_cycle": plt.cycler(color=[BLUE, ORANGE, GREEN]),
        "axes.titlesize": 10,
        "legend.fontsize": 8,
        "lines.linewidth": 1.4,
        "lines.markersize": 4,
        "grid.alpha": 0.25,
        "svg.hashsalt": "snfnp",  # the same names in every file
    }
)


def page_program() -> dict:
    """The names that page 00's program defines, after a new run of it."""
    return runpy.run_path(str(PAGES / "00-the-method.py"))


def canvas(width: float, height: float):
    """A figure without axes, whose coordinates are inches."""
    figure = plt.figure(figsize=(width, height))
    axis = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(0, height))
    axis.axis("off")
    return figure, axis


def laid_out(figure, *axes, **legend):
    """The figure with no more margins than it needs, and a grid and a legend on these axes."""
    for axis in axes:
        axis.grid()
        axis.legend(**legend)
    figure.tight_layout()
    return figure


def write(axis, x, y, text, color=INK, size=10):
    """A text whose middle is (x, y)."""
    axis.text(x, y, text, ha="center", va="center", color=color, fontsize=size)


def bare(axis, **settings):
    """Take away the ticks and the frame of an axis. settings: of the axis."""
    axis.set(xticks=[], yticks=[], **settings)
    axis.spines[:].set_visible(False)


def show_taps(axis, values, title: str, texts=()):
    """An image of values: k > 0 in the k-th of ten colours, and 0 without any. texts: in its
    pixels, row by row."""
    axis.imshow(np.ma.masked_equal(values, 0), cmap="tab10", vmin=1, vmax=10, alpha=0.8)
    bare(axis, title=title)
    for (row, column), text in zip(np.ndindex(values.shape), texts, strict=False):
        write(axis, column, row, text, "white")


def box(axis, x, y, width, height, label, color=INK, size=10, alpha=0.14):
    """A rounded box around (x, y) with a label."""
    corner = (x - width / 2, y - height / 2)
    shape = "round,pad=0,rounding_size=0.08"
    axis.add_patch(
        FancyBboxPatch(
            corner,
            width,
            height,
            facecolor=(color, alpha),
            edgecolor=color,
            boxstyle=shape,
        )
    )
    write(axis, x, y, label, size=size)


def arrow(
    axis,
    start,
    end,
    label="",
    color=INK,
    curve=0.0,
    offset=(0, 0.14),
    style="-|>",
):
    """An arrow with a label above its middle (moved by `offset`)."""
    axis.add_patch(
        FancyArrowPatch(
            start,
            end,
            arrowstyle=style,
            mutation_scale=12,
            color=color,
            shrinkA=0,
            shrinkB=0,
            connectionstyle=f"arc3,rad={curve}",
        )
    )
    middle = [(a + b) / 2 + d for a, b, d in zip(start, end, offset, strict=True)]
    write(axis, *middle, label, color)


def move(axis, frames, color: str, width: float) -> None:
    """Draw lines that move: frames (times, lines, points, 2) in the axis's coordinates.

    A line of one point is a dot. `save` writes them into the SVG as an animation that begins with
    its last frame, plays five times, and rests on that frame, which is what other viewers show.
    """
    figure = axis.figure
    figure.dpi = 72  # the unit of an SVG
    x, bottom, w, h = axis.bbox.bounds
    y = figure.bbox.height - bottom - h
    points = axis.transLimits.transform(frames.reshape(-1, 2)).reshape(frames.shape)
    drawn = [
        "".join(
            "M" + " ".join(f"{v:.1f}" for v in line.ravel()) + "h0" for line in frame
        )
        for frame in points * [w, -h] + [0, h]
    ]
    values = ";".join([drawn[-1], *drawn, drawn[-1]])
    times = ";".join(f"{t:.3f}" for t in (0, *np.linspace(0.08, 0.8, len(drawn)), 1))
    timing = f'keyTimes="{times}" dur="10s" repeatCount="5"'
    figure.moving = getattr(figure, "moving", "") + (
        f'<svg x="{x:.1f}" y="{y:.1f}" width="{w:.1f}" height="{h:.1f}"><path d="{drawn[-1]}" '
        f'style="fill: none; stroke: {color}; stroke-width: {width}; stroke-linecap: round">'
        f'<animate attributeName="d" {timing} values="{values}"/></path></svg>\n'
    )


def save(figure, path: Path) -> Path:
    """Write a figure, the same bytes for the same figure, and close it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    moving = getattr(figure, "moving", "")
    cropped = {} if moving else {"bbox_inches": "tight", "pad_inches": 0.05}
    figure.savefig(path, metadata={"Date": None, "Creator": None}, **cropped)
    if moving:
        still = path.read_text(encoding="utf-8").rstrip().removesuffix("</svg>")
        path.write_text(f"{still}{moving}</svg>\n", encoding="utf-8")
    plt.close(figure)
    return path
