"""Fit the candidates for an average of densities. A candidate has a member for every fold of the
rows, which is trained without the fold's rows and judged by them.

Derivation: derivations/25-an-average-of-densities.md.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from tqdm import tqdm

from snfnp.density.mixture import Mixture
from snfnp.errors import DivergedError, Report, SingularMatrixError
from snfnp.flow import Flow
from snfnp.ops import get_ops
from snfnp.processes.forked import forked
from snfnp.step.batches import Batches
from snfnp.step.trainer import Trainer, take_steps
from snfnp.training.options import TrainConfig
from snfnp.training.progress import silent

FEW = 5000  # rows up to which all mixtures are tried, and flows have one training
_EVALUATIONS = 40  # of a whole training, about
# nats per row that a training or a mixture has to gain for a longer or larger one to be tried
_WORTH = 0.01
_COMPONENTS = (1, 2, 3, 4, 6, 8, 12, 20, 32, 48, 64, 96)
_COMPONENTS_OF_MANY = (1, 4, 16, 32, 64, 128, 256, 512)  # on more than FEW rows
_BOTH_PRIORS = 20_000  # rows up to which both of _PRIORS_OF_MANY are tried
_ROWS_PER_COMPONENT = 6  # at least
_WORK = 2**24  # components of a mixture times the rows that it is fitted to, at most
# the kind of the covariances, and how many rows the prior counts as: see `Mixture.fit`
_PRIORS = (
    ("full", 0.003),
    ("full", 0.3),
    ("full", 3.0),
    ("diagonal", 1e-4),
    ("tied", 0.003),
)
_PRIORS_OF_MANY = (("full", 0.3), ("full", 3.0))
_COMPILED = 64  # rows of the step that compiles kernels
_MANY = 20  # at least so many components are tried, however little they gain
_WORSE = 0.1  # nats per row that more components may lose on few rows before no more are tried


@dataclass
class Candidate:
    """One design, fitted for every fold.

    name: in words; members: the flat parameters of a flow for every fold, or a mixture for every
    fold; scores: the log-density of each row of the folds by the member that was trained without
    it, in the order of rows; step: the number of training steps of flows, None for mixtures;
    refit: refit((seed, index)) fits a mixture to all rows from a random start, None for flows.
    """

    name: str
    scores: np.ndarray = field(default_factory=lambda: np.empty(0))
    members: list[Any] = field(default_factory=list)
    step: int | None = None
    refit: Callable[[tuple[int, int]], Mixture] | None = None

    @property
    def mean(self) -> float:
        return self.scores.mean()

    def refitted(self, seed: int) -> "Candidate":
        """The candidate; if it can `refit`, with as many members more, fitted to all rows."""
        if self.refit is None:
            return self
        count = len(self.members)
        more = [self.refit((seed, index)) for index in range(count, 2 * count)]
        return replace(self, members=self.members + more, refit=None)


@dataclass
class Progress:
    """The progress of a fit.

    bar: counts the steps of flows, and names what is being tried; deadline: the time, by
    `time.monotonic`, after which nothing more is tried; parallel: whether each flow is trained by a
    process of its own, and the mixtures are fitted by one; report: gets a line on each candidate.
    """

    bar: tqdm = field(default_factory=lambda: tqdm(total=0, disable=True))
    deadline: float = np.inf
    parallel: bool = False
    report: Report = silent

    @property
    def late(self) -> bool:
        return time.monotonic() > self.deadline

    def begin(self, name: str, steps: int = 0) -> None:
        """Show what is tried next, and add its steps."""
        self.bar.total += steps
        self.bar.set_description(name)

    def end(self, candidate: Candidate) -> None:
        """Report what a candidate reached."""
        self.report(f"{candidate.name}: {candidate.mean:.3f} nats per row held out")

    def started(self, values: Iterator[Any]) -> AbstractContextManager[Iterator[Any]]:
        """A context of values: a fork computes them at once if `parallel`, else they are computed
        as they are read."""
        return forked(values) if self.parallel else nullcontext(values)


def flow_candidate(
    config: TrainConfig,
    flow: Flow,
    rows: np.ndarray,
    folds: list[np.ndarray],
    progress: Progress,
    longest: int = 0,
) -> Candidate:
    """Train a flow for every fold on the rows outside it, side by side.

    The flows are evaluated together, before the first step too, and the parameters of the
    evaluation with the greatest mean log-density of held-out rows are kept. While a training gains
    at least 0.01 nats per row, another one follows: it starts at these parameters, has twice as
    many steps, and repeats the schedule of the learning rate.

    Args:
        config: resolved for the rows outside a fold; flow k gets the seed plus k, and plus the
            number of steps before its training.
        flow: what `config` describes.
        rows: (N, D).
        folds: the indices of the rows that are held out, for each flow.
        progress: the progress of the fit.
        longest: no training with more steps than this follows the first one, which has those of
            `config`.
    """
    best = Candidate(f"flow, noise {config.noise:g}")
    done = 0
    while True:
        before = best.mean if best.members else -np.inf
        best, steps = _trained(config, flow, rows, folds, progress, best, done)
        done += steps
        if 2 * steps > longest or best.mean < before + _WORTH or progress.late:
            progress.end(best)
            return best
        config = replace(config, epochs=2 * config.epochs)


def _trained(
    config: TrainConfig,
    flow: Flow,
    rows: np.ndarray,
    folds: list[np.ndarray],
    progress: Progress,
    best: Candidate,
    done: int,
) -> tuple[Candidate, int]:
    """One training, from the parameters in `best` if it has some. done: the steps before it.

    Returns the best of its evaluations and of `best`, and the number of its steps.
    """
    training_rows = len(rows) - max(map(len, folds))
    steps = config.epochs * config.steps_per_epoch(training_rows)
    every = max(1, steps // _EVALUATIONS)
    patience = np.inf if config.patience is None else config.patience * every
    ends = [*range(0, steps, every), steps]
    starts = best.members or [None] * len(folds)
    before = 0
    progress.begin(best.name, steps * len(folds))
    with ExitStack() as contexts:
        if progress.parallel:
            # A step on few rows compiles the kernels once for all forks: these run them in one
            # thread, as this process does for arrays that are so short.
            few = min(len(rows), _COMPILED)
            short = replace(config, batch_size=few // 2)
            fold = np.arange(few // 2, few)
            next(_training(short, flow, rows[:few], fold, None, [1]), None)
        trainings = []
        for index, (fold, start) in enumerate(zip(folds, starts, strict=True)):
            seeded = replace(config, seed=(config.seed + done + index) % 2**31)
            training = progress.started(
                _training(seeded, flow, rows, fold, start, ends)
            )
            trainings.append(contexts.enter_context(training))
        # A flow that diverges yields no more evaluations: the training ends for all of them.
        for end, *evaluations in zip(ends, *trainings, strict=False):
            progress.bar.update(len(folds) * (end - before))
            before = end
            params, log_p = zip(*evaluations, strict=True)
            scores = np.fmax(_in_order(log_p, folds), -np.inf)  # no NaN
            if not best.members or scores.mean() > best.mean:
                best = Candidate(best.name, scores, list(params), done + end)
            if progress.late or done + end - (best.step or 0) >= patience:
                break
    return best, steps


def _training(
    config: TrainConfig,
    flow: Flow,
    rows: np.ndarray,
    fold: np.ndarray,
    start: np.ndarray | None,
    ends: list[int],
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The parameters of a flow after each number of steps in `ends`, and the log-densities of the
    rows of its fold; if it diverges, they end."""
    ops = get_ops(config.backend)
    batches = Batches(ops, np.delete(rows, fold, axis=0), config, flow.shape)
    trainer = Trainer(ops, flow, config, batches.steps_per_epoch)
    with suppress(DivergedError, SingularMatrixError):
        trainer.begin(batches)
        if start is not None:
            trainer.p[...] = start
        for end in ends:
            for _ in take_steps([(trainer, batches)], end):
                pass
            yield trainer.p.copy(), trainer.likelihood().log_prob(rows[fold])


def _in_order(scores: Sequence[np.ndarray], folds: list[np.ndarray]) -> np.ndarray:
    """The scores of the rows of all folds, in the order of rows."""
    return np.concatenate(scores)[np.argsort(np.concatenate(folds))]


def mixture_candidates(
    rows: np.ndarray,
    folds: list[np.ndarray],
    seed: int,
    ldj: np.ndarray,
    deadline: float = np.inf,
) -> list[Candidate]:
    """Mixtures of standardised rows (N, D): each candidate has one for every fold.

    For each prior of the covariances, 1 to 96 components are tried, at most N / 6 and N / D of
    them; from 20 on, no more are tried after a mixture that is worse than the best by 0.1 nats. On
    more than 5000 rows, 1 to 512 are tried, and no more after one that gains less than 0.01 nats.
    These are fitted to a random part of the rows, 2²⁴ / components of them, and cannot `refit`. On
    5000 to 20,000 rows, a second prior is tried with the best number of components and with more.

    Args:
        rows: (N, D).
        folds: the indices of the rows that are held out, for each mixture.
        seed: of the starts of EM.
        ldj: log|det| of the standardisation, (N,), for scores in units of the data.
        deadline: the time after which nothing more is tried, by `time.monotonic`.
    """
    candidates = []
    count, columns = rows.shape
    few = count <= FEW
    sizes = _COMPONENTS if few else _COMPONENTS_OF_MANY
    priors = _PRIORS if few else _PRIORS_OF_MANY
    if count > _BOTH_PRIORS:
        priors = priors[:1]
    # numbers of components
    fewest = 1
    likeliest = 1
    most = max(1, min(count // _ROWS_PER_COMPONENT, count // columns))
    ldj = ldj[np.sort(np.concatenate(folds))]  # many rows: not all are in a fold
    for kind, prior in priors:
        best = -np.inf
        for components in sizes:
            if not fewest <= components <= most:
                continue
            if candidates and time.monotonic() > deadline:
                break
            name = f"mixture of {components}, {kind}, prior {prior:g}"
            fit = partial(_fitted, rows, components, kind, prior)
            mixtures = [fit((seed, index), fold) for index, fold in enumerate(folds)]
            log_p = [mixtures[k].log_prob(rows[fold]) for k, fold in enumerate(folds)]
            scores = _in_order(log_p, folds) + ldj
            candidate = Candidate(name, scores, mixtures, refit=fit if few else None)
            candidates.append(candidate)
            needed = best - _WORSE if few else best + _WORTH
            if candidate.mean > best:
                best = candidate.mean
                likeliest = components
            if components >= _MANY and candidate.mean < needed:
                break
        if not few:
            fewest = likeliest
    return candidates


def _fitted(
    rows: np.ndarray,
    components: int,
    kind: str,
    prior: float,
    seed: tuple[int, int],
    fold: np.ndarray | tuple[()] = (),
) -> Mixture:
    """A mixture fitted to the rows outside a fold, or to a random part of them if they are many."""
    rest = np.delete(np.arange(len(rows)), fold)
    most = _WORK // components
    if len(rest) > most:
        rest = np.random.default_rng(seed).permutation(rest)[:most]
    return Mixture.fit(rows[rest], components, kind, prior, seed)
