"""Philox 4x32-10 (Salmon et al., 2011): random numbers as a pure function of a counter and a key.

The numbers of training step 700 are found from (seed, stream, step) alone: a resumed run, another
backend, or a replayed GPU graph sees the very same ones.

    counter = (block index, step, step >> 32, stream)      key = (seed, seed >> 32)

One block gives four 32-bit words; element i of an array (in C order) is word i % 4 of block i // 4.
A block's index is one word of the counter: a key has 2^34 words, and no array may reach beyond
them. See derivations/03-change-of-variables.md, on the noise of images.
"""

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike

from snfnp.ops.group import Array, OperationGroup, Shape

_M0 = np.uint64(0xD2511F53)
_M1 = np.uint64(0xCD9E8D57)
_W0 = np.uint64(0x9E3779B9)  # the golden ratio, as a 32-bit fraction
_W1 = np.uint64(0xBB67AE85)  # sqrt(3) - 1
_ROUNDS = 10
_MASK = np.uint64(0xFFFFFFFF)
_32 = np.uint64(32)


class RandomKey(NamedTuple):
    """A place in the sequence: the run's seed, the purpose (stream) and the step, which may be an
    array of shape (), uint64, on an asynchronous device.

    first: a draw of shape (n, ...) is rows first, …, first + n - 1 of a longer one with first = 0,
    to the last bit.
    """

    seed: int
    stream: int
    step: int = 0
    first: int = 0

    def start(self, shape: Shape) -> int:
        """The number of elements before those of an array (n, ...) of this shape. O(1)."""
        return self.first * math.prod(shape[1:])

    @property
    def words(self) -> tuple[int, int, int, int, int]:
        """(step low, step high, stream, seed low, seed high), each a 32-bit integer."""
        mask = int(_MASK)
        return (
            self.step & mask,
            self.step >> 32 & mask,
            self.stream & mask,
            self.seed & mask,
            self.seed >> 32 & mask,
        )


def philox4x32(counter: tuple, key: tuple) -> tuple:
    """Ten rounds of Philox 4x32, also compiled by Numba. counter: four uint64 arrays or scalars
    with values below 2**32 (64 bits hold the products), like the result; key: two such integers."""
    c0, c1, c2, c3 = counter
    k0 = np.uint64(key[0])
    k1 = np.uint64(key[1])
    for _ in range(_ROUNDS):
        product_0 = c0 * _M0
        product_1 = c2 * _M1
        c0 = (product_1 >> _32) ^ c1 ^ k0
        c1 = product_1 & _MASK
        c2 = (product_0 >> _32) ^ c3 ^ k1
        c3 = product_0 & _MASK
        k0 = (k0 + _W0) & _MASK
        k1 = (k1 + _W1) & _MASK
    return c0, c1, c2, c3


def _sequence(xp: Any, key: RandomKey, count: int, start: int) -> Array:
    """The numbers start, start + 1, … of a key's sequence, for any `key.first`: 32-bit words as
    fractions of 2³², float64 (count,) of the namespace xp."""
    *counter, seed_low, seed_high = key.words
    blocks = xp.arange(start // 4, (start + count + 3) // 4, dtype=np.uint64)
    rest = [xp.full_like(blocks, word) for word in counter]
    four = philox4x32((blocks, *rest), (seed_low, seed_high))
    words = xp.stack(four, axis=-1).ravel()[start % 4 : start % 4 + count]
    return words * 2.0**-32


def uniform(xp: Any, key: RandomKey, shape: Shape) -> Array:
    """Uniform numbers on [0, 1) with 32 bits, float64 of the given shape."""
    return _sequence(xp, key, math.prod(shape), key.start(shape)).reshape(shape)


class Random(OperationGroup):
    """Every distribution leaves out the first `key.first` rows of an array: see `RandomKey`."""

    def uniform(self, key: RandomKey, shape: Shape, dtype: DTypeLike) -> Array:
        """Uniform numbers on [0, 1).

        In single precision the 32 bits would round to 1.0 at the top: 24 of them are kept.
        """
        u = uniform(self.xp, key, shape)
        if np.dtype(dtype) == np.float32:
            u = self.xp.floor(u * 2.0**24) * 2.0**-24
        return u.astype(dtype)

    def normal(self, key: RandomKey, shape: Shape, dtype: DTypeLike) -> Array:
        """Standard normal numbers by the Box-Muller transform, computed in double precision: words
        2i and 2i + 1 make elements 2i (cosine) and 2i + 1 (sine).
        """
        xp = self.xp
        count = math.prod(shape)
        start = key.start(shape)
        # then the first element is a sine, and its cosine is not wanted
        odd = start % 2
        u = _sequence(xp, key, odd + count + (odd + count) % 2, start - odd)
        # no log(0)
        radius = xp.sqrt(-2.0 * xp.log(u[::2] + 2.0**-32))
        angle = 2.0 * math.pi * u[1::2]
        both = xp.stack([radius * xp.cos(angle), radius * xp.sin(angle)], axis=-1)
        return both.ravel()[odd : odd + count].reshape(shape).astype(dtype)

    def rademacher(self, key: RandomKey, shape: Shape, dtype: DTypeLike) -> Array:
        """Signs, +1 or −1 with probability ½ each, the highest bit of each word: probes ν with
        E[ννᵀ] = I, and ‖ν‖² the same for all."""
        return self.xp.where(uniform(self.xp, key, shape) < 0.5, 1, -1).astype(dtype)
