"""The least that a training step has to do: floating-point operations, and Adam's bytes."""

import math

from snfnp.flow import Flow
from snfnp.layers import AffineCoupling, Linear, SplitPrior

# Products of one linear layer's step, forward and backward. The exact rule's inverse is no product.
PRODUCTS = {"self-normalizing": 6, "relative": 5, "exact": 3}
ADAM_BYTES = 28  # of a parameter in single precision: reads g, p, m and v, writes p, m and v


def operations(flow: Flow, batch: int, gradient: str = "self-normalizing") -> int:
    """Floating-point operations of all products in one step on a batch.

    The products of the linear layers, and those of the couplings' networks: forward, and twice that
    backward. Elementwise and repeated work does not count; zeros at a border do.
    """
    total = 0
    for _, layer, shape in flow.with_shapes():
        if isinstance(layer, Linear):
            pixels = math.prod(shape[:-1])
            total += PRODUCTS[gradient] * pixels * math.prod(layer.map.weight_shape)
        coupling = layer.coupling if isinstance(layer, SplitPrior) else layer
        if isinstance(coupling, AffineCoupling):
            height, width, channels = shape
            hidden = coupling.width
            per_pixel = hidden**2 + 9 * (channels // 2) * hidden + 9 * hidden * channels
            total += 3 * height * width * per_pixel
    return 2 * batch * total
