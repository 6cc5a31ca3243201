"""The rows of curves.png: which of them a run's metrics have something for."""

import math

from snfnp.training import plots
from snfnp.training.curves import PANELS, Panel, save_curves

RECORD = {"epoch": 1, "seconds": 2.0, "validation_nll_nats": 5.0, "reconstruction": 0.5, "lam": 1.0}


def labels(*records):
    return [panel.label for panel in PANELS if panel.row(records)]


def test_rows_are_drawn_where_there_is_something_to_draw():
    without = {**RECORD, "reconstruction": 0.0, "lam": 0.0}
    assert [label.partition(" (")[0] for label in labels(without)] == ["exact validation NLL"]
    learns = labels(RECORD)
    assert len(learns) == 3 and learns[2].startswith("λ")
    controlled = {"constraint": 2.0, "constraint_min": 1.0, "constraint_max": 3.0}
    assert labels({**RECORD, **controlled})[3].startswith("constraint C")


def test_a_row_has_a_gap_where_a_record_lacks_it_and_a_band_where_one_has_one():
    panel = Panel("a", lambda record: record["a"], limit=1.0)
    row = panel.row([{"a": (1.0,)}, {"a": None}, {"a": (2.0, 1.5, 3.0)}])
    assert (row.label, row.log, row.limit) == ("a", True, 1.0)
    for name, ends in {"line": (1, 2), "low": (1, 1.5), "high": (1, 3)}.items():
        line = getattr(row, name)
        assert (line[0], line[2]) == ends and math.isnan(line[1])
    assert panel.row([{"a": None}]) is None
    assert panel.row([{"a": (1.0,)}]).low is None


def test_the_picture_has_all_rows(tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr(plots, "save_rows", lambda path, columns, rows, title: drawn.update(vars()))
    save_curves(tmp_path / "a.png", [RECORD, {**RECORD, "epoch": 2}], "title")
    assert drawn["columns"] == {"epoch": [1, 2], "training seconds": [2.0, 2.0]}
    assert [row.label for row in drawn["rows"]] == labels(RECORD)
