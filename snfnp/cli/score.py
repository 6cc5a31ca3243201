"""Compare exact log-likelihoods of other data with those of a run's test data.

A low likelihood does not identify other data reliably: flows trained on photographs assign higher
likelihoods to some simpler images (Nalisnick et al. 2019, "Do Deep Generative Models Know What They
Don't Know?").
"""

from pathlib import Path

import numpy as np

from snfnp.cli.shared import check_file, csv_bytes, images_of, open_run, run_parser, table_options
from snfnp.data import PUBLISHED, load_whole
from snfnp.errors import UsageError, printable
from snfnp.files import write_atomically
from snfnp.images import evenly_spread, fault
from snfnp.training import plots

_AT_ONCE = 100  # images that go through the flow together


def main(argv: list[str], prog: str | None = None) -> None:
    parser = run_parser(prog, __doc__)
    about = "a data set's name (its test data are used), or a path (its test data, or all)"
    parser.add_argument("other", help=about)
    parser.number("--count", "use N of each, evenly spread (default: all)")
    out = "picture; the scores go to PATH-scores.csv (default: RUN/score-<other>.png and .csv, or "
    out += "score-<other>-2, … if these are of other data)"
    parser.add_argument("--out", type=Path, metavar="PATH", help=out)
    about = "folder with the files of OTHER, if a published data set (default: --data-dir)"
    parser.add_argument("--other-dir", type=Path, metavar="PATH", help=about)
    args = parser.parse_args(argv)
    if args.other_dir and args.other not in PUBLISHED:
        found = f"`other_dir` is for published data sets, and {args.other} is none"
        raise UsageError(f"{found}: leave it out")
    name = Path(args.other).stem
    out = args.out or args.run / f"score-{name}.png"

    run = open_run(args)
    check_file(out, "out", plots.SUFFIXES)
    other = load_whole(args.other, args.other_dir or args.data_dir, **table_options(run, args))
    if problem := fault(other, run.image_shape, run.flow.preprocess.levels):
        raise UsageError(f"{args.other}: {problem}")
    images, _ = images_of(run, args, "test")
    scores, medians, table = {}, [], []
    for which, of, data in (("test", run.config.data_name, images), ("other", name, other)):
        count = args.count or len(data)
        places, some = (evenly_spread(each, count) for each in (np.arange(len(data)), data))
        found = run.likelihood.log_prob(some, at_once=_AT_ONCE)
        found = np.where(np.isnan(found), -np.inf, found)  # as far away as numbers go
        values = some[:].tolist() if run.columns else [()] * len(found)
        for place, nats, row in zip(places.tolist(), found.tolist(), values, strict=True):
            table.append([which, place, nats, *row])
        samples = f"{len(found):,} {which} samples"
        medians.append(f"{np.median(found):.3f} nats of {samples} ({printable(of)})")
        scores[f"{of} ({which})"] = found
    above = auroc(*scores.values())
    content = csv_bytes(["data", "place", "nats", *(run.columns or ())], table)
    written = out.with_name(f"{out.stem}-scores.csv")
    if not args.out:
        out, written = _destination(args.run, name, content)
    write_atomically(written, content)
    title = f"{run.config.data_name}, {run.config.model_name}: AUROC {above:.4f}"
    plots.save_histograms(out, scores, "exact log-likelihood (nats)", title)
    print(f"median log-likelihood {', '.join(medians)}; AUROC {above:.4f}")
    if above < 0.5:
        says = "the other data are likelier than the test data: a likelihood alone does not show"
        print(f"{says} that data are different (Nalisnick et al. 2019)")
    print(printable(f"picture: {out}; scores: {written}"))


def _destination(folder: Path, name: str, content: bytes) -> tuple[Path, Path]:
    """The picture and the .csv file for scores of other data of this name: the first pair that does
    not exist, or has this content. Files in other folders have the same name."""
    number = 1
    while True:
        stem = f"score-{name}-{number}" if number > 1 else f"score-{name}"
        picture, written = folder / f"{stem}.png", folder / f"{stem}.csv"
        if not (picture.exists() or written.exists()):
            return picture, written
        if written.is_file() and written.read_bytes() == content:
            return picture, written
        number += 1


def auroc(scores: np.ndarray, others: np.ndarray) -> float:
    """The area under the ROC curve: P(score > other) + P(score = other)/2."""
    from scipy.stats import mannwhitneyu  # takes a second to import

    pairs = len(scores) * len(others)
    return float(mannwhitneyu(scores, others, method="asymptotic").statistic / pairs)
