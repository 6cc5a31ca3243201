"""A table in Markdown: ours, how long it was trained, the paper's, and the difference."""

from __future__ import annotations

import statistics

from reproduction.runs import Result
from reproduction.tables import Row, Table
from snfnp.data import Dataset


def markdown(table: Table, scale: str, dataset: Dataset, results: dict[Row, list]) -> str:
    """results: for each row its (seed, `Result`) pairs."""
    heads = (*table.heads, "ours", "seeds", "epochs: ours / paper", "paper", "difference")
    rows = [heads, ("---",) * len(heads)]
    comparable = scale != "smoke" and not dataset.is_sample
    rows += [(*row.cells, *_figures(row, found, comparable)) for row, found in results.items()]
    lines = [f"**{table.title}** (scale: {scale})", ""]
    lines += [f"| {' | '.join(cells)} |" for cells in rows]
    images = f"{len(dataset.train):,} training images from {dataset.source}"
    notes = [f"Ours: {images}."]
    if scale == "smoke":
        notes.append("These show that everything runs; their figures mean nothing.")
    elif dataset.is_sample:
        notes.append("The paper's data are 50,000 images: the figures cannot be compared.")
    return "\n".join([*lines, "", *(f"* {note}" for note in (*notes, *table.notes))])


def _figures(row: Row, found: list[tuple[int, Result]], comparable: bool) -> tuple[str, ...]:
    """ours, seeds, epochs, the paper's, difference; comparable: whether that means anything."""
    nats = [result.nll for _, result in found if result.nll is not None]
    ours = []
    if nats:
        ours.append(_nats(statistics.fmean(nats), statistics.stdev(nats) if nats[1:] else None))
    for seed, result in found:
        if result.nll is None:
            which = f" (seed {seed})" if found[1:] else ""
            ours.append(f"diverged at step {result.diverged_at or 'unknown'}{which}")
    epochs = sorted({result.epochs for _, result in found})
    trained = "–".join(f"{count:,}" for count in dict.fromkeys((epochs[0], epochs[-1])))
    paper = row.paper if isinstance(row.paper, str) else _nats(row.paper, row.spread)
    difference = "" if comparable else "other data"
    if comparable and nats and not isinstance(row.paper, str):
        difference = f"{statistics.fmean(nats) - row.paper:+.1f}"
    if comparable and nats and epochs[0] < row.epochs:
        difference = f"{difference} (not trained as long)".strip()
    seeds = ", ".join(str(seed) for seed, _ in found)
    return " and ".join(ours), seeds, f"{trained} / {row.epochs:,}", paper, difference


def _nats(mean: float, spread: float | None) -> str:
    return f"{mean:.1f}" if spread is None else f"{mean:.1f} ± {spread:.1f}"
