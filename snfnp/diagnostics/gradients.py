"""The gradients of a whole flow at given parameters, outside of training.

Derivation: derivations/23-monitors-and-certificates.md.
"""

from __future__ import annotations

from dataclasses import replace

from snfnp.context import BackwardContext
from snfnp.flow import Flow
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
    ctx, found = BackwardContext.of(ops, weights, key=key or RandomKey(0, 0, 0)), []
    for lam in lams:
        grads = {
            layer: {name: ops.xp.zeros_like(value) for name, value in named.items()}
            for layer, named in params.items()
        }
        by_layer = lam if isinstance(lam, dict) else dict.fromkeys(params, lam or 0.0)
        factors = {layer: own * (-2 / len(x)) for layer, own in by_layer.items()}
        part = _likelihood_alone(flow) if lam is None else flow
        part.backward(ctx, params, caches, flow.latent_gradients(latents), grads, factors)
        found.append(grads)
    return found


def _likelihood_alone(flow: Flow) -> Flow:
    """A flow whose layers have the plain rule in place of one with Eq. 31 beside it."""
    layers = []
    for name, layer in flow.layers:
        if layer.learns_inverse and isinstance(layer.rule, SelfNormalizing):
            layer = replace(layer, rule=layer.rule.without_penalty)
        layers.append((name, layer))
    return replace(flow, layers=tuple(layers))
