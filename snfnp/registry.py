"""Methods beyond the paper's main experiments, by name: the only way to them from other folders.

`snfnp.beyond` is imported when a name is asked for, and not before.
"""

from importlib import import_module
from typing import Any

SMALLEST_SIGMA, LARGEST_SIGMA = 1e-6, 1e6  # λ = 1/(2σ²) stays far from what a float can hold

# name: the module in `snfnp.beyond`, and its member (none: the module itself)
_FACTORIES = {
    # rules
    "jacobian-penalty": "jacobian_penalty:JacobianPenalty",
    "variational": "variational:Variational",
    # log_det, log_det_grad and solve of a convolution, as in `snfnp.maps.explicit`
    "block": "block_tridiagonal",
    # convolutions of other papers, and the layers that they are made of
    "emerging": "emerging:emerging_layers",
    "conv-exponential": "conv_exponential:exponential_layers",
    "causal-layer": "emerging:CausalConv2d",
    "exponential-layer": "conv_exponential:ConvExponential",
    "bias-layer": "conv_exponential:Bias",
    # proven bounds
    "certificates": "certificates:certificates",
    "activations-part": "certificates:activations_part",
}


def find(name: str) -> Any:
    """The class, function or module that `name` stands for."""
    module, _, attribute = _FACTORIES[name].partition(":")
    loaded = import_module(f"snfnp.beyond.{module}")
    return getattr(loaded, attribute) if attribute else loaded
