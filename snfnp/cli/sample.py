"""Draw samples from a run and write them as a picture, as an array or as a table."""

from argparse import Namespace
from pathlib import Path

import numpy as np

from snfnp.cli.shared import (
    busy,
    check_file,
    open_run,
    run_parser,
    warnings_in_lines,
    write_csv,
)
from snfnp.errors import UsageError, printable
from snfnp.files import write_by
from snfnp.training import plots
from snfnp.training.runs.load import LoadedRun

_ARRAY = ".npy"
_TABLES = (_ARRAY, ".csv")
_AT_ONCE = 256  # samples that go through the flow together


def main(argv: list[str], prog: str | None = None) -> None:
    parser = run_parser(prog, __doc__, data=False)
    parser.add_argument(
        "--out",
        type=Path,
        metavar="PATH",
        help="picture, or .npy; of rows also .csv (default: RUN/sample-<inverse>.png, of rows "
        ".npy)",
    )
    parser.add_argument(
        "--inverse",
        choices=("learned", "exact"),
        default="learned",
        help="one pass through the learned inverses, or exact solves (default: learned)",
    )
    parser.number(
        "--temperature",
        "temperature: standard deviation of the latents",
        1.0,
        0,
        kind=float,
    )
    parser.number("--count", "number of samples", 64)
    parser.seed("seed of the latents")
    args = parser.parse_args(argv)
    if args.out:  # before the run is read
        check_file(args.out, "out", (*plots.SUFFIXES, *_TABLES))

    run = open_run(args)
    out = _destination(run, args)
    with busy(run.ops, "count", args.count), warnings_in_lines():
        samples = run.likelihood.sample(
            args.count,
            args.seed,
            args.temperature,
            args.inverse == "exact",
            at_once=_AT_ONCE,
        )
    suffix = out.suffix.lower()
    if suffix == _ARRAY:
        write_by(out, np.save, arr=samples)
    elif suffix == ".csv":
        write_csv(out, run.columns or (), samples.tolist())
    else:
        title = f"{run.config.data_name}, {run.config.model_name}"
        panel = f"{args.inverse} inverse, temperature {args.temperature:g}, seed {args.seed}"
        plots.save_samples(out, {panel: samples}, title)
    print(printable(out))


def _destination(run: LoadedRun, args: Namespace) -> Path:
    """The file for the samples: an array, or of images a picture, or of rows a table. Its
    suffix and the size of a picture are checked."""
    of_rows = len(run.image_shape) == 1
    name = f"sample-{args.inverse}{_ARRAY if of_rows else '.png'}"
    # A pretrained run's folder is the package's: its samples go into the current folder.
    pretrained = Path(f"{run.folder.path.name}-{name}")
    out = args.out or (pretrained if run.is_pretrained else run.folder.path / name)
    check_file(out, "out", _TABLES if of_rows else (_ARRAY, *plots.SUFFIXES))
    if not of_rows and out.suffix.lower() != _ARRAY:
        height, width = plots.grid_size(args.count, run.image_shape)
        if max(height, width) > plots.LONGEST:
            raise UsageError(
                f"{args.count} images would be a picture of {width:,} x {height:,} pixels: ask for "
                "fewer, or for `out=PATH.npy`"
            )
    return out
