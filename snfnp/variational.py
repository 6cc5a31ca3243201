"""The variational bound that a flow of noisy layers has (paper, A.4), estimated with exact
determinants.

It is a lower bound on the log-density of another model than the flow, in which latents are decoded
through the learned inverses with noise. `snfnp.likelihood` is about the flow.

Derivation: derivations/19-variational.md.
"""

from __future__ import annotations

from snfnp.flow import Flow
from snfnp.ops import RandomKey


def variational_bound(ops, flow: Flow, params, x, key: RandomKey):
    """An unbiased estimate for each of the inputs x (N, *flow.shape), in nats: (N,).

        log p_Z(z) + the log-determinants of all layers
        + Σ_k D/2 − ‖T(R) T(W) h − h‖²/(2σ²) − ½ ‖T(R) T(W) ν‖²

    over the layers k whose rule is `snfnp.rules.Variational`; h is such a layer's input, z the
    latents, both with the noise of all layers before. The last term is averaged over the vectors ν
    that `key` draws. What training ascends is the mean over x, but for two things: h is held where
    it stands beside σ, and R stands in place of W⁻¹. Costs all exact determinants, O(D³) for a
    dense layer.
    """
    latents, ldj, caches = flow.forward(ops, params, x, key=key)
    bound = flow.log_density(ops, latents) + ldj + sum(flow.log_dets(ops, params).values())
    for (name, layer), cache in zip(flow.layers, caches, strict=True):
        if "noise" not in cache:
            continue
        g, r, (nu, moved) = layer.maps[1], params[name]["R"], cache["noise"]
        error = (g.apply(ops, r, cache["z0"]) - cache["x"]).reshape(len(x), -1)
        dimension, noisy = error.shape[1], ops.linalg.sum_squares(g.apply(ops, r, moved))
        bound = bound - layer.rule.lam * (error * error).sum(axis=1)
        bound = bound + (dimension - noisy / len(nu)) / 2
    return bound
