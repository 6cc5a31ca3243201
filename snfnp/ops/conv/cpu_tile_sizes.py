"""The sizes of the tiles of `cpu_tiles.py`, from shapes and from what the registers hold.

A kernel learns a size from the length of a tuple, which is part of its type.

Derivation: derivations/07-convolutions.md.
"""

from __future__ import annotations

from functools import cache

import llvmlite.binding

_LANES = 16  # outputs in a tile at most
# Pixels, and taps, in a tile: few sizes, since each is compiled by itself.
PIXELS, _TAPS = (8, 7, 4), (12, 8, 4)


def of_pixels(width: int, outputs: int, itemsize: int) -> tuple[tuple, tuple]:
    """(pixels, lanes), as tuples of that length: pixels so that few are computed twice in a row of
    images of this width."""
    return _of_pixels(width, outputs, itemsize, register_bytes())


def of_taps(run: int, outputs: int, itemsize: int) -> tuple[tuple, tuple]:
    """(taps, lanes), as tuples of that length; run: the taps of a kernel row, with its channels."""
    return _of_taps(run, outputs, itemsize, register_bytes())


def of_a_plane(width: int, itemsize: int) -> tuple[tuple, tuple]:
    """The same for one channel, where neighbouring pixels of an image of this width are lanes."""
    return (1,), (1,) * _lanes(1 << width.bit_length() - 1, itemsize, register_bytes())


@cache
def register_bytes() -> int:
    """What the vector registers hold that a tile may take: 28 of AVX-512's 32, or what 12 of AVX's
    16 hold (and about so many of other processors)."""
    return 28 * 64 if llvmlite.binding.get_host_cpu_features().get("avx512f") else 12 * 32


@cache
def _of_pixels(width, outputs, itemsize, room):
    lanes = _lanes(outputs, itemsize, room)
    sizes = _in_registers(PIXELS, lanes * itemsize, room)
    pixels = min((p for p in sizes if p <= width), key=lambda p: -(-width // p) * p)
    return (1,) * pixels, (1,) * lanes


@cache
def _of_taps(run, outputs, itemsize, room):
    lanes = _lanes(outputs, itemsize, room)
    taps = next(t for t in _in_registers(_TAPS, lanes * itemsize, room) if run % t == 0)
    return (1,) * taps, (1,) * lanes


def _lanes(outputs, itemsize, room) -> int:
    """The largest power of two that divides the outputs and leaves room for the shortest tile."""
    lanes = min(outputs & -outputs, _LANES)
    while lanes > 4 and min(PIXELS) * lanes * itemsize > room:
        lanes //= 2
    return lanes


def _in_registers(sizes: tuple[int, ...], each, room) -> tuple[int, ...]:
    """The sizes at which sums of `each` bytes stay in registers; the smallest in any case."""
    return tuple(n for n in sizes if n * each <= room or n == min(sizes))
