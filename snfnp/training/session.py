"""A run from its options: `train` and `fit` start one, `resume` continues the one in a folder."""

import os
import shutil
import tempfile
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np

from snfnp.data import (
    DATA_SETS,
    SPLITS,
    Dataset,
    load_dataset,
    own_data,
    require_dataset,
)
from snfnp.data.ties import with_ties
from snfnp.errors import UsageError
from snfnp.files import Json
from snfnp.ops import Ops, get_ops
from snfnp.step.update import Optimiser
from snfnp.training.loop import Session, train_session
from snfnp.training.options import TrainConfig
from snfnp.training.progress import Callbacks, Report
from snfnp.training.runs.folder import RunFolder, default_folder
from snfnp.training.runs.load import LoadedRun, load_run, recorded_flow

if TYPE_CHECKING:
    from snfnp.training.options.keywords import Changes, Options


@contextmanager
def started(
    config: TrainConfig,
    dataset: Dataset | None = None,
    ops: Ops | None = None,
) -> Iterator[Session]:
    """A new run, in a locked folder: `config.out`, or one named after its options.

    Args:
        config: filled in and checked by `TrainConfig.resolve`, if it was not before.
        dataset: the data; None: the configuration's are loaded.
        ops: the backend; None: the configuration's.
    """
    config.check()
    ops = ops or get_ops(config.backend, tf32=config.tf32)
    config, dataset = _prepared(config, dataset)
    notes: list[str] = []
    moments = dataset.moments
    if moments:  # of rows: their standardisation, with the steps of columns with ties
        moments = with_ties(
            moments, dataset.train, config.ties, dataset.labels, notes.append
        )
    config = replace(config, out=default_folder(config))
    flow = config.build_flow(dataset.train.shape[1:], moments)
    # The notes say that columns with ties get noise: a flow with its own preprocessing need not.
    if not getattr(flow.preprocess, "step", ()):
        notes = []
    for split in SPLITS:  # a flow may take fewer levels than a data set
        flow.require_images(getattr(dataset, split))
    if not flow.layout.count:
        raise UsageError("the flow has no parameters: give it a layer to train")
    # What can be checked without a step comes before the folder is made.
    folder = RunFolder.create(config.out)
    with folder.lock:
        folder.check_unused()  # another program may have used it before the lock
        folder.remove_partial()
        # None: no checkpoint to go on from
        yield Session(config, dataset, ops, flow, folder, None, notes)


@contextmanager
def resumed(
    path: Path,
    changes: Mapping[str, Any],
    rollback: bool = False,
    dataset: Dataset | None = None,
) -> Iterator[Session]:
    """The run in a folder, ready to go on, as `resume` describes; the folder is locked.

    Args:
        changes: options with new values.
    """
    folder = RunFolder(path)
    folder.open(path)  # raises if it has no run, before the lock
    with folder.lock:
        folder.remove_partial()
        config = folder.resumed_config({**changes, "out": path}, rollback)
        _, record = folder.open(path)
        config.check()
        ops = get_ops(config.backend, tf32=config.tf32)
        recorded = folder.data_name(record, config.data_dir)
        name = recorded if config.data in DATA_SETS else None
        config, dataset = _prepared(config, dataset, name)
        folder.check_same_data(record, dataset)
        flow = recorded_flow(folder, record, config)
        yield Session(config, dataset, ops, flow, folder, rollback, [])


def _prepared(
    config: TrainConfig, dataset: Dataset | None, name: str | None = None
) -> tuple[TrainConfig, Dataset]:
    """The configuration filled in for the data, and these: without a `dataset` those of a name, by
    default the configuration's."""
    config = config.located()  # absolute paths, which hold in any folder
    if dataset is None:
        name = name or config.data
        dataset = load_dataset(name, config.data_dir, **config.splits_of(name))
    require_dataset(dataset)
    return config.resolve(len(dataset.train), dataset.train.shape[1:]), dataset


def train(
    config: TrainConfig,
    dataset: Dataset,
    *,
    ops: Ops | None = None,
    report: Report | None = print,
    optimiser: Optimiser | None = None,
    flow: Any = None,
    callbacks: Callbacks = (),
) -> Json:
    """Train a new run to the configured number of epochs.

    Evaluates exactly on the validation data every `eval_every` epochs and after the last one, keeps
    the parameters of the best evaluation in `best.safetensors`, and at the end evaluates the test
    data with them. Ctrl-C or a termination signal writes `last.safetensors` and raises
    KeyboardInterrupt.

    Args:
        config: filled in and checked by `TrainConfig.resolve`, if it was not before.
        ops: the backend; None: the configuration's.
        report: gets every line; None: nothing is shown, not even a progress bar.
        optimiser: one of your own in Adam's place (derivations/18-write-your-own-rule.md), which
            `resume` needs again.
        flow: a `Flow` or what builds one, as `TrainConfig(model=flow)`.
        callbacks: functions that each get a `Record` of every evaluation, and of a step whenever a
            progress bar shows one (without a bar, once a minute). If one returns True, the run is
            complete at the end of the epoch; if one raises, it stops, and can be resumed there.

    Returns:
        The summary, as in summary.json: the best epoch, its validation likelihood and that of the
        test data in nats per sample, and times.

    Raises:
        UsageError: the folder is another run's, or another program trains in it.
        DivergedError: numbers are not finite, or the likelihood explodes; the message names options
            with which to go on.
    """
    config = config.with_model(flow)
    require_dataset(dataset)
    if dataset.name != config.data_name:  # other data than the configuration names
        config = replace(config, data=dataset.name)
    with started(config, dataset, ops) as session:
        return train_session(session, report, optimiser, callbacks)


def resume(
    path: str | Path,
    *,
    rollback: bool = False,
    dataset: Dataset | None = None,
    report: Report | None = print,
    optimiser: Optimiser | None = None,
    callbacks: Callbacks = (),
    flow: Any = None,
    **changes: Unpack["Changes"],
) -> Json:
    """Resume the run in a folder.

        snfnp.resume("runs/mine", epochs=20, lr=1e-4)

    Args:
        path: the run's folder.
        rollback: resume from the best checkpoint, with its settings, instead of the last one.
        dataset: the data, if the run was trained on others than `load_dataset` finds.
        report, callbacks: as for `snfnp.train`.
        optimiser: the run's own, if it was started with one.
        flow: as for `snfnp.load_run`.
        changes: options of `TrainConfig` with new values from here on.

    Returns:
        What `snfnp.train` returns.

    Raises:
        UsageError: `path` is no run's folder, another program trains in it, or with these options
            or data it would not be the same run.
    """
    if not isinstance(changes.get("data", ""), (str, os.PathLike)):
        raise UsageError("data is a name or a path: give a Dataset as dataset=")
    if "out" in changes:
        raise UsageError("a run is resumed in its own folder: leave out `out`")
    if flow is not None:
        changes["model"] = flow
    with resumed(Path(path), changes, rollback, dataset) as session:
        return train_session(session, report, optimiser, callbacks)


def fit(
    data: np.ndarray | Dataset,
    *,
    validation: np.ndarray | float | None = None,
    test: np.ndarray | float | None = None,
    flow: Any = None,
    out: str | Path | None = None,
    report: Report | None = print,
    callbacks: Callbacks = (),
    optimiser: Optimiser | None = None,
    **options: Unpack["Options"],
) -> LoadedRun:
    """Train a flow on data in one call.

        run = snfnp.fit(rows, epochs=200, patience=10)
        run.likelihood.log_prob(others), run.likelihood.sample(100)

    Args:
        data: rows of floats (N, D), images, uint8 (N, H, W[, C]), or a `Dataset`.
        validation, test: held-out data of the same shape, or the fraction of `data` to hold out,
            drawn by `seed`; None: a tenth.
        flow: a `Flow` or what builds one (`TrainConfig(model=flow)`); None: a preset.
        out: the run's folder; None: a temporary one, which is removed once nothing refers to the
            returned run's `folder`; it is kept if training was interrupted or failed.
        report, callbacks, optimiser: as for `snfnp.train`.
        options: those of `TrainConfig`. As in `train`, a flow of rows, and on a GPU also one of
            images, is evaluated some 40 times in all, and else after every epoch, unless
            `eval_every` says otherwise.

    Returns:
        The run at its best evaluation: `likelihood`, `flow`, `params`, `folder`.

    Raises:
        UsageError, DivergedError: as `snfnp.train`.
    """
    if flow is not None:
        options["model"] = flow
    if isinstance(data, (str, os.PathLike)):
        raise UsageError(
            f"fit takes data themselves: give it snfnp.load_dataset({str(data)!r})"
        )
    if not isinstance(data, Dataset):
        config = TrainConfig(**options)
        config.check()
        data = own_data(data, validation, test, config.seed)
    elif validation is not None or test is not None:
        raise UsageError(
            f"{data.name} has its splits already: leave validation and test out"
        )
    run = None
    path = Path(out or tempfile.mkdtemp(prefix="snfnp-"))
    try:
        with started(TrainConfig(data=data.name, **options, out=path), data) as session:
            train_session(session, report, optimiser, callbacks)
            run = load_run(path, ops=session.ops, flow=session.config.model)
        if not out:
            weakref.finalize(run.folder, shutil.rmtree, path, ignore_errors=True)
        return run
    finally:  # a run that was interrupted or failed can be resumed in its folder
        if not (out or run or RunFolder(path).has_checkpoint()):
            shutil.rmtree(path, ignore_errors=True)
