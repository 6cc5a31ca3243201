"""Every kernel on shapes of a few blocks, against the definitions: for compute-sanitizer.

Its tools see an overrun only without CuPy's pool, where an array ends where its memory ends.
"""

import sys
from pathlib import Path

import numpy as np

sys.path[:0] = [str(Path(__file__).parents[1])]
from gpu import standin  # noqa: E402

standin.device()
import cupy  # noqa: E402
from support.operation_calls import Draw, assert_as_defined, in_order  # noqa: E402
from support.operation_cases import OVERRIDES  # noqa: E402

from gpu.test_ops import KERNELS  # noqa: E402
from snfnp.ops import RandomKey, get_ops  # noqa: E402

SIZES = [(np.float32, size) for size in ((5, 37), (3, 5, 7, 2), (96, 8))]


def main(count: int) -> None:
    cupy.cuda.set_allocator(None)
    ops, names = get_ops("cupy"), KERNELS[:count]
    for name in names:
        for dtype, size in (*SIZES, (np.float64, (3, 5, 7, 2))):
            call = OVERRIDES[name](Draw(dtype, size))
            assert_as_defined(ops, name, call, in_order(ops.asarray))
    # what launches kernels without being an operation on arrays
    ops.step.scalars().set(3, 0.1)
    source = ops.images.source(np.zeros((7, 5, 3, 1), np.uint8))
    source.reorder(np.arange(7)[::-1].copy())
    source.stage(2, 5)
    for key in (None, RandomKey(0, 0, 0)):
        source.take(2, 5, key)
    ops.device.synchronise()
    print(f"{len(names)} kernels are as defined")


if __name__ == "__main__":
    main(int(sys.argv[1]) if sys.argv[1:] else 1000)
