"""The pictures of the results, in the derivations' style."""

from pathlib import Path

import numpy as np
from drawings.style import BLUE, GREEN, ORANGE, PURPLE, laid_out, plt, save


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


def save_lengths(path: Path, panels: dict[tuple, dict[str, list[tuple]]]) -> None:
    """Two panels for each model: {(model, unit of the length): {arm: [(length, NLL), …]}}."""
    figure, axes = plt.subplots(len(panels) // 2, 2, figsize=(9.5, 7), squeeze=False)
    colors = {"zero-biases": PURPLE, "plain": ORANGE, "scaled": GREEN, "white": BLUE}
    styles = {"forward": "-o", "exact": "--s", "mixture": ":^"}
    for axis, ((model, unit), arms) in zip(axes.flat, panels.items(), strict=True):
        for name, points in arms.items():
            coordinates, gradient = name.split(", ")
            line = *np.transpose(points), styles[gradient]
            axis.plot(*line, color=colors[coordinates], label=name)
        axis.set(title=model, xlabel=unit, ylabel="test NLL (nats)")
    save(laid_out(figure, *axes.flat, loc="upper right"), path)
