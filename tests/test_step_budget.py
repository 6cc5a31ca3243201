"""A training step is short: its calls, counted."""

import sys
from collections import Counter
from pathlib import Path

import pytest
from support.trainers import batches_of, make_trainer, take_steps

import snfnp
from snfnp.ops import get_ops

PACKAGE = str(Path(snfnp.__file__).parent)
BUDGET = {"fc": (125, 21), "conv": (950, 22)}  # calls, and files of the functions that are called


def calls_of(function) -> Counter:
    """(file, function) of every call of the package's functions, and how often."""
    counted = Counter()

    def count(frame, event, argument):
        file = frame.f_code.co_filename
        if event == "call" and file.startswith(PACKAGE):
            counted[file.removeprefix(PACKAGE), frame.f_code.co_name] += 1

    sys.setprofile(count)
    try:
        function()
    finally:
        sys.setprofile(None)
    return counted


@pytest.mark.parametrize("model", BUDGET)
def test_a_step_makes_few_calls_in_few_files(model):
    trainer = make_trainer(get_ops("numpy"), model)
    take_steps(trainer, range(2))  # the first renews states and makes constants
    batches = batches_of(trainer)
    counted = calls_of(lambda: trainer.training_step(batches))
    calls, files = sum(counted.values()), len({file for file, _ in counted})
    most_calls, most_files = BUDGET[model]
    assert calls <= most_calls and files <= most_files, (calls, files, counted)
