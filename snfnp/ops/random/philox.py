"""Philox 4x32-10 (Salmon et al., 2011): random numbers as a pure function of a counter and a key.

Nothing is stored and nothing is advanced: the numbers of training step 700 are found from
(seed, stream, step) alone, so a resumed run, another backend, or a replayed GPU graph sees the
very same ones. This module is the definition, in array terms; the other backends reproduce it.

    counter = (block index, step, step >> 32, stream)      key = (seed, seed >> 32)

One block gives four 32-bit words; element i of an array (in C order) is word i % 4 of block i // 4.
So any part of an array is found without the rest of it. A block's index is one word of the counter:
a key has 2^34 words, and no array may reach beyond them.

Derivation: derivations/02-change-of-variables.md, on the noise of images.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

MULTIPLIER_0, MULTIPLIER_1 = 0xD2511F53, 0xCD9E8D57
WEYL_0, WEYL_1 = 0x9E3779B9, 0xBB67AE85  # the golden ratio and sqrt(3) - 1, as 32-bit fractions
ROUNDS = 10
_MASK = 0xFFFFFFFF


class RandomKey(NamedTuple):
    """A place in the sequence: the run's seed, the purpose (stream) and the step.

    The step may be an array of shape (), uint64, on an asynchronous device. first: how many rows
    (samples) of an array are left out before those that are drawn: a draw of shape (n, ...) is rows
    first, …, first + n - 1 of a longer one with first = 0, to the last bit.
    """

    seed: int
    stream: int
    step: int = 0
    first: int = 0

    def start(self, shape: tuple[int, ...]) -> int:
        """The number of elements before those of an array (n, ...) of this shape. O(1)."""
        return self.first * math.prod(shape[1:])

    @property
    def words(self) -> tuple[int, int, int, int, int]:
        """(step low, step high, stream, seed low, seed high), each a 32-bit integer."""
        seed, step = self.seed, self.step
        return (
            step & _MASK,
            step >> 32 & _MASK,
            self.stream & _MASK,
            seed & _MASK,
            seed >> 32 & _MASK,
        )


def philox4x32(counter: tuple, key: tuple[int, int]) -> tuple:
    """Ten rounds of Philox 4x32.

    counter: four uint64 arrays or scalars with values below 2**32; key: two such integers.
    Returns four uint64 arrays with values below 2**32 (64 bits hold the products on the way).
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    mask, shift = np.uint64(_MASK), np.uint64(32)
    for _ in range(ROUNDS):
        product_0, product_1 = c0 * np.uint64(MULTIPLIER_0), c2 * np.uint64(MULTIPLIER_1)
        c0, c1, c2, c3 = (
            (product_1 >> shift) ^ c1 ^ np.uint64(k0),
            product_1 & mask,
            (product_0 >> shift) ^ c3 ^ np.uint64(k1),
            product_0 & mask,
        )
        k0, k1 = (k0 + WEYL_0) & _MASK, (k1 + WEYL_1) & _MASK
    return c0, c1, c2, c3


def words(xp, key: RandomKey, count: int, start: int = 0):
    """The 32-bit words start, start + 1, … of a key's sequence: uint64 (count,) of the namespace
    xp. They have no rows, so that key.first has no effect here: see `RandomKey.start`.
    """
    step_low, step_high, stream, seed_low, seed_high = key.words
    blocks = xp.arange(start // 4, (start + count + 3) // 4, dtype=np.uint64)
    rest = (xp.full_like(blocks, word) for word in (step_low, step_high, stream))
    four = philox4x32((blocks, *rest), (seed_low, seed_high))
    return xp.stack(four, axis=-1).reshape(-1)[start % 4 : start % 4 + count]


def uniform(xp, key: RandomKey, shape: tuple[int, ...]):
    """Uniform numbers on [0, 1) with 32 bits, float64 of the given shape."""
    return (words(xp, key, math.prod(shape), key.start(shape)) * 2.0**-32).reshape(shape)


def normal(xp, key: RandomKey, shape: tuple[int, ...]):
    """Standard normal numbers by the Box-Muller transform, float64 of the given shape.

    Words 2i and 2i + 1 make elements 2i (cosine) and 2i + 1 (sine).
    """
    count, start = math.prod(shape), key.start(shape)
    odd = start % 2  # then the first element is a sine, and its cosine is not wanted
    pairs = words(xp, key, odd + count + (odd + count) % 2, start - odd).reshape(-1, 2)
    radius = xp.sqrt(-2.0 * xp.log((pairs[:, 0] + np.uint64(1)) * 2.0**-32))  # (0, 1]: no log(0)
    angle = 2.0 * math.pi * (pairs[:, 1] * 2.0**-32)
    both = xp.stack([radius * xp.cos(angle), radius * xp.sin(angle)], axis=-1)
    return both.reshape(-1)[odd : odd + count].reshape(shape)
