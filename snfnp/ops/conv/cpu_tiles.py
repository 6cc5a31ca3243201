"""Convolutions on the CPU whose outputs fill a vector register: products of tiles, without patches.

Channels-last, the values that one kernel row needs for a pixel are contiguous in a padded image,
which stays in the first-level cache. The sums of a tile (neighbouring pixels times some outputs)
stay in registers while the loop runs over the taps; every tap costs one load of a row of the
kernel, which all pixels of the tile share. In the weight gradient the sums of neighbouring taps
stay in registers, and the loop runs over the pixels.

Numba has no vectors, hence `tile`, written for LLVM. It adds and multiplies in the order of the
taps, as a plain loop would; the compiler may round once if it fuses the two. See
derivations/07-convolutions.md.
"""

from functools import cache

import llvmlite.binding
import llvmlite.ir as ir
import numpy as np
from numba import types
from numba.core import cgutils
from numba.core.errors import TypingError
from numba.extending import intrinsic

from snfnp.ops.group import Shape
from snfnp.ops.jit import inlined, parallel

# images per task: their buffer is allocated once, their weight gradients summed
_IMAGES = 10
_MOST = 64 * 64  # I·O up to which products of patches are slower
_LANES = 16  # outputs in a tile at most
# Pixels, and taps, in a tile: few sizes, since each is compiled by itself.
_PIXELS = (8, 7, 4)
_TAPS = (12, 8, 4)


@cache
def fits(kernel: tuple[int, int, int, int], width: int) -> bool:
    """True if tiles are for the kernel (kH, kW, I, O) on images of this width."""
    kh, kw, inputs, outputs = kernel
    fours = inputs % 4 == outputs % 4 == 0 and width >= min(_PIXELS)
    return kh * kw > 1 and fours and inputs * outputs <= _MOST


@cache
def register_bytes() -> int:
    """The bytes of the vector registers that a tile may take: 28 of AVX-512's 32 registers, or 12
    of AVX's 16 (about as many on other processors)."""
    return (
        28 * 64 if llvmlite.binding.get_host_cpu_features().get("avx512f") else 12 * 32
    )


def _tile_size(
    sizes: tuple[int, ...], length: int, outputs: int, itemsize: int
) -> tuple[tuple, tuple]:
    """(pixels or taps, outputs) of a tile, as tuples of that length: the one of `sizes` whose sums
    stay in registers and with which the fewest of `length` are computed twice."""
    lanes = min(outputs & -outputs, _LANES)
    while lanes > 4 and min(sizes) * lanes * itemsize > register_bytes():
        lanes //= 2
    most = min(length, register_bytes() // (lanes * itemsize))
    usable = [size for size in sizes if size <= most or size == min(sizes)]
    return (1,) * min(usable, key=lambda size: -(-length // size) * size), (1,) * lanes


def correlate(x: np.ndarray, k: np.ndarray, z: np.ndarray) -> None:
    """z (N, H, W, O) = the cross-correlation of x (N, H, W, I) with k (kH, kW, I, O); all arrays
    are contiguous."""
    pixels, lanes = _tile_size(_PIXELS, x.shape[2], k.shape[3], x.dtype.itemsize)
    _correlate_images(
        -(-len(x) // _IMAGES), x, k.ravel(), k.shape[:2], pixels, lanes, z
    )


def weight_grad(delta: np.ndarray, x: np.ndarray, kernel: Shape) -> np.ndarray:
    """Σ over samples and pixels of δ ⋆ x, like the kernel (kH, kW, I, O); the arrays are
    contiguous."""
    kh, kw, inputs, outputs = kernel
    taps, lanes = _tile_size(_TAPS, kw * inputs, outputs, x.dtype.itemsize)
    sums = np.zeros((-(-len(x) // _IMAGES), kh, kw * inputs * outputs), x.dtype)
    _weight_grad(len(sums), delta, x, kw, taps, lanes, sums)
    return sums.sum(axis=0).reshape(kernel)


@intrinsic
def tile(
    typing_context,
    x,
    x0,
    x_steps,
    w,
    w0,
    w_steps,
    counts,
    out,
    o0,
    o_step,
    add,
    size,
    lanes,
):
    """out[o0 + p o_step + l] = or (add) += Σ_{a,b} x[x0 + a x_a + b x_b + p x_p] w[here + l],
    here = w0 + a w_a + b w_b,

    for p < len(size) and l < len(lanes), a and b below the counts. x, w, out: flat arrays;
    x_steps = (x_a, x_b, x_p), w_steps = (w_a, w_b). The lengths of two tuples are known to the
    compiler: they are part of their types.
    """
    length = len(size)
    width = len(lanes)
    if not x.dtype == w.dtype == out.dtype:
        raise TypingError("the arrays of a tile are of one precision")

    def code(context, builder, signature, arguments):
        xs, x_first, x_by, ws, w_first, w_by, ends, outs, o_first, o_by, adds = (
            arguments[:11]
        )
        scalar = context.get_value_type(x.dtype)
        integer = o_first.type
        vector = ir.VectorType(scalar, width)
        alignment = context.get_abi_alignment(scalar)
        x_data, w_data, out_data = (
            context.make_array(kind)(context, builder, array).data
            for kind, array in ((x, xs), (w, ws), (out, outs))
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
            first = builder.insert_element(
                vector(ir.Undefined), value, ir.IntType(32)(0)
            )
            everywhere = ir.VectorType(ir.IntType(32), width)([0] * width)
            return builder.shuffle_vector(first, vector(ir.Undefined), everywhere)

        pixels = [integer(p) for p in range(length)]
        sums = [cgutils.alloca_once(builder, vector) for _ in pixels]
        targets = [pointer(out_data, at(o_first, (p, o_by))) for p in pixels]
        for total in sums:
            builder.store(vector([0.0] * width), total)
        offsets = [builder.mul(p, x_p) for p in pixels]
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
                    earlier = builder.load(target, align=alignment)
                    builder.store(builder.fadd(earlier, value), target, align=alignment)
                with otherwise:
                    builder.store(value, target, align=alignment)
        return context.get_dummy_value()

    parts = (x, x0, x_steps, w, w0, w_steps, counts, out, o0, o_step, add, size, lanes)
    return types.void(*parts), code


@inlined
def pad(image, top, left, row, padded):
    """image (H, W, C) into the flat `padded`, whose rows are `row` values long."""
    height, width, channels = image.shape
    values = image.reshape(-1)
    length = width * channels
    for y in range(height):
        first = (y + top) * row + left * channels
        source = values[y * length : (y + 1) * length]
        target = padded[first : first + length]
        for j in range(length):
            target[j] = source[j]


@parallel
def _correlate_images(task, x, k, size, pixels, lanes, z):
    """x (N, H, W, I), k flat, size (kH, kW) -> z (N, H, W, O)."""
    samples, height, width, inputs = x.shape
    kh, kw = size
    outputs = z.shape[3]
    run = kw * inputs
    row = (width + kw - 1) * inputs
    padded = np.zeros((height + kh - 1) * row, x.dtype)
    for n in range(task * _IMAGES, min(samples, (task + 1) * _IMAGES)):
        pad(x[n], kh // 2, kw // 2, row, padded)
        flat = z[n].reshape(-1)
        for o in range(0, outputs, len(lanes)):
            for y in range(height):
                for left in range(0, width, len(pixels)):
                    # the last tile of a row may overlap the one before: the same values again
                    first = min(left, width - len(pixels))
                    tile(
                        padded,
                        y * row + first * inputs,
                        (row, 1, inputs),
                        k,
                        o,
                        (run * outputs, outputs),
                        (kh, run),
                        flat,
                        (y * width + first) * outputs + o,
                        outputs,
                        False,
                        pixels,
                        lanes,
                    )


@parallel
def _weight_grad(task, delta, x, kw, taps, lanes, sums):
    """delta (N, H, W, O), x (N, H, W, I) -> sums (tasks, kH, kW·I·O), zeros."""
    samples, height, width, inputs = x.shape
    outputs = delta.shape[3]
    kh = sums.shape[1]
    run = kw * inputs
    row = (width + kw - 1) * inputs
    padded = np.zeros((height + kh - 1) * row, x.dtype)
    for n in range(task * _IMAGES, min(samples, (task + 1) * _IMAGES)):
        pad(x[n], kh // 2, kw // 2, row, padded)
        flat = delta[n].reshape(-1)
        for o in range(0, outputs, len(lanes)):
            for h in range(kh):
                for tap in range(0, run, len(taps)):
                    tile(
                        padded,
                        h * row + tap,
                        (row, inputs, 1),
                        flat,
                        o,
                        (width * outputs, outputs),
                        (height, width),
                        sums[task, h],
                        tap * outputs + o,
                        outputs,
                        True,
                        taps,
                        lanes,
                    )
