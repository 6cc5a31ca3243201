"""Training state: values beside the parameters that change from step to step.

Derivation: derivations/20-lambda-controllers.md.
"""

from typing import Any

import numpy as np


class TrainingState:
    """An array that every step of a run updates, and what is computed from it.

    key: the two parts of its name in checkpoints, or None if there is no array; initial: its first
    values, on the host; values: the array on the device, a view of the trainer's buffer, in double
    precision; terms: how many numbers `collect` puts into `sums`, float64 (terms,), which the
    slices of a batch add up in each step. The trainer sets values and sums.
    """

    key: Any = None
    initial = np.zeros(0)
    terms = 0
    values: Any = None
    sums: Any = None

    def renew(self, trainer, batches) -> None:
        """Re-estimate what depends on activations, before a step (see `Trainer.training_step`)."""

    def collect(self, measured: dict, share: float) -> None:
        """Put this slice's terms into `sums`. measured: {layer: `Measured`}, {} in a step that
        failed; share: the slice's part of the batch, the weight of its averages."""

    def update(self, figures: tuple, samples: int, squares, failed) -> tuple:
        """Update `values` after the parameters, from the `sums` of all slices; not if `failed` is
        not 0 or Σ g² (`squares`) not finite. figures: the terms of the step's Σ_k of Eq. 3, and
        λ, as they would be logged; those that are returned are logged instead."""
        return figures

    def figures(self) -> dict[str, float]:
        """Averages since the last call, for a line of metrics. Waits for the device."""
        return {}
