"""The rows of curves.png: which of them a run's metrics have something for."""

import math

from snfnp.training import plots
from snfnp.training.curves import rows, save_curves

RECORD = {"epoch": 1, "seconds": 2.0, "validation_nll_nats": 5.0, "reconstruction": 0.5, "lam": 1.0}


def labels(*records):
    return [row.label for row in rows(list(records))]


def test_rows_are_drawn_where_there_is_something_to_draw():
    without = {**RECORD, "reconstruction": 0.0, "lam": 0.0}
    assert [label.partition(" (")[0] for label in labels(without)] == ["exact validation NLL"]
    assert len(labels(RECORD, RECORD)) == 2  # λ stays where it is
    learns = labels(RECORD, {**RECORD, "lam": 2.0})
    assert len(learns) == 3 and learns[2].startswith("λ")
    controlled = {"constraint": 2.0, "constraint_min": 1.0, "constraint_max": 3.0}
    assert labels({**RECORD, **controlled})[2].startswith("constraint C")


def test_a_row_has_a_gap_where_a_record_lacks_it_and_a_band_where_one_has_one():
    without = {name: value for name, value in RECORD.items() if name != "lam"}
    banded = {**RECORD, "lam": 2.0, "lam_min": 1.5, "lam_max": 3.0}
    line, low, high = rows([RECORD, without, banded])[2].lines
    for found, ends in ((line, (1, 2)), (low, (1, 1.5)), (high, (1, 3))):
        assert (found[0], found[2]) == ends and math.isnan(found[1])


def test_the_picture_has_all_rows(tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr(plots, "save_rows", lambda path, columns, rows, title: drawn.update(vars()))
    save_curves(tmp_path / "a.png", [RECORD, {**RECORD, "epoch": 2}], "title")
    assert drawn["columns"] == {"epoch": [1, 2], "training seconds": [2.0, 2.0]}
    assert [row.label for row in drawn["rows"]] == labels(RECORD)


def test_an_axis_of_few_epochs_has_whole_numbers(monkeypatch):
    drawn = []
    monkeypatch.setattr(plots, "_save", lambda figure, path: drawn.extend(figure.axes[-2:]))
    save_curves(None, [RECORD, {**RECORD, "epoch": 2, "seconds": 3.0}], "")
    epochs, seconds = (axis.get_xticks() for axis in drawn)
    assert (epochs % 1 == 0).all() and not (seconds % 1 == 0).all()
