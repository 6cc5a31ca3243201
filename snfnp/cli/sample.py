"""Draw samples from a run and write them as a picture, or as a table of rows, .npy or .csv."""

from pathlib import Path

import numpy as np

from snfnp.cli.shared import Parser, busy, check_file, check_range, open_run, run_parser, write_csv
from snfnp.errors import UsageError, printable
from snfnp.files import write_by
from snfnp.training import plots
from snfnp.training.runs.load import LoadedRun

TABLES = ".npy", ".csv"
_AT_ONCE = 256  # samples that go through the flow together
_LARGEST, _LONGEST = 2**27, 2**16  # pixels of a picture, and of a side, that viewers can show


def main(argv: list[str], prog: str | None = None) -> None:
    parser = run_parser(prog, __doc__, data=False)
    add_inverse(parser, "sample")
    parser.number("--temperature", "factor of the latents", 1.0, 0, kind=float)
    parser.number("--count", "number of samples", 64)
    parser.number("--columns", "images per row (default: about square)")
    parser.seed("seed of the latents")
    args = parser.parse_args(argv)
    in_rows = args.columns
    if args.columns is None:
        args.columns = plots.default_columns(args.count)
    check_range("columns", args.columns, 1, args.count)
    if args.out:
        check_file(args.out, "out", (*plots.SUFFIXES, *TABLES))

    run = open_run(args)
    out = destination(args, run, "sample", args.count, args.columns)
    if in_rows and len(run.image_shape) == 1:
        raise UsageError("`columns` is for images, and this run has rows of numbers: leave it out")
    images = drawn(run, args, args.count, args.temperature)
    panel = f"{args.inverse} inverse, temperature {args.temperature:g}, seed {args.seed}"
    if out.suffix in TABLES:
        save_table(out, images, run.columns)
    else:
        title = f"{run.config.data_name}, {run.config.model_name}"
        plots.save_samples(out, {panel: images}, title, args.columns)
    print(printable(out))


def add_inverse(parser: Parser, name: str) -> None:
    """Add the options of the inverse and of the file; name: how files of the command begin."""
    out = f"picture; of rows a table, .npy or .csv (default: RUN/{name}-<inverse>.png, or .npy)"
    parser.add_argument("--out", type=Path, metavar="PATH", help=out)
    through = "one pass through the learned inverses, the same iterated to convergence, or exact "
    through += "solves (default: learned)"
    inverses = ("learned", "refined", "exact")
    parser.add_argument("--inverse", choices=inverses, default="learned", help=through)


def destination(args, run: LoadedRun, name: str, count: int, columns: int, table=True) -> Path:
    """The file for `count` samples, which is checked: a picture of images, in columns, or of 2-D
    data, or a table of rows. table: the default for rows."""
    shape = run.image_shape
    rows = len(shape) == 1
    suffixes = (*TABLES, *(plots.SUFFIXES if shape == (2,) else ())) if rows else plots.SUFFIXES
    file = f"{name}-{args.inverse}{TABLES[0] if rows and table else '.png'}"
    out = args.out or run.folder.path / file
    check_file(out, "out", suffixes)
    if not rows:
        _check_size(count, columns, shape, out)
    return out


def drawn(run: LoadedRun, args, count: int, temperature=1.0, latents=None) -> np.ndarray:
    """`count` samples, as the options say; latents: theirs (count, ...)."""
    how = {"exact": args.inverse == "exact", "refined": args.inverse == "refined"}
    with busy(run.ops, "count", count):
        how |= {"latents": latents, "at_once": _AT_ONCE}
        return run.likelihood.sample(count, args.seed, temperature, **how)


def save_table(out: Path, rows: np.ndarray, columns: tuple[str, ...] | None) -> None:
    """Write an array as a .npy file; or rows as a .csv file, under the columns' names if any."""
    if out.suffix == ".npy":
        write_by(out, lambda file: np.save(file, rows))
    else:
        write_csv(out, columns or (), rows.reshape(-1, rows.shape[-1]).tolist())


def _check_size(count: int, columns: int, shape: tuple[int, ...], out: Path) -> None:
    """Refuse a picture that is too large for its format or for viewers."""
    height, width = plots.grid_size(count, columns, shape)
    size = f"a picture of {width:,} x {height:,} pixels"
    if height * width > _LARGEST or max(height, width) > _LONGEST:
        advice = "ask for fewer, for other `columns`, or for more with another `seed`"
        raise UsageError(f"{count} images would be {size}: {advice}")
    if plots.is_large(height, width) and out.suffix.lower() != plots.LARGE_SUFFIX:
        raise UsageError(f"`out` is {out}: for {size} its name must end in {plots.LARGE_SUFFIX}")
