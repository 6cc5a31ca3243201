"""λ of Eq. 3: one for all layers, or one for each under a controller.

Derivation: derivations/20-lambda-controllers.md.
"""

import numpy as np

from snfnp.ops.step.control import Row
from snfnp.training.state import TrainingState

_KEY = "control", "rows"


class Multipliers(TrainingState):
    """A fixed λ. layers: the names of those that learn their inverse, in the flow's order."""

    def __init__(self, flow, lam: float):
        self.layers, self._fixed = tuple(flow.learned_inverses()), lam

    @property
    def lam(self) -> dict[str, float]:
        """{layer: λ of the next step}. Waits for the device."""
        return dict.fromkeys(self.layers, float(self._fixed))

    def error_factors(self, samples: int) -> dict:
        """{layer: −2λ/N} of the layers with a λ of their own; samples: N."""
        return {}

    def figures(self) -> dict[str, float]:
        return {"lam": self._fixed}


class ControlledMultipliers(Multipliers):
    """The λ of every layer that learns its inverse, and its control."""

    key = _KEY

    def __init__(self, ops, flow, config):
        super().__init__(flow, config.lam)
        self.ops, self.controller = ops, config.controller
        self.initial = self.controller.new_state(len(self.layers), config.lam)
        self.terms = 2 * len(self.layers)  # of each layer E, and Σ ‖h‖² if it is needed

    @property
    def lam(self) -> dict[str, float]:
        return dict(zip(self.layers, self.ops.to_host(self.values)[Row.LAM].tolist(), strict=True))

    def error_factors(self, samples) -> dict:
        """With the λ that the step before left."""
        factors = self.values[Row.LAM] * (-2 / samples)
        each = (factors[k, ...] for k in range(len(factors)))  # arrays of a device
        values = each if self.ops.asynchronous else factors.tolist()
        return dict(zip(self.layers, values, strict=True))

    def collect(self, measured, share) -> None:
        sums = self.sums.reshape(-1, 2)
        for k, layer in enumerate(self.layers if measured else ()):
            error, h = measured[layer].error, measured[layer].input
            sums[k, 0] = error if share == 1 else error * share
            if self.controller.relative:
                sums[k, 1] = self.ops.linalg.sum_squares(h)

    def update(self, figures, samples, squares, failed) -> tuple:
        """λ for the next step; Σ E of this one, and the mean of its λ, weighted by errors."""
        given = (self.sums.reshape(-1, 2), samples, self.controller, squares, failed)
        error, lam = self.ops.step.control(*given, out=self.values)
        return [error], lam

    def figures(self) -> dict[str, float]:
        """λ and C over the layers: λ as it is now, C averaged over the steps."""
        rows = self.ops.to_host(self.values).copy()
        self.values[Row.CONSTRAINT_SUM : Row.COUNTED + 1] = 0
        means = rows[Row.CONSTRAINT_SUM] / np.maximum(rows[Row.COUNTED], 1)
        return {
            f"{name}{suffix}": float(of(values))
            for name, values in (("lam", rows[Row.LAM]), ("constraint", means))
            for suffix, of in (("", np.mean), ("_min", np.min), ("_max", np.max))
        }


def controlled_lambda(checkpoint, flow) -> dict[str, float]:
    """{layer: λ} of a checkpoint of a run whose λ is controlled."""
    rows = checkpoint.state_layout.views(checkpoint.state)[_KEY[0]][_KEY[1]]
    return dict(zip(flow.learned_inverses(), rows[Row.LAM].tolist(), strict=True))
