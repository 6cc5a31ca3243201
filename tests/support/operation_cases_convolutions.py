"""Cases of convolutions, causal ones among them: see `operation_cases.py`."""

import numpy as np

from support.operation_calls import (
    DEFINITION,
    SIZES,
    Call,
    convolution_shapes,
    eps_of,
    number,
)


def convolution(rng, dtype, size):
    """x (N, H, W, I), a kernel and a delta (N, H, W, O)."""
    shape, kernel, outputs = convolution_shapes(rng, size)
    shapes = (shape, (*kernel, shape[3], outputs), (*shape[:3], outputs))
    return [rng.standard_normal(s).astype(dtype) for s in shapes]


def call_conv_patches(rng, dtype, size):
    x, k, _ = convolution(rng, dtype, size)
    return Call((x, k.shape[:2]), bounds=(0,), strided=(0,))


def call_conv_correlate(rng, dtype, size):
    x, k, _ = convolution(rng, dtype, size)
    return Call((x, k), bounds=(forward_bound(x, k),), strided=(0, 1))


def call_conv_shift_and_add(rng, dtype, size):
    x, k, _ = convolution(rng, dtype, size)
    kh, kw, _, outputs = k.shape
    kh, kw = kh + size[0] % 2, kw + size[0] % 3  # also of even size, where both sides differ
    products = rng.standard_normal((*x.shape[:3], kh, kw, outputs)).astype(dtype)
    bound = 2 * kh * kw * eps_of(dtype) * DEFINITION.conv.shift_and_add(np.abs(products))
    return Call((products,), bounds=(bound,), strided=(0,))


def call_conv_weight_grad(rng, dtype, size):
    x, k, delta = convolution(rng, dtype, size)
    bound = DEFINITION.conv.weight_grad(np.abs(delta), np.abs(x), np.abs(k), add=True)
    bound = 2 * (delta[..., 0].size + 2) * eps_of(dtype) * bound
    return Call((delta, x, k, True), bounds=(bound, bound), mutated=(2,), strided=(0, 1))


def forward_bound(x, k):
    """How far a convolution's result may be off: more than a few roundings of the result."""
    size = DEFINITION.conv.correlate(np.abs(x), np.abs(k))
    return 2 * (k[..., 0].size + 2) * eps_of(x.dtype) * size


def causal_arrays(rng, dtype, size):
    """x (N, H, W, C), a causal kernel, a bias, and the direction."""
    shape, _, outputs = convolution_shapes(rng, size)
    if size in SIZES:  # also the channels that kernels for few of them are for
        shape = (*shape[:3], outputs)
    x, b = (rng.standard_normal(s).astype(dtype) for s in (shape, shape[3:]))
    k = (0.2 * rng.standard_normal((2, 2, shape[3], shape[3]))).astype(dtype)
    k[1, 1] = np.triu(k[1, 1], 1) + np.diag(1 + abs(k[1, 1].diagonal()))
    return x, k, b, bool(size[0] % 3)


def call_causal_correlate(rng, dtype, size):
    x, k, b, reverse = causal_arrays(rng, dtype, size)
    bound = 2 * (k[..., 0].size + 3) * eps_of(dtype)
    bound = bound * DEFINITION.causal.correlate(np.abs(x), np.abs(k), np.abs(b), reverse)
    return Call((x, k, b, reverse), bounds=(bound,), strided=(0, 1, 2))


def call_causal_adjoint(rng, dtype, size):
    dz, k, _, reverse = causal_arrays(rng, dtype, size)
    bound = 2 * (k[..., 0].size + 2) * eps_of(dtype)
    bound = bound * DEFINITION.causal.adjoint(np.abs(dz), np.abs(k), reverse)
    return Call((dz, k, reverse), bounds=(bound,), strided=(0, 1))


def call_causal_weight_grad(rng, dtype, size):
    x, k, _, reverse = causal_arrays(rng, dtype, size)
    delta = rng.standard_normal(x.shape).astype(dtype)
    volume, sizes = 0.7, [np.abs(a) for a in (delta, x, k)]
    bound = DEFINITION.causal.weight_grad(*sizes, volume, np.empty_like(k), reverse)
    bound = 2 * (delta[..., 0].size + 4) * eps_of(dtype) * bound
    args = (delta, x, k, number(volume, size), np.full_like(k, np.nan), reverse)
    return Call(args, bounds=(bound, bound), mutated=(4,), strided=(0, 1, 2))


def call_causal_inverse(rng, dtype, size):
    z, k, _, reverse = causal_arrays(rng, dtype, size)
    channels = z.shape[3]
    definition = DEFINITION.causal.inverse
    x = definition(z, k, reverse)
    # substitution: |error| <= (products + 2) eps M⁻¹ |T| |x|, M: T's diagonal and -|T| elsewhere
    comparison = -np.abs(k)
    comparison[1, 1] += 2 * np.diag(k[1, 1].diagonal())
    forward = DEFINITION.causal.correlate(np.abs(x), np.abs(k), reverse=reverse)
    bound = 2 * (4 * channels + 2) * eps_of(dtype) * definition(forward, comparison, reverse)
    return Call((z, k, reverse), bounds=(bound,), strided=(0, 1))
