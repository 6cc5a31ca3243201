"""A run's figures elsewhere: which rows curves.png has, and the files of --tensorboard."""

import math
import struct
import sys

import pytest
from support.runs import Killed, kill
from support.trainers import run_training, small_dataset

from snfnp.beyond import tensorboard
from snfnp.errors import SnfnpError, UsageError
from snfnp.training import plots
from snfnp.training.curves import rows, save_curves
from snfnp.training.options import TrainConfig
from snfnp.training.runs.folder import RunFolder

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


def events(run):
    """[(step, wall time, tag, value)] of all files in a run's folder, as TensorBoard reads them:
    records of a length, its checksum, an event and its checksum."""
    from tensorboardX.proto import event_pb2

    found = []
    for path in sorted(run.event_files.glob("*")):
        content, at = path.read_bytes(), 0
        while at < len(content):
            (length,) = struct.unpack_from("<Q", content, at)
            event = event_pb2.Event.FromString(content[at + 12 : at + 12 + length])
            for value in event.summary.value:
                found.append((event.step, event.wall_time, value.tag, value.simple_value))
            at += 16 + length
    return found


def expected(run):
    """Events as metrics.jsonl has them; TensorBoard's files hold single precision."""
    return [
        (record["step"], record["seconds"], name, pytest.approx(value, rel=1e-7))
        for record in run.read_metrics()
        for name, value in tensorboard.scalars(record).items()
    ]


@pytest.mark.parametrize("model", ["fc", "glow-2l-4k"])
def test_the_curves_are_the_metrics(tmp_path, model):
    size = {} if model == "fc" else {"levels": 1, "depth": 1, "width": 4}
    changes = {"model": model, "tensorboard": True} | size
    dataset = None if model == "fc" else small_dataset(side=4)
    run, _ = run_training(tmp_path / "run", dataset, **changes)
    found = events(run)
    assert found == expected(run) and {step for step, *_ in found} == {5, 10, 15}
    tags = {tag for _, _, tag, _ in found}
    assert {"validation_nll_nats", "reconstruction", "gradient_norm"} <= tags
    assert any(tag.startswith("rho/") for tag in tags)
    assert not tags & {"step", "epoch", "seconds"}


ON = {"tensorboard": True}


def test_without_the_option_there_is_nothing_and_training_is_the_same(tmp_path):
    run, without = run_training(tmp_path / "off")
    _, found = run_training(tmp_path / "on", **ON)
    assert not run.event_files.exists()
    assert without["validation_nll_nats"] == found["validation_nll_nats"]


@pytest.mark.parametrize("before", [ON, ON | {"tensorboard": False}])
def test_a_resumed_run_has_its_whole_curves_and_no_point_twice(tmp_path, before):
    run_training(tmp_path / "run", epochs=2, **before)
    run, _ = run_training(tmp_path / "run", resume=True, epochs=4, **ON)
    found = events(run)
    assert found == expected(run) and {step for step, *_ in found} == {5, 10, 15, 20}
    assert len(list(run.event_files.iterdir())) == 1


def test_a_killed_run_has_the_curves_up_to_there(tmp_path, monkeypatch):
    original = tensorboard._write

    def once(writer, record):
        original(writer, record)
        if record["epoch"] == 2:
            kill()

    monkeypatch.setattr(tensorboard, "_write", once)
    with pytest.raises(Killed):
        run_training(tmp_path / "run", **ON)
    run = RunFolder(tmp_path / "run")
    run.last.unlink()  # of the epoch before: readers of the metrics would go no further
    assert events(run) == expected(run) and {step for step, *_ in events(run)} == {5, 10}


def test_a_missing_package_is_one_line_and_leaves_no_folder(tmp_path, monkeypatch, snfnp_train):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    place, said = tmp_path / "run", "`tensorboard` needs tensorboardX .*pip install"
    with pytest.raises(UsageError, match=said) as caught:
        snfnp_train("--tensorboard", "--out", place, "--backend", "numpy", "--batch-size", 20)
    assert "\n" not in str(caught.value) and not place.exists()


def test_a_file_in_its_place_is_one_line(tmp_path):
    run_training(tmp_path / "run", epochs=1, **ON | {"tensorboard": False})
    (tmp_path / "run/tensorboard").write_text("")
    with pytest.raises(SnfnpError, match="cannot write .*tensorboard .*remove it") as caught:
        run_training(tmp_path / "run", resume=True, epochs=2, **ON)
    assert "\n" not in str(caught.value)
    assert TrainConfig().resolve(100).resumed({"tensorboard": True}, "run").tensorboard
