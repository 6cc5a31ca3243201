"""Random numbers on the CPU: Philox block by block, in parallel."""

import numpy as np

from snfnp.ops.jit import parallel, serial
from snfnp.ops.random.definition import Random
from snfnp.ops.random.philox import RandomKey, philox4x32

_BLOCKS = 1024  # blocks of four words that one task takes

_rounds = serial(philox4x32)


class CpuRandom(Random):
    def words(self, key: RandomKey, count: int, start: int):
        first_block, extra = divmod(start, 4)
        out = np.empty((-(-(extra + count) // 4), 4), np.uint64)
        _words(-(-len(out) // _BLOCKS), out, key_words(key), first_block)
        return out.reshape(-1)[extra : extra + count]


def key_words(key: RandomKey):
    """A key as the kernels take it: (step low, step high, stream, seed low, seed high)."""
    return tuple(map(np.uint64, key.words))


@serial
def philox(block, key):
    """Four words of one block, for `key_words`."""
    return _rounds((np.uint64(block), key[0], key[1], key[2]), (key[3], key[4]))


@parallel
def _words(task, out, key, first_block):
    """out (blocks, 4)."""
    for block in range(task * _BLOCKS, min((task + 1) * _BLOCKS, len(out))):
        four = philox(first_block + block, key)
        out[block, 0], out[block, 1], out[block, 2], out[block, 3] = four
