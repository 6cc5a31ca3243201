"""Training the candidates for an average of densities, each member on other rows than it is judged
by.

Derivation: derivations/31-an-average-of-densities.md.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from snfnp.density.mixture import Mixture
from snfnp.errors import DivergedError
from snfnp.ops import get_ops
from snfnp.training.batches import Batches
from snfnp.training.loop import Loop
from snfnp.training.options import TrainConfig
from snfnp.training.trainer import Trainer

_EVALUATIONS = 40  # of a whole training, about
_COMPONENTS = 1, 2, 3, 4, 6, 8, 12, 20, 32, 48, 64, 96
_ROWS_PER_COMPONENT = 6
_PRIORS = ("full", 0.003), ("full", 0.3), ("full", 3.0), ("diagonal", 1.0)
_MANY, _WORSE = 20, 0.1  # components from which on more are not tried if worse by so many nats


@dataclass
class Candidate:
    """One design, fitted for every fold.

    name: in words; scores: the log-density of each row that was held out by the member that it was
    held out for, in the order of rows; members: flat parameters of flows, or mixtures; step: of
    flows alone, that of the evaluation that was chosen.
    """

    name: str
    scores: np.ndarray
    members: list
    step: int | None = None

    @property
    def mean(self) -> float:
        """The mean log-density of the rows that were held out."""
        return self.scores.mean()

    @property
    def line(self) -> str:
        return f"{self.name}: {self.mean:.3f} nats per row held out"


class _Together:
    """Trainers that take each step together, each on its own batches: a trainer for `Loop`."""

    def __init__(self, trainers: list[Trainer]):
        self.trainers, self.step = trainers, 0
        self.steps_per_epoch = min(each.steps_per_epoch for each in trainers)

    def training_step(self, batches) -> None:
        for trainer, own in zip(self.trainers, batches, strict=True):
            trainer.training_step(own)
        self.step += 1

    def check(self, batches) -> None:
        for trainer, own in zip(self.trainers, batches, strict=True):
            trainer.check(own)


class _FoldsLoop(Loop):
    """The training of a flow for every fold. best: the flows at the best evaluation."""

    def __init__(self, config: TrainConfig, moments, rows, folds, advance):
        ops, flow = get_ops(config.backend), config.build_flow(rows.shape[1:], moments)
        trainers, batches = [], []
        for number, fold in enumerate(folds):
            own = replace(config, seed=(config.seed + number) % 2**31)
            batches.append(Batches(ops, np.delete(rows, fold, axis=0), own, flow.shape))
            trainers.append(Trainer(ops, flow, own, batches[-1].steps_per_epoch))
            trainers[-1].begin(batches[-1])
        self._rows, self._folds, self._judged = rows, folds, np.sort(np.concatenate(folds))
        self._trainers, self._advance, self._patience = trainers, advance, config.patience
        self.best = Candidate(f"flow, noise {config.noise:g}", np.empty(0), [])
        together: Any = _Together(trainers)
        steps = config.epochs * together.steps_per_epoch
        super().__init__(together, batches, steps, max(1, steps // _EVALUATIONS))

    def after_step(self) -> bool:
        self._advance(len(self._folds))
        return False

    def evaluate(self) -> bool:
        scores, step = np.empty(len(self._rows)), self.trainer.step
        for trainer, fold in zip(self._trainers, self._folds, strict=True):
            scores[fold] = trainer.likelihood().log_prob(self._rows[fold])
        scores = np.where(np.isnan(scores), -np.inf, scores)[self._judged]
        if not self.best.members or scores.mean() > self.best.mean:
            members = [trainer.p.copy() for trainer in self._trainers]
            self.best = Candidate(self.best.name, scores, members, step)
        waited = step - (self.best.step or 0)
        return self._patience is not None and waited >= self._patience * self.every


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
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        loop = _FoldsLoop(config, moments, rows, folds, advance)
        loop.evaluate()
        with suppress(DivergedError):  # the best before is kept
            loop.run()
    return loop.best


def mixture_candidates(
    rows: np.ndarray,
    folds: list[np.ndarray],
    seed: int,
    ldj: np.ndarray,
) -> list[Candidate]:
    """Mixtures of standardised rows (N, D), each for every fold.

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
            candidate = Candidate(name, np.empty(count), [])
            for number, fold in enumerate(folds):
                others = np.delete(rows, fold, axis=0)
                mixture = Mixture.fit(others, components, kind, prior, (seed, number))
                candidate.scores[fold] = mixture.log_prob(rows[fold]) + ldj[fold]
                candidate.members.append(mixture)
            found.append(candidate)
            best = max(best, candidate.mean)
            if components >= _MANY and candidate.mean < best - _WORSE:
                break
    return found
