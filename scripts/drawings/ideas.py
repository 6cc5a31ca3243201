"""Pages 03, 04 and 07: one picture for each idea, narrow enough for a phone."""

import numpy as np

from drawings.style import BLUE, GREEN, OPS, ORANGE, THIN, laid_out, plt, show_taps
from snfnp.gradcheck import as_matrix
from snfnp.maps import Conv2d


def dequantisation():
    """A pixel of eight grey levels: its density with uniform noise, and after the logit, whose
    slope multiplies it (page 03)."""
    weights = np.array([0.42, 0.07, 0.05, 0.05, 0.06, 0.08, 0.12, 0.15])
    figure, (above, below) = plt.subplots(2, 1, figsize=(4.2, 4.4))
    above.bar(range(8), weights, width=1, align="edge", color=BLUE, alpha=0.35)
    above.vlines(range(8), 0, weights, color=ORANGE)
    above.plot(weights, "o", color=ORANGE)
    above.set(
        xlabel="grey level $y$ (orange), $y + u$ (blue)", ylabel="probability, density"
    )
    x = np.linspace(-6, 6, 2000)
    s = 1 / (1 + np.exp(-x))
    slope = s * (1 - s)
    density = weights[(8 * s).astype(int)] * 8 * slope
    below.fill_between(x, density, color=BLUE, alpha=0.35)
    below.plot(x, slope, color=GREEN, label="all levels alike")
    below.set(xlabel="$x = \\log s - \\log(1 - s)$", ylabel="density of $x$")
    return laid_out(figure, below)


def operations():
    """The operations of an exact step in those of a self-normalizing one, by D/N (page 04)."""
    ratio = np.geomspace(0.3, 30, 200)
    figure, axis = plt.subplots(figsize=(4.2, 3.0))
    axis.semilogx(ratio, 0.5 + ratio / 6)
    axis.axhline(1, **THIN)
    for x, label, corner in (
        (3, "$N = D/3$", (3.6, 0.6)),
        (7.84, "D = 784, N = 100", (0.6, 2.2)),
    ):
        axis.plot(x, 0.5 + x / 6, "o", color=ORANGE)
        axis.annotate(label, (x, 0.5 + x / 6), corner, color=ORANGE)
    axis.set(
        xlabel="features per image of the batch, $D / N$",
        ylabel="exact / self-normalizing",
    )
    axis.set_xticks([1, 3, 10, 30], ["1", "3", "10", "30"])
    axis.grid()
    return laid_out(figure)


def flip():
    """A kernel and its flip, and their matrices: each is the other's transpose (page 07)."""
    f = Conv2d((3, 3), 1)
    kernel = np.arange(1.0, 10.0).reshape(3, 3, 1, 1)
    figure, axes = plt.subplots(2, 2, figsize=(4.2, 4.7), height_ratios=[0.62, 1])
    named = ((kernel, "$w$", "$T(w)$"), (f.flip(kernel), "flip$(w)$", "$T($flip$(w))$"))
    for column, (w, title, of_matrix) in enumerate(named):
        taps = w[:, :, 0, 0]
        show_taps(axes[0, column], taps, title, [f"$w_{k:.0f}$" for k in taps.flat])
        matrix = as_matrix(f, OPS, w, (4, 3, 1))
        show_taps(axes[1, column], matrix, of_matrix)
        axes[1, column].set(xlabel="pixel in", ylabel="pixel out")
        axes[1, column].plot([-0.5, 11.5], [-0.5, 11.5], **THIN)
    return laid_out(figure)
