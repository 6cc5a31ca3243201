"""Random numbers on the GPU: one launch each; see derivations/03-change-of-variables.md."""

from functools import partialmethod

import numpy as np

from snfnp.ops.random.definition import Random, RandomKey


class GpuRandom(Random):
    def _draw(self, kernel, key: RandomKey, shape, dtype):
        out = self.device.empty(shape, dtype)
        blocks = -(-(key.start(shape) % 4 + out.size) // 4)
        self.device.each(
            kernel, dtype, blocks, out=out, n=out.size, **key_arguments(key, shape)
        )
        return out

    uniform = partialmethod(_draw, "uniform")
    normal = partialmethod(_draw, "normal")
    rademacher = partialmethod(_draw, "rademacher")


def key_arguments(key: RandomKey, shape) -> dict:
    """A key for an array of this shape as arguments of a kernel: `first_word` is the number of the
    array's first element (`RandomKey.start`), the same in every replay of a graph."""
    step = _signed(key.step) if isinstance(key.step, (int, np.integer)) else key.step
    return {
        "step": step,
        "stream": key.stream,
        "seed": _signed(key.seed),
        "first_word": key.start(shape),
    }


def _signed(number: int) -> int:
    """The low 64 bits of a number as a signed integer."""
    return (int(number) + 2**63) % 2**64 - 2**63
