"""The curves of training: validation likelihoods of runs with several seeds and rules."""

from __future__ import annotations

import numpy as np

from drawings.data import read
from drawings.style import BLUE, GREEN, ORANGE, plt

TITLES = {
    "fc": "fully connected, 2 layers",
    "conv": "convolutional, 9 layers",
    "glow-2l-4k": "Glow, 2L-4K",
}


def _look(run: dict) -> tuple[str, str, str]:
    """A run's way of training, and its line's color and style."""
    if run["gradient"] == "exact":
        return "exact gradient", ORANGE, "--"
    if run["recipe"] == "least-squares":
        return "learned inverse, least-squares recipe", GREEN, "-"
    return "learned inverse", BLUE, "-"


def likelihoods():
    """Exact validation NLL by epoch, one line for each seed (Fig. 5, right).

    Below, how far every run is behind the exact gradient of the same seed.
    """
    runs = read()
    models = list(dict.fromkeys(run["model"] for run in runs))
    figure, axes = plt.subplots(
        2,
        len(models),
        figsize=(2.2 + 4.0 * len(models), 5.2),
        squeeze=False,
        sharex="col",
        height_ratios=[3, 2],
    )
    for (above, below), model in zip(axes.T, models, strict=True):
        own = [run for run in runs if run["model"] == model]
        exact = {run["seed"]: run["points"] for run in own if run["gradient"] == "exact"}
        seen = set()
        for run in own:
            label, color, style = _look(run)
            epoch = [point["epoch"] for point in run["points"]]
            nll = np.array([point["nll"] for point in run["points"]])
            look = {"color": color, "linestyle": style, "linewidth": 1.3}
            above.plot(epoch, nll, label=None if label in seen else label, **look)
            reference = exact.get(run["seed"], [])
            shared = min(len(reference), len(nll))
            if run["gradient"] != "exact" and shared:
                difference = nll[:shared] - [point["nll"] for point in reference[:shared]]
                below.plot(epoch[:shared], difference, **look)
            seen.add(label)
        below.axhline(0, color=ORANGE, linestyle="--", linewidth=1.3)
        above.set(title=TITLES.get(model, model), yscale="log")
        below.set_xlabel("epoch")
        below.xaxis.set_major_locator(plt.MaxNLocator(integer=True))
        for axis in (above, below):
            axis.grid(which="both")
        above.yaxis.set_minor_formatter("{x:.0f}")
        above.legend()
    axes[0, 0].set_ylabel("exact validation NLL (nats)")
    axes[1, 0].set_ylabel("minus the exact\ngradient's (nats)")
    figure.tight_layout()
    return figure
