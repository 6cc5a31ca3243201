"""Tiles of products in the vector registers of the CPU, and their sizes.

Numba has no vectors, hence `tile`, written for LLVM. It adds and multiplies in the order of the
taps, as a plain loop would; the compiler may round once if it fuses the two. The size of a tile is
the lengths of two tuples, which the compiler knows: they are part of their types. See
derivations/07-convolutions.md.
"""

from functools import cache

import llvmlite.binding
import llvmlite.ir as ir
from numba import types
from numba.core import cgutils
from numba.core.errors import TypingError
from numba.extending import intrinsic

_LANES = 16  # outputs in a tile at most
# Pixels, and taps, in a tile: few sizes, since each is compiled by itself.
PIXELS, _TAPS = (8, 7, 4), (12, 8, 4)


def of_pixels(width: int, outputs: int, itemsize: int) -> tuple[tuple, tuple]:
    """(pixels, lanes), as tuples of that length: pixels so that few are computed twice in a row of
    images of this width."""
    lanes = _lanes(outputs, itemsize)
    sizes = (p for p in _in_registers(PIXELS, lanes * itemsize) if p <= width)
    return (1,) * min(sizes, key=lambda p: -(-width // p) * p), (1,) * lanes


def of_taps(run: int, outputs: int, itemsize: int) -> tuple[tuple, tuple]:
    """(taps, lanes), as tuples of that length; run: the taps of a kernel row, with its channels."""
    lanes = _lanes(outputs, itemsize)
    taps = next(t for t in _in_registers(_TAPS, lanes * itemsize) if run % t == 0)
    return (1,) * taps, (1,) * lanes


@cache
def register_bytes() -> int:
    """The bytes of the vector registers that a tile may take: 28 of AVX-512's 32 registers, or 12
    of AVX's 16 (about as many on other processors)."""
    return 28 * 64 if llvmlite.binding.get_host_cpu_features().get("avx512f") else 12 * 32


def _lanes(outputs, itemsize) -> int:
    """The largest power of two that divides the outputs and leaves room for the shortest tile."""
    lanes = min(outputs & -outputs, _LANES)
    while lanes > 4 and min(PIXELS) * lanes * itemsize > register_bytes():
        lanes //= 2
    return lanes


def _in_registers(sizes: tuple[int, ...], size_of_sum) -> list[int]:
    """The sizes at which sums of that many bytes stay in registers; the smallest in any case."""
    return [n for n in sizes if n * size_of_sum <= register_bytes() or n == min(sizes)]


@intrinsic
def tile(typing_context, x, x0, x_steps, w, w0, w_steps, counts, out, o0, o_step, add, size, lanes):
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
