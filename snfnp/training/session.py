"""A run from its options to its summary: `start` a new one, `resume` one from its folder."""

import io
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, redirect_stderr
from dataclasses import dataclass, replace
from pathlib import Path

from snfnp import registry
from snfnp.data import Dataset, load_dataset, require_dataset
from snfnp.errors import SnfnpError
from snfnp.ops import SINGLE_PROCESS, Communicator, Ops, get_ops
from snfnp.training.loop import train
from snfnp.training.memory import within_memory
from snfnp.training.options import TrainConfig
from snfnp.training.runs.folder import RunFolder


@dataclass(frozen=True)
class Session:
    """A run that is ready to be trained, and whose folder is locked.

    config: resolved; goes_on: False for a new run, True from the last checkpoint, "best" from the
    best one; world: the ranks that train together.
    """

    config: TrainConfig
    dataset: Dataset
    ops: Ops
    folder: RunFolder
    goes_on: bool | str
    world: Communicator

    def train(self, report: Callable[[str], None] = print, optimiser=None, watch=None) -> dict:
        """Train to the end; the summary, as `snfnp.train` returns it. watch: see there."""
        config, dataset = self.config, self.dataset
        also = " in a new run" if self.goes_on else ""
        if config.preset.has_recomputable_layers and not config.recompute:
            also += ", or --recompute"
        with within_memory(self.ops, "--batch-size", config.batch_size, also):
            how = (self.folder, self.goes_on, report)
            return train(config, dataset, self.ops, *how, self.world, optimiser, watch)


@contextmanager
def started(
    config: TrainConfig, dataset: Dataset | None = None, world: Communicator = SINGLE_PROCESS
) -> Iterator[Session]:
    """A new run in `config.out`, or in a folder named after its options; dataset: see `resume`."""
    config, dataset, ops = _prepare(config, dataset, world)
    _ = config.build_flow(dataset.train.shape[1:]).layout  # raises before a folder is made
    stamp = time.strftime("%Y%m%d-%H%M%S")
    name = f"{config.data_name}-{config.model}-{config.gradient}-{stamp}"
    path = world.broadcast(config.out or Path("runs") / name)
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
    keep_longer: bool = False,
    dataset: Dataset | None = None,
    world: Communicator = SINGLE_PROCESS,
) -> Iterator[Session]:
    """The run in a folder, which goes on; see `resume`. keep_longer: `epochs` in `changes` are
    ignored if they are fewer than the run's own."""
    folder = RunFolder(path)
    with ExitStack() as held:

        def opened() -> tuple[TrainConfig, str | None]:
            _, record = folder.open(path)  # raises before a folder that is no run's gets a lock
            held.enter_context(folder.lock)
            config = folder.resumed_config({**changes, "out": path}, rollback, keep_longer)
            return config, None if "data" in changes else folder.data_name(record, config.data_dir)

        config, name = world.on_rank_zero(opened)
        config, dataset, ops = _prepare(config, dataset, world, name)
        yield Session(config, dataset, ops, folder, "best" if rollback else True, world)


def resume(
    path: str | Path,
    *,
    rollback: bool = False,
    dataset: Dataset | None = None,
    report: Callable[[str], None] = print,
    optimiser=None,
    **changes,
) -> dict:
    """Go on with the run in a folder, and return what `snfnp.train` returns.

        snfnp.resume("runs/mine", epochs=20, lr=1e-4)

    rollback: from the best checkpoint, with its settings, instead of the last one; dataset: the
    images, if the run was trained on others than `load_dataset` finds; report: gets every line;
    optimiser: the run's own, if it was started with one; changes: options of `TrainConfig` with
    new values from here on. Raises UsageError if `path` is no run's folder, if another program
    trains in it, or if with these options or images it would not be the same run.
    """
    with resumed(Path(path), changes, rollback, dataset=dataset) as session:
        return session.train(report, optimiser)


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
        registry.find("event-files-package")()  # raises before a folder is made
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
