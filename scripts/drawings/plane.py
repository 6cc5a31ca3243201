"""Page 00's program on a plane: its matrices, its layers one by one, and its training."""

import runpy
from functools import cache
from itertools import count
from pathlib import Path

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
    plt,
)

_PROGRAM = Path(__file__).parents[2] / "derivations" / "00-the-method.py"


@cache
def _trained(steps=2000):
    """The program's flow with four layers, its data, and (data, noise, grid) after f, g and g at
    20 steps of training, evenly by their logarithm."""
    program = runpy.run_path(str(_PROGRAM))
    rng = np.random.default_rng(0)
    flow = [program["Dense"](2, rng, 0.1)]
    for _ in range(3):
        flow += [program["Bend"](), program["Dense"](2, rng, 0.1)]
    data = program["cloud"](rng, 150)
    noise = rng.standard_normal((120, 2))
    grid = _grid(np.linspace(-2.2, 2.2, 9), 17)
    step = count(1)
    shown = {*np.geomspace(1, steps, 20).astype(int)}
    seen = []

    def draw(rng):
        if next(step) in shown:
            z = data
            points = np.concatenate([noise, grid.reshape(-1, 2)])
            for layer, back in zip(flow, reversed(flow), strict=True):
                z = layer.forward(z)
                points = back.inverse(points)
            seen.append(
                (z[:, None], points[:120, None], points[120:].reshape(grid.shape))
            )
        return program["cloud"](rng)

    program["train"](flow, draw, steps, 0.02, rng)
    return flow, data, seen


def _grid(lines, points):
    """Lines across and along a square, (lines, points, 2)."""
    first, second = np.meshgrid(np.linspace(lines[0], lines[-1], points), lines)
    return np.concatenate([np.stack([first, second], 2), np.stack([second, first], 2)])


def plane_training():
    """Noise on its way to data through R, and data on its way to noise, while four layers train."""
    _, data, seen = _trained()
    to_noise, samples, bent = map(np.array, zip(*seen, strict=True))
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.2))
    left.plot(*data.T, ".", color=INK)
    for radius in (1, 2):
        right.add_patch(plt.Circle((0, 0), radius, fill=False, color=GREEN))
    left.set(
        title="noise becomes data, through $R$", xlim=(-4.1, 4.1), ylim=(-3.8, 2.4)
    )
    right.set(
        title="data become noise, through $W$", xlim=(-4.1, 4.1), ylim=(-3.1, 3.1)
    )
    for axis in (left, right):
        bare(axis)
        axis.title.set_fontsize(13)  # to be read on a phone, too
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
    for number, (layer, column) in enumerate(zip(layers[::2], axes.T, strict=True), 1):
        matrices = (layer.W, layer.R, layer.R @ layer.W)
        for name, matrix, axis in zip("WRE", matrices, column, strict=True):
            for line in grid @ matrix.T:
                axis.plot(*line.T, **THIN)
            axis.plot(*(matrix @ circle), color=GREEN)
            for end, color in zip(matrix.T, (BLUE, ORANGE), strict=True):
                arrow(axis, (0, 0), end, color=color, style="->")
            title = f"$R_{number} W_{number}$" if name == "E" else f"${name}_{number}$"
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
        for line in lines:
            axis.plot(*line.T, color=ORANGE, linewidth=0.5)
        axis.plot(*dots.T, ".", color=BLUE)
        middle = dots.mean(axis=0)
        half = 1.25 * np.abs(dots - middle).max()
        left, bottom = middle - half
        right, top = middle + half
        axis.set(
            title=name, xlim=(left, right), ylim=(bottom, top), xticks=[], yticks=[]
        )
    return laid_out(figure)
