"""Controllers of λ: their state during a run, and the figures that they report.

Derivation: derivations/20-lambda-controllers.md.
"""

from __future__ import annotations

import numpy as np

from snfnp.context import Collected
from snfnp.ops.step.control import ROWS, Row

STATE = "control"  # what the controllers' state is called among what layers keep


class Multipliers:
    """The λ of every layer that learns its inverse, and their control, on the device.

    layers: the names of these layers, in the flow's order; state_shapes: of the state, among what
    layers keep from step to step; `attach` gives it its place.
    """

    def __init__(self, ops, flow, config):
        self.ops, self.controller, self._start = ops, config.controller, config.lam
        self.layers = tuple(flow.learned_inverses())
        count = 1 if config.lambda_sharing == "flow" else len(self.layers)
        self.state_shapes = {STATE: {"rows": (ROWS, count)}}
        self._found = ops.xp.zeros((len(self.layers), 2))
        rows = {layer: self._found[k] for k, layer in enumerate(self.layers)}
        self.collected = Collected(rows, self.controller.relative)

    def attach(self, states: dict) -> None:
        """Keep the state in the trainer's buffer from here on, as it is before the first step."""
        self._rows = states[STATE]["rows"]
        self._rows[...] = self.ops.asarray(
            self.controller.new_state(self._rows.shape[1], self._start)
        )
        self._lam = by_layer(self.layers, self._rows[Row.LAM])

    @property
    def lam(self) -> dict:
        """{layer: λ} for this step, as a `BackwardContext` takes it."""
        if self.ops.asynchronous:
            return self._lam
        return {layer: float(lam) for layer, lam in self._lam.items()}

    def collect(self, found) -> None:
        """Take the rows (L, 2) of all layers from where slices added theirs up."""
        self._found[...] = found

    def update(self, samples: int, squares, failed):
        """λ for the next step; Σ E of this one, and the mean of its λ, weighted by errors."""
        return self.ops.step.control(
            self._found, samples, self.controller, squares, failed, out=self._rows
        )

    def figures(self) -> dict[str, float]:
        """λ and C over the layers, for a line of metrics: λ as it is now, C averaged over the steps
        since this was last asked. Waits for the device."""
        rows = self.ops.to_host(self._rows).copy()
        self._rows[Row.CONSTRAINT_SUM : Row.COUNTED + 1] = 0
        means = rows[Row.CONSTRAINT_SUM] / np.maximum(rows[Row.COUNTED], 1)
        return {
            f"{name}{suffix}": float(of(values))
            for name, values in (("lam", rows[Row.LAM]), ("constraint", means))
            for suffix, of in (("", np.mean), ("_min", np.min), ("_max", np.max))
        }

    def current(self) -> tuple[float, float]:
        """The smallest and the largest λ now. Waits for the device."""
        lam = self.ops.to_host(self._rows)[Row.LAM]
        return float(lam.min()), float(lam.max())


def by_layer(layers: tuple[str, ...], lam) -> dict:
    """{layer: its entry, of shape ()} of λ (K,): one for each layer, or one for all of them."""
    return {layer: lam[k if len(lam) == len(layers) else 0, ...] for k, layer in enumerate(layers)}


def lam_at(checkpoint, flow) -> float | dict[str, float]:
    """The λ of a checkpoint: a number, or under a controller {layer: number}."""
    states = checkpoint.state_layout.views(checkpoint.state)
    if STATE not in states:
        return checkpoint.lam
    found = by_layer(tuple(flow.learned_inverses()), states[STATE]["rows"][Row.LAM])
    return {layer: float(lam) for layer, lam in found.items()}
