"""Compare the exact log-likelihoods of other data with those of a run's test data.

A low likelihood is no sure sign of other data, nor a high one of the same: flows trained on one set
of photographs often find plainer images likelier (Nalisnick et al. 2019, "Do Deep Generative Models
Know What They Don't Know?").
"""

import os
from pathlib import Path

import numpy as np

from snfnp.cli.shared import (
    add_data,
    check_file,
    check_range,
    check_seed,
    images_of,
    open_run,
    run_parser,
)
from snfnp.data import DATA_SETS, load_dataset, own
from snfnp.errors import UsageError
from snfnp.training.files import write_atomically
from snfnp.training.memory import within_memory


def main(argv: list[str], prog: str | None = None) -> None:
    from snfnp.training import plots

    parser = run_parser(prog, __doc__)
    parser.add_argument("other", help="a data set's name, or the path of data, all of which count")
    folder = "folder with the other data set's files"
    parser.add_argument("--other-dir", type=Path, help=folder)
    first = "the first so many of both (default: all)"
    parser.add_argument("--count", type=int, help=first)
    seed = "seed of the dequantisation noise (default: 0)"
    parser.add_argument("--seed", type=int, default=0, help=seed)
    at_once = "samples at once (default: 1000)"
    parser.add_argument("--batch-size", type=int, default=1000, help=at_once)
    out = "the picture; beside it, the scores as .csv (default: RUN/score-<other>.png)"
    parser.add_argument("--out", type=Path, help=out)
    add_data(parser)
    args = parser.parse_args(argv)
    check_range(args, "--batch-size", 1)
    if args.count is not None:
        check_range(args, "--count", 1)
    check_seed(args)
    if args.out:
        check_file(args.out, "--out", plots.SUFFIXES)

    run = open_run(args)
    name = Path(args.other).stem
    out = args.out or run.folder.path / f"score-{name}.png"
    check_file(out, "--out")
    if args.other in DATA_SETS or not os.path.exists(args.other):
        other = load_dataset(args.other, args.other_dir).test
    else:
        other = own.whole(args.other)
    if problem := run.flow.preprocess.fault(other, run.image_shape):
        raise UsageError(f"{args.other}: {problem}")
    data = {f"test {run.config.data_name}": images_of(run, args, "test")[0], name: other}
    scores = []
    for each in data.values():
        with within_memory(run.ops, "--batch-size", args.batch_size):
            each = each[: args.count]
            found = run.likelihood.log_prob(each, args.seed, at_once=args.batch_size)
            scores.append(np.nan_to_num(found, nan=-np.inf, posinf=np.inf, neginf=-np.inf))
    table = out.with_suffix(".csv")
    lines = ["data,place,nats"]
    for which, found in zip(("test", "other"), scores, strict=True):
        lines += [f"{which},{place},{score!r}" for place, score in enumerate(found.tolist())]
    write_atomically(table, "\n".join([*lines, ""]).encode())
    above, noun = auroc(*scores), run.flow.preprocess.noun
    title = f"{run.config.data_name}, {run.config.model_name}: AUROC {above:.4f}"
    plots.save_histograms(out, dict(zip(data, scores, strict=True)), "log p(x) in nats", title)
    medians = (
        f"{np.median(found):.3f} nats for {len(found):,} {noun} of {of}"
        for of, found in zip(data, scores, strict=True)
    )
    print(f"median log-likelihood {', '.join(medians)}; AUROC {above:.4f}")
    if above < 0.5:
        says = "the other data are likelier than the test data: a likelihood alone does not tell"
        print(f"{says} that they are others (Nalisnick et al. 2019)")
    print(f"picture: {out}; scores: {table}")


def auroc(scores: np.ndarray, others: np.ndarray) -> float:
    """The chance that one of the scores is above one of the others, ties counting half: the area
    under the receiver's curve of a threshold. O(n log n)."""
    others = np.sort(others)
    below = np.searchsorted(others, scores, "left") + np.searchsorted(others, scores, "right")
    return float(below.mean() / (2 * len(others)))
