"""Training the candidates for an average of densities, each member on other rows than it is judged
by.

Derivation: derivations/25-an-average-of-densities.md.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from tqdm import tqdm

from snfnp.density.mixture import Mixture
from snfnp.errors import DivergedError, SingularMatrixError
from snfnp.flow import Flow
from snfnp.likelihood import Likelihood
from snfnp.ops import get_ops
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
    nothing more is tried, by `time.monotonic`; workers: threads that fit mixtures side by side;
    report: gets a line on each candidate.
    """

    bar: tqdm = field(default_factory=lambda: tqdm(total=0, disable=True))
    deadline: float = math.inf
    workers: int = 1
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

    def map(
        self, function: Callable[..., Mixture], *arguments: list[Any]
    ) -> list[Mixture]:
        """The results of a function, side by side."""
        if self.workers == 1:
            return list(map(function, *arguments))
        pool = ThreadPoolExecutor(self.workers)
        try:
            return list(pool.map(function, *arguments))
        finally:
            pool.shutdown(cancel_futures=True)  # if it was interrupted


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
    ops = get_ops(config.backend)
    trainings = []
    with np.errstate(all="ignore"):
        for index, fold in enumerate(folds):
            seeded = replace(config, seed=(config.seed + done + index) % 2**31)
            batches = Batches(ops, np.delete(rows, fold, axis=0), seeded, flow.shape)
            trainer = Trainer(ops, flow, seeded, batches.steps_per_epoch)
            trainer.begin(batches)
            if best.members:
                trainer.p[...] = best.members[index]
            trainings.append((trainer, batches))
        steps = config.epochs * min(batches.steps_per_epoch for _, batches in trainings)
        every = max(1, steps // _EVALUATIONS)
        most = math.inf if config.patience is None else config.patience * every
        progress.begin(best.name, steps * len(folds))
        with suppress(DivergedError, SingularMatrixError):  # the best before is kept
            best = _judged(trainings, rows, folds, best, done)
            for step in take_steps(trainings, steps):
                progress.bar.update(len(folds))
                if step % every == 0 or step == steps:
                    best = _judged(trainings, rows, folds, best, done)
                    if progress.late:
                        break
                if done + step - (best.step or 0) >= most:
                    break
    return best, steps


def _judged(
    trainings: list[tuple[Trainer, Batches]],
    rows: np.ndarray,
    folds: list[np.ndarray],
    best: Candidate,
    done: int,
) -> Candidate:
    """The flows as they are, or `best` if the held-out rows are at least as likely by that."""
    scores = _scores((trainer.likelihood() for trainer, _ in trainings), rows, folds)
    scores[np.isnan(scores)] = -np.inf
    if best.members and not scores.mean() > best.mean:
        return best
    members = [trainer.p.copy() for trainer, _ in trainings]
    return Candidate(best.name, scores, members, done + trainings[0][0].step)


def _scores(
    members: Iterable[Likelihood | Mixture], rows: np.ndarray, folds: list[np.ndarray]
) -> np.ndarray:
    """The log-density of each row that is held out, by the member of its fold, in the order of
    rows."""
    scores = np.empty(len(rows))
    for member, fold in zip(members, folds, strict=True):
        scores[fold] = member.log_prob(rows[fold])
    return scores[np.sort(np.concatenate(folds))]


def mixture_candidates(
    rows: np.ndarray,
    folds: list[np.ndarray],
    seed: int,
    ldj: np.ndarray,
    progress: Progress | None = None,
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
        progress: of the fit.
    """
    progress = progress or Progress()
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
    seeds = [(seed, index) for index in range(len(folds))]
    ldj = ldj[np.sort(np.concatenate(folds))]
    for kind, prior in priors:
        best = -np.inf
        for components in sizes:
            if not least <= components <= most:
                continue
            if candidates and progress.late:
                break
            name = f"mixture of {components}, {kind}, prior {prior:g}"
            progress.begin(name)
            fit = partial(_fitted, rows, components, kind, prior)
            mixtures = progress.map(fit, seeds, folds)
            scores = _scores(mixtures, rows, folds) + ldj
            candidate = Candidate(name, scores, mixtures, refit=fit if few else None)
            candidates.append(candidate)
            progress.end(candidate)
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
