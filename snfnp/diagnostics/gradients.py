"""The gradients of a whole flow at given parameters, outside of training, and their ratio.

Derivation: derivations/23-monitors-and-certificates.md.
"""

from __future__ import annotations

import math
from dataclasses import replace

from snfnp.context import BackwardContext
from snfnp.flow import Flow
from snfnp.layers import Layer
from snfnp.ops import RandomKey
from snfnp.rules import SelfNormalizing


def gradients(ops, flow: Flow, params, x, lams=(None,), key=None) -> list[dict]:
    """{layer: {parameter: gradient}} on the device, of the mean over x, for each λ of `lams`.

    x: preprocessed inputs (N, *shape). lams: numbers or {layer: number}, and None for the
    likelihood's gradient alone, without Eq. 31 either; key: the step's random numbers. One forward
    pass, and a backward pass for each λ. Parameters that a rule finds by itself have none.
    """
    latents, _, caches = flow.forward(ops, params, x)
    weights = ops.xp.full(len(x), 1 / len(x), x.dtype)
    ctx, passes = BackwardContext.of(ops, weights, key=key or RandomKey(0, 0, 0)), []
    for lam in lams:
        grads = {
            layer: {name: ops.xp.zeros_like(value) for name, value in named.items()}
            for layer, named in params.items()
        }
        by_layer = lam if isinstance(lam, dict) else dict.fromkeys(params, lam or 0.0)
        factors = {layer: own * (-2 / len(x)) for layer, own in by_layer.items()}
        part = _likelihood_alone(flow) if lam is None else flow
        part.backward(ctx, params, caches, flow.latent_gradients(latents), grads, factors)
        passes.append(grads)
    return passes


def gradient_ratios(ops, flow: Flow, params, x, lam, key=None) -> dict[str, float]:
    """{layer: ‖gradient of −λE‖ / ‖gradient of the likelihood‖}, both of W, on inputs x.

    Of every layer that learns its inverse; 0 if λ is 0. The arguments are those of `gradients`.
    Costs two backward passes: O(N D²) for dense layers.
    """
    without, whole = gradients(ops, flow, params, x, (None, lam), key)
    ratios = {}
    for name in flow.learned_inverses():
        likelihood, both = without[name]["W"], whole[name]["W"]
        of_error, of_likelihood = ops.linalg.norms(both - likelihood, likelihood)
        ratios[name] = of_error / of_likelihood if of_likelihood else math.inf
    return ratios


def _likelihood_alone(flow: Flow) -> Flow:
    """The flow with the plain rule in place of one that adds a term of its own (Eq. 31)."""
    plain = {
        name: replace(layer, rule=layer.rule.without_penalty)
        for name, (layer, _) in flow.learned_inverses().items()
        if isinstance(layer.rule, SelfNormalizing)
    }
    return with_layers(flow, plain)


def with_layers(flow: Flow, layers: dict[str, Layer]) -> Flow:
    """The flow with other layers in the places of those names."""
    return replace(
        flow, layers=tuple((name, layers.get(name, layer)) for name, layer in flow.layers)
    )
