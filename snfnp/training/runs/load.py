"""A run opened again from its folder: for a notebook, an evaluation, or a picture."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from snfnp import registry
from snfnp.errors import UsageError
from snfnp.flow import Flow
from snfnp.likelihood import Likelihood
from snfnp.ops import Ops, get_ops
from snfnp.parameters import Layout
from snfnp.training.options import TrainConfig
from snfnp.training.runs.checkpoint import Checkpoint, load_checkpoint
from snfnp.training.runs.folder import RunFolder


@dataclass(frozen=True, eq=False)
class LoadedRun:
    """A run at a checkpoint: its files, its config.json, how it was trained (the optimiser's
    settings are those of the checkpoint), what computes now, its model, the places of its
    parameters, and its state on the host."""

    folder: RunFolder
    record: dict
    config: TrainConfig
    ops: Ops
    flow: Flow
    layout: Layout
    checkpoint: Checkpoint

    def __repr__(self) -> str:
        model = f"{self.config.model_name}, {self.config.gradient} gradient, {self.ops.name}"
        data = f"{self.record['data'].get('name', self.config.data)} {self.image_shape}"
        return f"<run {self.folder.path}: {model}, {data}, at step {self.checkpoint.step:,}>"

    @cached_property
    def params(self) -> dict:
        """{layer: {name: array}} on the device, in double precision."""
        return self.layout.views(self.ops.asarray(self.checkpoint.p, np.float64))

    @cached_property
    def likelihood(self) -> Likelihood:
        """The exact likelihood, and samples. The first use costs every layer's determinant."""
        return Likelihood(self.ops, self.flow, self.layout, self.ops.asarray(self.checkpoint.p))

    @property
    def lam(self) -> float | dict[str, float]:
        """λ of Eq. 3 at the checkpoint; {layer: λ} if it was controlled."""
        if self.config.controller:
            return registry.find("controlled-lambda")(self.checkpoint, self.flow)
        return self.checkpoint.lam

    @property
    def image_shape(self) -> tuple[int, ...]:
        """(H, W, C) of the images that it was trained on, or (D,) of rows."""
        return self.folder.data(self.record)[1]


def load_run(
    path: str | Path, checkpoint: str = "best", backend: str | None = None, ops: Ops | None = None
) -> LoadedRun:
    """The run in a folder.

    checkpoint: "best", the best validation epoch, or "last"; backend: what computes (default:
    what the run was started with, without its --tf32); ops: the same, if it was made before.
    Raises UsageError if `path` is no run's folder, CheckpointError if the checkpoint is missing,
    damaged or another run's, SnfnpError if config.json is damaged.
    """
    folder, record = RunFolder.open(Path(path))
    files = {"best": folder.best, "last": folder.last}
    if checkpoint not in files:
        raise UsageError(f"checkpoint is {checkpoint!r}: choose one of {', '.join(files)}")
    config = TrainConfig.from_dict(record["config"])
    ops = ops or get_ops(backend or config.backend)
    flow = config.build_flow(folder.data(record)[1], folder.moments(record))
    saved = load_checkpoint(files[checkpoint], flow.layout, record)
    config = config.with_optimiser_of(saved.record["config"])
    return LoadedRun(folder, record, config, ops, flow, flow.layout, saved)
