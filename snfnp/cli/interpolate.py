"""Draw paths between pairs of test samples: from latents to latents, and back through the flow."""

import numpy as np

from snfnp.cli.sample import add_inverse, check_out, destination, drawn, save_table
from snfnp.cli.shared import add_data, check_range, check_seed, images_of, open_run, run_parser
from snfnp.errors import UsageError
from snfnp.training import plots

_ALONG = (
    "along a great circle, or straight. Latents of D dimensions have a norm near √D, but those "
)
_ALONG += "half way on a straight line one near √(D/2), which the flow has never seen in training "
_ALONG += "if D is large; on the circle the norm stays (White 2016, arXiv:1609.04468) (default: "
_ALONG += "spherical)"


def main(argv: list[str], prog: str | None = None) -> None:
    parser = run_parser(prog, __doc__)
    add_inverse(parser, "interpolate")
    parser.add_argument("--path", choices=("spherical", "linear"), default="spherical", help=_ALONG)
    parser.add_argument("--pairs", type=int, default=8, help="how many paths (default: 8)")
    steps = "samples on a path, both ends included (default: 9)"
    parser.add_argument("--steps", type=int, default=9, help=steps)
    chosen = "seed of the choice of pairs, and of the dequantisation noise (default: 0)"
    parser.add_argument("--seed", type=int, default=0, help=chosen)
    add_data(parser)
    args = parser.parse_args(argv)
    check_range(args, "--pairs", 1)
    check_range(args, "--steps", 2)
    check_seed(args)
    check_out(args)

    run = open_run(args)
    shape, count = run.image_shape, args.pairs * args.steps
    # the test images themselves stand at both ends of a row
    columns = args.steps + 2
    out = destination(args, run, "interpolate", args.pairs * columns, columns)
    data, _ = images_of(run, args, "test")
    if 2 * args.pairs > len(data):
        found = f"--pairs {args.pairs} needs {2 * args.pairs} test {run.flow.preprocess.noun}"
        raise UsageError(f"{found}, and there are {len(data)}: ask for fewer")
    order = np.random.default_rng(args.seed).permutation(len(data))
    ends = data[order[: 2 * args.pairs]]
    latents = [run.ops.to_host(each) for each in run.likelihood.latents(ends, args.seed)]
    flat = np.concatenate([each.reshape(len(ends), -1) for each in latents], axis=1)
    paths = between(*np.split(flat, 2), args.steps, args.path == "spherical")
    parts = np.split(
        paths.reshape(count, -1), np.cumsum([each[0].size for each in latents])[:-1], 1
    )
    given = tuple(p.reshape(count, *each.shape[1:]) for p, each in zip(parts, latents, strict=True))
    samples = drawn(run, args, count, latents=given).reshape(args.pairs, args.steps, *shape)
    name = f"{args.path} paths, {args.inverse} inverse"
    title = f"{run.config.data_name}, {run.config.model_name}"
    if out.suffix == ".npy":
        save_table(out, samples)
    elif shape == (2,):
        panels = {f"{name}, among data": samples, "the latents": paths}
        plots.save_paths(out, data[order[:1000]], panels, title)
    else:
        first, last = np.split(ends[:, None], 2)
        images = np.concatenate([first, samples, last], axis=1).reshape(-1, *shape)
        panels = {f"{name}; outermost: the images themselves": images}
        plots.save_samples(out, panels, title, columns)
    print(out)


def between(start: np.ndarray, end: np.ndarray, steps: int, spherical: bool) -> np.ndarray:
    """Latents (N, steps, D) from start to end, both (N, D): straight, or on great circles, while
    the norm goes evenly from |start| to |end|. Between parallel ones all is straight."""
    t, start, end = np.linspace(0, 1, steps)[:, None], start[:, None], end[:, None]
    norms = [np.linalg.norm(each, axis=-1, keepdims=True) for each in (start, end)]
    with np.errstate(divide="ignore", invalid="ignore"):
        first, second = start / norms[0], end / norms[1]
        angle = np.arccos(np.clip((first * second).sum(axis=-1, keepdims=True), -1, 1))
        circle = (np.sin((1 - t) * angle) * first + np.sin(t * angle) * second) / np.sin(angle)
    circle = circle * ((1 - t) * norms[0] + t * norms[1])
    return np.where(spherical & (np.sin(angle) > 1e-6), circle, (1 - t) * start + t * end)
