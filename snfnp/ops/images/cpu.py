"""A flow's inputs from images on the CPU; see derivations/03-change-of-variables.md."""

import math

import numpy as np

from snfnp.ops.group import flat
from snfnp.ops.images.definition import Images
from snfnp.ops.jit import inlined, parallel
from snfnp.ops.random.definition import philox4x32

_rounds = inlined(philox4x32)
# Factors s(1 - s) whose product has one logarithm: each is about α or more, so that the product of
# so few does not underflow.
_GROUP = 8


class CpuImages(Images):
    def preprocess(self, images, key, alpha, levels, dtype):
        if images.ndim < 2 or images.dtype != np.uint8:
            return super().preprocess(images, key, alpha, levels, dtype)
        # Data are read-only: Numba would compile the kernel once more for such arrays.
        pixels = np.require(flat(images), requirements=["C", "W"])
        words = tuple(map(np.uint64, key.words))
        constant = pixels.shape[1] * (math.log1p(-2 * alpha) - math.log(levels))
        odds = np.empty(pixels.shape)
        ldj = np.empty(len(pixels))
        start = key.start(images.shape)
        _preprocess(
            len(ldj), pixels, words, start, constant, alpha, float(levels), odds, ldj
        )
        x = np.log(odds, out=odds).astype(dtype, copy=False)
        return x.reshape(images.shape), ldj.astype(dtype, copy=False)


@parallel
def _preprocess(n, images, key, start, constant, alpha, levels, odds, ldj):
    """Image n of images (N, D): odds (N, D) = s/(1-s) and ldj (N,), in double precision.

    key: `RandomKey.words`; start: the number of random words before image 0's. The caller takes the
    logarithm of the odds with NumPy, whose vector instructions are faster.
    """
    image = images[n]
    row = odds[n]
    first = start + n * image.size  # the index of the image's first random word
    skipped = first & 3
    # Philox draws four words at a time. A loop for each kind of work is compiled to vectors.
    four = np.empty((4, (skipped + image.size + 3) // 4), np.uint64)
    w0, w1, w2, w3 = four
    for block in range(w0.size):
        # three words of the key are in Philox's counter, two in its own key
        counter = (np.uint64((first >> 2) + block), key[0], key[1], key[2])
        w0[block], w1[block], w2[block], w3[block] = _rounds(counter, (key[3], key[4]))
    words = four.T.copy().reshape(-1)[skipped:]
    factors = np.empty(image.size)
    for d in range(image.size):
        noisy = image[d] + np.float64(words[d]) * 2.0**-32
        s = alpha + (1 - 2 * alpha) * (noisy / levels)
        # without the cancellation of 1 - s
        one_minus_s = alpha + (1 - 2 * alpha) * ((levels - noisy) / levels)
        row[d] = s / one_minus_s
        factors[d] = s * one_minus_s
    total = 0.0
    product = 1.0
    for d in range(image.size):
        product *= factors[d]
        if d % _GROUP == _GROUP - 1:
            total += math.log(product)
            product = 1.0
    ldj[n] = constant - total - math.log(product)
