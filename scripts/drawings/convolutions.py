"""A convolution as a matrix, and how its determinant is found block by block."""

import numpy as np

from drawings.style import BLUE, GREEN, INK, ORANGE, PURPLE, arrow, box, canvas, plt
from snfnp.gradcheck import as_matrix
from snfnp.maps import Conv2d
from snfnp.ops import get_ops


def _grid(axis, height, width):
    """Lines between the blocks of a matrix, one for each pair of image rows."""
    for edge in range(0, height * width + 1, width):
        axis.axhline(edge - 0.5, color=INK, linewidth=0.5, alpha=0.6)
        axis.axvline(edge - 0.5, color=INK, linewidth=0.5, alpha=0.6)
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_visible(False)


def matrix():
    """T(w) of a 3×3 kernel on an image of 5×4 pixels, one U_i, and m."""
    ops, (height, width) = get_ops("numpy"), (5, 4)
    f = Conv2d((3, 3), 1)
    shape, kernel = (height, width, 1), np.arange(1.0, 10.0).reshape(3, 3, 1, 1)
    chosen = np.zeros_like(kernel)
    chosen[0, 1] = 1.0  # the tap above the centre
    colors = plt.get_cmap("tab10", 10)
    figure, axes = plt.subplots(1, 4, figsize=(9.4, 3.0), width_ratios=[0.55, 1, 1, 0.55])
    for axis, values, title in (
        (axes[0], kernel[:, :, 0, 0], "the kernel $w$"),
        (axes[3], f.multiple(shape)[:, :, 0, 0], "$m$: how often each\nelement is used"),
    ):
        axis.set_title(title)
        axis.set(xticks=[], yticks=[], xlim=(-0.5, 2.5), ylim=(2.5, -0.5), aspect="equal")
        for (row, column), value in np.ndenumerate(values):
            corner, color = (column - 0.5, row - 0.5), colors(3 * row + column)
            axis.add_patch(plt.Rectangle(corner, 1, 1, facecolor=color, alpha=0.8))
            label = f"$w_{int(value)}$" if axis is axes[0] else f"{value:.0f}"
            axis.text(column, row, label, ha="center", va="center", color="white", fontsize=12)
        axis.spines[:].set_visible(False)
    whole = as_matrix(f, ops, kernel, shape)
    image = np.zeros((*whole.shape, 4))
    image[whole > 0] = colors((whole[whole > 0] - 1).astype(int))
    image[..., 3] *= 0.8
    axes[1].imshow(image)
    axes[1].set_title("$T(w)$, 20 × 20: a block for each\npair of rows of the 5 × 4 image")
    indicator = as_matrix(f, ops, chosen, shape)
    axes[2].imshow(np.where(indicator[..., None] > 0, colors(1), 0.0))
    count = int(indicator.sum())
    axes[2].set_title(f"$U_2$: 1 where $w_2$ stands,\n{count} places, so $m_2 = {count}$")
    for axis in axes[1:3]:
        _grid(axis, height, width)
    figure.tight_layout()
    return figure


def block_elimination():
    """The rows of an image as blocks of T, and what elimination leaves on the diagonal."""
    figure, axis = canvas(8.4, 3.4)
    size, n = 0.52, 5
    for left, title in ((0.3, "$T$"), (4.9, "after elimination")):
        axis.text(left + n * size / 2, 3.1, title, ha="center", fontsize=11)
        done = left > 1
        for i in range(n):
            for j in range(n):
                x, y = left + (j + 0.5) * size, 2.75 - (i + 0.5) * size
                if i == j:
                    label = f"$D_{i + 1}$" if done else "$B$"
                    box(axis, x, y, 0.47, 0.47, label, GREEN if done else BLUE, 11, 0.25)
                elif j == i + 1:
                    box(axis, x, y, 0.47, 0.47, "$U$", ORANGE, 11)
                elif j == i - 1:
                    label, color = ("$0$", INK) if done else ("$L$", PURPLE)
                    box(axis, x, y, 0.47, 0.47, label, color, 11, 0.0 if done else 0.14)
    arrow(axis, (3.1, 1.6), (4.7, 1.6))
    for x, y, text, color in (
        (3.9, 2.2, "row $i{+}1$ minus\n$L D_i^{-1}$ row $i$", INK),
        (3.9, 1.05, "$D_1 = B$\n$D_{i+1} = B - L D_i^{-1} U$", GREEN),
        (6.2, -0.1, r"$\log|\det T| = \sum_i \log|\det D_i|$", GREEN),
        (1.6, -0.1, "blocks of $n$ rows and columns", INK),
    ):
        axis.text(x, y, text, ha="center", va="center", fontsize=9, color=color)
    return figure
