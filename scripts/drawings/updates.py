"""Bias and spread of the term that replaces a convolution's exact one if R is a projection."""

from functools import partial

import numpy as np

from drawings.style import BLUE, GREEN, INK, ORANGE, RED, laid_out, plt
from snfnp.beyond.left_inverse import LeftInverse
from snfnp.maps import Conv2d
from snfnp.ops import RandomKey, get_ops

_SHAPE = (14, 14, 2)
_PROBES, _DRAWS = 4, 60
_NOISES = np.geomspace(0.05, 0.28, 9)


def least_squares():
    """The error of the term that W climbs, against the exact ∂log|det T(W)|/∂W, for convolutions
    that are harder and harder to invert with a 5×5 kernel: left what no average removes, right what
    four probes scatter."""
    rows = np.array([_errors(noise) for noise in _NOISES])
    error = rows[:, 0]
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.3), sharey=True)
    lines = ((left, "T(R)", INK), (left, "two terms", ORANGE), (left, "terms up to k = 6", BLUE))
    lines += ((right, "all of T(W)⁻¹ by probes", RED), (right, "what two terms leave", GREEN))
    for (axis, label, color), values in zip(lines, rows.T[1:], strict=True):
        axis.loglog(error, values, "o-", color=color, label=label, markersize=3)
    for axis, title in ((left, "bias"), (right, f"spread, {_PROBES} probes")):
        axis.axvline(0.04, color=INK, linestyle=":", linewidth=1)
        axis.set(title=title, xlabel="‖T(R) T(W) − I‖²  / D")
        axis.grid(True)
        axis.legend(fontsize=8, loc="upper left" if axis is left else "lower right")
    left.set(ylabel="relative to the exact term", ylim=(1e-7, 1))
    return laid_out(figure)


def _errors(noise: float) -> tuple[float, ...]:
    """‖T(R) T(W) − I‖²_F / D; the bias of one, of two and of all terms up to 6; the spread of all
    of T(W)⁻¹ from probes, and of what two terms leave."""
    ops, (height, width, channels) = get_ops("numpy"), _SHAPE
    f, g = Conv2d((3, 3), channels), Conv2d((5, 5), channels)
    rng = np.random.default_rng(0)
    w = f.identity() + noise * rng.standard_normal(f.weight_shape)
    exact = f.log_det_grad(ops, w, _SHAPE)
    found = LeftInverse(ops, f, g, w, _SHAPE)

    solved, rest = partial(f.solve, ops, w), lambda images: found.rest_of_series(images, 6)

    def of(matrix_on, images):
        """The gradient of Σ ⟨ν, T(w) (matrix ν)⟩ over images ν, averaged."""
        return f.weight_grad(ops, images / len(images), matrix_on(images), np.empty(w.shape))

    size = height * width * channels
    basis = np.eye(size).reshape(size, *_SHAPE)  # orthogonal: the sum over it is a trace
    tail = size * of(rest, basis)
    one = f.flip(f.fit(found.r)) * f.multiple(_SHAPE)
    two = found.neumann_term()

    def spread(matrix_on):
        mean, probes = size * of(matrix_on, basis), (_PROBES, *_SHAPE)
        signs = (ops.random.rademacher(RandomKey(0, k), probes, np.float64) for k in range(_DRAWS))
        return np.sqrt(np.mean([np.sum((of(matrix_on, own) - mean) ** 2) for own in signs]))

    norm = np.linalg.norm(exact)
    biases = [np.linalg.norm(term - exact) for term in (one, two, two + tail)]
    return float(found.error), *(value / norm for value in (*biases, spread(solved), spread(rest)))
