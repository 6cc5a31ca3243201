"""Diagrams: the self-normalizing layer (Fig. 1 of the paper), and Glow."""

from drawings.style import (
    BLUE,
    GREEN,
    INK,
    ORANGE,
    PURPLE,
    RED,
    arrow,
    box,
    canvas,
    write,
)


def framework():
    """A layer and its learned inverse: what goes forward, what comes back, who learns from it."""
    figure, axis = canvas(4.6, 3.7)
    box(axis, 0.8, 2.75, 0.9, 0.6, "$x$", INK, 14)
    box(axis, 4.1, 2.75, 0.9, 0.6, "$z$", INK, 14)
    box(axis, 0.8, 1.35, 0.9, 0.6, r"$g(z)$", INK, 12)
    box(axis, 2.45, 2.75, 0.9, 0.7, "$W$", BLUE, 15)
    box(axis, 2.45, 1.35, 0.9, 0.7, "$R$", ORANGE, 15)
    # forward, and the reconstruction
    arrow(axis, (1.25, 2.85), (2.0, 2.85), "$x$", BLUE)
    arrow(axis, (2.9, 2.85), (3.65, 2.85), "$z = Wx$", BLUE)
    arrow(
        axis, (4.1, 2.45), (2.9, 1.35), "$z$", ORANGE, curve=-0.28, offset=(0.35, -0.42)
    )
    arrow(axis, (2.0, 1.35), (1.25, 1.35), "$Rz$", ORANGE)
    # backward
    arrow(axis, (3.65, 2.61), (2.9, 2.61), r"$\delta_z$", GREEN, offset=(0, -0.17))
    arrow(
        axis,
        (2.0, 2.61),
        (1.25, 2.61),
        r"$\delta_x = W^T\delta_z$",
        GREEN,
        offset=(0, -0.19),
    )
    arrow(
        axis,
        (0.8, 2.45),
        (0.8, 1.65),
        "$e = Rz - x$",
        RED,
        offset=(-0.47, 0),
        style="<|-|>",
    )
    # the exchange that gives the method its name
    arrow(axis, (2.25, 1.7), (2.25, 2.4), "$R^T$", ORANGE, offset=(-0.22, 0))
    arrow(axis, (2.65, 2.4), (2.65, 1.7), "$W^T$", BLUE, offset=(0.26, 0))
    write(axis, 4.1, 3.29, r"$\log p_Z(z)$", GREEN)
    of_w = r"$W$ learns from $\frac{1}{2}(\delta_z x^T + R^T) - 2\lambda R^T e\, x^T$"
    of_r = r"$R$ learns from $\frac{1}{2}(-\delta_x z^T - W^T) - 2\lambda\, e\, z^T$"
    exchange = r"$R^T$ stands where $W^{-T}$ stood, and $W^T$ where $R^{-T}$ stood"
    write(axis, 2.3, 3.42, of_w, BLUE, 11)
    write(axis, 2.3, 0.55, of_r, ORANGE, 11)
    write(axis, 2.3, 0.15, exchange, size=9)
    return figure


def glow_step():
    """One step of flow: actnorm, mixing convolution, affine coupling."""
    figure, axis = canvas(7.6, 3.0)
    write(axis, 0.2, 2.1, "$x$", size=13)
    arrow(axis, (0.35, 2.1), (0.75, 2.1))
    box(axis, 1.35, 2.1, 1.2, 0.7, "actnorm\n$(x - t)\\,e^{-s}$", INK, 9)
    arrow(axis, (1.95, 2.1), (2.3, 2.1))
    box(axis, 2.9, 2.1, 1.2, 0.7, "1×1 conv.\n$W$, learned $R$", BLUE, 9)
    arrow(axis, (3.5, 2.1), (3.95, 2.1))
    # the coupling
    box(axis, 5.55, 1.52, 3.2, 2.5, "", ORANGE, alpha=0.06)
    write(axis, 5.55, 2.95, "affine coupling", ORANGE, 9)
    arrow(axis, (3.95, 2.1), (4.2, 2.4), style="-")
    arrow(axis, (3.95, 2.1), (4.2, 0.75), style="-")
    arrow(axis, (4.2, 2.4), (7.1, 2.4), "$x_1$", offset=(-1.05, 0.15))
    arrow(axis, (4.2, 0.75), (5.9, 0.75), "$x_2$", offset=(-0.55, 0.15))
    box(axis, 4.95, 1.6, 1.1, 0.62, "network\n$h(x_1)$", ORANGE, 9)
    arrow(axis, (4.95, 2.4), (4.95, 1.91))
    box(axis, 6.35, 0.75, 0.9, 0.45, r"$x_2\,e^s + h_1$", ORANGE, 9)
    arrow(axis, (5.5, 1.6), (6.35, 0.98), "$s, h_1$", curve=-0.3, offset=(0.42, 0.28))
    arrow(axis, (6.8, 0.75), (7.1, 0.75))
    write(axis, 7.35, 2.4, "$z_1$", size=12)
    write(axis, 7.35, 0.75, "$z_2$", size=12)
    return figure


def multi_scale():
    """Levels of squeeze, K steps, split: what becomes of (H, W, C)."""
    figure, axis = canvas(7.6, 2.7)
    write(axis, 0.35, 1.9, "$x$\nH × W\n× C", size=9)
    x = 0.75
    shapes = (
        (BLUE, "H/2 × W/2\n× 4C", "H/2 × W/2\n× 2C"),
        (PURPLE, "H/4 × W/4\n× 8C", "H/4 × W/4\n× 4C"),
    )
    for level, (color, squeezed, kept) in enumerate(shapes, start=1):
        write(axis, x + 1.1, 2.48, squeezed, color, 7.5)
        for width, label in ((0.7, "squeeze"), (0.8, "K steps"), (0.6, "split")):
            arrow(axis, (x, 1.9), (x + 0.25, 1.9))
            x += 0.25 + width
            box(axis, x - width / 2, 1.9, width, 0.6, label, color, 8)
        write(axis, x + 0.15, 2.48, kept, size=7.5)
        arrow(axis, (x - 0.3, 1.6), (x - 0.3, 0.75))
        write(axis, x - 0.3, 0.55, f"$z_{level}$", color, 12)
    arrow(axis, (x, 1.9), (x + 0.25, 1.9))
    write(axis, x + 0.6, 1.9, "…  $z_L$", size=12)
    write(
        axis,
        3.8,
        0.14,
        r"$\log p(x) = \sum_l \log N(z_l; 0, I) + $ the log-determinants on the way",
    )
    return figure
