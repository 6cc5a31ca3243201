"""The gradients of a whole flow at given parameters, and the angles between approximate and exact
ones (Fig. 3).

Derivation: derivations/05-self-normalizing.md and 23-monitors-and-certificates.md.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from snfnp.context import BackwardContext
from snfnp.errors import SingularMatrixError, UsageError
from snfnp.flow import Flow, Params
from snfnp.layers import Layer
from snfnp.maps import Map
from snfnp.ops import Array, Ops, RandomKey
from snfnp.rules import Exact, Rule, SelfNormalizing


def gradients(
    ops: Ops,
    flow: Flow,
    params: Params,
    x: Array,
    lams: Sequence[float | dict[str, float] | None] = (None,),
    key: RandomKey | None = None,
) -> list[Params]:
    """The gradients of a flow's objective, averaged over x, with each of the weights `lams` of the
    reconstruction error. Costs a forward pass, and a backward pass for each of `lams`.

    Args:
        ops: the backend.
        flow: the flow.
        params: its parameters.
        x: preprocessed inputs (N, *shape).
        lams: values of λ, each a number or {layer: number}; None: the gradients of the likelihood
            alone, without the reconstruction error and Eq. 31.
        key: of the step's random numbers.

    Returns:
        {layer: {parameter: gradient}} for each of `lams`.
    """
    latents, _, caches = flow.forward(ops, params, x)
    dldj = ops.xp.full(len(x), 1 / len(x), x.dtype)
    key = key or RandomKey(0, 0)
    passes = []
    for lam in lams:
        grads = {
            layer: {name: ops.xp.zeros_like(value) for name, value in named.items()}
            for layer, named in params.items()
        }
        by_layer = lam if isinstance(lam, dict) else dict.fromkeys(params, lam or 0.0)
        # −2λ/N of each layer, as in `BackwardContext.error_factor`
        factors = {layer: value * (-2 / len(x)) for layer, value in by_layer.items()}
        # a layer without a key leaves out Eq. 31
        ctx = BackwardContext.of(ops, dldj, key=None if lam is None else key)
        flow.backward(
            ctx, params, caches, flow.latent_gradients(latents), grads, factors
        )
        passes.append(grads)
    return passes


def _replaced(flow: Flow, other: Callable[[Any], Layer]) -> Flow:
    """The flow with other(layer) in place of each layer that learns its inverse."""
    learned = flow.learned_inverses()
    layers = [
        (name, other(layer) if name in learned else layer)
        for name, layer in flow.layers
    ]
    return replace(flow, layers=tuple(layers))


def gradient_angles(
    ops: Ops,
    flow: Flow,
    params: Params,
    x: Array,
    lam: float | dict[str, float],
    key: RandomKey | None = None,
) -> dict[str, dict[str, float]]:
    """The angles between the rule's gradients and exact ones, for every layer that learns its
    inverse. Exact gradients cost O(D³) for a dense layer.

    Args:
        ops, flow: the backend and the flow.
        params: the flow's, in double precision.
        x: inputs of the flow (N, *shape), in double precision.
        lam: λ, or {layer: λ}.
        key: of the step's random numbers.

    Returns:
        {layer: figures}. angle: degrees between the rule's and the exact gradient of the likelihood
        with respect to W (Fig. 3). inverse_angle: the same for R and the likelihood of g⁻¹; absent
        if a rule does not ascend this likelihood, or a T(R) is singular. likelihood: the norm of
        the likelihood's part of the rule's gradient of W; reconstruction: the norm of the rest.

    Raises:
        UsageError: if no layer learned an inverse.
        SingularMatrixError: if a layer is singular; the message names it.
    """
    learned = flow.learned_inverses()
    if not learned:
        raise UsageError(
            "this flow was trained without learned inverses: there is no angle"
        )
    exact = _replaced(
        flow, lambda layer: replace(layer, rule=Exact(), inverse_map=None)
    )
    of_likelihood, whole = gradients(ops, flow, params, x, (None, lam), key)
    (reference,) = gradients(ops, exact, params, x)
    exact_of_r = _exact_of_r(ops, flow, params, x)
    figures = {}
    for name in learned:
        w = ops.to_host(of_likelihood[name]["W"])
        reconstruction = ops.to_host(whole[name]["W"]) - w
        of_layer = {"angle": _angle(w, ops.to_host(reference[name]["W"]))}
        if exact_of_r:
            r = ops.to_host(of_likelihood[name]["R"])
            of_layer["inverse_angle"] = _angle(r, ops.to_host(exact_of_r[name]["R"]))
        of_layer["likelihood"] = float(np.linalg.norm(w))
        of_layer["reconstruction"] = float(np.linalg.norm(reconstruction))
        figures[name] = of_layer
    return figures


@dataclass(frozen=True)
class _InverseOfG(Layer):
    """z = T(R)⁻¹ x + b, the exact inverse of a layer of g. The likelihood of a flow of such layers
    is log p^g. Every pass costs a solve."""

    map: Map

    def output_shape(self, shape):
        return self.map.output_shape(shape)

    def forward(self, ops, p, x):
        z0 = self.map.solve(ops, p["R"], x)
        z = z0 + p["b"] if "b" in p else z0
        return z, 0, {"z0": z0, "shape": x.shape[1:]}

    def backward(self, ctx, p, cache, dz, grads):
        """δ_x = T(R)⁻ᵀ δ, and G_R = −δ_x ⋆ z0 − ∂log|det T(R)|/∂R. For a dense map, where
        z0 = R⁻¹ x, this is the bracket of Eq. 9, −R⁻ᵀ δ xᵀ R⁻ᵀ − R⁻ᵀ. Nobody needs that of b."""
        ops = ctx.ops
        r = p["R"]
        dx = self.map.solve(ops, self.map.flip(r), dz)
        log_det_grad = self.map.log_det_grad(ops, r, cache["shape"])
        ops.linalg.scale_into(grads["R"], -ctx.log_det_weight, log_det_grad, 1)
        self.map.weight_grad(ops, -dx, cache["z0"], out=grads["R"], add=True)
        return dx


def has_inverse_likelihood(rule: Rule) -> bool:
    """True if R ascends the likelihood of g⁻¹, beside its reconstruction error."""
    return isinstance(rule, SelfNormalizing) and rule.objective == "mixture"


def _exact_of_r(ops: Ops, flow: Flow, params: Params, x: Array) -> Params | None:
    """The exact gradients of log p^g; None if R ascends no likelihood, or T(R) is singular."""
    learned = flow.learned_inverses()
    if not all(has_inverse_likelihood(layer.rule) for layer, _ in learned.values()):
        return None
    inverse = _replaced(flow, lambda layer: _InverseOfG(layer.maps[1]))
    try:
        return gradients(ops, inverse, params, x)[0]
    except SingularMatrixError:
        return None


def _angle(a: np.ndarray, b: np.ndarray) -> float:
    """Degrees between two arrays; NaN if one of them is 0 or not finite."""
    norm_a = np.linalg.norm(a)
    norm_b = np.linalg.norm(b)
    if not (0 < norm_a < math.inf and 0 < norm_b < math.inf):
        return math.nan
    cosine = np.vdot(a / norm_a, b / norm_b)
    return math.degrees(math.acos(min(1.0, max(-1.0, cosine))))
