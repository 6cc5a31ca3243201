"""Parts of a training for the rules of `snfnp.beyond.rules`: the average of Eq. 31, and noise in
forward passes. Derivation: derivations/19-jacobian-vector-products.md and 20-variational.md.
"""

from dataclasses import dataclass

import numpy as np

from snfnp.beyond.rules import Variational
from snfnp.flow import Flow, Params, layer_key
from snfnp.layers import Linear
from snfnp.ops import Array, Ops, RandomKey
from snfnp.step.update import TrainingState


class JacobianMean(TrainingState):
    """The average of Eq. 31 over steps, kept as a sum and a count."""

    key = "jacobian.sum_and_count"

    def __init__(self, ops: Ops):
        self.ops = ops
        self.values = ops.asarray(np.zeros(2))

    def update(self, figures, measured, samples, squares, failed):
        errors = [
            m.jacobian_error for m in measured.values() if m.jacobian_error is not None
        ]
        if errors:
            self.values[:1] += self.ops.channels.total(errors)
        self.values[1:] += 1
        return figures

    def figures(self):
        total, count = self.ops.to_host(self.values).tolist()
        self.values[...] = 0
        return {"jacobian_error": total / count if count else 0.0}


@dataclass(frozen=True)
class Noise:
    """Noise of a training step, by its key, in the outputs of layers with the variational rule."""

    ops: Ops
    flow: Flow
    params: Params
    key: RandomKey

    def __call__(self, index: int, z: Array, cache: dict) -> Array:
        """The next layer's input in place of z, the output of the index-th layer."""
        name, layer = self.flow.layers[index]
        if not (isinstance(layer, Linear) and isinstance(layer.rule, Variational)):
            return z
        key = layer_key(self.key, index)
        p = self.params[name]
        return layer.rule.perturb(self.ops, layer.map, p, z, cache, key)
