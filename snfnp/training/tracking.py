"""The options of what is followed during training beside the likelihood.

Derivation: derivations/23-monitors-and-certificates.md.
"""

from __future__ import annotations

from dataclasses import dataclass

from snfnp.training.options import AT_LEAST_1, LEARNS, option


@dataclass(frozen=True)
class TrackingOptions:
    """The part of a configuration (`TrainConfig`) that says what is followed during training."""

    track_angle: int | None = option(
        None,
        "at every evaluation, record the angle between the learned and the exact gradient on so "
        "many batches, for W and where it has one for R (Fig. 3 as a curve); costs exact gradients",
        must=AT_LEAST_1,
        effect=(LEARNS,),
        changeable=True,
    )
    tensorboard: bool = option(
        False,
        "also write the metrics for TensorBoard, in the run folder's tensorboard; needs "
        "tensorboardX",
        changeable=True,
    )
