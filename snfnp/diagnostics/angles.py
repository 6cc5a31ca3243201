"""How good the approximation is at a checkpoint: the angles of the paper's Fig. 3.

Derivation: derivations/03-self-normalizing.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from snfnp.diagnostics.gradients import gradients
from snfnp.errors import UsageError
from snfnp.flow import Flow
from snfnp.rules import Exact


@dataclass(frozen=True)
class LayerGradients:
    """One layer's gradients of W on a batch.

    angle: degrees between the self-normalizing and the exact gradient of the likelihood, without
    the reconstruction error (Fig. 3); likelihood, reconstruction: the Euclidean norms of the two
    parts of what the optimiser ascends.
    """

    layer: str
    angle: float
    likelihood: float
    reconstruction: float


def gradient_angles(ops, flow: Flow, params, x, lam: float) -> list[LayerGradients]:
    """The gradients of every self-normalizing layer at preprocessed inputs x (N, *shape), float64.

    Costs an exact gradient: O(D³) for a dense layer. Raises UsageError where no layer learned an
    inverse.
    """
    learned = [name for name, layer in flow.layers if layer.learns_inverse]
    if not learned:
        raise UsageError("this flow was trained without learned inverses: there is no angle")
    exact = replace(
        flow,
        layers=tuple(
            (name, replace(layer, rule=Exact(), inverse_map=None) if name in learned else layer)
            for name, layer in flow.layers
        ),
    )
    without, whole = gradients(ops, flow, params, x, (0.0, lam))
    (reference,) = gradients(ops, exact, params, x)
    found = []
    for name in learned:
        w, r = (ops.to_host(grads[name]["W"]) for grads in (without, reference))
        error = ops.to_host(whole[name]["W"]) - w
        cosine = float(np.vdot(w, r) / (np.linalg.norm(w) * np.linalg.norm(r)))
        found.append(
            LayerGradients(
                name,
                math.degrees(math.acos(min(1.0, max(-1.0, cosine)))),
                float(np.linalg.norm(w)),
                float(np.linalg.norm(error)),
            )
        )
    return found
