"""Print the angle between the self-normalizing and the exact gradient of a trained run (Fig. 3)."""

from pathlib import Path

import numpy as np

from snfnp.cli import load_flow, open_run, run_parser, run_script, within_memory
from snfnp.data import load_dataset
from snfnp.diagnostics import gradient_angles
from snfnp.errors import UsageError
from snfnp.likelihood import EVALUATION_NOISE
from snfnp.ops import RandomKey


def main(argv):
    parser = run_parser(__doc__)
    parser.add_argument("--images", type=int, default=1000, help="training images (default: 1000)")
    parser.add_argument("--data-dir", type=Path, help="folder with the data set's files")
    args = parser.parse_args(argv)
    if args.images < 1:
        raise UsageError(f"--images is {args.images}: it must be at least 1")

    run, config, _, ops = open_run(args)
    dataset = load_dataset(config.data, args.data_dir or config.data_dir)
    images = dataset.train[: args.images]
    flow, checkpoint = load_flow(getattr(run, args.checkpoint), config, images.shape[1:])
    params = checkpoint.layout.views(ops.asarray(checkpoint.p, np.float64))
    with within_memory(ops, "--images", len(images)):
        batch = ops.asarray(images.reshape(-1, *flow.shape))
        x, _ = flow.preprocess.forward(ops, batch, RandomKey(0, EVALUATION_NOISE), np.float64)
        rows = gradient_angles(ops, flow, params, x, checkpoint.lam)

    print(f"{len(images):,} training images from {dataset.source}, λ = {checkpoint.lam:g}")
    print(f"{'layer':<12}{'angle':>10}{'|likelihood|':>16}{'|reconstruction|':>18}")
    for found in rows:
        print(
            f"{found.layer:<12}{found.angle:>9.3f}°{found.likelihood:>16.4g}"
            f"{found.reconstruction:>18.4g}"
        )


if __name__ == "__main__":
    run_script(main)
