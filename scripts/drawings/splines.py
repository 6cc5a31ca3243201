"""A rational-quadratic spline: its bins, its slope, and the tails outside of them."""

import numpy as np

from drawings.style import BLUE, INK, ORANGE, plt
from snfnp.layers import RationalQuadraticSpline
from snfnp.ops import get_ops


def spline():
    """The layer itself, one pixel of it, with parameters that show what it can do."""
    ops, layer = get_ops("numpy"), RationalQuadraticSpline()
    params = {
        "widths": np.array([[0.3, 0.9, -0.4, 0.5, 0.2]]),
        "heights": np.array([[-0.6, 0.2, 1.3, -0.3, 0.4]]),
        "slopes": np.array([[-1.2, 1.6, 1.0, -1.0]]),
    }
    x = np.linspace(-13, 13, 1301)
    y, ldj, cache = layer.forward(ops, params, x[:, None])
    at, heights, slopes = cache["knots"][..., 0]
    how = {"figsize": (6.2, 5.4), "sharex": True, "height_ratios": [3, 2]}
    figure, (above, below) = plt.subplots(2, 1, **how)
    above.plot(x, x, color=INK, linewidth=1, linestyle=":", label="the identity")
    above.plot(x, y[:, 0], color=BLUE, label="$y(x)$")
    above.plot(at, heights, "o", color=ORANGE, label="knots $(x_k, y_k)$")
    above.set_ylabel("$y$")
    below.plot(x, np.exp(ldj), color=BLUE, label="$dy/dx$")
    below.plot(at, slopes, "o", color=ORANGE, label="$d_k$; 1 at both ends")
    below.axhline(1, color=INK, linewidth=1, linestyle=":")
    below.set(xlabel="$x$", ylabel="slope", ylim=(0, None))
    for axis in (above, below):
        for k, knot in enumerate(at):
            axis.axvline(knot, color=INK, linewidth=0.7, alpha=0.6)
            if k % 2 == 0 and k + 1 < len(at):
                axis.axvspan(knot, at[k + 1], color=INK, alpha=0.08, linewidth=0)
        axis.legend(loc="upper left")
    for k in range(layer.bins):
        middle = (at[k] + at[k + 1]) / 2
        above.text(middle, -12.6, f"bin {k}", ha="center", fontsize=8)
    for end in (-1, 1):
        above.text(end * 11.6, -8 if end > 0 else 4, "tail:\n$y = x$", ha="center", fontsize=8)
    figure.tight_layout()
    return figure
