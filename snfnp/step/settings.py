"""The settings that a training step reads."""

from typing import Protocol

from snfnp.ops.step.definition import Controller


class Settings(Protocol):
    """The settings of a trainer and its batches, as a resolved `snfnp.TrainConfig` has them.

    seed: of parameters, order and noise; dtype, eval_dtype: "float32" or "float64"; noise: the
    standard deviation of smoothing; jvp_weight: μ of Eq. 31; controller: of λ, None: λ is fixed.
    """

    seed: int
    batch_size: int
    shuffle: bool
    augment: bool
    noise: float
    dtype: str
    eval_dtype: str
    epochs: int
    lr: float
    warmup_epochs: float
    lr_schedule: str
    final_lr_fraction: float
    clip_norm: float | None
    lam: float
    controller: Controller | None
    objective: str
    jvp_weight: float
    coordinates: str
    recompute: bool
    graph: bool
