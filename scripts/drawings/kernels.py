"""Convolutions and their inverses: as matrices, by blocks, by distance, as series."""

import numpy as np
from matplotlib.colors import ListedColormap
from scipy.linalg import expm

from drawings.style import (
    BLUE,
    GREEN,
    INK,
    OPS,
    ORANGE,
    PURPLE,
    RED,
    THIN,
    arrow,
    box,
    canvas,
    laid_out,
    plt,
    show_taps,
    write,
)
from snfnp.gradcheck import as_matrix
from snfnp.layers.baselines import CausalConv2d, ConvExponential
from snfnp.maps import Conv2d


def inverse_entries():
    """Size of the entries of a convolution's inverse, by the distance of the two pixels, and
    how far learned kernels reach (page 08)."""
    shape = (12, 12, 1)
    f = Conv2d((3, 3), 1)
    rng = np.random.default_rng(8)
    w = f.identity() + 0.1 * rng.standard_normal(f.weight_shape)
    inverse = np.abs(np.linalg.inv(as_matrix(f, OPS, w, shape))).reshape(12, 12, 12, 12)
    u, v, a, b = np.indices(inverse.shape)
    distance = np.maximum(np.abs(u - a), np.abs(v - b))
    figure, axis = plt.subplots(figsize=(4.7, 3.2))
    for statistic, color, label in (
        (np.max, BLUE, "the largest"),
        (np.median, GREEN, "the median"),
    ):
        sizes = [statistic(inverse[distance == d]) for d in range(9)]
        axis.semilogy(sizes, "o-", color=color, label=label)
    for size, color in ((3, ORANGE), (5, RED), (7, PURPLE)):
        axis.axvline(size / 2, color=color, linestyle="--")
        axis.text(size / 2 + 0.05, 1.1, f"{size}×{size}", color=color, fontsize=9)
    axis.set(xlabel="distance of the two pixels", ylabel="|entry of the inverse|")
    return laid_out(figure, axis)


def masks():
    """Pixels that an output of an emerging convolution sees: each of its two masked ones, and both
    (page 11)."""
    side = 7
    layer = CausalConv2d(1, bias=False)
    rng = np.random.default_rng(11)
    weight = {"W": 0.3 + rng.random((2, 2, 1, 1))}
    basis = np.eye(side * side).reshape(-1, side, side, 1)
    first = layer.forward(OPS, weight, basis)[0].reshape(side * side, -1).T
    turned = first[::-1, ::-1]
    centre = side * side // 2
    figure, axes = plt.subplots(1, 3, figsize=(7.0, 2.6))
    colors = ListedColormap(["none", (BLUE, 0.45)])
    titles = ("one: above and left", "its mirror image", "one after the other")
    for axis, matrix, title in zip(
        axes, (first, turned, turned @ first), titles, strict=True
    ):
        seen = (np.abs(matrix[centre]) > 1e-12).reshape(side, side)
        axis.pcolormesh(seen, cmap=colors, edgecolors=INK, linewidth=0.5)
        axis.plot(side / 2, side / 2, "o", color=ORANGE)
        axis.set(title=title, aspect="equal", ylim=(side, 0))
        axis.axis("off")
    return laid_out(figure)


def exponential_terms():
    """Remainder of the series of the convolution exponential, by the number of terms (page
    12)."""
    shape = (6, 6, 2)
    rng = np.random.default_rng(12)
    x = rng.standard_normal((5, *shape))
    terms = np.arange(1, 13)
    figure, axis = plt.subplots(figsize=(6.2, 3.2))
    for norm, color in ((0.3, GREEN), (0.9, BLUE), (2.0, ORANGE)):
        layer = ConvExponential(2)
        kernel = rng.standard_normal((3, 3, 2, 2))
        matrix = as_matrix(layer.map, OPS, kernel, shape)
        factor = norm / np.linalg.norm(matrix, 2)
        kernel = factor * kernel
        matrix = factor * matrix
        exact = (x.reshape(5, -1) @ expm(matrix).T).reshape(x.shape)
        power = x
        total = x
        errors = []
        for k in terms:
            power = layer.map.apply(OPS, kernel, power) / k
            total = total + power
            errors.append(np.linalg.norm(total - exact) / np.linalg.norm(exact))
        axis.semilogy(
            terms, np.maximum(errors, 1e-17), "o-", color=color, label=f"‖T‖ = {norm}"
        )
    axis.axhline(2**-24, linestyle=":", **THIN)
    axis.text(1, 2**-24 * 1.6, "single precision", fontsize=8)
    axis.set(xlabel="terms", ylabel="relative error")
    return laid_out(figure, axis)


def convolution_matrix():
    """T(w) of a 3×3 kernel on an image of 5×4 pixels, one U_i, and m."""
    f = Conv2d((3, 3), 1)
    height = 5
    width = 4
    shape = (height, width, 1)
    kernel = np.arange(1.0, 10.0).reshape(3, 3, 1, 1)
    chosen = np.zeros_like(kernel)
    chosen[0, 1] = 1.0  # the tap above the centre
    figure, axes = plt.subplots(2, 2, figsize=(4.8, 5.4), height_ratios=[0.6, 1])
    labels = {
        "the kernel $w$": [f"$w_{k}$" for k in range(1, 10)],
        "$m$: how often each\nelement is used": f.multiplicity(shape).astype(int).flat,
    }
    for axis, (title, texts) in zip(axes[0], labels.items(), strict=True):
        show_taps(axis, kernel[:, :, 0, 0], title, texts)
    indicator = as_matrix(f, OPS, chosen, shape)
    count = int(indicator.sum())
    title = f"$U_2$: 1 where $w_2$ stands,\n{count} places, so $m_2 = {count}$"
    show_taps(axes[1, 1], 2 * indicator, title)
    title = "$T(w)$, 20 × 20: a block for\neach pair of rows"
    show_taps(axes[1, 0], as_matrix(f, OPS, kernel, shape), title)
    for axis in axes[1]:
        for edge in range(0, height * width + 1, width):  # between blocks
            axis.axhline(edge - 0.5, **THIN)
            axis.axvline(edge - 0.5, **THIN)
    return laid_out(figure)


def block_elimination():
    """The rows of an image as blocks of T, and what elimination leaves on the diagonal."""
    figure, axis = canvas(4.6, 6.4)
    size = 0.52
    before = {
        -1: ("$L$", PURPLE, 11),
        0: ("$B$", BLUE, 11, 0.25),
        1: ("$U$", ORANGE, 11),
    }
    after = before | {-1: ("$0$", INK, 11, 0), 0: ("$D_{}$", GREEN, 11, 0.25)}
    for top, blocks in ((6.3, before), (2.7, after)):
        for i, j in np.ndindex(5, 5):
            if j - i in blocks:
                x = 0.2 + (j + 0.5) * size
                y = top - (i + 0.5) * size
                label, *style = blocks[j - i]
                box(axis, x, y, 0.47, 0.47, label.format(i + 1), *style)
    arrow(axis, (0.6, 3.6), (0.6, 2.8))
    for x, y, text, color in (
        (3.2, 5.9, "$T$: blocks of\n$n$ rows and columns", INK),
        (2.6, 3.2, "row $i{+}1$ minus $L D_i^{-1}$ row $i$", INK),
        (3.3, 2.3, "$D_1 = B$\n$D_{i+1} = B - L D_i^{-1} U$", GREEN),
        (2.3, -0.2, r"$\log|\det T| = \sum_i \log|\det D_i|$", GREEN),
    ):
        write(axis, x, y, text, color)
    return figure
