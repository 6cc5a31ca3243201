"""Cases of convolutions, causal ones among them: see `operation_cases.py`."""

import numpy as np

from snfnp.ops import Epilogue, WeightGradient
from support.operation_calls import (
    DEFINITION,
    SIZES,
    Call,
    convolution_shapes,
    eps_of,
    number,
    square_bound,
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


def call_conv_correlate_then(rng, dtype, size):
    """The epilogues of a step: a bias, an error and its total, a sum, and a sum in place of y."""
    x, k, y = convolution(rng, dtype, size)
    bias, a, b, before = rng.standard_normal(k.shape[3]).astype(dtype), 0.3, -0.7, 0.7
    eps, bound, largest = eps_of(dtype), forward_bound(x, k), np.abs(y)
    error = DEFINITION.conv.correlate(x.astype(float), k.astype(float)) - y
    of_error = bound + 2 * eps * largest
    of_total = (of_error * (2 * np.abs(error) + of_error)).sum() + square_bound(error.astype(dtype))
    of_total = of_total / max(1, len(x)) + 8 * eps_of(np.float64)
    of_sum = bound + 4 * eps * largest
    args = (x, k, y, bias, *(number(value, size) for value in (a, b, before)), y.copy())

    def calling(operation, x, k, y, bias, a, b, before, out):
        plain = operation(x, k, Epilogue(bias=bias, keep=True))
        found = operation(x, k, Epilogue(y=y, b=-1.0, before=before))
        mixed = operation(x, k, Epilogue(a=a, y=y, b=b))
        in_place = operation(x, k, Epilogue(a=a, y=out, b=b, out=out))
        every = operation(x, k, Epilogue(a, y, b, bias, before, keep=True))
        assert found.z is mixed.z is mixed.total is plain.total is None and in_place.out is out
        return plain[:2], found[1:], mixed.out, in_place.z, every

    every = of_sum + 4 * eps * np.abs(bias)
    size_of_every = np.abs(a * (error + y) + b * y + bias)
    total = (every * (2 * size_of_every + every)).sum() + square_bound(size_of_every.astype(dtype))
    total = total / max(1, len(x)) + 8 * eps_of(np.float64)
    bounds = (bound, 2 * bound + eps * np.abs(bias), of_error, of_total, of_sum, bound)
    bounds += (bound, every, total, of_sum)
    return Call(args, bounds, mutated=(7,), strided=(0, 1, 2, 3), calling=calling)


def call_conv_correlate_both(rng, dtype, size):
    """As for a layer's deltas: sums, and the second's in the place of what it adds to."""
    a, b = (number(value, size) for value in (0.3, -0.7))
    first = convolution(rng, dtype, size)
    second = [rng.standard_normal(each.shape).astype(dtype) for each in first]
    (bound, _), (bound_2, of_z_2) = (
        (forward_bound(x, k) + 4 * eps_of(dtype) * np.abs(y), forward_bound(x, k))
        for x, k, y in (first, second)
    )

    def calling(operation, x, k, y, x_2, k_2, y_2, a, b):
        out = y_2.copy()
        of_2 = Epilogue(a=-0.5, y=out, b=b, out=out)
        return operation((x, k, Epilogue(a=a, y=y, b=0.5)), (x_2, k_2, of_2))

    args, strided = (*first, *second, a, b), (0, 1, 2, 3, 4, 5)
    return Call(args, (bound, of_z_2, bound_2), strided=strided, calling=calling)


def call_conv_weight_grads(rng, dtype, size):
    """Of two layers, or of one where there is no dz."""
    pairs = 1 if size[0] == 17 else 2
    first = convolution(rng, dtype, size)
    drawn = [[rng.standard_normal(a.shape).astype(dtype) for a in first] for _ in range(pairs)]
    xs, terms, deltas = map(tuple, zip(*drawn, strict=True))
    kernel, scales = terms[0].shape, (0.5, -0.7)[:pairs]
    multiples = tuple(rng.integers(1, 9, (*kernel[:2], 1, 1)).astype(float) for _ in range(pairs))
    dz = None if pairs == 1 else first[2]
    eps, bounds = eps_of(dtype), []
    for delta, x, scale, term, multiple in zip(deltas, xs, scales, terms, multiples, strict=True):
        sums = np.empty(kernel)
        DEFINITION.conv.weight_grad(np.abs(delta), np.abs(x), sums)
        added = np.abs(scale * term * multiple)
        bounds.append(2 * (delta[..., 0].size + 2) * eps * (sums + added) + 8 * eps * added)
    out = [np.full(kernel, np.nan, dtype) for _ in range(pairs)]
    if dz is not None:
        bounds.append(2 * dz[..., 0].size * eps * np.abs(dz).sum(axis=(0, 1, 2)))
        out.append(np.full(kernel[3], np.nan, dtype))
    args = (deltas, xs, scales, terms, multiples, number(0.9, size), dz, tuple(out))

    def calling(operation, deltas, xs, scales, terms, multiples, volume, dz, out):
        *out, db = out if dz is not None else (*out, None)
        each = zip(deltas, xs, scales, terms, multiples, out, strict=True)
        operation([WeightGradient(*parts) for parts in each], volume, dz, db)

    strided = (0, 1, 3, 6)
    return Call(args, tuple(bounds), mutated=(7,), strided=strided, host=(4,), calling=calling)


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
