"""Random numbers in array terms, from the words of `snfnp.ops.random.philox`."""

import math

import numpy as np

from snfnp.ops.group import OperationGroup
from snfnp.ops.random import philox
from snfnp.ops.random.philox import RandomKey


class Random(OperationGroup):
    """Every distribution leaves out the first `key.first` rows of an array: see `RandomKey`."""

    def words(self, key: RandomKey, count: int, start: int):
        """See `philox.words`."""
        return philox.words(self.xp, key, count, start)

    def uniform(self, key: RandomKey, shape, dtype):
        """Uniform numbers on [0, 1).

        In single precision the 32 bits would round to 1.0 at the top: 24 of them are kept.
        """
        drop = 8 if np.dtype(dtype) == np.float32 else 0
        bits = self.words(key, math.prod(shape), key.start(shape)) >> np.uint64(drop)
        return (bits * 2.0 ** (drop - 32)).astype(dtype).reshape(shape)

    def normal(self, key: RandomKey, shape, dtype):
        """Standard normal numbers by the Box-Muller transform, computed in double precision: words
        2i and 2i + 1 make elements 2i (cosine) and 2i + 1 (sine).
        """
        xp, count, start = self.xp, math.prod(shape), key.start(shape)
        odd = start % 2  # then the first element is a sine, and its cosine is not wanted
        words = self.words(key, odd + count + (odd + count) % 2, start - odd)
        first, second = words.reshape(-1, 2).T
        radius = xp.sqrt(-2.0 * xp.log((first + np.uint64(1)) * 2.0**-32))  # (0, 1]: no log(0)
        angle = 2.0 * math.pi * (second * 2.0**-32)
        both = xp.stack([radius * xp.cos(angle), radius * xp.sin(angle)], axis=-1)
        return both.reshape(-1)[odd : odd + count].reshape(shape).astype(dtype)

    def rademacher(self, key: RandomKey, shape, dtype):
        """Signs, +1 or −1 with probability ½ each, the highest bit of each word: probes ν with
        E[ννᵀ] = I, and ‖ν‖² the same for all."""
        signs = self.words(key, math.prod(shape), key.start(shape)) >> np.uint64(31)
        return (1.0 - 2.0 * signs).astype(dtype).reshape(shape)
