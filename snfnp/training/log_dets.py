"""log|det W| of every layer that learns its inverse, followed from step to step without a
determinant: an estimate, which drifts.

Derivation: derivations/23-monitors-and-certificates.md.
"""

from __future__ import annotations

import numpy as np

STATE = "log_dets"  # what the running values are called among what layers keep


class RunningLogDets:
    """The running log-determinants of a flow on the device. layers: their names, in its order.

    `before` at the start of a step and `after` at its end: O(D²) both together for dense layers.
    `anchor` puts exact values in their place. state_shapes: of the values, among what layers keep
    from step to step; `attach` gives them their place.
    """

    def __init__(self, ops, flow, layout):
        self._ops = ops
        self._layers = flow.learned_inverses()
        self.layers = tuple(self._layers)
        self.state_shapes = {STATE: {"values": (len(self.layers),)}}
        self._layout, self._flat = layout, None

    def attach(self, states: dict, p) -> None:
        """Keep the values in the trainer's state; p: its parameters, flat."""
        self._values = states[STATE]["values"]
        self._flat = self._ops.xp.empty_like(p)
        self._then = self._layout.views(self._flat)

    def before(self, p) -> None:
        """A step begins: remember its parameters."""
        self._flat[...] = p

    def after(self, params) -> None:
        """It is done: log|W_{t+1}| ≈ log|W_t| + ⟨½ (R_t + R_{t+1})ᵀ, W_{t+1} − W_t⟩.

        R stands in for W⁻¹ (for convolutions with m, `Map.stand_in`) at both ends of the step, so
        that the error of an exact R is of the third order in the step.
        """
        for k, (name, (layer, shape)) in enumerate(self._layers.items()):
            then, now = self._then[name], params[name]
            change = now["W"].astype("float64") - then["W"]
            slope = self._slope(layer, then, shape) + self._slope(layer, now, shape)
            self._values[k, ...] += (slope * change).sum()

    def _slope(self, layer, p, shape):
        """Half of what stands in for ∂log|det T(W)|/∂W, at W's size, in double precision."""
        f, g = layer.maps
        term, multiple = g.stand_in(self._ops, f, p["R"], shape)
        half = self._ops.xp.empty_like(p["W"], dtype="float64")
        return self._ops.linalg.scale_into(half, 0.5, term.astype("float64"), multiple)

    def anchor(self, exact: dict[str, float]) -> dict[str, float]:
        """Go on from exact values {layer: log|det W|}; by how much those until now were off."""
        host = np.array([exact[name] for name in self.layers])
        drift = self._ops.to_host(self._values) - host
        self._values[...] = self._ops.asarray(host)
        return dict(zip(self.layers, drift.tolist(), strict=True))

    def total(self) -> float:
        """Σ log|det W| as it is estimated now. Waits for the device."""
        return float(self._ops.to_host(self._values).sum())
