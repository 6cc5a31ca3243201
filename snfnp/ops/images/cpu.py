"""A flow's inputs from images on the CPU; see derivations/02-change-of-variables.md."""

import math

import numpy as np

from snfnp.ops.images.definition import Images
from snfnp.ops.jit import GROUP, parallel, rows
from snfnp.ops.random.cpu import TO_UNIT, key_words, philox, word
from snfnp.ops.random.philox import RandomKey


class CpuImages(Images):
    def preprocess(self, images, key: RandomKey, alpha, levels, dtype):
        # what is read-only, as data are, would be compiled once more
        pixels, start = np.require(rows(images), requirements="W"), key.start(images.shape)
        odds, ldj = np.empty(pixels.shape), np.empty(len(pixels))
        constant = pixels.shape[1] * (math.log1p(-2 * alpha) - math.log(levels))
        numbers = (key_words(key), start, constant, alpha, float(levels))
        _preprocess(len(ldj), pixels, *numbers, odds, ldj)
        x = np.log(odds, out=odds).astype(dtype, copy=False)
        return x.reshape(images.shape), ldj.astype(dtype, copy=False)


@parallel
def _preprocess(n, images, key, start, constant, alpha, levels, odds, ldj):
    """images, odds = s/(1-s) (N, D), ldj (N,), in double; noise: the key's words from `start` on.

    The caller takes the logarithm of the odds with NumPy, whose vector instructions are several
    times faster. GROUP factors s(1-s), each at least about α, share one: far from underflow.
    """
    dimension = images.shape[1]
    row = start + n * dimension
    four = philox(row >> 2, key)
    total, product = 0.0, 1.0
    for d in range(dimension):
        index = row + d
        if index & 3 == 0:
            four = philox(index >> 2, key)
        noisy = images[n, d] + np.float64(word(four, index)) * TO_UNIT
        s = alpha + (1 - 2 * alpha) * (noisy / levels)
        one_minus_s = alpha + (1 - 2 * alpha) * ((levels - noisy) / levels)
        odds[n, d] = s / one_minus_s
        product *= s * one_minus_s
        if d % GROUP == GROUP - 1:
            total += math.log(product)
            product = 1.0
    ldj[n] = constant - total - math.log(product)
