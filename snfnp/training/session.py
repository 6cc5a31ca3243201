"""A run from its options: `fit` starts one, `resume` goes on with one in its folder."""

import io
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, redirect_stderr
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from snfnp.data import Dataset, load_dataset, require_dataset, user_data
from snfnp.errors import SnfnpError, UsageError
from snfnp.ops import SINGLE_PROCESS, Communicator, Ops, get_ops
from snfnp.training.loop import train
from snfnp.training.options import TrainConfig
from snfnp.training.options.user_models import require_trusted
from snfnp.training.progress import Callbacks
from snfnp.training.runs.folder import RunFolder, path_of
from snfnp.training.runs.load import LoadedRun, load_run

_EVALUATIONS = 50  # in a run of `fit`, about


class Session(NamedTuple):
    """A run that is ready to be trained, in a locked folder: arguments of `train`.

    config: resolved; goes_on: False for a new run, True from the last checkpoint, "best" from the
    best one; world: the ranks that train together.
    """

    config: TrainConfig
    dataset: Dataset
    ops: Ops
    folder: RunFolder
    goes_on: bool | str
    world: Communicator


@contextmanager
def started(
    config: TrainConfig, dataset: Dataset | None = None, world: Communicator = SINGLE_PROCESS
) -> Iterator[Session]:
    """A new run in `config.out`, or in a folder named after its options; dataset: see `resume`."""
    config, dataset, ops = _prepare(config, dataset, world)
    flow = config.build_flow(dataset.train.shape[1:], dataset.moments)
    _ = flow.layout  # raises before a folder is made
    path = world.broadcast(path_of(config))
    folder = RunFolder(path)
    with ExitStack() as held:

        def claim() -> None:
            folder.create(path)
            held.enter_context(folder.lock)

        world.on_rank_zero(claim)
        yield Session(replace(config, out=path), dataset, ops, folder, False, world)


@contextmanager
def resumed(
    path: Path,
    changes: dict,
    rollback: bool = False,
    never_shorten: bool = False,
    dataset: Dataset | None = None,
    world: Communicator = SINGLE_PROCESS,
    trust: bool = False,
) -> Iterator[Session]:
    """The run in a folder, which goes on; see `resume`. never_shorten: `epochs` in `changes` are
    ignored if they are fewer than the run's own."""
    require_trusted(changes.get("model"), trust=True)  # which the user names, and no file
    folder = RunFolder(path)
    with ExitStack() as held:

        def opened() -> tuple[TrainConfig, str | None]:
            _, record = folder.open(path, trust)  # raises before a folder of another kind is locked
            held.enter_context(folder.lock)
            config = folder.resumed_config({**changes, "out": path}, rollback, never_shorten)
            return config, None if "data" in changes else folder.data_name(record, config.data_dir)

        config, name = world.on_rank_zero(opened)
        config, dataset, ops = _prepare(config, dataset, world, name)
        yield Session(config, dataset, ops, folder, "best" if rollback else True, world)


def resume(
    path: str | Path,
    *,
    rollback: bool = False,
    dataset: Dataset | None = None,
    report: Callable[[str], None] | None = print,
    optimiser=None,
    callbacks: Callbacks = (),
    trust: bool = False,
    **changes: Any,
) -> dict:
    """Go on with the run in a folder.

        snfnp.resume("runs/mine", epochs=20, lr=1e-4)

    Args:
        path: the run's folder.
        rollback: go on from the best checkpoint, with its settings, instead of the last one.
        dataset: the data, if the run was trained on others than `load_dataset` finds.
        report, callbacks: as for `snfnp.train`.
        optimiser: the run's own, if it was started with one.
        trust: as for `snfnp.load_run`.
        changes: options of `TrainConfig` with new values from here on.

    Returns:
        What `snfnp.train` returns.

    Raises:
        UsageError: `path` is no run's folder, another program trains in it, or with these options
            or data it would not be the same run.
    """
    if not isinstance(changes.get("data", ""), (str, Path)):
        raise UsageError("data is where they are: give a Dataset as dataset=")
    with resumed(Path(path), changes, rollback, dataset=dataset, trust=trust) as session:
        return _train(session, report, optimiser, callbacks)


def fit(
    data: np.ndarray | Dataset,
    *,
    validation: np.ndarray | float | None = None,
    test: np.ndarray | float | None = None,
    flow: Any = None,
    out: str | Path | None = None,
    report: Callable[[str], None] | None = print,
    callbacks: Callbacks = (),
    optimiser=None,
    **options: Any,
) -> LoadedRun:
    """Train a flow on data in one call.

        run = snfnp.fit(rows, epochs=200, patience=10)
        run.likelihood.log_prob(others), run.likelihood.sample(100)

    Args:
        data: rows of floats (N, D), images, uint8 (N, H, W[, C]), or a `Dataset`.
        validation, test: held-out data of the same shape, or the fraction of `data` to hold out,
            drawn by `seed`; None: a tenth.
        flow: a `Flow` or what builds one (`TrainConfig(model=flow)`); None: a preset.
        out: the run's folder; None: a temporary one, removed with the run's `folder`, but kept if
            training was interrupted or failed.
        report, callbacks, optimiser: as for `snfnp.train`.
        options: those of `TrainConfig`; `eval_every` makes about 50 evaluations if not given.

    Returns:
        The run at its best evaluation: `likelihood`, `flow`, `params`, `folder`.

    Raises:
        UsageError, DivergedError: as `snfnp.train`.
    """
    if flow is not None:
        options["model"] = flow
    if isinstance(data, (str, Path)):
        raise UsageError(f"fit takes data themselves: give it snfnp.load_dataset({str(data)!r})")
    if not isinstance(data, Dataset):
        data = user_data.load(data, validation, test, options.get("seed", 0))
    elif validation is not None or test is not None:
        raise UsageError(f"{data.name} has its splits already: leave validation and test out")
    config = TrainConfig(data=data.name, **options).resolve(len(data.train), data.train.shape[1:])
    if "eval_every" not in options:
        config = replace(config, eval_every=max(1, config.epochs // _EVALUATIONS))
    run, path = None, Path(out or tempfile.mkdtemp(prefix="snfnp-"))
    try:
        with started(replace(config, out=path), data) as session:
            _train(session, report, optimiser, callbacks)
            run = load_run(path, ops=session.ops)
        if not out:
            weakref.finalize(run.folder, shutil.rmtree, path, ignore_errors=True)
        return run
    finally:  # a run that was interrupted or failed goes on in its folder
        if not (out or run or RunFolder(path).has_checkpoint()):
            shutil.rmtree(path, ignore_errors=True)


def _train(session: Session, report, optimiser, callbacks) -> dict:
    config, dataset, ops, folder, goes_on, world = session
    how = (ops, folder, goes_on, report, world, optimiser)
    return train(config, dataset, *how, callbacks=callbacks)


def _prepare(config: TrainConfig, dataset: Dataset | None, world: Communicator, name=None):
    """The configuration resolved, the data, and the operations. name: of the data, if it is not the
    configuration's."""
    ops = get_ops(config.backend, tf32=config.tf32, world=world, overlap=config.overlap)
    if dataset is None:
        config = config.located()
        name = name or config.data
        dataset = _load(name, config.data_dir, world, config.splits_of(name))
    require_dataset(dataset)
    config = config.resolve(len(dataset.train), dataset.train.shape[1:])
    if config.tensorboard:
        from snfnp.beyond import tensorboard

        tensorboard.require()  # raises before a folder is made
    return config, dataset, ops


def _load(name: str, data_dir: Path | None, world: Communicator, splits: dict) -> Dataset:
    """The data; on each machine one process goes first and downloads them if need be."""
    dataset = error = None
    # Notices other than errors are printed by rank 0 alone.
    with redirect_stderr(io.StringIO()) if world.rank else nullcontext():
        if world.local_rank == 0:
            try:
                dataset = load_dataset(name, data_dir, **splits)
            except SnfnpError as failure:
                error = failure
        for failed in filter(None, world.gather(error)):
            raise failed
        return dataset or load_dataset(name, data_dir, **splits)
