"""Training the candidates for an average of densities, each member on other rows than it is judged
by.

Derivation: derivations/31-an-average-of-densities.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from snfnp.density.mixture import Mixture
from snfnp.errors import DivergedError
from snfnp.ops import get_ops
from snfnp.training.batches import Batches, Given
from snfnp.training.loop import Loop
from snfnp.training.options import TrainConfig
from snfnp.training.trainer import Trainer

EVALUATIONS = 40  # of a whole training, about
_COMPONENTS = {"full": (1, 2, 3, 4, 6, 8, 12, 20, 32, 48, 64, 96), "diagonal": (2, 4, 8, 16, 32)}
_ROWS_PER_COMPONENT = 6


@dataclass
class Candidate:
    """One design, fitted for every fold.

    name: in words; scores: the log-density of each row by the member that was not trained on it, in
    standardised units or any others that candidates share, (N,); members: flat parameters of flows,
    or mixtures; step: of flows alone, that of the evaluation that was chosen.
    """

    name: str
    scores: np.ndarray
    members: list
    step: int | None = None


def flow_candidate(
    config: TrainConfig,
    moments: tuple,
    rows: np.ndarray,
    folds: list[np.ndarray],
    noise: float,
    patience: int | None = None,
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
        noise: standard deviation of the noise in the rows of every step, in units of the spread.
        patience: stop after this many evaluations without a better one; None: never.
        advance: gets the steps that all flows have taken since its last call.
    """
    runs = [_Run(config, moments, rows, fold, noise, k) for k, fold in enumerate(folds)]
    steps = config.epochs * min(run.trainer.steps_per_epoch for run in runs)
    every = max(1, steps // EVALUATIONS)
    best, waited, step = Candidate(f"flow, noise {noise:g}", np.empty(0), []), 0, 0
    highest = -np.inf
    try:
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
            while True:
                now = np.concatenate([run.scores for run in runs]).mean()
                waited = waited + 1
                if now > highest or not best.members:
                    scores = np.empty(len(rows))
                    for run, fold in zip(runs, folds, strict=True):
                        scores[fold] = run.scores
                    best.scores, best.step = scores, step
                    best.members = [run.trainer.p.copy() for run in runs]
                    highest, waited = max(highest, now), 0
                if step >= steps or (patience is not None and waited >= patience):
                    return best
                before, step = step, min(step + every, steps)
                for run in runs:
                    run.advance(step)
                advance((step - before) * len(runs))
    except DivergedError:
        return best


class _Run(Loop):
    """The training of one flow. scores: log-densities of the rows held out, at the last
    evaluation."""

    scores: np.ndarray

    def __init__(self, config, moments, rows, fold, noise: float, number: int):
        config = replace(config, seed=(config.seed + number) % 2**31)
        ops, flow = get_ops(config.backend), config.build_flow(rows.shape[1:], moments)
        batches = Batches(ops, np.delete(rows, fold, axis=0), config, flow.shape)
        self.held_out, spread = rows[fold], np.asarray(moments[1])

        def noisy(step: int):
            batch, rng = batches(step), np.random.default_rng((config.seed, step))
            return batch + noise * spread * rng.standard_normal(batch.shape)

        trainer = Trainer(ops, flow, config, batches.steps_per_epoch)
        every = 2**62  # `advance` says where an evaluation is due
        super().__init__(trainer, Given(noisy) if noise else batches, 0, every)
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
            trainer.begin(batches)
            self.evaluate()

    def evaluate(self) -> bool:
        self.scores = self.trainer.likelihood().log_prob(self.held_out)
        self.scores[np.isnan(self.scores)] = -np.inf
        return False

    def advance(self, step: int) -> None:
        """Train up to this step, and evaluate there."""
        self.steps = step
        self.run()


def mixture_candidates(
    rows: np.ndarray,
    folds: list[np.ndarray],
    seed: int,
    log_volume: float,
) -> list[Candidate]:
    """Mixtures of standardised rows (N, D), with 1 to 96 components as far as the rows allow, each
    for every fold. log_volume: what one unit of all columns is, for scores in units of the data."""
    found = []
    count, columns = rows.shape
    most = min(count // _ROWS_PER_COMPONENT, count // columns)
    for kind, numbers in _COMPONENTS.items():
        for components in (each for each in numbers if each == 1 or each <= most):
            name = f"mixture of {components}, {kind}"
            candidate = Candidate(name, np.empty(count), [])
            for number, fold in enumerate(folds):
                others = np.delete(rows, fold, axis=0)
                mixture = Mixture.fit(others, components, kind, (seed, number))
                candidate.scores[fold] = mixture.log_prob(rows[fold]) - log_volume
                candidate.members.append(mixture)
            found.append(candidate)
    return found
