"""How the two gradients of a layer's W compare: the reconstruction's and the likelihood's.

Derivation: derivations/23-monitors-and-certificates.md.
"""

from __future__ import annotations

import math

from snfnp.diagnostics.gradients import gradients
from snfnp.flow import Flow


def gradient_ratios(ops, flow: Flow, params, x, lam, key=None) -> dict[str, float]:
    """{layer: ‖gradient of −λE‖ / ‖gradient of the likelihood‖}, both of W, on inputs x.

    Of every layer that learns its inverse; 0 where λ is 0. The arguments are those of `gradients`.
    Costs two backward passes: O(N D²) for dense layers.
    """
    without, whole = gradients(ops, flow, params, x, (None, lam), key)
    ratios = {}
    for name, layer in flow.layers:
        if layer.learns_inverse:
            likelihood, both = without[name]["W"], whole[name]["W"]
            of_error, of_likelihood = ops.linalg.norms(both - likelihood, likelihood)
            ratios[name] = of_error / of_likelihood if of_likelihood else math.inf
    return ratios
