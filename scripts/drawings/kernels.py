"""Convolutions and their inverses: entries by distance, masks, the exponential's terms, walks."""

import numpy as np
from scipy.linalg import expm

from drawings.style import BLUE, GREEN, INK, ORANGE, PURPLE, RED, arrow, canvas, plt
from snfnp.beyond.conv_exponential import ConvExponential
from snfnp.beyond.emerging import CausalConv2d
from snfnp.gradcheck import as_matrix
from snfnp.maps import Conv2d
from snfnp.ops import get_ops


def inverse_entries():
    """Size of the entries of a convolution's inverse, by the distance of the two pixels, and
    how far learned kernels reach (page 08)."""
    ops, shape = get_ops("numpy"), (12, 12, 1)
    f, rng = Conv2d((3, 3), 1), np.random.default_rng(8)
    w = f.identity() + 0.1 * rng.standard_normal(f.weight_shape)
    inverse = np.abs(np.linalg.inv(as_matrix(f, ops, w, shape))).reshape(12, 12, 12, 12)
    u, v, a, b = np.indices(inverse.shape)
    distance = np.maximum(np.abs(u - a), np.abs(v - b))
    figure, axis = plt.subplots(figsize=(6.2, 3.2))
    reach = np.arange(9)
    largest = [inverse[distance == d].max() for d in reach]
    typical = [np.median(inverse[distance == d]) for d in reach]
    axis.semilogy(reach, largest, "o-", color=BLUE, label="the largest")
    axis.semilogy(reach, typical, "o-", color=GREEN, label="the median")
    for size, color in ((3, ORANGE), (5, RED), (7, PURPLE)):
        at = (size - 1) / 2 + 0.5
        axis.axvline(at, color=color, linestyle="--", linewidth=1.2)
        axis.text(at + 0.05, 1.1, f"{size}×{size}", color=color, fontsize=9)
    axis.set(xlabel="distance of the two pixels", ylabel="|entry of the inverse|")
    axis.grid()
    axis.legend(fontsize=8)
    figure.tight_layout()
    return figure


def masks():
    """Pixels that an output of an emerging convolution sees: each of its two masked ones, and both
    (page 11)."""
    ops, side = get_ops("numpy"), 7
    layer, rng = CausalConv2d(1, bias=False), np.random.default_rng(11)
    weight = {"W": 0.3 + rng.random((2, 2, 1, 1))}
    basis = np.eye(side * side).reshape(-1, side, side, 1)
    first = layer.forward(ops, weight, basis)[0].reshape(side * side, -1).T
    turned = first[::-1, ::-1]
    centre = side * side // 2
    figure, axes = plt.subplots(1, 3, figsize=(7.0, 2.6))
    for axis, matrix, title in zip(
        axes,
        (first, turned, turned @ first),
        ("one: above and left", "its mirror image", "one after the other"),
        strict=True,
    ):
        seen = (np.abs(matrix[centre]) > 1e-12).reshape(side, side)
        for row, column in np.argwhere(seen):
            axis.fill([column, column + 1, column + 1, column], [row, row, row + 1, row + 1],
                      color=BLUE, alpha=0.45, linewidth=0)  # fmt: skip
        middle = side // 2
        axis.plot(middle + 0.5, middle + 0.5, "o", color=ORANGE, markersize=5)
        for line in range(side + 1):
            axis.plot([0, side], [line, line], color=INK, linewidth=0.5)
            axis.plot([line, line], [0, side], color=INK, linewidth=0.5)
        axis.set(title=title, aspect="equal", ylim=(side, 0))
        axis.axis("off")
    figure.tight_layout()
    return figure


def exponential_terms():
    """Remainder of the series of the convolution exponential, by the number of terms (page
    12)."""
    ops, shape, rng = get_ops("numpy"), (6, 6, 2), np.random.default_rng(12)
    x = rng.standard_normal((5, *shape))
    terms = np.arange(1, 13)
    figure, axis = plt.subplots(figsize=(6.2, 3.2))
    for norm, color in ((0.3, GREEN), (0.9, BLUE), (2.0, ORANGE)):
        layer = ConvExponential(2)
        kernel = rng.standard_normal((3, 3, 2, 2))
        matrix = as_matrix(layer.map, ops, kernel, shape)
        kernel = kernel * norm / np.linalg.norm(matrix, 2)
        matrix = matrix * norm / np.linalg.norm(matrix, 2)
        power, total, errors = x.reshape(5, -1), x.reshape(5, -1), []
        exact = power @ expm(matrix).T
        for k in terms:
            power = layer.map.apply(ops, kernel, power.reshape(x.shape)).reshape(5, -1) / k
            total = total + power
            errors.append(np.linalg.norm(total - exact) / np.linalg.norm(exact))
        axis.semilogy(terms, np.maximum(errors, 1e-17), "o-", color=color, markersize=3,
                      label=f"‖T‖ = {norm}")  # fmt: skip
    axis.axhline(2**-24, color=INK, linestyle=":", linewidth=1)
    axis.text(1, 2**-24 * 1.6, "single precision", fontsize=8)
    axis.set(xlabel="terms", ylabel="relative error")
    axis.grid()
    axis.legend(fontsize=8)
    figure.tight_layout()
    return figure


def border_walk():
    """Closed walks of three steps, one for each kernel: the left one stays inside, the right one
    does not (page 22)."""
    figure, axis = canvas(6.2, 2.7)
    size, low = 0.62, 0.35
    for left, title, steps, color in (
        (0.6, "counts: inside at every step", ((1, 0), (2, 1), (1, 1)), BLUE),
        (3.9, "does not count: outside there is 0", ((2, 0), (1, -1), (1, 0)), RED),
    ):
        for row in range(3):
            for column in range(3):
                corner = (left + column * size, low + row * size)
                axis.add_patch(
                    plt.Rectangle(
                        corner, size, size, facecolor="none", edgecolor=INK, linewidth=0.7
                    )
                )
        points = [(left + (c + 0.5) * size, low + (r + 0.5) * size) for r, c in steps]
        middle = np.mean(points, axis=0)
        for k, step in enumerate(("$w$", "$r_2$", "$r_1$")):
            start, end = np.array(points[k]), np.array(points[(k + 1) % 3])
            arrow(axis, tuple(start), tuple(end), "", color)
            outwards = (start + end) / 2 - middle
            at = (start + end) / 2 + 0.2 * outwards / max(np.linalg.norm(outwards), 1e-9)
            axis.text(*at, step, color=color, ha="center", va="center", fontsize=11)
        axis.plot(*points[0], "o", color=color, markersize=7)
        axis.text(left + 1.5 * size, 2.4, title, ha="center", fontsize=9, color=color)
    return figure
