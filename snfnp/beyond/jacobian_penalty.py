"""Eq. 31 for a whole chain of layers, non-linear ones among them, and its gradient by hand.

Training has it for each linear layer by itself (`snfnp.beyond.probes.JacobianPenalty`). Here f and
g are the flow and all its learned inverses, whose Jacobians depend on the point.
Derivation: derivations/18-jacobian-vector-products.md.
"""

from dataclasses import replace

from snfnp.beyond.differentiable import backward, derivatives, forward, start
from snfnp.context import BackwardContext
from snfnp.flow import Flow


def jacobian_penalty(ops, flow: Flow, params, x, probes, grads=None):
    """‖J_g J_f ν − ν‖² of each sample (N,): J_f at x (N, *flow.shape), J_g at z = f(x).

    probes: ν, shaped like x, one for each sample. Layers need `derivatives`; couplings and split
    priors have none.

    grads, arrays {layer: {name: array}} shaped like params: the gradient of the mean over x is
    written there, and (penalties, the gradient of x) is returned. To be subtracted μ times from
    what training ascends. About four passes forward and five backward. Raises UsageError if a
    layer has no learned inverse.
    """
    start(flow, grads)
    h, direction, _, passes = forward(ops, flow, params, x, probes)
    returns = []
    for name, layer in reversed(flow.layers):
        p, before = params[name], (h, direction)
        h = layer.inverse(ops, p, h)
        if layer.learns_inverse:
            cache, direction = None, _of_directions(layer).inverse(ops, p, direction)
        else:
            _, _, cache = layer.forward(ops, p, h)
            direction = derivatives(layer).jvp_solve(ops, p, cache, direction)
        returns.append((*before, h, direction, cache))
    error = direction - probes  # e of Eq. 31
    penalties = (error * error).reshape(len(x), -1).sum(axis=1)
    if grads is None:
        return penalties

    silent = BackwardContext.of(ops, ops.xp.zeros(len(x), x.dtype))
    # of the penalty by a point, and by the direction there: first back through g, then through f
    delta, moved = 0 * error, error * (2 / len(x))
    for (name, layer), back in zip(flow.layers, reversed(returns), strict=True):
        z, dz, x_, dx, cache = back
        p, named, of = params[name], grads[name], derivatives(layer)
        if layer.learns_inverse:
            of_directions = derivatives(_of_directions(layer))
            moved = of_directions.inverse_backward(silent, p, dx, dz, moved, named)
        else:
            # ẋ = J⁻¹ ż: if x and θ move, so does −J⁻¹ (dJ) ẋ
            moved = of.jvp_solve(ops, p, cache, moved, transposed=True)
            delta = delta + of.jvp_backward(ops, p, cache, dx, -moved, named)[0]
        delta = of.inverse_backward(silent, p, x_, z, delta, named)
    # with dldj = 0 and λ = 0, the gradients of z = T(W) x + b alone
    return penalties, backward(silent, flow, params, passes, delta, moved, grads)


def _of_directions(layer):
    """A linear layer that moves directions instead of points: without its bias."""
    return replace(layer, bias=False, bias_init="zero")
