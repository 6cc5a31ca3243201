"""Quality of the approximation at a checkpoint: the angles of the paper's Fig. 3.

Derivation: derivations/03-self-normalizing.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from snfnp.diagnostics.gradients import gradients
from snfnp.diagnostics.reciprocal import ExactOfInverse, Reciprocal
from snfnp.errors import SingularMatrixError, UsageError
from snfnp.flow import Flow
from snfnp.layers import Linear
from snfnp.rules import Exact, Rule, SelfNormalizing


@dataclass(frozen=True)
class LayerGradients:
    """One layer's gradients on a batch.

    angle: degrees between the self-normalizing and the exact gradient of the likelihood of W,
    without the reconstruction error (Fig. 3); inverse_angle: the same of R, whose likelihood is
    that of g⁻¹, or None where the rule has no such gradient or R no exact one; likelihood,
    reconstruction: the Euclidean norms of the two parts of what the optimiser ascends for W, Eq. 31
    among the latter. A rule of probes: those of one step.
    """

    layer: str
    angle: float
    likelihood: float
    reconstruction: float
    inverse_angle: float | None = None


def gradient_angles(ops, flow: Flow, params, x, lam, key=None) -> list[LayerGradients]:
    """The gradients of every self-normalizing layer at preprocessed inputs x (N, *shape), float64.

    The arguments are those of `gradients`. Costs exact gradients: O(D³) for a dense layer. Raises
    UsageError where no layer learned an inverse.
    """
    learned = [name for name, layer in flow.layers if layer.learns_inverse]
    if not learned:
        raise UsageError("this flow was trained without learned inverses: there is no angle")
    exact = _replaced(flow, lambda layer: replace(layer, rule=Exact(), inverse_map=None))
    without, whole = gradients(ops, flow, params, x, (None, lam), key)
    (reference,) = gradients(ops, exact, params, x)
    of_inverse = _of_inverse(ops, flow, params, x)
    found = []
    for name in learned:
        w, r = (ops.to_host(grads[name]["W"]) for grads in (without, reference))
        error = ops.to_host(whole[name]["W"]) - w
        own = None if of_inverse is None else ops.to_host(of_inverse[name]["W"])
        found.append(
            LayerGradients(
                name,
                _angle(w, r),
                float(np.linalg.norm(w)),
                float(np.linalg.norm(error)),
                None if own is None else _angle(ops.to_host(without[name]["R"]), own),
            )
        )
    return found


def has_inverse_likelihood(rule: Rule) -> bool:
    """True if R ascends a likelihood of its own, that of g⁻¹, beside its reconstruction error."""
    return isinstance(rule, SelfNormalizing) and rule.objective == "mixture"


def _replaced(flow: Flow, other) -> Flow:
    """The flow with another layer for each that learns its inverse."""
    layers = (
        (name, other(layer) if layer.learns_inverse else layer) for name, layer in flow.layers
    )
    return replace(flow, layers=tuple(layers))


def _of_inverse(ops, flow: Flow, params, x) -> dict | None:
    """The exact gradients of log p^g, R's under "W"; None where R has no gradient of a likelihood,
    is a chain, or is singular."""
    learned = [layer for _, layer in flow.layers if layer.learns_inverse]
    for layer in learned:
        linear = isinstance(layer, Linear) and has_inverse_likelihood(layer.rule)
        if not linear or not isinstance(layer.maps[1], type(layer.map)):  # a chain
            return None

    def inverted(layer):
        return replace(
            layer, map=Reciprocal(layer.maps[1]), rule=ExactOfInverse(), inverse_map=None
        )

    own = {
        name: {"W" if key == "R" else key: value for key, value in p.items() if key != "W"}
        if "R" in p
        else p
        for name, p in params.items()
    }
    try:
        (found,) = gradients(ops, _replaced(flow, inverted), own, x)
    except SingularMatrixError:
        return None
    return found


def _angle(a: np.ndarray, b: np.ndarray) -> float:
    """Degrees between two arrays."""
    cosine = float(np.vdot(a, b) / (np.linalg.norm(a) * np.linalg.norm(b)))
    return math.degrees(math.acos(min(1.0, max(-1.0, cosine))))
