"""Print a run's exact log-likelihood, every term of Eq. 7, in nats and bits per dimension."""

import math

import numpy as np

from snfnp.cli.shared import busy, images_of, open_run, run_parser
from snfnp.errors import printable
from snfnp.images import evenly_spread
from snfnp.likelihood import EVALUATION_NOISE
from snfnp.ops import RandomKey


def main(argv: list[str], prog: str | None = None) -> None:
    parser = run_parser(prog, __doc__)
    splits = ("train", "validation", "test")
    which = "which data (default: test)"
    parser.add_argument("--split", choices=splits, default="test", help=which)
    parser.seed("seed of the dequantisation noise")
    parser.number("--batch-size", "samples evaluated at once", 1000)
    proof = "also prove, without a determinant, that W and R of each learned inverse are "
    proof += "invertible, and bound the differences between log|W| and -log|R|, and between the "
    proof += "two densities of Eq. 3 at the latents of one batch"
    parser.add_argument("--certify", action="store_true", help=proof)
    args = parser.parse_args(argv)

    run = open_run(args)
    how, proved = (run.ops, run.flow, run.params), []
    if args.certify:  # before the likelihood: it needs no determinant, and may be refused
        from snfnp.beyond.certificates import activations_part, certificates

        proved = certificates(*how)
    (images, source), likelihood = images_of(run, args, args.split), run.likelihood
    at_once = min(args.batch_size, len(images))
    with busy(run.ops, "batch_size", at_once):
        result = likelihood.evaluate(images, args.seed, at_once=at_once)
        apart = None
        if proved and all(certificate.holds for certificate in proved):
            few = run.ops.asarray(evenly_spread(images, at_once)[:])
            key = RandomKey(args.seed, EVALUATION_NOISE)
            x, _ = run.flow.encode(run.ops, few, key, np.float64)
            apart = run.ops.to_host(activations_part(*how, x))

    noun, per_dimension = run.flow.preprocess.noun, 1 / (result.dimension * math.log(2))
    of = f"{len(images):,} {args.split} {noun} from {printable(source)}"
    bits = run.flow.preprocess.of_images  # bits per dimension, and noise, are of bytes alone
    print(of + f", dequantisation seed {args.seed}" * bits)
    print(f"{'mean log-likelihood':<24}{'nats':>14}" + f"{'bits/dim':>12}" * bits)
    for term, nats in {**result.terms, "log p(x)": -result.nll}.items():
        print(f"{term:<24}{nats:>14.3f}" + f"{nats * per_dimension:>12.4f}" * bits)
    print(f"NLL {result.nll:.3f} nats" + f" = {result.bits_per_dimension:.4f} bits/dim" * bits)
    if proved:
        print("\n" + _proof(proved, apart))


def _proof(proved: list, apart: np.ndarray | None) -> str:
    """The certificates, a line for each layer, and what they say together. apart: the activations'
    part of some images, if all layers have one."""
    lines = ["of E = I - RW at every learned inverse, without a determinant:"]
    lines.append(f"{'layer':<12}{'ρ at least':>12}{'at most':>12}{'tr E':>12}{'certificate':>14}")
    for certificate in proved:
        difference = certificate.difference
        says = "none" if difference is None else f"{difference:.4g} nats"
        cells = f"{certificate.lower:>12.4g}{certificate.upper:>12.4g}{certificate.trace:>12.4g}"
        lines.append(f"{certificate.layer:<12}{cells}{says:>14}")
    sure = [certificate.difference for certificate in proved if certificate.holds]
    says = "W and R are invertible, and log|W| and -log|R| differ by at most as many nats"
    lines.append(f"proved for {len(sure)} of {len(proved)} layers: {says}")
    if apart is None:
        lines.append("none: ρ < 1 is not proved there, so nothing is known without a determinant")
        return "\n".join(lines)
    total = sum(sure)
    if len(sure) > 1:
        lines.append(f"all layers together: their sums differ by at most {total:.4g} nats")
    most, mean = (value + total for value in (np.abs(apart).max(), np.abs(apart).mean()))
    of = f"log p^f and log p^g (Eq. 3) at the latents of {len(apart):,} samples"
    differ = f"differ by at most {most:.4g} nats, and by {mean:.4g} on average"
    rest = f"{total:.4g} of it is the bound above, the rest the activations' part"
    lines.append(f"densities: {of} {differ}; {rest}")
    return "\n".join(lines)
