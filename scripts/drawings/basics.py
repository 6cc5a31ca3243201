"""Pages 02 to 16: rows, stretching, the six products, Newton's method, Adam's steps, a spline."""

import math

import numpy as np
from scipy.stats import norm

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
    write,
)
from snfnp.layers import RationalQuadraticSpline, SmoothLeakyReLU
from snfnp.step.update import Adam


def rows():
    """A batch as the rows of a matrix, and where the one 1/N comes in (page 02)."""
    figure, axis = canvas(4.5, 3.9)

    def matrix(x, y, width, height, label, color, lines=0):
        box(axis, x, y, width, height, "", color)
        top = y + height / 2
        edges = np.linspace(top, y - height / 2, lines + 1)[1:-1]
        axis.hlines(edges, x - width / 2, x + width / 2, colors=color, linewidths=0.6)
        write(axis, x, top + 0.2, label, color, 11)

    matrix(0.7, 2.8, 0.9, 1.4, "$X$: (N, D)", BLUE, 5)
    write(axis, 1.4, 2.8, "·", size=16)
    matrix(2.1, 2.8, 0.9, 0.9, r"$W^\top$", ORANGE)
    write(axis, 2.8, 2.8, "=", size=13)
    matrix(3.5, 2.8, 0.9, 1.4, "$Z$: (N, D)", BLUE, 5)
    write(axis, 0.7, 1.9, "a row is a sample")
    arrow(axis, (3.5, 2.05), (3.5, 1.5))
    box(axis, 3.5, 1.15, 1.6, 0.65, r"$\frac{1}{N}\sum_n \log p_Z(z_n)$", GREEN, 11)
    arrow(axis, (2.65, 1.15), (2.1, 1.15), color=GREEN)
    write(axis, 1.4, 1.15, "first delta:\n$-\\frac{1}{N} z_n$", GREEN, 11)
    undivided = "from here on nothing is divided:\nweight gradients are sums over rows"
    write(axis, 2.25, 0.25, undivided)
    return figure


def stretching():
    """A function of one number: equal shares of the noise, and the density that they give to x
    (page 03)."""
    x = np.linspace(-4.5, 2.2, 1200)
    y, ldj, _ = SmoothLeakyReLU(0.3).forward(OPS, {}, 2.5 * x[:, None])
    z = y[:, 0] - 0.6
    figure, axis = plt.subplots(figsize=(4.7, 3.6))
    axis.plot(x, 1.4 * norm.pdf(z) * 2.5 * np.exp(ldj))
    axis.text(-4.4, 0.65, "$p(x) = p_Z(f(x)) \\cdot f'(x)$", color=BLUE)
    noise = np.linspace(-3, 3, 300)
    top = 3.4
    axis.plot(noise, top + 2.2 * norm.pdf(noise), color=GREEN)
    axis.text(-4.4, top + 0.35, "$p_Z(z)$", color=GREEN)
    axis.hlines([0, top], -4.5, 3, **THIN)
    quantiles = norm.ppf(np.linspace(0.05, 0.95, 10))
    at = np.interp(quantiles, z, x)
    axis.plot([at, quantiles], [0.02, top], **THIN)
    axis.text(2.3, 1.7, "$z = f(x)$")
    axis.text(3.05, top, "$z$", va="center")
    axis.text(3.05, 0, "$x$", va="center")
    axis.axis("off")
    return laid_out(figure)


def six_products():
    """The products of a training step of a dense layer, in their order (page 04)."""
    figure, axis = canvas(4.6, 4.0)
    for x, y, label, color in (
        (0.45, 3.3, "$x$", INK),
        (2.05, 3.3, "$z$", INK),
        (3.65, 3.3, "$e$", RED),
        (3.65, 2.0, r"$\Delta_W$", BLUE),
        (2.05, 0.7, r"$\delta_z$", GREEN),
        (0.45, 0.7, r"$\delta_x$", GREEN),
        (0.45, 2.0, r"$\Delta_R$", ORANGE),
    ):
        box(axis, x, y, 0.8, 0.55, label, color, 13)
    arrow(axis, (0.85, 3.3), (1.65, 3.3), "1: $W x$", BLUE)
    arrow(axis, (2.45, 3.3), (3.25, 3.3), "2: $R z - x$", RED)
    arrow(axis, (3.65, 3.02), (3.65, 2.28), r"3: $R^\top e$", BLUE, offset=(0.5, 0))
    arrow(axis, (1.65, 0.7), (0.85, 0.7), r"4: $W^\top \delta_z$", GREEN)
    arrow(axis, (0.45, 0.98), (0.45, 1.72), color=ORANGE)
    arrow(axis, (3.25, 3.1), (0.85, 2.12), color=RED)
    arrow(axis, (2.45, 0.7), (3.55, 1.72), color=BLUE, curve=0.2)
    of_w = r"5: $G_W = \Delta_W x^\top + \frac{1}{2} R^\top$"
    of_r = r"6: $G_R = \Delta_R z^\top - \frac{1}{2} W^\top$"
    axis.text(4.55, 0.05, of_w, ha="right", color=BLUE)
    axis.text(0.05, 0.05, of_r, color=ORANGE)
    words = "numbered: $O(N D^2)$\narrows without a number: a sum of deltas, $O(N D)$"
    write(axis, 2.3, -0.45, words)
    return figure


def newton():
    """Smooth leaky ReLU, the bracket of its inverse, and Newton's iterates within it (page 06)."""
    alpha = 0.3
    layer = SmoothLeakyReLU(alpha)

    def f(x):
        y, ldj, _ = layer.forward(OPS, {}, np.reshape(x, (-1, 1)))
        return np.squeeze([y[:, 0], np.exp(ldj)])

    figure, (left, right) = plt.subplots(2, 1, figsize=(4.6, 5.6), height_ratios=[3, 2])
    x = np.linspace(-3.2, 2.6, 300)
    left.plot(x, f(x)[0], label="$f(x)$")
    left.plot(x, np.maximum(x, alpha * x), color=INK, linestyle=":", label="leaky ReLU")
    y = 0.1
    values = np.array([y - (1 - alpha) * math.log(2), y])
    low, high = np.minimum(values, values / alpha)
    left.axvspan(
        low, high, color=ORANGE, alpha=0.15, label="the bracket of $f^{-1}(y)$"
    )
    left.axhline(y, **THIN)
    root = layer.inverse(OPS, {}, np.array([y]))[0]
    at = high
    errors = []
    for _ in range(5):
        value, slope = f(at)
        after = at - (value - y) / slope
        left.plot([at, after], [value, y], "o-", color=RED)
        errors.append(abs(at - root))
        at = after
    left.set(xlabel="$x$", ylim=(-1.1, 2.6))
    left.legend(loc="upper left")
    right.semilogy(np.maximum(errors, 1e-17), "o-", color=RED)
    right.set(xlabel="Newton steps", title="distance from the root", xticks=range(5))
    right.grid()
    return laid_out(figure)


def adam_steps():
    """Adam's first steps with its corrections and without them, for a steady gradient (page 16)."""
    theta, m, v = np.zeros((3, 1))
    at = np.arange(1, 301)
    with_corrections = []
    for step in at:
        theta[0] = 0
        Adam().update(OPS, np.ones(1), 1.0, step, out=(theta, m, v))
        with_corrections.append(theta[0])
    without = (1 - 0.9**at) / np.sqrt(1 - 0.999**at)
    figure, axis = plt.subplots(figsize=(6.2, 3.0))
    axis.semilogx(at, with_corrections, label="with both corrections: always 1")
    axis.semilogx(at, without, label="without: $m/\\sqrt{v}$")
    axis.semilogx(
        at, 1 - 0.9**at, color=PURPLE, linestyle="--", label="$v$ corrected, $m$ not"
    )
    axis.set(xlabel="step", ylabel="length / learning rate", ylim=(0, None))
    return laid_out(figure, axis, loc="upper right")


def spline():
    """A rational-quadratic spline: its bins, its slope, and the tails outside of them (page 09)."""
    layer = RationalQuadraticSpline()
    params = {
        "widths": np.array([[0.3, 0.9, -0.4, 0.5, 0.2]]),
        "heights": np.array([[-0.6, 0.2, 1.3, -0.3, 0.4]]),
        "slopes": np.array([[-1.2, 1.6, 1.0, -1.0]]),
    }
    x = np.linspace(-13, 13, 1301)
    y, ldj, cache = layer.forward(OPS, params, x[:, None])
    at, heights, slopes = cache["knots"][..., 0]
    figure, (above, below) = plt.subplots(
        2, 1, figsize=(4.7, 5.4), sharex=True, height_ratios=[3, 2]
    )
    above.plot(x, x, linestyle=":", label="the identity", **THIN)
    above.plot(x, y, label="$y(x)$")
    above.plot(at, heights, "o", label="knots $(x_k, y_k)$")
    above.set_ylabel("$y$")
    below.plot(x, np.exp(ldj), label="$dy/dx$")
    below.plot(at, slopes, "o", label="$d_k$; 1 at both ends")
    below.axhline(1, linestyle=":", **THIN)
    below.set(xlabel="$x$", ylabel="slope", ylim=(0, None))
    for axis in (above, below):
        for knot in at:
            axis.axvline(knot, **THIN)
        axis.legend(loc="upper left")
    for k, middle in enumerate((at[:-1] + at[1:]) / 2):
        write(above, middle, -12.1, f"bin {k}", size=8)
    for x, y in ((-11.6, 5.4), (11.6, -6.6)):
        write(above, x, y, "tail:\n$y = x$", size=8)
    return laid_out(figure)
