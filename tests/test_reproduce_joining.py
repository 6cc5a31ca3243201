"""Records of one target from several machines are joined part by part."""

import pytest
from reproduction.joining import joined, kept
from reproduction.targets import TARGETS

TABLE, CURVES = TARGETS["table1"], TARGETS["figure3"]
EXACT, SNF = (row.cells for row in TABLE.table.rows[1:3])
HERE, THERE = {"commit": "here"}, {"commit": "there"}


def row(cells=SNF, seeds=(0,), epochs=30, value=1.0, origin=HERE, sample=False, **more):
    runs = [{"seed": seed, "epochs": epochs, "value": value + seed} for seed in seeds]
    own = {"name": "snf", "cells": list(cells), "stand_in": None, "config": {"lam": 1.0}}
    data = {"name": "mnist", "is_sample": sample}
    return own | {"data": data, "runs": runs, "made_with": [origin]} | more


def table(*rows, scale="hour"):
    return {"title": TABLE.title, "scale": scale, "rows": list(rows)}


def join(known, new):
    """Of two tables of one row: the row."""
    (found,) = joined(TABLE, table(known), table(new))["rows"]
    return found


def test_rows_of_both_are_in_the_tables_order():
    record = joined(TABLE, table(row(SNF)), table(row(EXACT), scale="paper"))
    assert [tuple(own["cells"]) for own in record["rows"]] == [EXACT, SNF]
    assert record["scale"] == "paper"


@pytest.mark.parametrize("how", ["epochs", "sample", "stand-in", "missing"])
def test_what_says_more_wins_on_either_side(how):
    more, less = {
        "epochs": (row(epochs=31), row(epochs=30)),
        "sample": (row(epochs=1), row(epochs=1000, sample=True)),
        "stand-in": (row(epochs=1), row(epochs=1000, stand_in="small")),
        "missing": (row(epochs=1, sample=True), {"cells": list(SNF), "missing": True}),
    }[how]
    assert join(less, more) == join(more, less) == more


def test_seeds_come_together_and_the_new_one_of_two_counts():
    old, new = row(seeds=(0, 2)), row(seeds=(0, 1), value=5.0, origin=THERE)
    found = join(old, new)
    assert [(run["seed"], run["value"]) for run in found["runs"]] == [(0, 5.0), (1, 6.0), (2, 3.0)]
    assert found["made_with"] == [HERE, THERE]
    again = join(old, row(seeds=(0, 2), value=5.0, origin=THERE))
    assert again["made_with"] == [THERE]  # nothing of the old ones is left


def test_seeds_of_another_configuration_do_not_come_together():
    other = row(seeds=(1,), config={"lam": 2.0})
    assert join(row(), other) == other


def test_a_diverged_run_counts_as_long_as_it_went():
    """It takes no place of one that was trained, but is another seed of what it was asked for."""
    runs = [{"seed": seed, "epochs": 5, "asked": 30, "diverged_at": 7} for seed in (0, 1)]
    diverged, other = (row() | {"runs": [run]} for run in runs)
    for epochs in (5, 20, 30, 60):
        trained = row(epochs=epochs)
        assert join(trained, diverged) == join(diverged, trained) == trained
    for known, new in ((row(epochs=20), other), (other, row(epochs=20))):
        assert join(known, new)["runs"] == [*row(epochs=20)["runs"], runs[1]]
    assert join(row(epochs=31), other) == row(epochs=31)
    assert join(row(epochs=4), other) == other
    assert join(diverged, other)["runs"] == runs


def test_a_diverged_run_of_an_older_file_counts_as_long_as_it_was_asked_for():
    diverged = row() | {"runs": [{"seed": 0, "epochs": 30, "diverged_at": 7}]}
    assert join(row(epochs=20), diverged) == diverged
    assert join(row(epochs=60), diverged) == row(epochs=60)


def test_curves_are_joined_by_their_model():
    first, second = (own.cells[0] for own in CURVES.rows)

    def curve(model, epochs):
        return {"model": model, "epochs": epochs, "is_sample": False, "points": [[epochs, 1.0]]}

    known = {"scale": "hour", "curves": [curve(second, 30)]}
    new = {"scale": "hour", "curves": [curve(second, 20), curve(first, 10)]}
    found = joined(CURVES, known, new)["curves"]
    assert [(own["model"], own["epochs"]) for own in found] == [(first, 10), (second, 30)]


def test_what_is_measured_in_one_run_is_not_joined():
    new = {"scale": "hour", "rows": [1]}
    assert joined(TARGETS["table3"], {"scale": "hour", "rows": [2]}, new) == new
    assert joined(TABLE, None, new) == new


def sampled(data="mnist", epochs=10, sample=False, name="glow-2l-4k-lambda-100"):
    own = {"name": name, "model": "a Glow", "data": data, "is_sample": sample, "epochs": epochs}
    return {"scale": "hour", "rows": [own]}


def test_a_picture_made_of_runs_is_that_of_the_longer_ones_on_all_images():
    """Its rows are in one picture: none of them may be worse in the record that counts."""
    target = TARGETS["figure2"]
    known, paper = sampled(), sampled(epochs=1, name="glow-lambda-100")
    for more in (sampled(epochs=11), sampled(), paper):  # not a stand-in, as 10 epochs of one are
        assert joined(target, known, more) is more
    both = {"scale": "hour", "rows": [*sampled()["rows"], *sampled("cifar-10")["rows"]]}
    other, none = sampled("cifar-10"), {"scale": "hour", "rows": []}
    for less in (sampled(epochs=9), sampled(epochs=250, sample=True), other, none):
        assert joined(target, known, less) is known
    assert joined(target, known, both) is both and joined(target, both, sampled(epochs=11)) is both
    assert kept("figure2", known, sampled(epochs=1, sample=True), "there") == (
        "figure2 stays as it is in there (a Glow, mnist, epochs: 10): not every row is as good in "
        "(a Glow, mnist (a sample), epochs: 1)"
    )


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_parts_have_one_identity_each(target):
    if target.parts is not None:
        known = target.identities()
        assert len(set(known)) == len(known) > 0
