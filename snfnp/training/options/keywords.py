"""The options of `TrainConfig` as keywords, for type checkers and editors.

`snfnp.fit` has four of them as parameters; `snfnp.resume` takes all.
"""

from pathlib import Path
from typing import Any, TypedDict


class Options(TypedDict, total=False):
    model: str | Any
    levels: int | None
    depth: int | None
    width: int | None
    bins: int | None
    kernel: int | None
    activation: str | None
    inverse_kernel: int | None
    init: str
    bias_init: str
    gradient: str
    objective: str
    noise_vectors: int | None
    recipe: str
    jvp_weight: float
    jvp_probes: int
    lam: float
    lambda_control: str
    constraint: str
    tolerance: float
    lambda_rate: float
    lambda_smoothing: float
    batch_size: int
    lr: float
    warmup_epochs: float
    coordinates: str
    lr_schedule: str
    final_lr_fraction: float
    clip_norm: float | None
    header: bool | None
    columns: str | None
    drop_incomplete: bool
    preprocess: str | None
    ties: str
    data_dir: Path | Any
    augment: bool
    noise: float
    shuffle: bool
    seed: int
    epochs: int
    eval_every: int
    checkpoint_every: str
    track_angle: int | None
    patience: int | None
    backend: str
    threads: int | None
    dtype: str
    eval_dtype: str
    recompute: bool
    graph: bool
    tf32: bool


class Changes(Options, total=False):
    data: str
    validation: str | None
    test: str | None
