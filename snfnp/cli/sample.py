"""Draw samples from a run and write them as a picture, as an array or as a table."""

from pathlib import Path

import numpy as np

from snfnp.cli.shared import (
    busy,
    check_file,
    open_run,
    run_parser,
    write_csv,
)
from snfnp.errors import UsageError, printable
from snfnp.files import write_by
from snfnp.training import plots
from snfnp.training.runs.load import LoadedRun

_TABLES = ".npy", ".csv"
_AT_ONCE = 256  # samples that go through the flow together


def main(argv: list[str], prog: str | None = None) -> None:
    parser = run_parser(prog, __doc__, data=False)
    out = "picture, or .npy; of rows also .csv (default: RUN/sample-<inverse>.png, of rows .npy)"
    parser.add_argument("--out", type=Path, metavar="PATH", help=out)
    through = (
        "one pass through the learned inverses, or exact solves (default: learned)"
    )
    inverses = ("learned", "exact")
    parser.add_argument("--inverse", choices=inverses, default="learned", help=through)
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
    if args.out:
        check_file(args.out, "out", (*plots.SUFFIXES, *_TABLES))

    run = open_run(args)
    out = _destination(run, args.out, args.inverse, args.count)
    with busy(run.ops, "count", args.count):
        exact = args.inverse == "exact"
        samples = run.likelihood.sample(
            args.count, args.seed, args.temperature, exact, at_once=_AT_ONCE
        )
    suffix = out.suffix.lower()
    if suffix == ".npy":
        write_by(out, lambda file: np.save(file, samples))
    elif suffix == ".csv":
        write_csv(out, run.columns or (), samples.tolist())
    else:
        title = f"{run.config.data_name}, {run.config.model_name}"
        panel = f"{args.inverse} inverse, temperature {args.temperature:g}, seed {args.seed}"
        plots.save_samples(out, {panel: samples}, title)
    print(printable(out))


def _destination(run: LoadedRun, out: Path | None, inverse: str, count: int) -> Path:
    """The file for `count` samples, which is checked: an array, of images also a picture, of rows
    also a table."""
    rows = len(run.image_shape) == 1
    name = f"sample-{inverse}{_TABLES[0] if rows else '.png'}"
    shipped = Path(f"{run.folder.path.name}-{name}")  # in the current folder
    out = out or (shipped if run.is_pretrained else run.folder.path / name)
    check_file(out, "out", _TABLES if rows else (_TABLES[0], *plots.SUFFIXES))
    if not rows and out.suffix.lower() != _TABLES[0]:
        height, width = plots.grid_size(count, run.image_shape)
        if max(height, width) > plots.LONGEST:
            message = (
                f"{count} images would be a picture of {width:,} x {height:,} pixels"
            )
            raise UsageError(f"{message}: ask for fewer, or for `out=PATH.npy`")
    return out
