"""Draw samples from a trained run and write them as a picture."""

from pathlib import Path

from snfnp.cli import load_likelihood, open_run, run_parser, run_script, within_memory
from snfnp.errors import UsageError
from snfnp.plots import save_samples


def main(argv):
    parser = run_parser(__doc__)
    parser.add_argument("--out", type=Path, help="the picture (default: RUN/sample-<inverse>.png)")
    parser.add_argument(
        "--inverse",
        choices=("learned", "exact"),
        default="learned",
        help="through the learned inverses, one pass, or through exact solves (default: learned)",
    )
    parser.add_argument(
        "--temperature", type=float, default=1.0, help="scales the latents (default: 1.0)"
    )
    parser.add_argument("--count", type=int, default=64, help="how many images (default: 64)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the latents (default: 0)")
    args = parser.parse_args(argv)
    if args.count < 1:
        raise UsageError(f"--count is {args.count}: it must be at least 1")
    if not args.temperature >= 0:
        raise UsageError(f"--temperature is {args.temperature}: it must be 0 or more")

    run, config, record, ops = open_run(args)
    shape = tuple(record["data"]["shape"])
    likelihood, _ = load_likelihood(getattr(run, args.checkpoint), config, ops, shape)
    with within_memory(ops, "--count", args.count):
        images = likelihood.sample(
            args.count, args.seed, args.temperature, exact=args.inverse == "exact"
        )
    out = args.out or run.path / f"sample-{args.inverse}.png"
    title = f"{args.inverse} inverse, temperature {args.temperature:g}, seed {args.seed}"
    save_samples(out, {title: images.reshape(-1, *shape)}, f"{config.data}, {config.model_name}")
    print(out)


if __name__ == "__main__":
    run_script(main)
