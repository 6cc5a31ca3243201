"""Print the angles between a run's self-normalizing and its exact gradient, by layer (Fig. 3)."""

import numpy as np

from snfnp.cli.shared import busy, images_of, open_run, run_parser
from snfnp.diagnostics import gradient_angles
from snfnp.images import evenly_spread
from snfnp.likelihood import EVALUATION_NOISE
from snfnp.ops import RandomKey


def main(argv: list[str], prog: str | None = None) -> None:
    parser = run_parser(prog, __doc__)
    parser.number("--images", "training samples to use, evenly spread over all", 1000)
    args = parser.parse_args(argv)

    run = open_run(args)
    images, source = images_of(run, args, "train")
    images = evenly_spread(images, args.images)
    ops = run.ops
    lam = run.lam
    with busy(ops, "images", len(images)):
        x, _ = run.flow.encode(
            ops, ops.asarray(images), RandomKey(0, EVALUATION_NOISE), np.float64
        )
        layers = gradient_angles(ops, run.flow, run.params, x, lam)

    of = (
        [f"{value:g} of {layer}" for layer, value in lam.items()]
        if isinstance(lam, dict)
        else []
    )
    print(
        f"{len(images):,} training {run.flow.preprocess.noun} from {source}, λ = "
        f"{', '.join(of) or f'{lam:g}'}"
    )
    print(
        f"{'layer':<12}{'angle of W':>12}{'of R':>10}{'|likelihood|':>16}{'|reconstruction|':>18}"
    )
    for layer, gradient in layers.items():
        of_r = (
            f"{gradient['inverse_angle']:.3f}°" if "inverse_angle" in gradient else "-"
        )
        norms = f"{gradient['likelihood']:>16.4g}{gradient['reconstruction']:>18.4g}"
        angle = f"{gradient['angle']:.3f}°"
        print(f"{layer:<12}{angle:>12}{of_r:>10}{norms}")
