"""The curves of training: validation likelihoods of runs with several seeds and rules."""

import json
from pathlib import Path

import numpy as np

from drawings.style import BLUE, GREEN, ORANGE, plt
from snfnp.training.runs.folder import RunFolder

FILE = Path(__file__).with_name("likelihoods.json")
TITLES = {"fc": "fully connected, 2 layers", "conv": "convolutional, 9 layers"}
TITLES["glow-2l-4k"] = "Glow, 2L-4K"
_ABOUT = ("data", "model", "gradient", "recipe", "bias_init", "seed")


def collect(folders: list[Path]) -> Path:
    """Write likelihoods.json: for every run its settings and "points", one for each evaluation.

    nll: exact validation NLL in nats.
    """
    runs = []
    for folder, record in map(RunFolder.open, folders):
        points = [
            {"epoch": line["epoch"], "nll": round(line["validation_nll_nats"], 3)}
            for line in folder.read_metrics()
        ]
        about = {name: record["config"].get(name) for name in _ABOUT}
        runs.append({**about, "images": folder.data(record)[0][0], "points": points})
    FILE.write_text("[\n" + ",\n".join(map(json.dumps, runs)) + "\n]\n", encoding="utf-8")
    return FILE


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
    runs = json.loads(FILE.read_text(encoding="utf-8"))
    models = list(dict.fromkeys(run["model"] for run in runs))
    how = {"figsize": (1.2 + 2.8 * len(models), 5.2), "sharex": "col", "height_ratios": [3, 2]}
    figure, axes = plt.subplots(2, len(models), squeeze=False, **how)
    for (above, below), model in zip(axes.T, models, strict=True):
        own = [run for run in runs if run["model"] == model]
        exact = {run["seed"]: run["points"] for run in own if run["gradient"] == "exact"}
        seen = set()
        for run in own:
            label, color, style = _look(run)
            epoch, nll = np.array([(each["epoch"], each["nll"]) for each in run["points"]]).T
            look = {"color": color, "linestyle": style, "linewidth": 1.3}
            look["zorder"] = 3 if run["gradient"] == "exact" else 2  # seen on what it agrees with
            above.plot(epoch, nll, label=None if label in seen else label, **look)
            reference = [point["nll"] for point in exact.get(run["seed"], [])][: len(nll)]
            if run["gradient"] != "exact" and reference:
                shared = len(reference)
                below.plot(epoch[:shared], nll[:shared] - reference, **look)
            seen.add(label)
        below.axhline(0, color=ORANGE, linestyle="--", linewidth=1.3)
        above.set(title=TITLES.get(model, model), yscale="log")
        below.set_xlabel("epoch")
        below.xaxis.set_major_locator(plt.MaxNLocator(integer=True))
        for axis in (above, below):
            axis.grid(which="both")
        above.yaxis.set_major_formatter("{x:.0f}")
        above.yaxis.set_minor_formatter("{x:.0f}")
    axes[0, 0].set_ylabel("exact validation NLL (nats)")
    axes[1, 0].set_ylabel("minus the exact\ngradient's (nats)")
    lines, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(lines, labels, loc="upper center", ncols=len(labels))
    figure.tight_layout(rect=(0, 0, 1, 0.94))
    return figure
