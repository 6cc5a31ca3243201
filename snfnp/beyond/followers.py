"""Followers beyond the paper: the controllers of λ, and the mean of Eq. 31.

Derivation: derivations/20-lambda-controllers.md and 18-jacobian-vector-products.md.
"""

import numpy as np

from snfnp.ops.step.control import ROWS, Row
from snfnp.training.followers import Follower

_CONTROL, _JACOBIAN = "control", "jacobian"  # what their states are called in checkpoints


class Multipliers(Follower):
    """The λ of every layer that learns its inverse, and their control.

    layers: the names of these layers, in the flow's order.
    """

    def __init__(self, ops, flow, config):
        self.ops, self.controller, self._start = ops, config.controller, config.lam
        self.layers = tuple(flow.learned_inverses())
        self.state_shapes = {_CONTROL: {"rows": (ROWS, len(self.layers))}}
        self.sums = 2 * len(self.layers)

    def attach(self, states, sums) -> None:
        self._rows = states[_CONTROL]["rows"]
        self._rows[...] = self.ops.asarray(self.controller.new_state(len(self.layers), self._start))
        self._found = sums.reshape(-1, 2)  # of each layer E, and Σ ‖h‖² if it is needed

    def error_factors(self, samples) -> dict:
        """With the λ that the step before left."""
        factors = self._rows[Row.LAM] * (-2 / samples)
        each = (factors[k, ...] for k in range(len(factors)))  # arrays of a device
        values = each if self.ops.asynchronous else factors.tolist()
        return dict(zip(self.layers, values, strict=True))

    def collect(self, measured, share) -> None:
        if not measured:  # the step has failed
            return
        for k, layer in enumerate(self.layers):
            error, h = measured[layer].error, measured[layer].input
            self._found[k, 0] = error if share == 1 else error * share
            if self.controller.relative:
                self._found[k, 1] = self.ops.linalg.sum_squares(h)

    def update(self, figures, samples, squares, failed) -> tuple:
        """λ for the next step; Σ E of this one, and the mean of its λ, weighted by errors."""
        given = (self._found, samples, self.controller, squares, failed)
        return self.ops.step.control(*given, out=self._rows)

    @property
    def lam(self) -> dict[str, float]:
        """{layer: λ of the next step}. Waits for the device."""
        return dict(zip(self.layers, self.ops.to_host(self._rows)[Row.LAM].tolist(), strict=True))

    def figures(self) -> dict[str, float]:
        """λ and C over the layers: λ as it is now, C averaged over the steps."""
        rows = self.ops.to_host(self._rows).copy()
        self._rows[Row.CONSTRAINT_SUM : Row.COUNTED + 1] = 0
        means = rows[Row.CONSTRAINT_SUM] / np.maximum(rows[Row.COUNTED], 1)
        return {
            f"{name}{suffix}": float(of(values))
            for name, values in (("lam", rows[Row.LAM]), ("constraint", means))
            for suffix, of in (("", np.mean), ("_min", np.min), ("_max", np.max))
        }


def controlled_lambda(checkpoint, flow) -> dict[str, float]:
    """{layer: λ} of a checkpoint of a run whose λ is controlled."""
    rows = checkpoint.state_layout.views(checkpoint.state)[_CONTROL]["rows"]
    return dict(zip(flow.learned_inverses(), rows[Row.LAM].tolist(), strict=True))


class JacobianMean(Follower):
    """The average of Eq. 31 over steps, in two numbers: their sum and their number."""

    state_shapes = {_JACOBIAN: {"sum_and_count": (2,)}}
    sums = 1

    def __init__(self, ops):
        self.ops = ops

    def attach(self, states, sums) -> None:
        self._mean, self._found = states[_JACOBIAN]["sum_and_count"], sums
        self._sum, self._count = self._mean[:1], self._mean[1:]

    def collect(self, measured, share) -> None:
        """Every layer's is measured in one slice alone."""
        errors = [m.jacobian_error for m in measured.values() if m.jacobian_error is not None]
        self._step = self.ops.channels.total(errors) if errors else 0.0
        if share != 1:
            self._found[...] = self._step
            self._step = self._found

    def update(self, figures, samples, squares, failed) -> tuple:
        self._sum += self._step
        self._count += 1
        return figures

    def figures(self) -> dict[str, float]:
        total, count = self.ops.to_host(self._mean).tolist()
        self._mean[...] = 0
        return {"jacobian_error": total / count if count else 0.0}
