"""Training the candidates for an average of densities, each member on other rows than it is judged
by.

Derivation: derivations/25-an-average-of-densities.md.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from tqdm import tqdm

from snfnp.density.mixture import Mixture
from snfnp.errors import DivergedError, SingularMatrixError
from snfnp.flow import Flow
from snfnp.ops import get_ops
from snfnp.processes.forked import forked
from snfnp.step.batches import Batches
from snfnp.step.trainer import Trainer, take_steps
from snfnp.training.options import TrainConfig
from snfnp.training.progress import silent

FEW = 5000  # rows up to which every mixture is tried, and flows are trained once
_EVALUATIONS = 40  # of a whole training, about
_WORTH = 0.01  # nats by which a training has to be better for another one that is twice as long
_COMPONENTS = (1, 2, 3, 4, 6, 8, 12, 20, 32, 48, 64, 96)
_OF_MANY = (1, 4, 16, 32, 64, 128, 256, 512)  # components on more than FEW rows
_SMOOTHED = 20_000  # rows up to which their second prior is tried
_ROWS_PER_COMPONENT = 6
_WORK = 2**24  # components times rows to which a mixture is fitted, at most
_PRIORS = (
    ("full", 0.003),
    ("full", 0.3),
    ("full", 3.0),
    ("diagonal", 1e-4),
    ("tied", 0.003),
)
_PRIORS_OF_MANY = (("full", 0.3), ("full", 3.0))
_COMPILED = 64  # rows for which kernels are compiled: a short array, as those of a fork
_MANY = 20  # components from which on no more are tried if these are worse by
_WORSE = 0.1  # nats


@dataclass
class Candidate:
    """One design, fitted for every fold.

    name: in words; scores: the log-density of each row that was held out by the member that it was
    held out for, in the order of rows; members: flat parameters of flows, or mixtures; step: of
    flows alone, that of the evaluation that was chosen; refit: of mixtures alone, a fit to all rows
    by the seed of its start.
    """

    name: str
    scores: np.ndarray = field(default_factory=lambda: np.empty(0))
    members: list[Any] = field(default_factory=list)
    step: int | None = None
    refit: Callable[[tuple[int, int]], Mixture] | None = None

    @property
    def mean(self) -> float:
        return self.scores.mean()

    def refitted(self, seed: int) -> Candidate:
        """The candidate; of mixtures, plus one for each member that is fitted to all rows."""
        if self.refit is None:
            return self
        count = len(self.members)
        more = [self.refit((seed, index)) for index in range(count, 2 * count)]
        return replace(self, members=self.members + more, refit=None)


@dataclass
class Progress:
    """The progress of a fit.

    bar: of the steps of flows, with the name of what is being tried; deadline: the time after which
    nothing more is tried, by `time.monotonic`; parallel: whether flows are trained and mixtures
    fitted by processes of their own; report: gets a line on each candidate.
    """

    bar: tqdm = field(default_factory=lambda: tqdm(total=0, disable=True))
    deadline: float = math.inf
    parallel: bool = False
    report: Callable[[str], object] = silent

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

    def apart(self, values: Iterator[Any]) -> AbstractContextManager[Iterator[Any]]:
        """A context with values that are computed in it, by another process if `parallel`."""
        return forked(values) if self.parallel else nullcontext(values)


def flow_candidate(
    config: TrainConfig,
    flow: Flow,
    rows: np.ndarray,
    folds: list[np.ndarray],
    progress: Progress | None = None,
    longest: int = 0,
) -> Candidate:
    """Train a flow for every fold on all other rows, side by side.

    Of all evaluations, the start's included, the one is kept at which all held-out rows together
    are most likely. From there the flows go on, each time with twice as many steps and the whole
    learning rate again, while that makes held-out rows more likely by 0.01 nats.

    Args:
        config: resolved for the rows of a fold's complement; flow k gets the seed plus k.
        flow: what `config` describes.
        rows: (N, D).
        folds: the indices of the rows that are held out, for each flow.
        progress: of the fit.
        longest: steps of the last training, at most; the first one has those of `config`.
    """
    progress = progress or Progress()
    best = Candidate(f"flow, noise {config.noise:g}")
    done = 0
    while True:
        mean = best.mean if best.members else -math.inf
        best, steps = _trained(config, flow, rows, folds, progress, best, done)
        done += steps
        if 2 * steps > longest or best.mean < mean + _WORTH or progress.late:
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
    """The best of a training that begins with the flows of `best`, if it has some, and its steps.
    done: the steps before."""
    count = len(rows) - max(len(fold) for fold in folds)
    steps = config.epochs * config.steps_per_epoch(count)
    every = max(1, steps // _EVALUATIONS)
    most = math.inf if config.patience is None else config.patience * every
    ends = [*range(0, steps, every), steps]
    members = best.members or [None] * len(folds)
    before = 0
    progress.begin(best.name, steps * len(folds))
    with np.errstate(all="ignore"), ExitStack() as contexts:
        if progress.parallel:  # kernels are compiled once, by a step of this process
            some = min(len(rows), _COMPILED)
            first = replace(config, batch_size=some // 2)
            rest = np.arange(some // 2, some)
            next(_training(first, flow, rows[:some], rest, None, [1]), None)
        trainings = []
        for index, (fold, start) in enumerate(zip(folds, members, strict=True)):
            seeded = replace(config, seed=(config.seed + done + index) % 2**31)
            training = progress.apart(_training(seeded, flow, rows, fold, start, ends))
            trainings.append(contexts.enter_context(training))
        for end, *evaluations in zip(ends, *trainings, strict=False):  # one may diverge
            progress.bar.update(len(folds) * (end - before))
            before = end
            params, log_p = zip(*evaluations, strict=True)
            scores = _in_order(log_p, folds)
            scores[np.isnan(scores)] = -np.inf
            if not best.members or scores.mean() > best.mean:
                best = Candidate(best.name, scores, list(params), done + end)
            if progress.late or done + end - (best.step or 0) >= most:
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
    rows that it holds out; no more if it diverges."""
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
    deadline: float = math.inf,
) -> list[Candidate]:
    """Mixtures of standardised rows (N, D), each for every fold; `Candidate.refit` takes all rows.

    For each prior of the covariances there are 1 to 96 components, as far as the rows allow and,
    from 20 on, until more of them are worse. On more than 5000 rows there are up to 512, until more
    of them are no better, fitted to as many rows as time allows, 2²⁴ / components; and up to 20,000
    rows a second prior with as many components as were best, and more.

    Args:
        rows: (N, D).
        folds: the indices of the rows that are held out, for each mixture.
        seed: of the starts of EM.
        ldj: log|det| of the standardisation, (N,), for scores in units of the data.
        deadline: the time after which nothing more is tried, by `time.monotonic`.
    """
    candidates: list[Candidate] = []
    count, columns = rows.shape
    few = count <= FEW
    sizes = _COMPONENTS if few else _OF_MANY
    priors = _PRIORS if few else _PRIORS_OF_MANY
    if count > _SMOOTHED:
        priors = priors[:1]
    least = 1
    likeliest = 1  # number of components
    most = max(1, min(count // _ROWS_PER_COMPONENT, count // columns))
    ldj = ldj[np.sort(np.concatenate(folds))]
    for kind, prior in priors:
        best = -np.inf
        for components in sizes:
            if not least <= components <= most:
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
            worse = candidate.mean < (best - _WORSE if few else best + _WORTH)
            if candidate.mean > best:
                best = candidate.mean
                likeliest = components
            if components >= _MANY and worse:
                break
        least = 1 if few else likeliest
    return candidates


def _fitted(
    rows: np.ndarray,
    components: int,
    kind: str,
    prior: float,
    seed: tuple[int, int],
    fold: np.ndarray | tuple[()] = (),
) -> Mixture:
    """A mixture of rows but those of a fold; if there are too many, of a part of them."""
    rest = np.delete(np.arange(len(rows)), fold)
    most = _WORK // components
    if len(rest) > most:
        rest = np.random.default_rng(seed).permutation(rest)[:most]
    return Mixture.fit(rows[rest], components, kind, prior, seed)
