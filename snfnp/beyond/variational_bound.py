"""Variational bounds (paper, A.4), estimated with exact determinants: of a flow of noisy layers,
and of a flow as a whole.

They are lower bounds on the log-density of another model than the flow: one that decodes latents
through the learned inverses, with noise.
Derivation: derivations/19-variational.md.
"""

from snfnp.beyond.differentiable import backward, derivatives, forward, start
from snfnp.beyond.variational import Noise
from snfnp.context import BackwardContext
from snfnp.flow import Flow
from snfnp.ops import RandomKey


def variational_bound(ops, flow: Flow, params, x, key: RandomKey):
    """An unbiased estimate for each of the inputs x (N, *flow.shape), in nats: (N,).

        log p_Z(z) + the log-determinants of all layers
        + Σ_k D/2 − ‖T(R) T(W) h − h‖²/(2σ²) − ½ ‖T(R) T(W) ν‖²

    over the layers k whose rule is `Variational`; h is such a layer's input, z the latents, both
    with the noise of all layers before. The last term is averaged over the vectors ν
    that `key` draws. What training ascends is the mean over x, but for two things: h is held where
    it stands beside σ, and R stands in place of W⁻¹. Costs all exact determinants, O(D³) for a
    dense layer.
    """
    latents, ldj, caches = flow.forward(ops, params, x, noise=Noise(ops, flow, params, key))
    bound = flow.log_density(ops, latents) + ldj + sum(flow.log_dets(ops, params).values())
    for (name, layer), cache in zip(flow.layers, caches, strict=True):
        if "noise" not in cache:
            continue
        g, r, (nu, moved, _) = layer.maps[1], params[name]["R"], cache["noise"]
        error = (g.apply(ops, r, cache["z0"]) - cache["x"]).reshape(len(x), -1)
        dimension, noisy = error.shape[1], ops.linalg.sum_squares(g.apply(ops, r, moved))
        bound = bound - layer.rule.lam * (error * error).sum(axis=1)
        bound = bound + (dimension - noisy / len(nu)) / 2
    return bound


def flow_bound(ops, flow: Flow, params, x, sigma: float, noise, grads=None):
    """One draw of the bound of the flow as a whole, in nats: (N,), for inputs x (N, *flow.shape).

        log p_Z(z̃) + log|det J| − ‖g(z̃) − x‖²/(2σ²) + D/2,   z̃ = f(x) + σ J ε

    with the Jacobian J of f at x, and g through all learned inverses. noise: ε, shaped like x,
    standard normal. Layers need `derivatives`; couplings and split priors have none.
    grads, arrays {layer: {name: array}} shaped like params: the gradient of the mean over x is
    written there, end to end, with second derivatives of f; R stands in place of W⁻¹. Then (bound,
    the gradient of x) is returned. Costs the exact determinants, and with grads about four passes
    forward and four backward. Raises UsageError if a layer has no learned inverse.
    """
    start(flow, grads)
    count = len(x)
    z, direction, ldj, passes = forward(ops, flow, params, x, sigma * noise)
    decoded = [z + direction]
    for name, layer in reversed(flow.layers):
        decoded.append(layer.inverse(ops, params[name], decoded[-1]))
    error = decoded[-1] - x
    bound = flow.log_density(ops, decoded[:1]) + ldj + sum(flow.log_dets(ops, params).values())
    squares = (error * error).reshape(count, -1).sum(axis=1)
    bound = bound - squares / (2 * sigma**2) + flow.dimension / 2
    if grads is None:
        return bound

    weights = ops.xp.full(count, 1 / count, x.dtype)
    silent, ctx = BackwardContext.of(ops, 0 * weights), BackwardContext.of(ops, weights)
    delta = error * (-1 / (sigma**2 * count))
    of_x = -delta
    for k, (name, layer) in enumerate(flow.layers):
        coded, back = decoded[-2 - k], decoded[-1 - k]
        of = derivatives(layer)
        delta = of.inverse_backward(silent, params[name], back, coded, delta, grads[name])
    delta = delta + flow.latent_gradients(decoded[:1])[0]
    return bound, of_x + backward(ctx, flow, params, passes, delta, delta, grads)
