"""Training the candidates for an average of densities, each member on other rows than it is judged
by.

Derivation: derivations/31-an-average-of-densities.md.
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

_EVALUATIONS = 40  # of a whole training, about
_COMPONENTS = 1, 2, 3, 4, 6, 8, 12, 20, 32, 48, 64, 96
_ROWS_PER_COMPONENT = 6
_PRIORS = ("full", 0.003), ("full", 0.3), ("full", 3.0), ("diagonal", 1e-4)
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


def flow_candidate(
    config: TrainConfig,
    moments: tuple,
    rows: np.ndarray,
    folds: list[np.ndarray],
    advance: Callable[[int], None] = lambda steps: None,
) -> Candidate:
    """Train a flow for every fold on all other rows, side by side.

    Of all evaluations, the start's included, the one is kept at which all held-out rows together
    are most likely.

    Args:
        config: resolved for the rows of a fold's complement; flow k gets the seed plus k.
        moments: the arguments of `Standardise`.
        rows: (N, D).
        folds: the places of the rows that are held out, for each flow.
        advance: gets the number of steps after each step of all flows.
    """
    ops, flow = get_ops(config.backend), config.build_flow(rows.shape[1:], moments)
    trainings, best = [], Candidate(f"flow, noise {config.noise:g}")
    with np.errstate(all="ignore"):
        for number, fold in enumerate(folds):
            own = replace(config, seed=(config.seed + number) % 2**31)
            batches = Batches(ops, np.delete(rows, fold, axis=0), own, flow.shape)
            trainer = Trainer(ops, flow, own, batches.steps_per_epoch)
            trainer.begin(batches)
            trainings.append((trainer, batches))
        steps = config.epochs * min(batches.steps_per_epoch for _, batches in trainings)
        every = max(1, steps // _EVALUATIONS)
        most = math.inf if config.patience is None else config.patience * every
        with suppress(DivergedError, SingularMatrixError):  # the best before is kept
            best = _judged(trainings, rows, folds, best)
            for step in take_steps(trainings, steps):
                advance(len(folds))
                if step % every == 0 or step == steps:
                    best = _judged(trainings, rows, folds, best)
                if step - (best.step or 0) >= most:
                    break
    return best


def _judged(trainings, rows, folds, best: Candidate) -> Candidate:
    """The flows as they are, or `best` if the held-out rows are at least as likely by that."""
    scores, judged = np.empty(len(rows)), np.sort(np.concatenate(folds))
    for (trainer, _), fold in zip(trainings, folds, strict=True):
        scores[fold] = trainer.likelihood().log_prob(rows[fold])
    now = np.where(np.isnan(scores), -np.inf, scores)[judged]
    if best.members and not now.mean() > best.mean:
        return best
    return Candidate(best.name, now, [trainer.p.copy() for trainer, _ in trainings], trainer.step)


def mixture_candidates(
    rows: np.ndarray, folds: list[np.ndarray], seed: int, ldj: np.ndarray
) -> list[Candidate]:
    """Mixtures of standardised rows (N, D), each for every fold; `Candidate.refit` takes all rows.

    For each prior of the covariances there are 1 to 96 components, as far as the rows allow and,
    from 20 on, until more of them are worse. ldj: log|det| of the standardisation, (N,), for scores
    in units of the data.
    """
    found = []
    count, columns = rows.shape
    most = max(1, min(count // _ROWS_PER_COMPONENT, count // columns))
    for kind, prior in _PRIORS:
        best = -np.inf
        for components in (each for each in _COMPONENTS if each <= most):
            name = f"mixture of {components}, {kind}, prior {prior:g}"
            how = components, kind, prior
            candidate = Candidate(name, np.empty(count), refit=partial(Mixture.fit, rows, *how))
            for number, fold in enumerate(folds):
                mixture = Mixture.fit(np.delete(rows, fold, axis=0), *how, (seed, number))
                candidate.scores[fold] = mixture.log_prob(rows[fold]) + ldj[fold]
                candidate.members.append(mixture)
            found.append(candidate)
            best = max(best, candidate.mean)
            if components >= _MANY and candidate.mean < best - _WORSE:
                break
    return found
