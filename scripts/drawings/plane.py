"""Page 00's program on a plane: its matrices, its layers one by one, and its training."""

from functools import cache
from itertools import count

import numpy as np

from drawings.style import (
    BLUE,
    GREEN,
    INK,
    ORANGE,
    THIN,
    arrow,
    bare,
    laid_out,
    move,
    page_program,
    plt,
)


@cache
def _trained(steps=2000):
    """The program's flow with four layers, its data, and (data, noise, grid) after f, g and g at
    20 steps of training, evenly by their logarithm."""
    program = page_program()
    rng = np.random.default_rng(0)
    flow = [program["Dense"](2, rng, 0.1)]
    for _ in range(3):
        flow += [program["Bend"](), program["Dense"](2, rng, 0.1)]
    data = program["cloud"](rng, 150)
    noise = rng.standard_normal((120, 2))
    grid = _grid(np.linspace(-2.2, 2.2, 9), 17)
    step = count(1)
    shown = np.geomspace(1, steps, 20).astype(int)
    seen = []

    def draw(rng):
        if next(step) in shown:
            z = data[:, None]
            samples = noise[:, None]
            lines = grid
            for layer, back in zip(flow, reversed(flow), strict=True):
                z = layer.forward(z)
                samples = back.inverse(samples)
                lines = back.inverse(lines)
            seen.append((z, samples, lines))
        return program["cloud"](rng)

    program["train"](flow, draw, steps, 0.02, rng)
    return flow, data, seen


def _grid(lines, points):
    """Lines across and along a square, (lines, points, 2)."""
    across = np.linspace(lines[0], lines[-1], points)
    grid = np.stack(np.meshgrid(across, lines), axis=2)
    return np.concatenate([grid, grid[..., ::-1]])


def plane_training():
    """Noise on its way to data through R, and data on its way to noise, while four layers train."""
    _, data, seen = _trained()
    to_noise, samples, bent = map(np.array, zip(*seen, strict=True))
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.2))
    left.plot(*data.T, ".", color=INK)
    for radius in (1, 2):
        right.add_patch(plt.Circle((0, 0), radius, fill=False, color=GREEN))
    for axis, title, bottom, top in (
        (left, "noise becomes data, through $R$", -3.8, 2.4),
        (right, "data become noise, through $W$", -3.1, 3.1),
    ):
        bare(axis, xlim=(-4.1, 4.1), ylim=(bottom, top))
        axis.set_title(title, fontsize=13)  # to be read on a phone, too
    figure.subplots_adjust(0.01, 0.01, 0.99, 0.9, 0.04)
    move(left, bent, ORANGE, 0.7)
    move(left, samples, BLUE, 2.6)
    move(right, to_noise, INK, 2.6)
    return figure


def plane_matrices():
    """Unit vectors, unit circle and a grid, under W, R and R W of each dense layer of the flow."""
    layers, _, _ = _trained()
    angle = np.linspace(0, 2 * np.pi, 100)
    circle = np.stack([np.cos(angle), np.sin(angle)])
    grid = _grid(np.linspace(-1, 1, 5), 2)
    figure, axes = plt.subplots(3, 4, figsize=(4.8, 4.2), sharex=True, sharey=True)
    for k, (layer, column) in enumerate(zip(layers[::2], axes.T, strict=True), start=1):
        matrices = {
            f"$W_{k}$": layer.W,
            f"$R_{k}$": layer.R,
            f"$R_{k} W_{k}$": layer.R @ layer.W,
        }
        for axis, (title, matrix) in zip(column, matrices.items(), strict=True):
            axis.plot(*(grid @ matrix.T).T, **THIN)
            axis.plot(*matrix @ circle, color=GREEN)
            for end, color in zip(matrix.T, (BLUE, ORANGE), strict=True):
                arrow(axis, (0, 0), end, color=color, style="->")
            area = abs(np.linalg.det(matrix))
            bare(axis, title=f"{title}: × {area:.2f}", aspect="equal")
    return laid_out(figure)


def plane_layers():
    """The data and a grid around them, before the flow and after every layer."""
    flow, data, _ = _trained()
    grid = _grid(np.linspace(-3.6, 3.6, 9), 23) - (0, 0.4)
    points = data[::3]
    stages = [("data", grid, points)]
    for index, layer in enumerate(flow):
        grid = layer.forward(grid)
        points = layer.forward(points)
        name = f"bend {index // 2 + 1}" if index % 2 else f"$W_{index // 2 + 1}$"
        stages.append((name, grid, points))
    figure, axes = plt.subplots(4, 2, figsize=(4.6, 8.4))
    for axis, (name, lines, dots) in zip(axes.flat, stages, strict=True):
        axis.plot(*lines.T, color=ORANGE, linewidth=0.5)
        axis.plot(*dots.T, ".", color=BLUE)
        middle = dots.mean(axis=0)
        half = 1.25 * np.abs(dots - middle).max()
        x, y = np.stack([middle - half, middle + half], axis=1)
        axis.set(title=name, xlim=x, ylim=y, xticks=[], yticks=[])
    return laid_out(figure)
