"""Draw paths between pairs of test samples: interpolated in latent space, mapped back to data."""

import numpy as np

from snfnp.cli.sample import TABLES, add_inverse, destination, drawn, save_table
from snfnp.cli.shared import images_of, open_run, run_parser
from snfnp.errors import UsageError, printable
from snfnp.training import plots

_ALONG = "great circles or straight lines in latent space. D latents have a norm near √D, but "
_ALONG += "halfway along a straight line it is near √(D/2), where training puts no data if D is "
_ALONG += "large (White 2016, arXiv:1609.04468) (default: spherical)"


def main(argv: list[str], prog: str | None = None) -> None:
    parser = run_parser(prog, __doc__)
    add_inverse(parser, "interpolate")
    parser.add_argument("--path", choices=("spherical", "linear"), default="spherical", help=_ALONG)
    parser.number("--pairs", "number of paths", 8)
    parser.number("--steps", "samples per path, both ends included", 9, 2)
    parser.seed("seed of the pairs and of the dequantisation noise")
    args = parser.parse_args(argv)

    run = open_run(args)
    shape, columns = run.image_shape, args.steps + 2  # the data at both ends, where they are images
    out = destination(args, run, "interpolate", args.pairs * columns, columns, shape != (2,))
    data, _ = images_of(run, args, "test")
    if 2 * args.pairs > len(data):
        found = f"`pairs={args.pairs}` needs {2 * args.pairs} test {run.flow.preprocess.noun}"
        raise UsageError(f"{found}, and there are {len(data)}: ask for fewer")
    order = np.random.default_rng(args.seed).permutation(len(data))
    ends = data[order[: 2 * args.pairs]]
    latents = [
        between(start, end, args.steps, args.path == "spherical")
        for each in run.likelihood.latents(ends, args.seed)
        for start, end in (np.split(run.ops.to_host(each), 2),)
    ]
    given = tuple(each.reshape(-1, *each.shape[2:]) for each in latents)
    samples = drawn(run, args, args.pairs * args.steps, latents=given)
    samples = samples.reshape(args.pairs, args.steps, *shape)
    name, title = f"{args.path}, {args.inverse} inverse", f"{run.config.data_name}: paths"
    if out.suffix in TABLES:
        save_table(out, samples, run.columns)
    elif shape == (2,):
        panels = {f"{name}, among data": samples, "latents": latents[0]}
        plots.save_points(out, panels, title, data[order[:1000]])
    else:
        first, last = np.split(ends[:, None], 2)
        images = np.concatenate([first, samples, last], axis=1).reshape(-1, *shape)
        plots.save_samples(out, {f"{name}; outermost: the data": images}, title, columns)
    print(printable(out))


def between(start: np.ndarray, end: np.ndarray, steps: int, spherical: bool) -> np.ndarray:
    """Latents (N, steps, ...) from start to end, both (N, ...): straight, or on great circles,
    while the norm goes evenly from |start| to |end|. Between parallel ones all is straight."""
    shape, t = start.shape[1:], np.linspace(0, 1, steps)[:, None]
    start, end = (each.reshape(len(each), 1, -1) for each in (start, end))
    norms = [np.linalg.norm(each, axis=2, keepdims=True) for each in (start, end)]
    with np.errstate(divide="ignore", invalid="ignore"):
        first, second = start / norms[0], end / norms[1]
        angle = np.arccos(np.clip((first * second).sum(axis=2, keepdims=True), -1, 1))
        circle = (np.sin((1 - t) * angle) * first + np.sin(t * angle) * second) / np.sin(angle)
    circle = circle * ((1 - t) * norms[0] + t * norms[1])
    straight = (1 - t) * start + t * end
    paths = np.where(spherical & (np.sin(angle) > 1e-6), circle, straight)
    return paths.reshape(-1, steps, *shape)
