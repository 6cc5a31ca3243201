"""The pictures of the results, in the derivations' style."""

from __future__ import annotations

from pathlib import Path

from drawings.style import BLUE, INK, ORANGE, plt, save

Figure = tuple[float, float] | None  # a mean and its standard deviation; None: there is none


def save_beside(
    path: Path, labels: list[str], series: dict[str, list[Figure]], axis_label: str, log=False
) -> None:
    """A row for each label, with a point and its deviation for each of the series."""
    figure, axis = plt.subplots(figsize=(7.5, 1.2 + 0.36 * len(labels)))
    rows = range(len(labels))
    offsets = (-0.12, 0.12)
    for (name, figures), color, marker, offset in zip(
        series.items(), (BLUE, ORANGE), ("o", "s"), offsets, strict=True
    ):
        known = [(row + offset, own) for row, own in zip(rows, figures, strict=True) if own]
        axis.errorbar(
            [mean for _, (mean, _) in known],
            [y for y, _ in known],
            xerr=[deviation for _, (_, deviation) in known],
            fmt=marker,
            color=color,
            markersize=5,
            linewidth=1.3,
            label=name,
        )
    axis.set_yticks(rows, labels)
    axis.set_ylim(len(labels) - 0.5, -0.5)  # the first row above
    axis.set_xlabel(axis_label)
    if log:
        axis.set_xscale("log")
    axis.grid(axis="x")
    axis.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=len(series), labelcolor=INK)
    save(figure, path)
