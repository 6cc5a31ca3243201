"""Training the candidates for an average of densities, each member on other rows than it is judged
by.

Derivation: derivations/25-an-average-of-densities.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from snfnp.density.mixture import Mixture
from snfnp.errors import DivergedError, SingularMatrixError
from snfnp.ops import get_ops
from snfnp.training.batches import Batches
from snfnp.training.options import TrainConfig
from snfnp.training.trainer import Trainer, take_steps

FEW = 5000  # rows up to which every mixture is tried, and flows are trained once
_EVALUATIONS = 40  # of a whole training, about
_WORTH = 0.01  # nats by which the last training has to be better for one that is twice as long
_COMPONENTS = 1, 2, 3, 4, 6, 8, 12, 20, 32, 48, 64, 96
_OF_MANY = 1, 4, 16, 32, 64, 128, 256, 512
_SMOOTHED = 20_000  # rows up to which their second prior is tried
_ROWS_PER_COMPONENT = 6
_WORK = 2**24  # components times rows to which a mixture is fitted, at most
_PRIORS = ("full", 0.003), ("full", 0.3), ("full", 3.0), ("diagonal", 1e-4), ("tied", 0.003)
_PRIORS_OF_MANY = ("full", 0.3), ("full", 3.0)
_MANY, _WORSE = 20, 0.1  # components from which on more are not tried if worse by so many nats


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
    members: list = field(default_factory=list)
    step: int | None = None
    refit: Callable[[Any], Mixture] | None = None

    @property
    def mean(self) -> float:
        return self.scores.mean()

    @property
    def line(self) -> str:
        return f"{self.name}: {self.mean:.3f} nats per row held out"

    def refitted(self, seed: int) -> Candidate:
        """The candidate; of mixtures, with as many members more that are fitted to all rows."""
        if self.refit is None:
            return self
        count = len(self.members)
        more = [self.refit((seed, number)) for number in range(count, 2 * count)]
        return replace(self, members=self.members + more, refit=None)


@dataclass
class Progress:
    """Functions that a fit calls on its way.

    begin: gets what is tried next, in words, and its steps; advance: the steps that were done;
    late: whether the time is over; map: a list of what a function returns, side by side.
    """

    begin: Callable[[str, int], None] = lambda name, steps: None
    advance: Callable[[int], object] = lambda steps: None
    late: Callable[[], bool] = lambda: False
    map: Callable[..., list] = lambda function, *given: list(map(function, *given))


def flow_candidate(
    config: TrainConfig,
    moments: tuple,
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
        moments: the arguments of `Standardise`.
        rows: (N, D).
        folds: the places of the rows that are held out, for each flow.
        progress: what is called on the way.
        longest: steps of the last training, at most; the first one has those of `config`.
    """
    progress = progress or Progress()
    best = Candidate(f"flow, noise {config.noise:g}")
    done, before = 0, -math.inf
    while True:
        best, steps = _trained(config, moments, rows, folds, progress, best, done)
        done += steps
        if 2 * steps > longest or best.mean < before + _WORTH or progress.late():
            return best
        before, config = best.mean, replace(config, epochs=2 * config.epochs)


def _trained(config, moments, rows, folds, progress: Progress, best: Candidate, done: int):
    """The best of a training that begins with the flows of `best`, if it has some, and its steps.
    done: the steps before."""
    ops, flow = get_ops(config.backend), config.build_flow(rows.shape[1:], moments)
    trainings = []
    with np.errstate(all="ignore"):
        for number, fold in enumerate(folds):
            own = replace(config, seed=(config.seed + done + number) % 2**31)
            batches = Batches(ops, np.delete(rows, fold, axis=0), own, flow.shape)
            trainer = Trainer(ops, flow, own, batches.steps_per_epoch)
            trainer.begin(batches)
            if best.members:
                trainer.p[...] = best.members[number]
            trainings.append((trainer, batches))
        steps = config.epochs * min(batches.steps_per_epoch for _, batches in trainings)
        every = max(1, steps // _EVALUATIONS)
        most = math.inf if config.patience is None else config.patience * every
        progress.begin(best.name, steps * len(folds))
        with suppress(DivergedError, SingularMatrixError):  # the best before is kept
            best = _judged(trainings, rows, folds, best, done)
            for step in take_steps(trainings, steps):
                progress.advance(len(folds))
                if step % every == 0 or step == steps:
                    best = _judged(trainings, rows, folds, best, done)
                    if progress.late():
                        break
                if done + step - (best.step or 0) >= most:
                    break
    return best, steps


def _judged(trainings, rows, folds, best: Candidate, done: int) -> Candidate:
    """The flows as they are, or `best` if the held-out rows are at least as likely by that."""
    scores, judged = np.empty(len(rows)), np.sort(np.concatenate(folds))
    for (trainer, _), fold in zip(trainings, folds, strict=True):
        scores[fold] = trainer.likelihood().log_prob(rows[fold])
    now = np.where(np.isnan(scores), -np.inf, scores)[judged]
    if best.members and not now.mean() > best.mean:
        return best
    members = [trainer.p.copy() for trainer, _ in trainings]
    return Candidate(best.name, now, members, done + trainer.step)


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
        ldj: log|det| of the standardisation, (N,), for scores in units of the data.
        progress: what is called on the way.
    """
    found, progress = [], progress or Progress()
    count, columns = rows.shape
    few, least, likeliest = count <= FEW, 1, 1
    sizes, priors = (_COMPONENTS, _PRIORS) if few else (_OF_MANY, _PRIORS_OF_MANY)
    priors = priors if count <= _SMOOTHED else priors[:1]
    most = max(1, min(count // _ROWS_PER_COMPONENT, count // columns))
    judged = np.sort(np.concatenate(folds))
    for kind, prior in priors:
        best = -np.inf
        for components in (each for each in sizes if least <= each <= most):
            if found and progress.late():
                break
            name = f"mixture of {components}, {kind}, prior {prior:g}"
            progress.begin(name, 0)
            fit = partial(_fitted, rows, components, kind, prior)
            candidate = Candidate(name, np.empty(count), refit=fit if few else None)
            seeds = [(seed, number) for number in range(len(folds))]
            candidate.members = progress.map(fit, seeds, folds)
            for mixture, fold in zip(candidate.members, folds, strict=True):
                candidate.scores[fold] = mixture.log_prob(rows[fold]) + ldj[fold]
            candidate.scores = candidate.scores[judged]
            found.append(candidate)
            worse = candidate.mean < (best - _WORSE if few else best + _WORTH)
            if candidate.mean > best:
                best, likeliest = candidate.mean, components
            if components >= _MANY and worse:
                break
        least = 1 if few else likeliest
    return found


def _fitted(rows, components: int, kind: str, prior: float, seed, fold=()) -> Mixture:
    """A mixture of rows but those of a fold; if there are too many, of a part of them."""
    rest = np.delete(np.arange(len(rows)), fold)
    if len(rest) > _WORK // components:
        rest = np.random.default_rng(seed).permutation(rest)[: _WORK // components]
    return Mixture.fit(rows[rest], components, kind, prior, seed)
