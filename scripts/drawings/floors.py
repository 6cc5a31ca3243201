"""The floors of the package: what imports what, from the test that holds the imports to it."""

import runpy
from pathlib import Path

from drawings.style import BLUE, GREEN, INK, ORANGE, PURPLE, arrow, box, canvas

TEST = Path(__file__).parents[2] / "tests" / "test_architecture.py"
HEIGHT, GAP, SIDE, LETTER = 0.42, 0.16, 0.5, 0.088  # inches


def rows() -> list[list[str]]:
    """The names on each floor, from the roof down."""
    floors = runpy.run_path(str(TEST))["FLOORS"]
    return [sorted(name for name in names if not name.startswith("_")) for names in floors]


def floors():
    """A row of boxes for each floor; what is in one imports from the rows below it."""
    drawn = rows()
    widths = [[LETTER * len(name) + 0.3 for name in names] for names in drawn]
    lines = [sum(row) + GAP * (len(row) - 1) for row in widths]
    width, height = max(lines) + 2 * SIDE, len(drawn) * (HEIGHT + GAP) + GAP
    figure, axis = canvas(width, height)
    colors = (INK, ORANGE, PURPLE, BLUE, GREEN)
    for floor, (names, row, line) in enumerate(zip(drawn, widths, lines, strict=True)):
        x, y = (width - line) / 2, height - GAP - floor * (HEIGHT + GAP) - HEIGHT / 2
        for name, own in zip(names, row, strict=True):
            box(axis, x + own / 2, y, own, HEIGHT, name, colors[floor % len(colors)], 9)
            x += own + GAP
    arrow(axis, (0.2, height - GAP), (0.2, GAP), color=INK)
    axis.text(0.08, height / 2, "imports", rotation=90, ha="center", va="center", fontsize=8)
    return figure
