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
from snfnp.errors import UsageError, printable
from snfnp.likelihood import Evaluation

_WHOLE = "all"  # a value of --split


def main(argv: list[str], prog: str | None = None) -> None:
    parser = run_parser(prog, __doc__)
    parser.add_argument(
        "--split",
        choices=("train", "validation", "test", _WHOLE),
        default="test",
        help="which data; all: all of other data, of a file with splits the test split (default: "
        "test)",
    )
    parser.add_argument(
        "--scores",
        type=Path,
        metavar="PATH",
        help="write the log-likelihood of each sample to this new .csv file",
    )
    parser.seed("seed of the dequantisation noise")
    parser.number("--batch-size", "samples evaluated at once", 1000)
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
    if args.split == _WHOLE:
        samples = whole_data(run, args)
        source = args.data
    else:
        samples, source = images_of(run, args, args.split)
    at_once = min(args.batch_size, len(samples))
    with busy(run.ops, "batch_size", at_once):
        evaluation = run.likelihood.evaluate(samples, args.seed, at_once=at_once)
        if args.scores:
            log_p = run.likelihood.log_prob(samples, args.seed, at_once)
            # -inf for a sample so far away that numbers overflow
            nats = np.fmax(log_p, -np.inf).tolist()
            rows = samples.tolist() if run.columns else [()] * len(nats)
            lines = ((index, nats[index], *row) for index, row in enumerate(rows))
            names = ["index", "nats", *(run.columns or ())]
            write_csv(args.scores, names, lines)

    preprocess = run.flow.preprocess
    text = (
        f"{len(samples):,} {'' if args.split == _WHOLE else args.split + ' '}{preprocess.noun} "
        f"from {printable(source)}"
    )
    if preprocess.of_images:
        text += f", dequantisation seed {args.seed}"
    print(text)
    print(_table(evaluation, preprocess.of_images))
    if args.scores:
        print(printable(f"scores: {args.scores}"))


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
