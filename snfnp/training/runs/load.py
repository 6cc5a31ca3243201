"""The description of a run in config.json: all that is needed to repeat it, and to notice that the
code of its model has changed; a run opened again, for a notebook, an evaluation or a picture."""

import platform
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

import snfnp
from snfnp import threads
from snfnp.data import SPLITS, Dataset
from snfnp.errors import UsageError, suggestion
from snfnp.files import Json
from snfnp.flow import Flow, Params
from snfnp.layers.preprocess import Standardise
from snfnp.likelihood import Likelihood
from snfnp.ops import Ops, Shape, get_ops
from snfnp.parameters import Layout
from snfnp.step.update import saved_lambda
from snfnp.training.options import TrainConfig
from snfnp.training.options.descriptions import LISTED, describe, first_difference
from snfnp.training.runs.checkpoint import Checkpoint, load_checkpoint
from snfnp.training.runs.folder import RunFolder

PRETRAINED = Path(snfnp.__file__).parent / "pretrained"  # a run's folder for each name
_PACKAGES = ("numpy", "scipy", "numba", "llvmlite", "safetensors")


def describe_run(config: TrainConfig, flow: Flow, dataset: Dataset, ops: Ops) -> Json:
    """The contents of config.json."""
    preprocess = flow.preprocess
    moments = dataset.moments or ()
    description = describe(flow, LISTED)
    if isinstance(preprocess, Standardise):
        moments = preprocess.moments  # among the data, not in the flow
        del description["preprocess"]
    return {
        "config": config.as_dict(),
        "data": {
            "name": dataset.name,
            "source": dataset.source,
            "is_sample": dataset.is_sample,
            dataset.noun: [len(getattr(dataset, split)) for split in SPLITS],
            "shape": dataset.train.shape[1:],
            **({"columns": dataset.columns} if dataset.columns else {}),
            **({"moments": np.array(moments).tolist()} if moments else {}),
            "sha256": {split: dataset.fingerprint(split) for split in SPLITS},
        },
        "model": {"parameters": flow.layout.count, "flow": description},
        **environment(ops),
    }


def environment(ops: Ops) -> Json:
    """The backend, device, threads, versions and platform that compute."""
    versions = {"snfnp": snfnp.__version__, "python": platform.python_version()}
    for package in _PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return {
        "backend": ops.name,
        "device": ops.device.describe(),
        "threads": threads.describe(),
        "versions": versions,
        "platform": f"{platform.platform()}, {platform.processor() or platform.machine()}",
    }


def recorded_flow(folder: RunFolder, record: Json, config: TrainConfig) -> Flow:
    """The flow of a configuration, for the data of a config.json. Raises UsageError if that file
    describes another flow."""
    data = folder.data(record)
    moments = data["moments"]
    flow = config.build_flow(data["shape"], moments)
    model = record.get("model")
    described = model.get("flow") if isinstance(model, dict) else None
    if not (isinstance(described, dict) and "class" in described):
        raise UsageError(
            f"{folder.path} has no description of its flow, as those of earlier versions: "
            "train it again"
        )
    if "preprocess" not in described and moments is not None:
        preprocess = Standardise(*map(tuple, moments.tolist()))
        described = {"preprocess": describe(preprocess, LISTED), **described}
    if difference := first_difference(described, describe(flow, LISTED)):
        raise UsageError(
            f"{folder.path}: its model has changed since it was trained ({difference}): "
            "restore the code that builds it, or start a new run"
        )
    return flow


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
    record: Json
    config: TrainConfig
    ops: Ops
    flow: Flow
    layout: Layout
    checkpoint: Checkpoint

    def __repr__(self) -> str:
        return (
            f"<run {self.folder.path}: {self.config.model_name}, {self.config.gradient} gradient, "
            f"{self.ops.name}, {self.record['data'].get('name', self.config.data)} "
            f"{self.image_shape}, at step {self.checkpoint.step:,}>"
        )

    @property
    def is_pretrained(self) -> bool:
        """Say whether its weights ship with the package."""
        return self.folder.path.parent == PRETRAINED

    @cached_property
    def params(self) -> Params:
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
            return saved_lambda(self.checkpoint.state, self.flow)
        return self.config.lam

    @property
    def image_shape(self) -> Shape:
        """(H, W, C) of its images, or (D,) of its rows."""
        return self.folder.data(self.record)["shape"]

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
    flow: Any = None,
) -> LoadedRun:
    """Open the run in a folder at one of its checkpoints.

        run = snfnp.load_run("runs/mine")
        run.likelihood.log_prob(rows), run.likelihood.sample(16, seed=0)

    Args:
        path: the run's folder.
        checkpoint: "best", the best validation epoch, or "last".
        backend: what computes: "numpy", "numba" or "cupy" (default: the run's, without its tf32).
        ops: the operations themselves, instead of a backend's name.
        flow: the `Flow` or what builds one, if the run's model is code of the user's own, which no
            folder imports. It must be the one that was trained.

    Returns:
        The run: its configuration, flow, parameters and exact likelihood.

    Raises:
        UsageError: `path` is no run's folder, its model needs `flow`, or that is another flow than
            the one that was trained.
        CheckpointError: the checkpoint is missing, damaged or another run's.
        SnfnpError: config.json is damaged.
    """
    folder, record = RunFolder.open(Path(path))
    files = {"best": folder.best, "last": folder.last}
    if checkpoint not in files:
        raise UsageError(
            f"checkpoint is {checkpoint!r}: choose one of {', '.join(files)}"
        )
    config = TrainConfig.from_dict(record["config"]).with_model(flow)
    ops = ops or get_ops(backend or config.backend)
    flow = recorded_flow(folder, record, config)
    saved = load_checkpoint(files[checkpoint], flow.layout, record)
    config = config.with_optimiser_of(saved.record["config"])
    return LoadedRun(folder, record, config, ops, flow, flow.layout, saved)


def load_pretrained(name: str, backend: str | None = None) -> LoadedRun:
    """Open a run whose weights ship with the package.

        run = snfnp.load_pretrained("mnist-conv")    # the nine convolutions of Table 1
        run.likelihood.sample(16, seed=0)

    Args:
        name: "mnist-conv". `snfnp/pretrained/README.md` says how it was trained.
        backend: as for `load_run`.

    Returns:
        The run. Its weights are in single precision and computed with in double precision, as
        those of every run.

    Raises:
        UsageError: there are no weights of this name.
    """
    names = sorted(path.parent.name for path in PRETRAINED.glob("*/config.json"))
    if name not in names:
        raise UsageError(
            f"there are no weights {name!r}{suggestion(name, names)}: choose one of "
            f"{', '.join(names)}"
        )
    return load_run(PRETRAINED / name, backend=backend)
