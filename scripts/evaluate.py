"""Print the likelihood ledger of a trained run: every term of Eq. 7, in nats and bits/dim."""

import math
from pathlib import Path

from snfnp.cli import load_likelihood, open_run, run_parser, run_script, within_memory
from snfnp.data import load_dataset
from snfnp.errors import UsageError


def main(argv):
    parser = run_parser(__doc__)
    parser.add_argument(
        "--split",
        choices=("train", "validation", "test"),
        default="test",
        help="which images (default: test)",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of the dequantisation noise (default: 0)"
    )
    parser.add_argument(
        "--batch-size",
        type=int,
        default=1000,
        help="images at once (default: 1000)",
    )
    parser.add_argument("--data-dir", type=Path, help="folder with the data set's files")
    args = parser.parse_args(argv)
    if args.batch_size < 1:
        raise UsageError(f"--batch-size is {args.batch_size}: it must be at least 1")

    run, config, _, ops = open_run(args)
    dataset = load_dataset(config.data, args.data_dir or config.data_dir)
    images = getattr(dataset, args.split)
    likelihood, _ = load_likelihood(getattr(run, args.checkpoint), config, ops, images.shape[1:])
    at_once = min(args.batch_size, len(images))
    with within_memory(ops, "--batch-size", at_once):
        result = likelihood.evaluate(images, args.seed, at_once=at_once)

    bits = 1 / (result.dimension * math.log(2))
    print(
        f"{result.images:,} {args.split} images from {dataset.source}, "
        f"dequantisation seed {result.dequantisation_seed}"
    )
    print(f"{'mean log-likelihood':<24}{'nats':>14}{'bits/dim':>12}")
    for term, nats in result.ledger.items():
        print(f"{term:<24}{nats:>14.3f}{nats * bits:>12.4f}")
    print(f"{'log p(x)':<24}{-result.nll:>14.3f}{-result.bits_per_dimension:>12.4f}")
    print(f"NLL {result.nll:.3f} nats = {result.bits_per_dimension:.4f} bits/dim")


if __name__ == "__main__":
    run_script(main)
