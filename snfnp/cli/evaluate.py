"""Print the likelihood ledger of a trained run: every term of Eq. 7, in nats and bits/dim."""

from __future__ import annotations

import math
from pathlib import Path

from snfnp.cli.shared import check_range, check_seed, open_run, run_parser, within_memory
from snfnp.data import load_dataset


def main(argv: list[str], prog: str | None = None) -> None:
    parser = run_parser(prog, __doc__)
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
    check_range(args, "--batch-size", 1)
    check_seed(args)

    run = open_run(args)
    dataset = load_dataset(run.config.data, args.data_dir or run.config.data_dir)
    images, likelihood = getattr(dataset, args.split), run.likelihood
    at_once = min(args.batch_size, len(images))
    with within_memory(run.ops, "--batch-size", at_once):
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
