"""Random numbers on the CPU: Philox block by block, in parallel."""

import math

import numpy as np

from snfnp.ops.jit import parallel, serial
from snfnp.ops.random.definition import Random
from snfnp.ops.random.philox import RandomKey, philox4x32

TO_UNIT = 2.0**-32  # from a word to [0, 1)
_BLOCKS = 1024  # blocks of four numbers that one task takes

_rounds = serial(philox4x32)


class CpuRandom(Random):
    def uniform(self, key: RandomKey, shape, dtype):
        drop = 8 if np.dtype(dtype) == np.float32 else 0
        return _draw(_of_words, key, shape, dtype, np.uint64(drop), 0.0, 2.0 ** (drop - 32))

    def normal(self, key: RandomKey, shape, dtype):
        return _draw(_normal, key, shape, dtype)

    def rademacher(self, key: RandomKey, shape, dtype):
        return _draw(_of_words, key, shape, dtype, np.uint64(31), 1.0, -2.0)


def _draw(kernel, key: RandomKey, shape, dtype, *numbers):
    """An array that a kernel fills block by block. It begins with a block: where the first element
    wanted is not the first of one, up to three more are made before it."""
    first_block, extra = divmod(key.start(shape), 4)
    out = np.empty(extra + math.prod(shape), dtype)
    kernel(-(-out.size // (4 * _BLOCKS)), key_words(key), first_block, *numbers, out)
    return out[extra:].reshape(shape)


def key_words(key: RandomKey):
    """A key as the kernels take it: (step low, step high, stream, seed low, seed high)."""
    return tuple(map(np.uint64, key.words))


@serial
def philox(block, key):
    """Four words of one block, for `key_words`."""
    return _rounds((np.uint64(block), key[0], key[1], key[2]), (key[3], key[4]))


@serial
def word(four, index):
    """The word that element `index` of an array is made of."""
    lane = index & 3
    if lane < 2:
        return four[0] if lane == 0 else four[1]
    return four[2] if lane == 2 else four[3]


@parallel
def _of_words(task, key, first_block, drop, start, scale, out):
    """out (count,) = start + scale (word >> drop)."""
    for block in range(task * _BLOCKS, min((task + 1) * _BLOCKS, (out.size + 3) // 4)):
        four = philox(first_block + block, key)
        for index in range(4 * block, min(4 * block + 4, out.size)):
            out[index] = start + scale * np.float64(word(four, index) >> drop)


@parallel
def _normal(task, key, first_block, out):
    """out (count,): Box-Muller on words (0, 1) and (2, 3) of each block."""
    for block in range(task * _BLOCKS, min((task + 1) * _BLOCKS, (out.size + 3) // 4)):
        four = philox(first_block + block, key)
        for index in range(4 * block, min(4 * block + 4, out.size), 2):
            first, second = word(four, index), word(four, index + 1)
            radius = math.sqrt(-2.0 * math.log((np.float64(first) + 1.0) * TO_UNIT))
            angle = 2.0 * math.pi * (np.float64(second) * TO_UNIT)
            out[index] = radius * math.cos(angle)
            if index + 1 < out.size:
                out[index + 1] = radius * math.sin(angle)
