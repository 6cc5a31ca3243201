"""Random numbers on the GPU: one launch each."""

from __future__ import annotations

from snfnp.ops.random.definition import Random
from snfnp.ops.random.philox import RandomKey


class GpuRandom(Random):
    def uniform(self, key: RandomKey, shape, dtype):
        return self._draw("uniform", key, shape, dtype)

    def normal(self, key: RandomKey, shape, dtype):
        return self._draw("normal", key, shape, dtype)

    def rademacher(self, key: RandomKey, shape, dtype):
        return self._draw("rademacher", key, shape, dtype)

    def _draw(self, kernel, key, shape, dtype):
        device = self.device
        out = device.empty(shape, dtype)
        words = device.key_words(key, shape)
        blocks = -(-(key.start(shape) % 4 + out.size) // 4)
        device.each(kernel, dtype, blocks, out, *words, out.size)
        return out
