"""The loop in memory: when it evaluates, what it keeps, and what ends it."""

import math

import numpy as np
import pytest
from support.trainers import batches_of, make_trainer

from snfnp.errors import DivergedError
from snfnp.ops import get_ops
from snfnp.training.loop import Loop


def loop_of(nlls, callbacks=(), **how):
    """A loop whose evaluations give these likelihoods, at the start first; and its records."""
    trainer, seen = make_trainer(get_ops("numpy"), "fc"), []
    batches, given = batches_of(trainer), iter(nlls)
    trainer.begin(batches)
    callbacks = (lambda record: seen.append((record, trainer.p.copy())), *callbacks)
    how = {"nll": lambda likelihood: next(given), "callbacks": callbacks, **how}
    loop = Loop(trainer, batches, **how)
    loop.evaluate()
    return loop, seen


def test_the_best_evaluation_is_kept():
    """That of step 4: what is not finite is none, and an equal one is not better."""
    loop, seen = loop_of([5.0, math.nan, 2.0, 2.0, -math.inf], steps=7, every=2)
    assert loop.run() is False and loop.trainer.step == 7
    records = [record for record, _ in seen]
    assert [record.step for record in records] == [0, 2, 4, 6, 7]
    assert [record.best for record in records] == [True, False, True, False, False]
    assert (loop.best.step, loop.best.nll, loop.best.steps) == (4, 2.0, 7)
    np.testing.assert_array_equal(loop.best_p, seen[2][1])
    assert np.isfinite(records[2].surrogate) and 0 < records[1].seconds <= loop.seconds
    expected = records[2].likelihood.log_prob(batches_of(loop.trainer)(0))
    found = loop.trainer.likelihood(loop.best_p).log_prob(batches_of(loop.trainer)(0))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("patience, last", [(1, 6), (2, 8), (3, 16), (None, 20)])
def test_patience_counts_the_evaluations_since_the_best(patience, last):
    nlls = [5.0, 4.0, 3.0, 4.0, 4.0, 2.0, *5 * [3.0]]
    loop, seen = loop_of(nlls, steps=20, every=2, patience=patience)
    loop.run()
    assert loop.trainer.step == seen[-1][0].step == last


def test_a_callback_that_returns_true_ends_it():
    loop, seen = loop_of([5.0, 4.0, 3.0], [lambda record: record.step == 4], steps=9, every=2)
    assert loop.run() is True and loop.trainer.step == 4 == seen[-1][0].step


def test_a_step_that_fails_leaves_the_best_before():
    loop, _ = loop_of([5.0, 4.0, 3.0], steps=9, every=2)
    step = loop.trainer.training_step

    def poisoned(batches):
        if loop.trainer.step == 3:
            loop.trainer.params["dense2"]["W"][...] = np.nan
        step(batches)

    loop.trainer.training_step = poisoned
    with np.errstate(invalid="ignore"), pytest.raises(DivergedError, match="at step 4: .* dense2"):
        loop.run()
    assert loop.best.step == 2 and np.isfinite(loop.best_p).all()
