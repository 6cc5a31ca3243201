"""Print a run's exact log-likelihood, every term of Eq. 7, in nats and bits per dimension.

A low likelihood does not identify other data reliably: flows trained on photographs assign higher
likelihoods to some simpler images (Nalisnick et al. 2019, "Do Deep Generative Models Know What They
Don't Know?").
"""

import math
import os
from pathlib import Path

import numpy as np

from snfnp.cli.shared import (
    busy,
    check_file,
    images_of,
    open_run,
    run_parser,
    whole_data,
    write_csv,
)
from snfnp.data import Samples
from snfnp.errors import UsageError, printable
from snfnp.images import evenly_spread
from snfnp.likelihood import EVALUATION_NOISE, Evaluation
from snfnp.ops import RandomKey
from snfnp.training.runs.load import LoadedRun

_WHOLE = "all"  # a value of --split


def main(argv: list[str], prog: str | None = None) -> None:
    parser = run_parser(prog, __doc__)
    splits = ("train", "validation", "test", _WHOLE)
    which = "which data; all: everything in other data (default: test)"
    parser.add_argument("--split", choices=splits, default="test", help=which)
    scores = "write the log-likelihood of each sample to this new .csv file"
    parser.add_argument("--scores", type=Path, metavar="PATH", help=scores)
    parser.seed("seed of the dequantisation noise")
    parser.number("--batch-size", "samples evaluated at once", 1000)
    proof = (
        "also prove, without a determinant, that W and R of each learned inverse are "
    )
    proof += "invertible, and bound the differences between log|W| and -log|R|, and between the "
    proof += "two densities of Eq. 3 at the latents of one batch"
    parser.add_argument("--certify", action="store_true", help=proof)
    args = parser.parse_args(argv)
    if args.split == _WHOLE and args.data is None:
        raise UsageError("`split=all` is for other data: name them with `data`")
    if args.scores:
        check_file(args.scores, "scores", (".csv",))
        if os.path.lexists(args.scores):
            raise UsageError(
                f"`scores` is {args.scores}, which exists: choose another name"
            )

    run = open_run(args)
    certificates = []
    # before the likelihood: it needs no determinant, and may be refused
    if args.certify:
        from snfnp.beyond import certificates as proofs

        certificates = proofs.certificates(run.ops, run.flow, run.params)
    if args.split == _WHOLE:
        samples = whole_data(run, args)
        source = args.data
    else:
        samples, source = images_of(run, args, args.split)
    at_once = min(args.batch_size, len(samples))
    with busy(run.ops, "batch_size", at_once):
        evaluation = run.likelihood.evaluate(samples, args.seed, at_once=at_once)
        if args.scores:
            _write_scores(args.scores, run, samples, args.seed, at_once)
        activations = None
        if certificates and all(certificate.holds for certificate in certificates):
            few = run.ops.asarray(evenly_spread(samples, at_once)[:])
            key = RandomKey(args.seed, EVALUATION_NOISE)
            x, _ = run.flow.encode(run.ops, few, key, np.float64)
            part = proofs.activations_part(run.ops, run.flow, run.params, x)
            activations = run.ops.to_host(part)

    noun = run.flow.preprocess.noun
    text = f"{len(samples):,} {args.split} {noun} from {printable(source)}"
    if run.flow.preprocess.of_images:
        text += f", dequantisation seed {args.seed}"
    print(text)
    print(_table(evaluation, run.flow.preprocess.of_images))
    if certificates:
        print("\n" + _proof(certificates, activations))
    if args.scores:
        print(printable(f"scores: {args.scores}"))


def _write_scores(
    path: Path, run: LoadedRun, samples: Samples, seed: int, at_once: int
) -> None:
    """Write a line for each sample: its index and its log-likelihood in nats, and of a table with
    names its values. A sample so far away that numbers overflow has -inf."""
    nats = run.likelihood.log_prob(samples, seed, at_once)
    nats = np.where(np.isnan(nats), -np.inf, nats).tolist()
    rows = samples[:].tolist() if run.columns else [()] * len(nats)
    lines = (
        (index, score, *row)
        for index, (score, row) in enumerate(zip(nats, rows, strict=True))
    )
    write_csv(path, ["index", "nats", *(run.columns or ())], lines)


def _table(evaluation: Evaluation, in_bits: bool) -> str:
    """The terms in nats, a line for each, and in bits per dimension, which are of bytes alone."""
    per_dimension = 1 / (evaluation.dimension * math.log(2))
    bits = f"{'bits/dim':>12}" if in_bits else ""
    lines = [f"{'mean log-likelihood':<24}{'nats':>14}{bits}"]
    for term, nats in {**evaluation.terms, "log p(x)": -evaluation.nll}.items():
        bits = f"{nats * per_dimension:>12.4f}" if in_bits else ""
        lines.append(f"{term:<24}{nats:>14.3f}{bits}")
    bits = f" = {evaluation.bits_per_dimension:.4f} bits/dim" if in_bits else ""
    lines.append(f"NLL {evaluation.nll:.3f} nats{bits}")
    return "\n".join(lines)


def _proof(certificates: list, activations: np.ndarray | None) -> str:
    """The certificates, a line for each layer, and what they say together. activations: the
    activations' part of some samples, if all layers have a certificate."""
    lines = ["of E = I - RW at every learned inverse, without a determinant:"]
    lines.append(
        f"{'layer':<12}{'ρ at least':>12}{'at most':>12}{'tr E':>12}{'certificate':>14}"
    )
    for certificate in certificates:
        difference = certificate.difference
        bound = "none" if difference is None else f"{difference:.4g} nats"
        cells = f"{certificate.lower:>12.4g}{certificate.upper:>12.4g}{certificate.trace:>12.4g}"
        lines.append(f"{certificate.layer:<12}{cells}{bound:>14}")
    proved = [
        certificate.difference for certificate in certificates if certificate.holds
    ]
    meaning = (
        "W and R are invertible, and log|W| and -log|R| differ by at most as many nats"
    )
    lines.append(f"proved for {len(proved)} of {len(certificates)} layers: {meaning}")
    if activations is None:
        lines.append(
            "none: ρ < 1 is not proved there, so nothing is known without a determinant"
        )
        return "\n".join(lines)
    total = sum(proved)
    if len(proved) > 1:
        lines.append(
            f"all layers together: their sums differ by at most {total:.4g} nats"
        )
    largest = np.abs(activations).max() + total
    mean = np.abs(activations).mean() + total
    densities = (
        f"log p^f and log p^g (Eq. 3) at the latents of {len(activations):,} samples"
    )
    differ = f"differ by at most {largest:.4g} nats, and by {mean:.4g} on average"
    rest = f"{total:.4g} of it is the bound above, the rest the activations' part"
    lines.append(f"densities: {densities} {differ}; {rest}")
    return "\n".join(lines)
