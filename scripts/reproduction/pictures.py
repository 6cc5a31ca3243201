"""The pictures of the results, in the derivations' style."""

from pathlib import Path

import numpy as np
from drawings.style import BLUE, GREEN, ORANGE, laid_out, plt, save


def save_angles(
    path: Path, panels: dict[str, tuple[tuple[str, float], list[tuple]]]
) -> None:
    """A panel for each model: ((the paper's level in words, in degrees), (epochs, mean angles,
    deviations))."""
    figure, axes = plt.subplots(1, len(panels), figsize=(9.5, 3.4), squeeze=False)
    for axis, (label, ((words, level), columns)) in zip(
        axes[0], panels.items(), strict=True
    ):
        epochs, mean, spread = columns
        low = np.subtract(mean, spread)
        high = np.add(mean, spread)
        axis.plot(epochs, mean, color=BLUE, label="ours")
        axis.fill_between(epochs, low, high, color=BLUE, alpha=0.2, linewidth=0)
        axis.axhline(level, label=f"paper: {words}°", color=ORANGE, linestyle="--")
        axis.set(title=label, xlabel="epoch", ylim=(0, None))
    axes[0, 0].set_ylabel("angle to the exact gradient (°)")
    save(laid_out(figure, *axes[0]), path)


def save_sweeps(path: Path, layers: dict[str, list[dict]]) -> None:
    """A panel for each layer: milliseconds over D, for every gradient that was timed."""
    figure, axes = plt.subplots(1, len(layers), figsize=(9.5, 3.8), squeeze=False)
    for axis, (label, rows) in zip(axes[0], layers.items(), strict=True):
        keys = [key for key in rows[0] if key.endswith(" ms")]
        for key, color in zip(keys, (BLUE, ORANGE, GREEN), strict=False):
            name = key.removesuffix(" ms")
            values = [row[key] for row in rows]
            axis.loglog(
                [row["D"] for row in rows], values, marker=".", color=color, label=name
            )
        axis.set(title=label, xlabel="dimension D")
    axes[0, 0].set_ylabel("time per batch of 128 (ms)")
    save(laid_out(figure, *axes[0]), path)


def save_rates(path: Path, arms: dict[tuple[str, str], list[tuple]]) -> None:
    """{(coordinates, gradient): [(learning rate, NLL), …]}: a line for each, dashed for exact
    gradients. What is far above the best of the worst line is not shown."""
    figure, axis = plt.subplots(figsize=(6.5, 4))
    colors = {"plain": ORANGE, "scaled": GREEN, "white": BLUE}
    best = []
    for (coordinates, gradient), points in arms.items():
        rates, nats = zip(*sorted(points), strict=True)
        best.append(min(nats))
        axis.semilogx(
            rates,
            nats,
            marker="o",
            color=colors[coordinates],
            linestyle="--" if gradient == "exact" else "-",
            label=f"{coordinates}, {gradient}",
        )
    margin = max(best) - min(best) or 1  # of one arm
    axis.set(
        xlabel="learning rate at its highest",
        ylabel="test NLL (nats)",
        ylim=(min(best) - margin / 5, max(best) + 2 * margin),
    )
    save(laid_out(figure, axis), path)
