"""The least that a training step has to do: floating-point operations, and bytes to and fro."""

import math

from snfnp.flow import Flow
from snfnp.layers import AffineCoupling, Linear, SplitPrior
from snfnp.ops import RandomKey

# Products of one linear layer's step, forward and backward. The exact rule's inverse is no product.
PRODUCTS = {"self-normalizing": 6, "relative": 5, "exact": 3}
# Words that a step moves for each parameter: the backward pass writes g, Adam reads p, g, m and v
# and writes p, m and v.
_WORDS_PER_PARAMETER = 8


def operations(flow: Flow, batch: int, gradient: str = "self-normalizing") -> int:
    """Floating-point operations of all products in one step on a batch.

    Those of the linear layers, and those of the couplings' networks: forward, and twice that
    backward. What is elementwise or computed again does not count; zeros at a border do.
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


def traffic(trainer, images) -> int:
    """Bytes that one step on device images (N, *shape) moves at least.

    The parameters' buffers as Adam needs them, and once each way everything that the forward pass
    keeps for the backward pass. Computed by a forward pass.
    """
    ops, flow = trainer.ops, trainer.flow
    x, _ = flow.preprocess.forward(ops, images, RandomKey(0, 0, 0), trainer.p.dtype)
    kept: dict[int, int] = {}
    _collect(flow.forward(ops, trainer.params, x)[2], kept)
    return _WORDS_PER_PARAMETER * trainer.p.nbytes + 2 * sum(kept.values())


def _collect(value, kept: dict[int, int]) -> None:
    """The bytes of all arrays inside a layer's cache, each array once."""
    if hasattr(value, "nbytes"):
        kept[id(value)] = value.nbytes
    elif isinstance(value, dict):
        _collect(list(value.values()), kept)
    elif isinstance(value, (list, tuple)):
        for part in value:
            _collect(part, kept)
