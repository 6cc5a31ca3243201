"""The metrics of a run as curves in TensorBoard (`--tensorboard`)."""

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

from snfnp.errors import UsageError
from snfnp.files import explained
from snfnp.training.runs.folder import RunFolder

_AXES = ("epoch", "step", "seconds")


def require():
    """The package that writes TensorBoard's files. Raises UsageError if it is missing."""
    try:
        import tensorboardX

        return tensorboardX
    except ImportError as error:
        remedy = 'install it with `python -m pip install "tensorboardX>=2.6.2.2"`'
        found = f"`tensorboard` needs tensorboardX ({error})"
        raise UsageError(f"{found}: {remedy}, or leave the option out") from None


@contextmanager
def recording(run: RunFolder) -> Iterator[Callable[[dict], None]]:
    """A function that keeps an evaluation's record, in metrics.jsonl and for TensorBoard, whose
    files are first rewritten from the metrics so far: curves begin at the first epoch and have no
    point twice."""
    package, folder = require(), run.event_files
    with explained(f"write {folder}", "remove it, or leave `tensorboard` out"):
        if folder.is_symlink():
            raise OSError(0, "it is a symbolic link")
        folder.mkdir(exist_ok=True)
        for old in folder.glob("events.out.tfevents.*"):  # TensorBoard's own names
            old.unlink()
        writer = package.SummaryWriter(str(folder))
    with closing(writer):

        def keep(record: dict) -> None:
            run.append_metrics(record)
            _write(writer, record)

        for record in run.read_metrics():
            _write(writer, record)
        yield keep


def scalars(record: dict) -> dict[str, float]:
    """{name of a curve: value} of a record; those of a layer are "figure/layer"."""
    numbers = {name: value for name, value in record.items() if isinstance(value, int | float)}
    curves: dict[str, float] = {name: numbers[name] for name in numbers if name not in _AXES}
    for layer, figures in record.get("layers", {}).items():
        curves |= {f"{figure}/{layer}": value for figure, value in figures.items()}
    return curves


def _write(writer, record: dict) -> None:
    """Add a point to every curve. Its time, on the "relative" axis, is that of training."""
    for name, value in scalars(record).items():
        writer.add_scalar(name, value, record["step"], walltime=record["seconds"])
    writer.flush()
