"""Draw samples from a trained run and write them as a picture, or a .npy file of rows."""

import io
from pathlib import Path

import numpy as np

from snfnp.cli.shared import check_file, check_range, check_seed, open_run, run_parser
from snfnp.errors import UsageError
from snfnp.training import plots
from snfnp.training.files import write_atomically
from snfnp.training.memory import within_memory

_TABLE = ".npy"
_AT_ONCE = 256  # images: those of a picture are drawn in parts, which have latents of their own
_LARGEST, _LONGEST = 2**27, 2**16  # pixels of a picture, and of its sides, that viewers can show


def main(argv: list[str], prog: str | None = None) -> None:
    parser = run_parser(prog, __doc__)
    out = "the picture, or .npy file of rows (default: RUN/sample-<inverse>.png, or .npy)"
    parser.add_argument("--out", type=Path, help=out)
    through = "through the learned inverses, one pass; through these, refined until nothing is "
    through += "left over; or through exact solves (default: learned)"
    inverses = ("learned", "refined", "exact")
    parser.add_argument("--inverse", choices=inverses, default="learned", help=through)
    scale = "scales the latents (default: 1.0)"
    parser.add_argument("--temperature", type=float, default=1.0, help=scale)
    parser.add_argument("--count", type=int, default=64, help="how many images (default: 64)")
    parser.add_argument("--columns", type=int, help="images in a row (default: as many as rows)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the latents (default: 0)")
    args = parser.parse_args(argv)
    check_range(args, "--count", 1)
    check_range(args, "--temperature", 0)
    check_seed(args)
    in_rows = args.columns
    if args.columns is None:
        args.columns = plots.default_columns(args.count)
    check_range(args, "--columns", 1, args.count)
    if args.out and args.out.suffix != _TABLE:
        check_file(args.out, "--out", plots.SUFFIXES)

    run = open_run(args)
    shape = run.image_shape
    rows = len(shape) == 1
    suffixes = (_TABLE, *(plots.SUFFIXES if shape == (2,) else ())) if rows else plots.SUFFIXES
    out = args.out or run.folder.path / f"sample-{args.inverse}{_TABLE if rows else '.png'}"
    check_file(out, "--out", suffixes)
    if not rows:
        _check_size(args, shape, out)
    elif in_rows:
        raise UsageError("--columns is for images, and this run has rows of numbers: leave it out")
    images = np.empty((args.count, *shape), np.float64 if rows else np.uint8)
    for part, first in enumerate(range(0, args.count, _AT_ONCE)):
        count = min(_AT_ONCE, args.count - first)
        with within_memory(run.ops, "--count", count):
            inverse = {"exact": args.inverse == "exact", "refined": args.inverse == "refined"}
            drawn = run.likelihood.sample(count, args.seed, args.temperature, part=part, **inverse)
        images[first : first + count] = drawn
    panel = f"{args.inverse} inverse, temperature {args.temperature:g}, seed {args.seed}"
    title = f"{run.config.data_name}, {run.config.model_name}"
    if out.suffix == _TABLE:
        content = io.BytesIO()
        np.save(content, images)
        write_atomically(out, content.getvalue())
    else:
        plots.save_samples(out, {panel: images}, title, args.columns)
    print(out)


def _check_size(args, shape: tuple[int, ...], out: Path) -> None:
    """Refuse a picture that is too large for its format, or to be seen."""
    height, width = plots.grid_size(args.count, args.columns, shape)
    size = f"a picture of {width:,} x {height:,} pixels"
    if height * width > _LARGEST:
        fits = _LARGEST // ((shape[0] + 1) * (shape[1] + 1))
        ask = f"ask for {fits:,} or fewer, and for more with another --seed"
        ask = ask if fits else "a single one of its images is too large to be drawn"
        raise UsageError(f"--count {args.count} would be {size}: {ask}")
    if max(height, width) > _LONGEST:
        raise UsageError(f"--columns {args.columns} would be {size}: leave it out")
    if plots.is_large(height, width) and out.suffix.lower() != plots.LARGE_SUFFIX:
        raise UsageError(f"--out is {out}: for {size} its name must end in {plots.LARGE_SUFFIX}")
