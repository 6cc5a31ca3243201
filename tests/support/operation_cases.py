"""One case per operation that a backend overrides: arguments, and what rounding can make of them.

A case is a function call_<group>_<operation>(rng, dtype, size) -> Call: arguments, and for each
result a bound on the difference that rounding can make. The bounds come from the arithmetic: a
number of roundings, times eps, times the size of what is rounded. Those of layers are in
`operation_cases_layers.py`.
"""

import math
from collections.abc import Callable

import numpy as np

from snfnp.ops import RandomKey
from snfnp.ops.step.definition import Controller, ControllerRow, LogEntry
from support import operation_cases_layers
from support.arrays import orthogonal
from support.operation_calls import (
    DEFINITION,
    Call,
    convolution_shapes,
    eps_of,
    number,
    size_2d,
    square_bound,
)


def random_arguments(draw):
    """Some start with an array's first row; for others it is in the midst of a block, or of a
    pair."""
    key = RandomKey(5, 2**31 + 1, 2**40 + 3, first=draw.size[0] % 4)
    return key, draw.size, draw.dtype


def call_random_uniform(draw):
    return Call(random_arguments(draw), bounds=0)


def call_random_normal(draw):
    # computed in double: radius < 6.7 times two cosines (few ulp), then one rounding to dtype
    bound = 8 * eps_of(np.float64) * 6.7 + draw.eps * 6.7
    return Call(random_arguments(draw), bounds=bound)


def call_random_rademacher(draw):
    return Call(random_arguments(draw), bounds=0)


def product(draw):
    """Factors, what their product is added to, and a bound for both (Higham, (3.13))."""
    m, n = size_2d(draw.size)
    k = 19
    a, b = (draw.normal(s) for s in ((m, k), (k, n)))
    out = draw.normal((m, n))
    return (
        a,
        b,
        out,
        2 * (k + 2) * draw.eps * (np.abs(a) @ np.abs(b) + np.abs(out)),
    )


def call_linalg_matmul(draw):
    a, b, out, bound = product(draw)
    if len(draw.size) == 2:
        return Call((a, b), bounds=bound, strided=(0, 1))
    return Call((a, b, out), bounds=(bound, bound), mutated=2, strided=(0, 1, 2))


def call_linalg_matmul_add(draw):
    a, b, out, bound = product(draw)
    # the gradients of R and of W
    out = np.asfortranarray(out) if draw.size[0] % 2 else out
    return Call((a, b, out), bounds=(bound, bound), mutated=2, strided=(0, 1, 2))


def call_linalg_scale_into(draw):
    """flip(R) of a dense map, and a gradient in the same order; of a convolution, with its m."""
    size = draw.size
    if len(size) == 4:
        _, kernel, outputs = convolution_shapes(draw)
        w = draw.normal((*kernel, size[3], outputs))
        a = w[::-1, ::-1].swapaxes(2, 3)
        multiple = draw.rng.integers(1, 9, (*kernel, 1, 1)).astype(float)
    else:
        rows = 11 * min(size[0], 20)
        columns = size_2d(size)[1]
        a = draw.normal((columns, rows)).T
        multiple = 1
    out = np.full(
        a.shape,
        np.nan,
        draw.dtype,
        order="F" if len(a.shape) == 2 and size[0] % 2 else "C",
    )
    bound = 5 * draw.eps * np.abs(a) * multiple
    args = (out, number(0.7, size), a, multiple)
    return Call(args, (bound, bound), mutated=0, strided=2, host=3)


def call_linalg_axpby(draw):
    size = draw.size
    out, x = (draw.normal(size) for _ in range(2))
    bound = 3 * draw.eps * (np.abs(0.7 * out) + np.abs(1.3 * x))
    args = (number(-1.3, size), x, number(0.7, size), out)
    return Call(args, bounds=(bound, bound), mutated=3, strided=1)


def call_linalg_axpby_pair(draw):
    """Of two sizes."""
    size = draw.size
    x = tuple(draw.normal(n) for n in (size, size[:1]))
    out = tuple(draw.normal(n) for n in (size, size[:1]))
    bounds = tuple(
        3 * draw.eps * (np.abs(0.7 * there) + np.abs(a * each))
        for a, each, there in zip((-1.3, 0.4), x, out, strict=True)
    )
    args = ((-1.3, 0.4), x, number(0.7, size), out)
    return Call(args, bounds=(*bounds, *bounds), mutated=3, strided=1)


def near_identity(draw):
    n = size_2d(draw.size)[1]
    return (np.eye(n) + draw.rng.standard_normal((n, n)) / (3 * math.sqrt(n))).astype(
        draw.dtype
    )


def inverse_bound(a):
    """Of a⁻¹ b for each ‖a⁻¹‖‖b‖. Higham, section 14.3: n roundings, times the condition."""
    inverse_norm = np.linalg.norm(np.linalg.inv(a.astype(float)), 2)
    return 2 * len(a) * eps_of(a.dtype) * np.linalg.norm(
        a, 2
    ) * inverse_norm, inverse_norm


def call_linalg_inverse_root(draw):
    """In double precision, with eigenvalues from 1 to 1e-4, of which a floor raises some. Products
    and LAPACK both give the root of a matrix that is off by some K ε ‖M‖; that moves U by at most
    ½ λ^{-3/2} times as much (the derivative's largest factor), λ the smallest eigenvalue."""
    rows = size_2d(draw.size)[1]
    vectors = orthogonal(draw.rng, rows)
    values = 1e-4 ** draw.rng.uniform(0, 1, rows)
    floor = 1e-2 if draw.size[0] % 2 else 1e-9
    least = max(values.min(), floor)
    bound = 20 * rows * eps_of(np.float64) * least**-1.5
    matrix = (vectors * values) @ vectors.T
    return Call(((matrix + matrix.T) / 2, floor), bounds=bound)


def call_linalg_inverse(draw):
    a = near_identity(draw)
    return Call((a,), bounds=(math.prod(inverse_bound(a)),), strided=0)


def call_linalg_solve(draw):
    a = near_identity(draw)
    z = draw.normal((draw.size[0], len(a)))
    bound = math.prod(inverse_bound(a)) * np.linalg.norm(z, axis=1, keepdims=True)
    return Call((a, z), bounds=bound, strided=(0, 1))


def call_linalg_inverse_and_log_abs_det(draw):
    a = near_identity(draw)
    bound, inverse_norm = inverse_bound(a)
    # log|det| sums n pivots' errors
    return Call((a,), bounds=(bound * inverse_norm, len(a) * bound), strided=0)


def call_linalg_norms(draw):
    matrices = tuple(draw.normal(size_2d(draw.size)) for _ in range(2))
    bounds = tuple((a.size + 4) * draw.eps * np.linalg.norm(a) for a in matrices)
    return Call(matrices, bounds=bounds, strided=(0, 1))


def call_step_log_density(draw):
    size = draw.size
    density = draw.normal(size[0])
    log = draw.rng.standard_normal(len(LogEntry))
    log[LogEntry.FAILED] = size[0] == 17  # then nothing is to change
    bound = np.zeros(len(LogEntry))
    roundings = size[0] + 3
    bound[LogEntry.DENSITY] = roundings * draw.eps * np.abs(density).mean()
    args = (density, number(9.0, size), log)
    return Call(args, bounds=bound, mutated=2, strided=0)


def call_step_log_step(draw):
    size = draw.size
    log = draw.rng.standard_normal(len(LogEntry))
    log[LogEntry.FAILED] = size[0] == 17
    squares = math.inf if size[0] == 5 else 7.0  # then the step is to be noted
    bound = np.zeros(len(LogEntry))
    bound[: LogEntry.COUNT] = 12 * eps_of(np.float64) * (np.abs(log).sum() + 10)
    error, *others = (number(value, size) for value in (0.25, squares, 0.5, 9.0))
    errors = (error,) * (size[-1] % 12 + 1 if isinstance(error, np.ndarray) else 1)
    args = (errors, *others, log)
    return Call(args, bounds=bound, mutated=4)


def call_linalg_sum_squares(draw):
    g = draw.normal(draw.size).reshape(-1)
    return Call((g,), bounds=square_bound(g), strided=0)


def call_linalg_residual(draw):
    error, x = (draw.normal(draw.size) for _ in range(2))
    # one rounding each, then squared
    difference = (error.astype(np.float64) - x).astype(draw.dtype)
    total = (1 + 3 / 1026) * square_bound(difference) / max(1, draw.size[0])
    bounds = (total * (1 + 4 * eps_of(np.float64)), draw.eps * np.abs(difference))
    return Call((error, x), bounds, mutated=0, strided=1)


def call_step_adam(draw):
    size = draw.size
    p, g, m = (draw.normal(size).reshape(-1) for _ in range(3))
    v = np.abs(draw.rng.standard_normal(p.size)).astype(draw.dtype)
    v[::2] = 0  # as before the first step: all of v then comes from 1 - β2
    eps = draw.eps
    lr = 1e-2
    step = 3.0
    scale = 1.0
    clip_norm = math.inf
    if size[-1] % 2 == 0:  # clipped: the rounding of Σ g² is also the scale's
        scale = 0.9
        clip_norm = float(
            scale * (np.sqrt(np.square(g, dtype=np.float64).sum()) + 1e-6)
        )
        eps *= 1026
    m_size = 0.9 * np.abs(m) + 0.1 * scale * np.abs(g)  # the two terms may cancel
    v_new = 0.999 * v + 0.001 * (scale * g) ** 2
    p_step = lr / (1 - 0.9**step) * m_size / (np.sqrt(v_new / (1 - 0.999**step)) + 1e-8)
    failed = float(size[0] == 17)  # then nothing is to change
    lr_, step_, failed_ = (number(each, size) for each in (lr, step, failed))
    return Call(
        (g, lr_, 0.9, 0.999, 1e-8, step_, clip_norm, failed_, (p, m, v)),
        bounds=(
            square_bound(g),
            # at most a dozen roundings on the way to the step; and 1 - β2^step, in double
            # precision, has few digits left of those of β2^step
            eps * (np.abs(p) + 12 * p_step)
            + eps_of(np.float64) * p_step / (1 - 0.999**step),
            5 * eps * m_size,
            6 * eps * v_new,
        ),
        mutated=8,
    )


def call_step_apply_block_matrices(draw):
    """Blocks of one column and of several, what lies between them, and both ways of writing."""
    values, out = (draw.normal(draw.size).reshape(-1) for _ in range(2))
    blocks = ((0, 2, 1, 0), (3, 1, 1, 4), (5, 3, values.size // 6, 5))
    blocks = blocks[: 3 if values.size > 30 else 0]
    matrices = draw.rng.standard_normal(14)
    # sums of up to 3 products of rounded factors, in any order, and one addition
    bound = (
        8 * draw.eps * (3 * np.abs(matrices).max() * np.abs(values).max(initial=0) + 5)
    )
    return Call(
        (values, matrices, blocks, out, len(draw.size) == 2), bounds=bound, mutated=3
    )


def call_step_control(draw):
    """Of each layer; a layer whose input is 0, and a step that failed."""
    size = draw.size
    controller = Controller(len(size) == 2, 0.3, 0.2, 0.9, 0.4, 1.2)
    layers = max(1, size[0])
    found = draw.rng.uniform(0.1, 3.0, (layers, 2))
    if layers > 2:
        found[0, 1] = 0
    state = draw.rng.uniform(0.3, 1.3, (len(ControllerRow), layers))
    state[ControllerRow.STARTED] = draw.rng.integers(0, 2, layers)
    failed = float(size[0] == 17)  # then nothing is to change
    # at most a dozen roundings and a sum over the layers, of numbers below 100 for each
    bound = (12 + layers) * eps_of(np.float64) * 100 * layers
    args = (found, 4, controller, number(2.0, size), number(failed, size), state)
    return Call(args, bounds=(bound,) * 3, mutated=5, strided=0)


def convolution(draw):
    """x (N, H, W, I), a kernel and a delta (N, H, W, O)."""
    shape, kernel, outputs = convolution_shapes(draw)
    shapes = (shape, (*kernel, shape[3], outputs), (*shape[:3], outputs))
    return [draw.normal(s) for s in shapes]


def call_conv_patches(draw):
    x, k, _ = convolution(draw)
    return Call((x, k.shape[:2]), bounds=0, strided=0)


def call_conv_correlate(draw):
    x, k, _ = convolution(draw)
    sizes = DEFINITION.conv.correlate(np.abs(x), np.abs(k))
    bound = 2 * (k[..., 0].size + 2) * draw.eps * sizes
    return Call((x, k), bounds=bound, strided=(0, 1))


def call_conv_shift_and_add(draw):
    size = draw.size
    x, k, _ = convolution(draw)
    kh, kw, _, outputs = k.shape
    # also of even size, where both sides differ
    kh, kw = (kh + size[0] % 2, kw + size[0] % 3)
    products = draw.normal((*x.shape[:3], kh, kw, outputs))
    bound = 2 * kh * kw * draw.eps * DEFINITION.conv.shift_and_add(np.abs(products))
    return Call((products,), bounds=bound, strided=0)


def call_conv_weight_grad(draw):
    x, k, delta = convolution(draw)
    bound = DEFINITION.conv.weight_grad(np.abs(delta), np.abs(x), np.abs(k), True)
    bound = 2 * (delta[..., 0].size + 2) * draw.eps * bound
    return Call((delta, x, k, True), bounds=(bound, bound), mutated=2, strided=(0, 1))


CASES: dict[str, Callable[..., Call]] = {
    name.removeprefix("call_").replace("_", ".", 1): case
    for name, case in (vars(operation_cases_layers) | globals()).items()
    if name.startswith("call_")
}
# Every backend has the definitions of these.
DEFINED = {"activation.smooth_leaky_relu_inverse", "channels.is_finite", "step.control"}
OVERRIDES = {name: case for name, case in CASES.items() if name not in DEFINED}
# No samples are not defined for these: rows of them, or their mean.
NEVER_EMPTY = {
    "images.preprocess",
    "linalg.residual",
    "spline.evaluate",
    "step.log_density",
}
