"""A run opened again from its folder: for a notebook, an evaluation, or a picture."""

import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from snfnp.errors import UsageError, printable
from snfnp.flow import Flow
from snfnp.likelihood import Likelihood
from snfnp.ops import Ops, get_ops
from snfnp.parameters import Layout
from snfnp.training.options import TrainConfig
from snfnp.training.runs.checkpoint import Checkpoint, load_checkpoint
from snfnp.training.runs.description import refuse_other_flow
from snfnp.training.runs.folder import RunFolder
from snfnp.training.update import controlled_lambda


@dataclass(frozen=True, eq=False)
class LoadedRun:
    """A run at one of its checkpoints, as `load_run` returns it.

    Attributes:
        folder, record: the run's files, and the contents of its config.json.
        config: how it was trained; the optimiser's settings are those of the checkpoint.
        ops: the operations that compute now.
        flow, layout: the model, and the places of its parameters in a flat array.
        checkpoint: the state of the training, on the host.
    """

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
        """The exact likelihood, and samples; determinants are computed at the first use."""
        return Likelihood(self.ops, self.flow, self.ops.asarray(self.checkpoint.p))

    @property
    def lam(self) -> float | dict[str, float]:
        """λ of Eq. 3 at the checkpoint; {layer: λ} if it was controlled."""
        if self.config.controller:
            return controlled_lambda(self.checkpoint, self.flow)
        return self.checkpoint.lam

    @property
    def image_shape(self) -> tuple[int, ...]:
        """(H, W, C) of its images, or (D,) of its rows."""
        return self.folder.data(self.record)[1]

    @property
    def columns(self) -> tuple[str, ...] | None:
        """The names of the columns of its rows, if they had names."""
        names = self.record["data"].get("columns")
        sound = isinstance(names, list) and len(names) == self.image_shape[0]
        return tuple(map(str, names)) if sound else None


def load_run(
    path: str | Path,
    checkpoint: str = "best",
    backend: str | None = None,
    ops: Ops | None = None,
    trust: bool = False,
) -> LoadedRun:
    """Open the run in a folder at one of its checkpoints.

        run = snfnp.load_run("runs/mine")
        run.likelihood.log_prob(rows), run.likelihood.sample(16, seed=0)

    Args:
        path: the run's folder.
        checkpoint: "best", the best validation epoch, or "last".
        backend: what computes: "numpy", "numba" or "cupy" (default: the run's, without its tf32).
        ops: the operations themselves, instead of a backend's name.
        trust: import the module of the run's own model, which runs its code. Without it a module
            that is neither imported already nor this package's is refused.

    Returns:
        The run: its configuration, flow, parameters and exact likelihood.

    Raises:
        UsageError: `path` is no run's folder, its model's module is not trusted, or its code builds
            another flow than the one that was trained.
        CheckpointError: the checkpoint is missing, damaged or another run's.
        SnfnpError: config.json is damaged.
    """
    folder, record = RunFolder.open(Path(path), trust)
    files = {"best": folder.best, "last": folder.last}
    if checkpoint not in files:
        raise UsageError(f"checkpoint is {checkpoint!r}: choose one of {', '.join(files)}")
    config = TrainConfig.from_dict(record["config"])
    ops = ops or get_ops(backend or config.backend)
    flow = config.build_flow(folder.data(record)[1], folder.moments(record))
    if line := refuse_other_flow(folder.path, record, flow):
        print(printable(line), file=sys.stderr)
    saved = load_checkpoint(files[checkpoint], flow.layout, record)
    config = config.with_optimiser_of(saved.record["config"])
    return LoadedRun(folder, record, config, ops, flow, flow.layout, saved)
