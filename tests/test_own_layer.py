"""The page "write your own layer" keeps its word on every backend (on CuPy: `gpu/`)."""

import numpy as np
import pytest
from support.own_layer import own
from support.strict_ops import strict_ops

from snfnp.gradcheck import GradientError, check_layer, check_map
from snfnp.layers import Linear
from snfnp.ops import get_ops
from snfnp.rules import SelfNormalizing

MAKE = {
    "numpy": lambda: get_ops("numpy"),
    "numba": lambda: get_ops("numba"),
    "strict": strict_ops,
}


@pytest.fixture(params=MAKE)
def ops(request):
    return MAKE[request.param]()


def layers():
    return own("Planar")(), Linear(own("Diagonal")(4), SelfNormalizing())


@pytest.mark.parametrize("layer", layers(), ids=["planar", "diagonal"])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_the_pages_layers_pass_their_check(ops, layer, dtype):
    check_layer(layer, shape=(4,), ops=ops, dtype=dtype)


def test_the_pages_map_passes_its_check(ops):
    check_map(own("Diagonal")(4), shape=(4,), ops=ops)


def test_a_mistake_in_the_pages_layer_is_found(ops):
    class Wrong(own("Planar")):
        def backward(self, ctx, p, cache, dz, grads):
            dx = super().backward(ctx, p, cache, dz, grads)
            grads["w"] *= 1.01
            return dx

    with pytest.raises(GradientError, match="^w"):
        check_layer(Wrong(), shape=(4,), ops=ops)
