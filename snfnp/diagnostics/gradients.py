"""The gradients of a whole flow at given parameters, outside of training.

Derivation: derivations/23-monitors-and-certificates.md.
"""

from __future__ import annotations

from dataclasses import replace

from snfnp.beyond.probes import JacobianPenalty
from snfnp.context import BackwardContext
from snfnp.flow import Flow
from snfnp.ops import RandomKey
from snfnp.rules import SelfNormalizing


def gradients(ops, flow: Flow, params, x, lams=(None,), state=None, key=None) -> list[dict]:
    """{layer: {parameter: gradient}} on the device, of the mean over x, for each λ of `lams`.

    x: preprocessed inputs (N, *shape). lams, key: as a `BackwardContext` takes them, and None
    for the likelihood's gradient alone, without Eq. 31 either; state: the same, and not changed.
    One forward pass, and a backward pass for each λ.
    """
    latents, _, caches = flow.forward(ops, params, x)
    weights = ops.xp.full(len(x), 1 / len(x), x.dtype)
    found = []
    for lam in lams:
        grads = {
            layer: {name: ops.xp.zeros_like(value) for name, value in named.items()}
            for layer, named in params.items()
        }
        kept = {
            layer: {name: array.copy() for name, array in named.items()}
            for layer, named in (state or {}).items()
        }
        ctx = BackwardContext(
            ops, weights, 0.0 if lam is None else lam, kept, key or RandomKey(0, 0, 0)
        )
        part = _likelihood_alone(flow) if lam is None else flow
        part.backward(ctx, params, caches, flow.latent_gradients(latents), grads)
        found.append(grads)
    return found


def _likelihood_alone(flow: Flow) -> Flow:
    """The same with the plain rule where a layer has Eq. 31 beside it."""
    layers = [
        (name, replace(layer, rule=SelfNormalizing(layer.rule.objective)))
        if isinstance(getattr(layer, "rule", None), JacobianPenalty)
        else (name, layer)
        for name, layer in flow.layers
    ]
    return replace(flow, layers=tuple(layers))
