"""The fit of `FlowDensity`: standardisation and ties, folds, candidates, weights.

Derivation: derivations/25-an-average-of-densities.md.
"""

import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass, replace

import numpy as np
from numpy.random import Generator, RandomState
from tqdm.auto import tqdm

from snfnp import threads
from snfnp.data.dataset import moments_of
from snfnp.data.ties import with_ties
from snfnp.density.ensemble import Fit, stacked_weights
from snfnp.density.training import (
    FEW,
    Progress,
    flow_candidate,
    mixture_candidates,
)
from snfnp.errors import UsageError
from snfnp.layers.preprocess import Standardise
from snfnp.ops import RandomKey, get_ops
from snfnp.processes import forked
from snfnp.training.options import TrainConfig
from snfnp.training.progress import compilations_shown, progress_bar, silent

# standard deviations of noise in a flow's training rows, and up to how many rows each is tried
_NOISE = {0.0: 2**63, 0.1: 1000, 0.2: 500}
# On many rows the first training of a flow has about _FIRST steps, and the longest has _LONGEST, or
# one step for _ROWS_PER_STEP rows if these are more.
_FIRST = 2000
_LONGEST = 4000
_ROWS_PER_STEP = 32
_JUDGED = 4000  # groups of a fold, at most: all members are trained on the other groups
# numbers in a batch up to which one thread is fastest, and plain NumPy for a smooth leaky ReLU
_SMALL = 4096
_STACK = 5  # frames from a warning to the caller of `FlowDensity.fit`

# columns with ties, and their steps, of which this process has warned
_warned: set[tuple] = set()


@dataclass(eq=False, repr=False)
class Options:
    """The parameters of `FlowDensity`, which explains them."""

    layers: int | None = None
    _: KW_ONLY
    members: int = 5
    mixtures: bool = True
    activation: str = "spline"
    gradient: str = "self-normalizing"
    epochs: int | None = None
    batch_size: int | None = None
    lr: float | None = None
    noise: float | None = None
    ties: str = "dequantise"
    validation_fraction: float = 0.1
    patience: int | None = None
    time_limit: float | None = None
    verbose: bool | None = None
    random_state: int | Generator | RandomState | None = None


def fit_density(
    options: Options,
    table: np.ndarray,
    groups: np.ndarray,
    labels: list[str],
    rng: Generator,
) -> Fit:
    """Fit all candidates and their weights.

    Args:
        options: parameters, as the estimator has them.
        table: rows (N, D), sorted.
        groups: the number of each row's group, 0, 1, …, ascending, (N,): equal rows are a group,
            and are held out together.
        labels: the columns in messages.
        rng: of the folds and of the seed of everything else.

    Raises:
        UsageError: for constant columns, fewer than three groups, and parameters that no training
            can have.
    """
    preprocess = _preprocess(options, table, labels)
    columns = table.shape[1]
    # Where all columns have ties, or the only one may have some, rows are equal by chance and not
    # as copies of one row: each is a group.
    kept_ties = columns == 1 and options.ties == "keep"
    if kept_ties or preprocess.step and all(preprocess.step):
        groups = np.arange(len(table))
    count = int(groups[-1]) + 1
    if count < 3:
        raise UsageError(f"X has {count} different rows: a density needs at least 3")
    seed = int(rng.integers(2**31))
    # new numbers of the groups, in random order (the inverse of a permutation is one, too)
    groups = np.argsort(rng.permutation(count))[groups]
    order = np.argsort(groups, kind="stable")
    table = table[order]
    folds = _folds(options, groups[order])
    # the number of rows that a flow is trained on
    rows = len(table) - max(map(len, folds))
    config = _config(options, rows, columns, seed)
    longest = 0
    if options.epochs is None and len(table) > FEW:
        longest = max(_LONGEST, len(table) // _ROWS_PER_STEP)
        config = replace(config, epochs=max(1, _FIRST // config.steps_per_epoch(rows)))
    flow = config.build_flow((columns,), preprocess.moments)
    levels = [options.noise]
    if options.noise is None:
        levels = [level for level, most in _NOISE.items() if len(table) <= most]
    averaged = len(folds) > 1
    parallel = averaged and forked.is_useful()
    one_thread = parallel or _is_small(config, columns)

    def searched(deadline):
        """A generator of one value, the mixtures; of none if the options want no mixtures."""
        if averaged and options.mixtures:
            key = RandomKey(seed, 0, 0)
            z, ldj = preprocess.forward(get_ops("numpy"), table, key, np.float64)
            yield mixture_candidates(z, folds, seed, ldj, deadline)

    with (
        _progress(options, config, parallel) as progress,
        # more threads than cores, or in small kernels, would wait for each other
        threads.limited(1 if one_thread else None),
        progress.started(searched(progress.deadline)) as searches,
    ):
        flows = [
            flow_candidate(
                replace(config, noise=level), flow, table, folds, progress, longest
            )
            for level in levels
        ]
        progress.begin("mixtures")
        with threads.limited(1):  # the products of mixtures are small
            mixtures = next(searches, [])
            for mixture in mixtures:
                progress.end(mixture)
            best = max(flows, key=lambda candidate: candidate.mean)
            candidates = [*flows, *mixtures] if averaged else [best]
            scores = np.stack([candidate.scores for candidate in candidates])
            weights = stacked_weights(scores).tolist()
            pairs = zip(candidates, weights, strict=True)
            kept = [(each.refitted(seed), weight) for each, weight in pairs if weight]
    return Fit(config, flow, kept, best)


def _preprocess(options: Options, table: np.ndarray, labels: list[str]) -> Standardise:
    """The standardisation of rows, with noise in columns with ties; warns of these, and of equal
    columns."""
    moments = moments_of(table, "X", labels)
    first_labels = {}
    for label, column in zip(labels, table.T, strict=True):
        values = (column + 0.0).tobytes()  # -0.0 as 0.0
        first = first_labels.setdefault(values, label)
        if first != label:
            warnings.warn(
                f"{first} and {label} of X are equal: leave one of them out, as no density is "
                "finite there",
                stacklevel=_STACK,
            )
    lines = []
    preprocess = Standardise(
        *map(tuple, with_ties(moments, table, options.ties, labels, lines.append))
    )
    # A search warns once, though its folds may have other steps: a step without decimals (`unit` is
    # 0) counts as 0. Without ties `step` is empty.
    columns = zip(labels, preprocess.step, preprocess.unit, strict=False)
    ties = tuple((label, step * (unit > 0)) for label, step, unit in columns if step)
    if lines and ties not in _warned:
        _warned.add(ties)
        warnings.warn(
            f"{lines[0]}. Scores are those of cells, `step_` wide: compare with other estimators "
            "by `dequantise(X)`",
            stacklevel=_STACK,
        )
    return preprocess


def _folds(options: Options, groups: np.ndarray) -> list[np.ndarray]:
    """The indices of the rows that are held out, for each member; groups: sorted, (N,)."""
    count = int(groups[-1]) + 1
    members = min(int(options.members), count)
    if members == 1:
        held_out = max(1, round(options.validation_fraction * count))
        return [np.flatnonzero(groups < min(held_out, count - 1))]
    judged = groups < members * _JUDGED
    return [
        np.flatnonzero(judged & (groups % members == fold)) for fold in range(members)
    ]


def _config(options: Options, rows: int, columns: int, seed: int) -> TrainConfig:
    """The configuration of flows that are trained on so many rows."""
    names = ("activation", "gradient", "epochs", "batch_size", "lr", "patience", "ties")
    # None: the default
    settings = {name: getattr(options, name) for name in names}
    config = TrainConfig(model="vector", seed=seed, depth=options.layers, **settings)
    config = config.resolve(rows, (columns,))
    plain = options.activation != "spline" and _is_small(config, columns)
    return replace(config, backend="numpy" if plain else "numba")


def _is_small(config: TrainConfig, columns: int) -> bool:
    return config.batch_size * columns <= _SMALL


@contextmanager
def _progress(
    options: Options, config: TrainConfig, parallel: bool
) -> Iterator[Progress]:
    """A context with a bar and lines on candidates, as `verbose` says."""
    verbose = options.verbose
    report = tqdm.write if verbose and sys.stdout else silent
    disable = None if verbose is None else not verbose
    limit = np.inf if options.time_limit is None else options.time_limit
    bar = progress_bar(total=0, unit="step", disable=disable, leave=False)
    with bar, compilations_shown(get_ops(config.backend), report):
        yield Progress(bar, time.monotonic() + limit, parallel, report)
