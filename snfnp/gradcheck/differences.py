"""Central differences of a scalar function, to check a gradient: derivations/02-notation.md."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from snfnp.errors import UsageError

# Weights of f(x + k h u) - f(x - k h u), k = 1, 2, 3, over h: error O(h⁶).
_STENCIL = (3 / 4, -3 / 20, 1 / 60)
# of a difference; a shorter one where a longer one crosses a kink
STEPS = (1e-2, 1e-3, 1e-4)
_MOST = 1000  # elements of the largest array that a failed check searches element by element


class GradientError(AssertionError):
    """A check failed; the message has all its numbers."""


def central_difference(f: Callable, x: Any, direction: Any, h: float) -> Any:
    """The derivative of f at x along `direction`, by a central stencil of step h.

    Truncation error O(h⁶), rounding error about eps |f| / h.
    """
    steps = [(k * h * direction, weight) for k, weight in enumerate(_STENCIL, start=1)]
    return sum(weight * (f(x + step) - f(x - step)) / h for step, weight in steps)


def tolerance(dtype: DTypeLike) -> float:
    """The default `rtol`: the differences' own error in double precision, about 170 roundings of
    the layer in single. Negative controls are near 1e-2."""
    return 1e-8 if np.dtype(dtype) == np.float64 else 2e-5


class Comparison(NamedTuple):
    """The result of `check_gradient`.

    Attributes:
        error: the largest relative difference.
        control: the smallest error of the negative controls; NaN for a zero gradient.
        slopes: of f and of the gradient along the last direction.
    """

    error: float
    control: float
    slopes: tuple[float, float]


def slopes(
    f: Callable[[Any], float], x: ArrayLike, gradient: ArrayLike, **settings: Any
) -> tuple[float, float]:
    """The slopes of `check_gradient` with these arguments, to six digits, for pages to show."""
    numeric, analytic = check_gradient(f, x, gradient, **settings).slopes
    return float(f"{numeric:.6g}"), float(f"{analytic:.6g}")


def relative_error(value: ArrayLike, expected: ArrayLike) -> float:
    """‖value − expected‖ / ‖expected‖ to three digits, for pages to show; 0.0 below 1e-9, where
    rounding differs from machine to machine.

    Raises:
        ValueError: if the shapes differ, so that broadcasting cannot hide a missing axis.
    """
    value = np.asarray(value)
    expected = np.asarray(expected)
    if value.shape != expected.shape:
        raise ValueError(f"shapes differ: {value.shape} and {expected.shape}")
    error = np.linalg.norm(value - expected) / np.linalg.norm(expected)
    return 0.0 if error < 1e-9 else float(f"{error:.3g}")


def check_gradient(
    f: Callable[[Any], float],
    x: ArrayLike,
    gradient: ArrayLike,
    *,
    rng: np.random.Generator,
    rtol: float = 1e-8,
    directions: int = 4,
    name: str = "x",
) -> Comparison:
    """Compare ⟨gradient, u⟩ with central differences of f along random unit directions u, with
    shorter steps where they differ: a step may cross a kink.

    Differences are relative to the largest of both values and of ‖gradient‖/√size, the typical size
    of such a product.

    Args:
        f: a function of an array like x, which returns a number.
        x: a point, float64 on the host, or a list of numbers.
        gradient: the gradient of f at x that is checked, likewise.
        rng: draws the directions.
        rtol: the largest relative difference that passes.
        directions: their number.
        name: of x, for messages.

    Raises:
        GradientError: beyond `rtol`, or if a wrong gradient (times 1.01; zero) would have passed.
        UsageError: f is no function that returns a number.
    """
    single = any(getattr(array, "dtype", None) == np.float32 for array in (x, gradient))
    gradient = np.asarray(gradient)
    x = np.asarray(x)
    x = x if x.dtype.kind == "f" else x.astype(np.float64)
    if not callable(f):
        raise UsageError(
            f"{str(f)[:60]} is no function: give f, and then {name} and its gradient"
        )
    value = f(x)
    if np.ndim(value) or value is None:
        raise UsageError(
            f"f returned {type(value).__name__} of shape {getattr(value, 'shape', ())}: "
            "let it return a number, as the sum of that times random numbers"
        )
    if gradient.shape != x.shape:
        raise GradientError(
            f"{name}: the gradient has shape {gradient.shape}, not {x.shape}"
        )
    typical = np.linalg.norm(gradient) / np.sqrt(gradient.size)
    worst = 0.0
    # {factor: the worst error of the gradient times this factor}, which must not pass
    controls = {1.01: 0.0, 0: 0.0}
    for index in range(directions):
        u = rng.standard_normal(x.shape)
        u /= np.linalg.norm(u)
        analytic = float(np.sum(gradient * u))
        attempts = []
        for step in STEPS:
            numeric = central_difference(f, x, u, step)
            error = relative(numeric, analytic, typical)
            if error <= rtol:
                break
            attempts.append(f"h={step:.0e}: {numeric:.12g}")
        else:
            if single:
                advice = (
                    "; the arrays are float32, in which differences lose their digits: "
                    "give float64"
                )
            else:
                advice = _where(f, x, gradient, name)
            raise GradientError(
                f"{name}, direction {index}: analytic {analytic:.12g}, numeric {numeric:.12g}, "
                f"relative error {error:.2e} > {rtol:.0e} "
                f"(f = {f(x):.6g}; {', '.join(attempts)}){advice}"
            )
        worst = max(worst, error)
        for factor in controls:
            error = relative(numeric, factor * analytic, typical)
            controls[factor] = max(controls[factor], error)
    for factor, error in controls.items():
        if typical and error <= rtol:
            raise GradientError(
                f"{name}: the negative control (times {factor}) was not caught"
            )
    control = float(min(controls.values())) if typical else np.nan
    return Comparison(float(worst), control, (float(numeric), analytic))


def _where(
    f: Callable[[Any], float], x: np.ndarray, gradient: np.ndarray, name: str
) -> str:
    """For a message: the worst element of a wrong gradient, and the factor if it is a multiple of
    the right one. O(size) evaluations, so "" for a large array."""
    if x.size > _MOST:
        return ""
    units = np.eye(x.size).reshape(x.size, *x.shape)
    numeric = np.reshape(
        [central_difference(f, x, unit, STEPS[0]) for unit in units], x.shape
    )
    errors = np.nan_to_num(np.abs(gradient - numeric), nan=np.inf)
    worst = np.unravel_index(np.argmax(errors), x.shape)
    element = f"{name}[{', '.join(map(str, worst))}]"
    words = (
        f"; furthest off at {element}: {gradient[worst]:.6g}, not {numeric[worst]:.6g}"
    )
    ratio = float(np.sum(gradient * numeric)) / max(float(np.sum(numeric**2)), 1e-300)
    if ratio and np.linalg.norm(gradient - ratio * numeric) <= 1e-6 * np.linalg.norm(
        gradient
    ):
        words += f"; all of it is {ratio:.6g} times the right one" + " (its sign)" * (
            ratio < 0
        )
    return words


def relative(value: float, expected: float, typical: float) -> float:
    """|value − expected| relative to the largest of both and of `typical`."""
    scale = max(abs(value), abs(expected), typical)
    return 0.0 if scale == 0 else abs(value - expected) / scale
