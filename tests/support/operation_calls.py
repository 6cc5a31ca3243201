"""Calls of operations, the shapes they are tried on, and how a backend is held to a definition.

The same calls (`operation_cases.py`) are made on every backend: on a CPU (`test_ops.py`), on a GPU
or its stand-in (`gpu/test_ops.py`), and kernel by kernel through a C++ compiler
(`test_kernels_host.py`). An operation is named "group.operation", as in `ops.spline.evaluate`.
"""

import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial, partialmethod
from operator import attrgetter, methodcaller

import numpy as np
from numpy.testing import assert_array_equal

from snfnp.errors import SingularMatrixError
from snfnp.ops import DEFINITIONS, get_ops
from support.arrays import assert_near

DEFINITION = get_ops("numpy")
FLOATS = [np.float64, np.float32]


@dataclass
class Call:
    """One call of an operation, and how far two correct results may be apart.

    bounds: one array or number per result (0: they must be equal), then one per array named in
    `mutated`, the positions of the arguments that the operation updates.
    strided: the positions of arguments that need not be contiguous; host: of arrays that stay on
    the host on every device. One bound, or one position, may stand alone.
    """

    args: tuple
    bounds: tuple
    mutated: tuple[int, ...] = ()
    strided: tuple[int, ...] = ()
    host: tuple[int, ...] = ()

    def __post_init__(self):
        for name in ("bounds", "mutated", "strided", "host"):
            value = getattr(self, name)
            if not isinstance(value, tuple):
                setattr(self, name, (value,))

    def in_double(self):
        """The same call in double precision, with the same bounds."""

        def wide(argument):
            if isinstance(argument, type) and issubclass(argument, np.floating):
                return np.float64
            return each_array(
                lambda a: a.astype(float) if a.dtype.kind == "f" else a, argument
            )

        return replace(self, args=tuple(map(wide, self.args)))


def eps_of(dtype):
    return float(np.finfo(dtype).eps)


class Draw:
    """What the arguments of a case are made of: a generator, their precision and their size."""

    def __init__(self, dtype, size, seed=0):
        self.rng = np.random.default_rng(seed)
        self.dtype = dtype
        self.size = size
        self.eps = eps_of(dtype)

    def normal(self, shape):
        return self.rng.standard_normal(shape).astype(self.dtype)


def number(value, size):
    """A number as operations take it: itself, or the array of shape () that a device has it in."""
    return np.array(value) if size[0] < 5 else value


def square_bound(g):
    """Definition in double; kernels may add runs of at most 1024 squares in g's precision."""
    return 1026 * eps_of(g.dtype) * float(np.sum(np.square(g, dtype=np.float64)))


# ---------------------------------------------------------------- shapes

# No multiple of 16, 8 or 4 among the last axes; one sample; one value; a row longer than a
# kernel's block of the flat buffer; images; more samples than a block has threads; and whole
# warps, which fill blocks and tiles to the brim.
SIZES = [
    (1, 1),
    (1, 13),
    (5, 37),
    (17, 2),
    (3, 16_411),
    (3, 5, 7, 2),
    (300, 3),
    (96, 8),
]

NO_SAMPLES = [(0, 5), (0, 3, 4, 2)]
TWO_SIZES = [(5, 37), (3, 5, 7, 2)]  # where it is not the size that matters

# For the convolutions, in the order of SIZES: images (N, H, W, I), kernel (kH, kW), outputs O.
# Few and many channels, an odd number of outputs, a kernel larger than the image.
CONVOLUTIONS = [
    ((1, 1, 1, 1), (3, 3), 1),
    ((1, 5, 3, 2), (5, 3), 3),
    ((11, 4, 7, 3), (3, 3), 5),
    ((17, 2, 2, 4), (2, 2), 9),
    ((6, 28, 28, 1), (3, 3), 6),
    ((3, 5, 7, 2), (1, 1), 4),
    ((13, 5, 4, 72), (3, 3), 2),
    ((16, 8, 8, 16), (3, 3), 16),
]


def convolution_shapes(draw):
    """Images, kernel and outputs: those of the table, and for any other size they are drawn."""
    if draw.size in SIZES:
        return CONVOLUTIONS[SIZES.index(draw.size)]
    rng = draw.rng
    height, width = map(int, rng.integers(1, 9, 2))
    kernel = tuple(map(int, rng.choice([1, 2, 3, 5], 2)))
    inputs, outputs = map(int, rng.choice([1, 2, 3, 4, 5, 9, 20], 2))
    return (min(draw.size[0], 40), height, width, inputs), kernel, outputs


def size_2d(size):
    """Rows and columns of a matrix."""
    return size[0], min(math.prod(size[1:]), 211)


def random_sizes(seed: int, count: int) -> list[tuple[int, ...]]:
    """Shapes of two to four axes, of 1 to 1000 samples and up to some thousand values."""
    rng = np.random.default_rng(seed)
    sizes = []
    for axes in rng.integers(2, 5, count):
        samples = int(10 ** rng.uniform(0, 3))
        longest = max(2, int((20_000 / samples) ** (1 / (axes - 1))))
        sizes.append((samples, *map(int, rng.integers(1, longest, axes - 1))))
    return sizes


# ---------------------------------------------------------------- running a case

copied = methodcaller("copy", "K")


def in_order(put):
    """`put`, which takes C-contiguous arrays, for any: their axes stay in their order in memory."""

    def put_any(array):
        order = np.argsort([-stride for stride in array.strides], kind="stable")
        moved = put(array.transpose(order))
        if not array.ndim:  # np.ascontiguousarray gives an array of shape () an axis
            return moved.reshape(())
        return moved.transpose(tuple(map(int, np.argsort(order))))

    return put_any


def every_second(xp, array):
    """The same values as a view with gaps along every axis."""
    wide = xp.zeros(tuple(2 * n for n in array.shape), array.dtype)
    view = wide[tuple(slice(None, None, 2) for _ in array.shape)]
    view[...] = array
    return view


def transposed(xp, array):
    """The same values, the first axis contiguous."""
    return xp.asfortranarray(array)


def each_array(change, argument):
    """`argument` with `change` applied to an array, or to every array of a tuple of arrays."""
    if isinstance(argument, tuple) and all(isinstance(a, np.ndarray) for a in argument):
        return tuple(change(a) for a in argument)
    return change(argument) if isinstance(argument, np.ndarray) else argument


def run(ops, name, call, put=copied, layout=None):
    """The results and then the updated arguments; every other array argument must be unchanged.

    put: makes of a host array the array that `ops` is given; layout: of this a view of the same
    values, where an operation takes such arguments.
    """
    args = [
        a if i in call.host else each_array(put, a) for i, a in enumerate(call.args)
    ]
    for position in call.strided if layout else ():
        given = args[position]
        several = isinstance(given, tuple)
        changed = tuple(
            layout(ops.xp, each) for each in (given if several else (given,))
        )
        args[position] = changed if several else changed[0]
    found = _flat(attrgetter(name)(ops)(*args))
    for position in call.mutated:  # one argument may be several arrays
        found += _flat(args[position])
    for position, (now, then) in enumerate(zip(args, call.args, strict=True)):
        if isinstance(then, np.ndarray) and position not in call.mutated:
            now = now if position in call.host else ops.to_host(now)
            assert_array_equal(now, then, f"{name} changed argument {position}")
    return [
        ops.to_host(f) if hasattr(f, "shape") else f for f in found if f is not None
    ]


def _flat(result) -> list:
    """A result, or the results in a tuple or list, which may hold such."""
    if not isinstance(result, tuple | list):
        return [result]
    return [part for each in result for part in _flat(each)]


def reference(name, call):
    """What every backend must come to, and the types it must come in.

    That is the definition in double precision; where a bound is 0, the very bits of the
    definition in the call's own.
    """
    own, double = (run(DEFINITION, name, each) for each in (call, call.in_double()))
    triples = zip(own, double, call.bounds, strict=True)
    expected = [np.where(np.asarray(bound) == 0, o, d) for o, d, bound in triples]
    return expected, [np.asarray(o).dtype for o in own]


def assert_as_defined(ops, name, call, put=copied, layout=None):
    """`ops` does what the definition says, within the bounds of a case."""
    expected, dtypes = reference(name, call)
    found = run(ops, name, call, put, layout)
    assert [np.asarray(f).dtype for f in found] == dtypes, name
    assert_within(name, found, expected, call.bounds)


def assert_within(name, found, expected, bounds):
    assert len(found) == len(expected) == len(bounds)
    for index, (f, e, bound) in enumerate(zip(found, expected, bounds, strict=True)):
        assert np.shape(f) == np.shape(e)
        # the comparison is in double, so that the bound is not rounded
        difference = np.abs(np.asarray(f, np.float64) - np.asarray(e, np.float64))
        if np.all(difference <= bound):
            continue
        excess = difference - bound
        worst = np.unravel_index(np.argmax(excess), excess.shape)
        raise AssertionError(
            f"{name}, result {index} {np.shape(f)} at {worst}: {np.asarray(f)[worst]!r} instead of "
            f"{np.asarray(e)[worst]!r}, {np.max(excess):.1e} beyond the bound"
        )


# ---------------------------------------------------------------- arguments that disagree

_GUARD = 64  # cells on both sides of an array


def disagreeing(call):
    """(what, the call with one of its arrays in another shape or precision), for every array."""
    for where, array, with_other in _arrays(call):
        for what, other in _others(array) if array.ndim else ():
            yield f"{what}, {where}", with_other(other)


def _arrays(call):
    """(which, the array, a function: the call with another in its place), for every array."""

    def with_other(position, index, other):
        argument = call.args[position]
        if isinstance(argument, tuple):
            other = (*argument[:index], other, *argument[index + 1 :])
        args = (*call.args[:position], other, *call.args[position + 1 :])
        return replace(call, args=args)

    for position, argument in enumerate(call.args):
        arrays = argument if isinstance(argument, tuple) else (argument,)
        for index, array in enumerate(arrays):
            if isinstance(array, np.ndarray):
                where = f"array {index} of argument {position}"
                yield where, array, partial(with_other, position, index)


def _others(array):
    wider = array.astype(np.float32 if array.dtype == np.float64 else np.float64)
    yield "another precision", wider
    yield "whole numbers", array.astype(np.int64)
    yield "an axis more", array[None]
    yield "flat", array.reshape(-1)
    yield "transposed", array.T
    for name, axis in (("row", 0), ("channel", -1), ("middle", array.ndim // 2)):
        rest = np.take(array, range(array.shape[axis] - 1), axis)
        yield f"{name} less", rest
        yield f"{name} more", np.concatenate([array, np.take(array, [0], axis)], axis)
        yield f"one {name}", np.take(array, [0], axis)


def assert_disagreement_as_defined(ops, name, what, call):
    """The error of the definition or, to rounding in double precision, its results; no cell beside
    an array is read or written. Sums in `call` are of some thousand terms of about 1 at the most:
    rounding is far below 1e-10 of the largest value, foreign memory far above."""
    buffers = []

    def guarded(array):
        fill = np.nan if array.dtype.kind == "f" else 77
        buffers.append(np.full(array.size + 2 * _GUARD, fill, array.dtype))
        view = buffers[-1][_GUARD:-_GUARD].reshape(array.shape)
        view[...] = array
        return view

    expected, found = (
        _results(each, name, call, put)
        for each, put in ((DEFINITION, copied), (ops, in_order(guarded)))
    )
    what = f"{name}: {what}"
    for buffer in buffers:
        cells = np.concatenate([buffer[:_GUARD], buffer[-_GUARD:]])
        assert np.all(np.isnan(cells) if buffer.dtype.kind == "f" else cells == 77), (
            what
        )
    if isinstance(expected, Exception):
        assert (type(found), str(found)) == (type(expected), str(expected)), what
        return
    assert not isinstance(found, Exception), f"{what}: {found!r}"
    for f, e in zip(found, expected, strict=True):
        f = np.asarray(f)
        e = np.asarray(e)
        assert (f.shape, f.dtype) == (e.shape, e.dtype), what
        largest = np.abs(e).max(initial=1, where=np.isfinite(e))
        assert_near(f, e, 1e-10 * largest, what)


def _results(ops, name, call, put):
    try:
        return run(ops, name, call, put)
    except (ValueError, TypeError, IndexError) as error:
        return error


# Where a NaN may stay within narrower bounds than the definition's, and from which arguments ("":
# all): the GPU's convolutions take no product with what lies outside the image.
NARROWER = {"conv.correlate": "argument 1", "conv.weight_grad": ""}


def assert_nan_spreads_as_defined(ops, name, call, put=copied, wider=()):
    """From one value of each array argument, one after another; and nowhere else, but for the
    operations that are named in `wider`."""
    for where, spoilt in _spoilt(call):
        try:
            defined = run(DEFINITION, name, spoilt)
        except (
            SingularMatrixError
        ):  # of which a device that would have to wait makes NaN
            with suppress(SingularMatrixError):
                assert np.isnan(run(ops, name, spoilt, put)[0]).any(), (
                    f"{name}, {where}"
                )
            continue
        pairs = zip(run(ops, name, spoilt, put), defined, strict=True)
        for index, (found, expected) in enumerate(pairs):
            what = f"{name}, {where}, result {index}"
            found = np.isnan(found)
            expected = np.isnan(expected)
            further = (
                found.any() != expected.any()
                if name in wider
                else np.any(found > expected)
            )
            assert not further, what
            narrower = name in NARROWER and where.endswith(NARROWER[name])
            assert narrower or np.all(found >= expected), what


def _spoilt(call):
    """(which array, the call with one NaN in it) for every array of the arguments."""
    for where, array, with_other in _arrays(call):
        if array.dtype.kind == "f":
            array = array.copy()
            array.reshape(-1)[array.size // 2] = np.nan
            yield where, with_other(array)


def overridden(groups: dict[str, type]) -> set[str]:
    """The operations that a backend defines beyond the definitions: {"group.operation", …}."""
    found = set()
    for group, definition in DEFINITIONS.items():
        more = [cls for cls in groups[group].__mro__ if cls not in definition.__mro__]
        kinds = (Callable, partialmethod)
        names = {
            k
            for cls in more
            for k, value in vars(cls).items()
            if isinstance(value, kinds)
        }
        found |= {f"{group}.{name}" for name in names if not name.startswith("_")}
    return found
