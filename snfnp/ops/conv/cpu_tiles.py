"""Convolutions on the CPU whose outputs fill a vector register: products of tiles, without patches.

Channels-last, the values that one kernel row needs for a pixel are contiguous in a padded image,
which stays in the first-level cache. So the product of patches and kernel needs no patches: the
sums of a tile (neighbouring pixels times some outputs) stay in registers while the loop runs over
the taps, and every tap costs one load of a row of the kernel, which all pixels of the tile share.
The weight gradient is the same product with other strides: the sums of neighbouring taps stay in
registers, and the loop runs over the pixels.

Numba has no vectors, hence `_tile`, written for LLVM. It adds and multiplies in the order of the
taps, as a plain loop would; the compiler may round once where it fuses the two.

Derivation: derivations/07-convolutions.md.
"""

from __future__ import annotations

from functools import cache

import llvmlite.binding
import llvmlite.ir as ir
import numpy as np
from numba import prange, types
from numba.core import cgutils
from numba.core.errors import TypingError
from numba.extending import intrinsic

from snfnp.ops.jit import parallel, serial

_IMAGES = 10  # images per task: their buffer is allocated once, their weight gradients summed
_LANES = 16  # outputs in a tile at most
# Pixels, and taps, in a tile: few sizes, since each is compiled by itself.
_PIXELS, _TAPS = (8, 7, 4), (12, 8, 4)
_MOST = 64 * 64  # I·O up to which products of patches are slower


def fits(kernel, width: int) -> bool:
    """Whether the kernel (kH, kW, I, O) is one for tiles on images of this width."""
    kh, kw, inputs, outputs = kernel
    fours = inputs % 4 == outputs % 4 == 0 and width >= min(_PIXELS)
    return kh * kw > 1 and fours and inputs * outputs <= _MOST


def forward(x, k, z) -> None:
    """z (N, H, W, O) = the cross-correlation of x (N, H, W, I) with k (kH, kW, I, O)."""
    kh, kw, _, outputs = k.shape
    lanes = _lanes(outputs, x.dtype.itemsize)
    pixels = _pixels(x.shape[2], lanes, x.dtype.itemsize)
    flat = np.ascontiguousarray(k).reshape(-1)
    _forward(np.ascontiguousarray(x), flat, kh, kw, (1,) * pixels, (1,) * lanes, z)


def weight_grad(delta, x, kernel):
    """Σ over samples and pixels of δ ⋆ x, (kH, kW, I, O) in double precision; the sums of single
    images, and of _IMAGES of them, are in x's."""
    kh, kw, inputs, outputs = kernel
    run, lanes = kw * inputs, _lanes(outputs, x.dtype.itemsize)
    taps = next(t for t in _in_registers(_TAPS, lanes * x.dtype.itemsize) if run % t == 0)
    sums = np.zeros((-(-len(x) // _IMAGES), kh, run * outputs), x.dtype)
    x, delta = np.ascontiguousarray(x), np.ascontiguousarray(delta)
    _weight_grad(delta, x, kh, kw, (1,) * taps, (1,) * lanes, sums)
    return sums.sum(axis=0, dtype=np.float64).reshape(kernel)


def inverse_series(r, w, nu, terms: int):
    """See `Conv.inverse_series`; images of fewer than four columns are not for tiles."""
    width, channels, itemsize = nu.shape[2], nu.shape[3], nu.dtype.itemsize
    if channels == 1:  # neighbouring pixels fill the lanes
        pixels, lanes = 1, _lanes(1 << width.bit_length() - 1, itemsize)
    else:
        lanes = _lanes(channels, itemsize)
        pixels = _pixels(width, lanes, itemsize)
    kernels = (np.ascontiguousarray(k).reshape(-1) for k in (r, w))
    nu, tail = np.ascontiguousarray(nu), np.zeros(nu.shape, nu.dtype)
    _inverse_series(
        nu, *kernels, r.shape[:2], w.shape[:2], terms, (1,) * pixels, (1,) * lanes, tail
    )
    return tail


# ---------------------------------------------------------------- the sizes of a tile


def _pixels(width: int, lanes: int, itemsize: int) -> int:
    """Pixels of a tile, so that few are computed twice in a row of images of this width."""
    sizes = _in_registers(_PIXELS, lanes * itemsize)
    return min((p for p in sizes if p <= width), key=lambda p: -(-width // p) * p)


def _lanes(outputs: int, itemsize: int) -> int:
    """The largest power of two that divides the outputs and leaves room for the shortest tile."""
    lanes = min(outputs & -outputs, _LANES)
    while lanes > 4 and min(_PIXELS) * lanes * itemsize > _register_bytes():
        lanes //= 2
    return lanes


def _in_registers(sizes: tuple[int, ...], each: int) -> tuple[int, ...]:
    """The sizes at which sums of `each` bytes stay in registers; the smallest in any case."""
    return tuple(n for n in sizes if n * each <= _register_bytes() or n == min(sizes))


@cache
def _register_bytes() -> int:
    """What the vector registers hold that a tile may take: 28 of AVX-512's 32, or what 12 of AVX's
    16 hold (and about so many of other processors)."""
    return 28 * 64 if llvmlite.binding.get_host_cpu_features().get("avx512f") else 12 * 32


# ---------------------------------------------------------------- kernels


@intrinsic
def _tile(
    typing_context, x, x0, x_steps, w, w0, w_steps, counts, out, o0, o_step, add, size, lanes
):
    """out[o0 + p o_step + l] = or (add) += Σ_{a,b} x[x0 + a x_a + b x_b + p x_p] w[here + l],
    here = w0 + a w_a + b w_b,

    for p < len(size) and l < len(lanes), a and b below the counts. x, w, out: flat arrays;
    x_steps = (x_a, x_b, x_p), w_steps = (w_a, w_b). The lengths of two tuples are known to the
    compiler: they are part of their types.
    """
    length, width = len(size), len(lanes)
    if not x.dtype == w.dtype == out.dtype:
        raise TypingError("the arrays of a tile are of one precision")

    def code(context, builder, signature, arguments):
        x_type, w_type, out_type = (signature.args[i] for i in (0, 3, 7))
        xs, x_first, x_by, ws, w_first, w_by, ends, outs, o_first, o_by, adds = arguments[:11]
        scalar, integer = context.get_value_type(x_type.dtype), o_first.type
        vector = ir.VectorType(scalar, width)
        alignment = context.get_abi_alignment(scalar)
        x_data, w_data, out_data = (
            context.make_array(kind)(context, builder, array).data
            for kind, array in ((x_type, xs), (w_type, ws), (out_type, outs))
        )
        x_a, x_b, x_p = cgutils.unpack_tuple(builder, x_by)
        w_a, w_b = cgutils.unpack_tuple(builder, w_by)
        count_a, count_b = cgutils.unpack_tuple(builder, ends)

        def at(first, *steps):
            for index, step in steps:
                first = builder.add(first, builder.mul(index, step))
            return first

        def pointer(data, index):
            return builder.bitcast(builder.gep(data, [index]), vector.as_pointer())

        def spread(value):
            first = builder.insert_element(vector(ir.Undefined), value, ir.IntType(32)(0))
            everywhere = ir.VectorType(ir.IntType(32), width)([0] * width)
            return builder.shuffle_vector(first, vector(ir.Undefined), everywhere)

        places = [integer(p) for p in range(length)]
        sums = [cgutils.alloca_once(builder, vector) for _ in places]
        targets = [pointer(out_data, at(o_first, (p, o_by))) for p in places]
        for total in sums:
            builder.store(vector([0.0] * width), total)
        offsets = [builder.mul(p, x_p) for p in places]
        with (
            cgutils.for_range(builder, count_a, intp=integer) as outer,
            cgutils.for_range(builder, count_b, intp=integer) as inner,
        ):
            steps = (outer.index, inner.index)
            first = at(x_first, *zip(steps, (x_a, x_b), strict=True))
            here = at(w_first, *zip(steps, (w_a, w_b), strict=True))
            row = builder.load(pointer(w_data, here), align=alignment)
            for total, offset in zip(sums, offsets, strict=True):
                value = builder.load(builder.gep(x_data, [builder.add(first, offset)]))
                product = builder.fmul(spread(value), row, flags=("contract",))
                so_far = builder.load(total)
                builder.store(builder.fadd(so_far, product, flags=("contract",)), total)
        for total, target in zip(sums, targets, strict=True):
            value = builder.load(total)
            with builder.if_else(adds) as (then, otherwise):
                with then:
                    before = builder.load(target, align=alignment)
                    builder.store(builder.fadd(before, value), target, align=alignment)
                with otherwise:
                    builder.store(value, target, align=alignment)
        return context.get_dummy_value()

    parts = (x, x0, x_steps, w, w0, w_steps, counts, out, o0, o_step, add, size, lanes)
    return types.void(*parts), code


@serial
def _pad(image, top, left, row, padded):
    """image (H, W, C) into the flat `padded`, whose rows are `row` values long."""
    height, width, channels = image.shape
    for y in range(height):
        first = (y + top) * row + left * channels
        source, target = image[y].reshape(-1), padded[first : first + width * channels]
        for j in range(width * channels):
            target[j] = source[j]


@serial
def _convolve(padded, k, size, shape, pixels, lanes, z):
    """The padded image and the flat kernel k of this size -> flat z; shape: (H, W, I, O). The last
    tile of a row may overlap the one before: it computes the same values again."""
    kh, kw = size
    height, width, inputs, outputs = shape
    run, row = kw * inputs, (width + kw - 1) * inputs
    for o in range(0, outputs, len(lanes)):
        for y in range(height):
            for left in range(0, width, len(pixels)):
                first = min(left, width - len(pixels))
                _tile(
                    *(padded, y * row + first * inputs, (row, 1, inputs)),
                    *(k, o, (run * outputs, outputs), (kh, run)),
                    *(z, (y * width + first) * outputs + o, outputs, False),
                    *(pixels, lanes),
                )


@serial
def _convolve_plane(padded, k, size, shape, pixels, lanes, z):
    """The same for one channel, where the lanes of a tile are neighbouring pixels."""
    kh, kw = size
    height, width = shape[:2]
    row = width + kw - 1
    for y in range(height):
        for left in range(0, width, len(lanes)):
            first = min(left, width - len(lanes))
            _tile(
                *(k, 0, (kw, 1, 0)),
                *(padded, y * row + first, (row, 1), (kh, kw)),
                *(z, y * width + first, 0, False),
                *(pixels, lanes),
            )


@parallel
def _forward(x, k, kh, kw, pixels, lanes, z):
    """x (N, H, W, I), k flat -> z (N, H, W, O)."""
    samples, height, width, inputs = x.shape
    shape, row = (height, width, inputs, z.shape[3]), (width + kw - 1) * inputs
    for task in prange((samples + _IMAGES - 1) // _IMAGES):
        padded = np.zeros((height + kh - 1) * row, x.dtype)
        for n in range(task * _IMAGES, min(samples, (task + 1) * _IMAGES)):
            _pad(x[n], kh // 2, kw // 2, row, padded)
            _convolve(padded, k, (kh, kw), shape, pixels, lanes, z[n].reshape(-1))


@parallel
def _inverse_series(nu, r, w, r_size, w_size, terms, pixels, lanes, tail):
    """nu, tail (N, H, W, C), flat kernels r and w: an image stays in the first cache."""
    samples, height, width, channels = nu.shape
    shape = (height, width, channels, channels)
    for n in prange(samples):
        rows = ((width + r_size[1] - 1) * channels, (width + w_size[1] - 1) * channels)
        before_r = np.zeros((height + r_size[0] - 1) * rows[0], nu.dtype)
        before_w = np.zeros((height + w_size[0] - 1) * rows[1], nu.dtype)
        rest, y = nu[n].copy(), np.zeros(nu.shape[1:], nu.dtype)
        found = np.empty(nu.shape[1:], nu.dtype)
        flat, sums = found.reshape(-1), tail[n].reshape(-1)
        left_over, approximation, start = rest.reshape(-1), y.reshape(-1), nu[n].reshape(-1)
        for term in range(terms + 1):
            if term > 0:
                _pad(y, w_size[0] // 2, w_size[1] // 2, rows[1], before_w)
                if channels == 1:
                    _convolve_plane(before_w, w, w_size, shape, pixels, lanes, flat)
                else:
                    _convolve(before_w, w, w_size, shape, pixels, lanes, flat)
                for j in range(flat.size):
                    left_over[j] = start[j] - flat[j]
            _pad(rest, r_size[0] // 2, r_size[1] // 2, rows[0], before_r)
            if channels == 1:
                _convolve_plane(before_r, r, r_size, shape, pixels, lanes, flat)
            else:
                _convolve(before_r, r, r_size, shape, pixels, lanes, flat)
            for j in range(flat.size):
                approximation[j] += flat[j]
                if term > 1:
                    sums[j] += flat[j]


@parallel
def _weight_grad(delta, x, kh, kw, taps, lanes, sums):
    """delta (N, H, W, O), x (N, H, W, I) -> sums (tasks, kH, kW·I·O), added to."""
    samples, height, width, inputs = x.shape
    outputs, run = delta.shape[3], kw * inputs
    row = (width + kw - 1) * inputs
    for task in prange(len(sums)):
        padded = np.zeros((height + kh - 1) * row, x.dtype)
        for n in range(task * _IMAGES, min(samples, (task + 1) * _IMAGES)):
            _pad(x[n], kh // 2, kw // 2, row, padded)
            flat = delta[n].reshape(-1)
            for o in range(0, outputs, len(lanes)):
                for h in range(kh):
                    for tap in range(0, run, len(taps)):
                        _tile(
                            *(padded, h * row + tap, (row, inputs, 1)),
                            *(flat, o, (width * outputs, outputs), (height, width)),
                            *(sums[task, h], tap * outputs + o, outputs, True),
                            *(taps, lanes),
                        )
