"""Central differences of a scalar function, and comparing a gradient with them.

How the pages show it: derivations/01-notation.md.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

# Weights of f(x + k h u) - f(x - k h u), k = 1, 2, 3, over h: error O(h⁶).
_STENCIL = (3 / 4, -3 / 20, 1 / 60)
_MOST = 1000  # elements of an array that are looked at one by one


class GradientError(AssertionError):
    """A check failed; the message shows everything that the check saw."""


def central_difference(f: Callable, x: Any, direction: Any, h: float) -> Any:
    """The derivative of f at x along `direction`, by a central stencil of step h.

    Truncation error O(h⁶), rounding error about eps |f| / h.
    """
    return sum(
        weight * (f(x + k * h * direction) - f(x - k * h * direction)) / h
        for k, weight in enumerate(_STENCIL, start=1)
    )


def tolerance(dtype) -> float:
    """The relative error that checks allow by default.

    In double precision it is the differences' own error. In single it is the layer's: about 170
    roundings, far below the negative controls, which are near 1e-2.
    """
    return 1e-8 if np.dtype(dtype) == np.float64 else 2e-5


class Comparison(NamedTuple):
    """Errors of one comparison.

    Attributes:
        error: the largest relative difference.
        control: the smallest by which a wrong gradient (times 1.01; zero) was off, which must be
            far above the tolerance; NaN if there was no control.
        slopes: of f and of the gradient along the last direction.
    """

    error: float
    control: float
    slopes: tuple[float, float]


def check_gradient(f: Callable, x, gradient, **settings) -> float:
    """The largest error that `measure_gradient` finds; the arguments are the same."""
    return measure_gradient(f, x, gradient, **settings).error


def slopes(f: Callable, x, gradient, **settings) -> tuple[float, float]:
    """The slope of f by central differences, and ⟨gradient, u⟩, along a direction u, to six digits.

    For pages that show what was compared: the last direction of `measure_gradient`; the arguments
    are the same.
    """
    numeric, analytic = measure_gradient(f, x, gradient, **settings).slopes
    return float(f"{numeric:.6g}"), float(f"{analytic:.6g}")


def relative_error(value, expected) -> float:
    """The distance ‖value − expected‖ / ‖expected‖ to three digits, and 0.0 below 1e-9.

    For pages that show how far apart a right and a wrong formula are: what rounding leaves of a
    right one differs from machine to machine and is not shown. Raises ValueError if the shapes
    differ, so that broadcasting cannot hide a missing axis. NaN stays NaN.
    """
    value, expected = np.asarray(value), np.asarray(expected)
    if value.shape != expected.shape:
        raise ValueError(f"shapes differ: {value.shape} and {expected.shape}")
    error = np.linalg.norm((value - expected).ravel()) / np.linalg.norm(expected.ravel())
    return 0.0 if error < 1e-9 else float(f"{error:.3g}")


def measure_gradient(
    f: Callable[[np.ndarray], float],
    x: np.ndarray,
    gradient: np.ndarray,
    *,
    rng: np.random.Generator,
    rtol: float = 1e-8,
    h: float = 1e-2,
    directions: int = 4,
    name: str = "x",
) -> Comparison:
    """Compare ⟨gradient, u⟩ with central differences of f along random unit directions u.

    Each difference is relative to the larger of both values and of ‖gradient‖/√size, the typical
    size of such a product.

    Args:
        f: takes an array like x and returns a float.
        x: a point, float64 on the host.
        gradient: that of f at x, which is to be checked.
        rng: draws the directions.
        rtol: the largest relative difference that passes.
        h: the step.
        directions: how many.
        name: x in messages.

    Returns:
        The errors, those of the negative controls, and the last slopes.

    Raises:
        GradientError: beyond `rtol`, or if a wrong gradient (times 1.01; zero) would have passed.
    """
    if gradient.shape != x.shape:
        raise GradientError(f"{name}: the gradient has shape {gradient.shape}, not {x.shape}")
    typical = np.linalg.norm(gradient) / np.sqrt(gradient.size)
    worst, controls = 0.0, {1.01: 0.0, 0: 0.0}  # by what the gradient is multiplied by
    for index in range(directions):
        u = rng.standard_normal(x.shape)
        u /= np.linalg.norm(u)
        numeric, analytic = central_difference(f, x, u, h), float(np.sum(gradient * u))
        error = relative(numeric, analytic, typical)
        if not error <= rtol:
            at = [f"h={s:.0e}: {central_difference(f, x, u, s):.12g}" for s in (h, h / 4, h / 16)]
            found = f"{name}, direction {index}: analytic {analytic:.12g}, numeric {numeric:.12g}"
            off = f"relative error {error:.2e} > {rtol:.0e} (f = {f(x):.6g}; {', '.join(at)})"
            raise GradientError(f"{found}, {off}{_where(f, x, gradient, h, name)}")
        worst = max(worst, error)
        for factor in controls:
            error = relative(numeric, factor * analytic, typical)
            controls[factor] = max(controls[factor], error)
    for factor, error in controls.items():
        if typical > 0 and error <= rtol:
            raise GradientError(f"{name}: the negative control (times {factor}) was not caught")
    control = min(controls.values()) if typical > 0 else float("nan")
    return Comparison(worst, control, (numeric, analytic))


def _where(f: Callable, x, gradient, h: float, name: str) -> str:
    """Words for the element of a wrong gradient that is furthest off, and for a gradient that is a
    multiple of the right one. Nothing for a large array: this costs O(size) evaluations."""
    if x.size > _MOST:
        return ""
    units = np.eye(x.size).reshape(x.size, *x.shape)
    numeric = np.reshape([central_difference(f, x, unit, h) for unit in units], x.shape)
    off = np.nan_to_num(np.abs(gradient - numeric), nan=np.inf)
    worst = np.unravel_index(np.argmax(off), x.shape)
    place = f"{name}[{', '.join(map(str, worst))}]"
    words = f"; furthest off at {place}: {gradient[worst]:.6g}, not {numeric[worst]:.6g}"
    ratio = float(np.sum(gradient * numeric)) / max(float(np.sum(numeric**2)), 1e-300)
    if ratio and np.linalg.norm(gradient - ratio * numeric) <= 1e-6 * np.linalg.norm(gradient):
        words += f"; all of it is {ratio:.6g} times the right one" + " (its sign)" * (ratio < 0)
    return words


def relative(value: float, expected: float, typical: float) -> float:
    """The distance |value − expected| over the largest of both and of `typical`; NaN if one is."""
    scale = max(abs(value), abs(expected), typical)
    return 0.0 if scale == 0 else abs(value - expected) / scale
