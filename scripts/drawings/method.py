"""Page 00: what its program does on the plane."""

import runpy
from pathlib import Path

import numpy as np

from drawings.style import BLUE, INK, ORANGE, plt

_PROGRAM = Path(__file__).parents[2] / "derivations" / "00-the-method.py"


def plane():
    """The program's flow, trained as the program does: data and samples, ‖RW − I‖, the angle."""
    program = runpy.run_path(str(_PROGRAM))
    rng = np.random.default_rng(0)
    flow = [program["Dense"](2, rng, 0.4), program["Bend"](), program["Dense"](2, rng, 0.4)]
    steps = 2000
    seen = program["train"](flow, program["cloud"], steps, 0.02, rng)
    z = rng.standard_normal((250, 2))
    for layer in reversed(flow):
        z = layer.inverse(z)
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(9.6, 3.2))
    left.plot(*program["cloud"](rng, 250).T, ".", color=INK, markersize=3, alpha=0.6, label="data")
    left.plot(*z.T, ".", color=BLUE, markersize=3, label="samples")
    left.set(title="data, and samples through $R$", xticks=[], yticks=[])
    at = np.arange(1, len(seen) + 1) * steps / len(seen)
    for axis, column, title in (
        (middle, 0, r"$\Vert R W - I\Vert$"),
        (right, 1, "degrees from the exact gradient"),
    ):
        for layer, (color, label) in enumerate(((BLUE, "first layer"), (ORANGE, "second layer"))):
            axis.semilogy(at, seen[:, layer, column], color=color, label=label, linewidth=1.4)
        axis.set(title=title, xlabel="step")
        axis.grid()
    for axis in (left, middle):
        axis.legend(fontsize=8)
    figure.tight_layout()
    return figure
