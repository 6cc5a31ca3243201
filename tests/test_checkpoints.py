"""Files of a run that are damaged, missing or another run's: one line each."""

import hashlib
import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save
from support.messages import assert_one_line, one_line
from support.runs import config_json
from support.trainers import at_step, make_trainer, run_training, spoil

from snfnp.cli import compare
from snfnp.errors import CheckpointError, SnfnpError
from snfnp.ops import get_ops
from snfnp.training.runs import checkpoint as checkpoints
from snfnp.training.runs.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from snfnp.training.runs.folder import RunFolder
from snfnp.training.runs.load import load_run

pytestmark = pytest.mark.usefixtures("here")

OPS = get_ops("numpy")
NAMES = (
    "last.safetensors",
    "best.safetensors",
    "config.json",
    "metrics.jsonl",
    "summary.json",
)
HUGE = 1 << 40


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A checkpoint's path, its layout and its bytes."""
    trainer = make_trainer(OPS, side=4)
    trainer.step = 41
    trainer.m[:] = 0.5
    trainer.v[:] = 0.25
    path = tmp_path_factory.mktemp("saved") / "c.safetensors"
    record = {"seconds": 2.5, "best": None, "config": trainer.config.as_dict()}
    save_checkpoint(path, Checkpoint.of(trainer, record))
    return path, trainer.layout, path.read_bytes()


def test_a_checkpoint_with_large_coordinates_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "_LONGEST_HEADER", 1 << 14)
    changes = {"levels": 1, "width": 1, "kernel": 5, "recipe": "white"}
    trainer = make_trainer(OPS, "glow", **changes)
    record = {"seconds": 0.0, "best": None, "config": trainer.config.as_dict()}
    save_checkpoint(tmp_path / "c", Checkpoint.of(trainer, record))
    load_checkpoint(tmp_path / "c", trainer.layout)


def refused(path, layout, content):
    """The line that says what is wrong with a file of that content."""
    changed = path.with_name("changed.safetensors")
    changed.write_bytes(content)
    with one_line(CheckpointError, changed) as caught:
        load_checkpoint(changed, layout)
    return str(caught.value)


@pytest.mark.parametrize("changes, side", [({"gradient": "exact"}, 4), ({}, 5)])
def test_a_checkpoint_of_another_model_is_refused(saved, changes, side):
    with one_line(CheckpointError, match="another model"):
        load_checkpoint(saved[0], make_trainer(OPS, side=side, **changes).layout)


def test_a_failed_write_keeps_the_old_checkpoint(saved, tmp_path, monkeypatch):
    path, layout, before = saved
    (tmp_path / "c").write_bytes(before)

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with one_line(SnfnpError, match="cannot write .*No space left on device"):
        save_checkpoint(tmp_path / "c", load_checkpoint(path, layout))
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [before]


def test_the_checksum_is_of_the_file_with_its_own_place_as_zeros(saved):
    """So that another program can check it."""
    _, _, content = saved
    size = int.from_bytes(content[:8], "little")
    checksum = json.loads(content[8 : 8 + size])["__metadata__"]["sha256"].encode()
    assert content.count(checksum) == 1
    blank = content.replace(checksum, b"0" * 64)
    assert hashlib.sha256(blank).hexdigest().encode() == checksum


@settings(max_examples=150, derandomize=True, deadline=None, database=None)
@given(data=st.data())
def test_a_corrupt_checkpoint_is_not_loaded(saved, data):
    path, layout, content = saved
    header = 8 + int.from_bytes(content[:8], "little")
    where = st.one_of(st.integers(0, header - 1), st.integers(header, len(content) - 1))
    at = data.draw(where)
    how = data.draw(st.integers(0, 3))
    if how == 0:
        changed = bytearray(content)
        changed[at] ^= data.draw(st.integers(1, 255))
    elif how == 1:
        changed = content[:at]
    elif how == 2:
        changed = (
            content[:at] + data.draw(st.binary(min_size=1, max_size=9)) + content[at:]
        )
    else:
        changed = content[:at] + content[at + 1 :]
    if bytes(changed) != content:
        refused(path, layout, bytes(changed))


def of_format(name, tensors=None, sha256="0" * 64):
    return save(tensors or {}, metadata={"format": name, "sha256": sha256})


NOISE = {
    b"": "is damaged",
    b"\x04" + bytes(7) + b"null": "is damaged",
    (200_000).to_bytes(8, "little") + b"[" * 200_000: "is damaged",
    save({"a": np.zeros(3)}): "is no snfnp checkpoint 2",
    of_format("snfnp checkpoint 1"): "is no snfnp checkpoint 2",
    save({"a": np.zeros(3)}, metadata={"format": checkpoints.FORMAT}): "is damaged",
    of_format(checkpoints.FORMAT, sha256="0"): "is damaged",
    of_format(checkpoints.FORMAT, {"a": np.zeros(3)}): "its checksum differs",
}


@pytest.mark.parametrize("content", NOISE, ids=range(len(NOISE)))
def test_other_files_are_refused(saved, content):
    assert NOISE[content] in refused(*saved[:2], content)


def spoiled(name, value):
    def change(checkpoint):
        getattr(checkpoint, name)[3] = value

    return change


def of_types(*dtypes):
    def change(checkpoint):
        for name, dtype in zip(("p", "m", "v"), dtypes, strict=True):
            setattr(checkpoint, name, getattr(checkpoint, name).astype(dtype))

    return change


HEADERS = [
    {"step": -1},
    {"step": 2**63},
    {"step": 1.5},
    {"sums": (1.0, 2.0)},
    {"sums": "abcd"},
    *({"sums": (1.0, 2.0, 3.0, value)} for value in (np.nan, 10**400)),
    {"record": []},
    {"record": {"seconds": np.nan}},
]
STATES = [np.array([1.0, np.nan]), np.array([1.0, np.inf]), np.ones(2, np.float32)]
FORGED = [
    *(lambda checkpoint, of=of: checkpoint.state.update(control=of) for of in STATES),
    *(
        spoiled(name, value)
        for name, value in (("p", np.nan), ("p", np.inf), ("m", -np.inf))
    ),
    *(spoiled("v", value) for value in (np.nan, np.inf, -1.0)),
    *(of_types(*types) for types in ("iii", "eee", "fdf", "FFF")),
    *(
        lambda checkpoint, change=change: vars(checkpoint).update(change)
        for change in HEADERS
    ),
]


@pytest.mark.parametrize("change", FORGED, ids=range(len(FORGED)))
def test_a_valid_checksum_is_not_enough(saved, tmp_path, change):
    path, layout, _ = saved
    checkpoint = load_checkpoint(path, layout)
    change(checkpoint)
    save_checkpoint(tmp_path / "c", checkpoint)
    with one_line(CheckpointError, match="is damaged"):
        load_checkpoint(tmp_path / "c", layout)


OTHERS = {
    "seed": 1,
    "batch_size": 10,
    "shuffle": False,
    "warmup_epochs": 2,
    "dtype": "float64",
    "objective": "forward",
}
OTHERS = {name: {name: value} for name, value in OTHERS.items()} | {"run": {"lr": 2e-3}}


@pytest.mark.parametrize("differs", OTHERS)
def test_files_of_another_run_are_refused(copy, tmp_path, differs):
    run_training("other", epochs=1, **OTHERS[differs])
    for name in ("last.safetensors", "best.safetensors", "config.json"):
        own = (copy / name).read_bytes()
        shutil.copy(tmp_path / "other" / name, copy)
        with pytest.raises(
            CheckpointError, match=f"belongs to another run .*another {differs}"
        ):
            load_run(copy, "last" if name == "config.json" else name.partition(".")[0])
        (copy / name).write_bytes(own)


def test_arrays_of_another_precision_than_the_runs_are_refused(copy):
    saved = load_run(copy, "last").checkpoint
    of_types(*"ddd")(saved)
    save_checkpoint(copy / "last.safetensors", saved)
    with one_line(CheckpointError, match="belongs to another run .*another dtype"):
        load_run(copy, "last")


BEST = {
    "step": 10**400,
    "epoch": 10**400,
    "validation_nll_nats": [1],
    "validation_bits_per_dimension": -(10**400),
    "reconstruction": None,
}
RECORDS = [
    {"config": None},
    {"config": {"lr": "fast"}},
    {"seconds": -1.0},
    {"seconds": "long"},
    {"best": []},
    {"best": {"epoch": 1}},
    {"seconds": 10**400},
    {"best": {"epoch": 9, "step": 99, "seconds": 1, "validation_nll_nats": 1.0}},
    *({name: value} for name, value in BEST.items()),
    {"step": 16},  # later than its own
]


@pytest.mark.parametrize("change", RECORDS, ids=range(len(RECORDS)))
def test_an_impossible_record_is_refused(copy, change):
    saved = load_run(copy, "last").checkpoint
    (saved.record["best"] if change.keys() <= BEST.keys() else saved.record).update(
        change
    )
    save_checkpoint(copy / "last.safetensors", saved)
    with one_line(CheckpointError, match="the run's record in its header"):
        load_run(copy, "last")


def test_a_rollback_names_the_file_whose_record_is_impossible(copy):
    saved = load_run(copy).checkpoint
    saved.record["config"]["lr"] = "fast"
    save_checkpoint(copy / "best.safetensors", saved)
    with one_line(CheckpointError, copy / "best.safetensors", "is damaged (`lr` is "):
        run_training(copy, resume="best")


def in_its_place(make):
    def change(path):
        path.unlink()
        make(path)

    return change


def content(new):
    def change(path):
        path.write_bytes(new(path.read_bytes()) if callable(new) else new)

    return change


DAMAGE = {
    "missing": Path.unlink,
    "a folder": in_its_place(os.mkdir),
    "a pipe": in_its_place(os.mkfifo),
    "a hole": lambda path: os.truncate(path, HUGE),
    "empty": content(b""),
    "zeros": content(lambda old: bytes(len(old))),
    "binary": content(b"\x80\xff\xfe" * 50),
    "utf-16": content(lambda old: old.decode("latin-1").encode("utf-16")),
    "cut": content(lambda old: old[: len(old) // 2]),
    "twice": content(lambda old: old + old),
    "null": content(b"null\n"),
    "a list": content(b"[1, 2]\n"),
    "an empty object": content(b"{}\n"),
    "a number": content(b"1e999\n"),
    "NaN": content(b'{"epoch": NaN, "config": NaN}\n'),
    "deep": content(b"[" * 100_000 + b"\n"),
    "a digit": content(lambda old: old.replace(b"0", b"1", 1)),
    "later digits": content(lambda old: old.replace(b"3", b"4")),
}
LOST = (
    "missing",
    "empty",
    "zeros",
    "cut",
    "twice",
    "a digit",
    "later digits",
    "binary",
)
# enough for files that nothing reads
UNREAD = ("missing", "a folder", "a pipe", "a hole", "zeros")
WAYS = {
    "load last": lambda path: load_run(path, "last").likelihood,
    "load best": lambda path: load_run(path, "best").likelihood,
    "resume": lambda path: run_training(path, resume=True, epochs=4),
    "rollback": lambda path: run_training(path, resume="best"),
    "compare": lambda path: compare.main([str(path)]),
}
# What each of them needs.
NEEDED = {"load last": {"last.safetensors"}, "load best": {"best.safetensors"}}
NEEDED["resume"] = NEEDED["load last"] | {"metrics.jsonl"}
NEEDED["rollback"] = NEEDED["load best"] | {"metrics.jsonl"}
NEEDED["compare"] = {"metrics.jsonl", "summary.json"}


@pytest.fixture
def alarm():
    """A function that ends the session unless it is called again within 100 seconds."""
    yield lambda: signal.alarm(100)
    signal.alarm(0)


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", NAMES)
def test_damage_is_reported_in_one_line_or_harmless(
    finished, tmp_path, name, way, alarm
):
    """And at once: it does not wait at a pipe or read a file that is far too long."""
    needed = NEEDED[way] | {"config.json"}
    for damage in DAMAGE if name in needed else UNREAD:
        copy = shutil.copytree(finished, tmp_path / damage)
        DAMAGE[damage](file := copy / name)
        alarm()  # or a pipe would be waited for
        same = file.is_file() and file.stat().st_size < HUGE
        same = same and file.read_bytes() == (finished / name).read_bytes()
        try:
            WAYS[way](copy)
        except SnfnpError as error:
            assert_one_line(error)
            assert len(str(error)) < 500
            assert str(copy) in str(error)
            assert name in needed or damage in ("a folder", "a pipe")
            assert damage != "a hole" or f"has {HUGE:,} bytes, and one of a" in str(
                error
            )
        else:
            lost = name == "metrics.jsonl" and damage in LOST
            lost |= name == "summary.json" and damage in (
                "missing",
                "a digit",
                "later digits",
            )
            assert same or lost or name not in needed, damage


def test_an_unreadable_file_is_one_line(copy, monkeypatch):
    original = os.open
    for name in ("config.json", "last.safetensors", "metrics.jsonl"):

        def refuse(path, *args, name=name):
            if Path(path).name == name:
                raise PermissionError(13, "Permission denied", str(path))
            return original(path, *args)

        monkeypatch.setattr(os, "open", refuse)
        with one_line(SnfnpError, match=f"{name} .*Permission denied"):
            run_training(copy, resume=True)


@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_without_the_best_checkpoint_the_best_epoch_is_a_later_one(
    tmp_path, monkeypatch, damage
):
    copy = tmp_path / "run"
    said = []
    with monkeypatch.context() as patched:
        at_step(patched, 12, spoil)
        run_training(copy)
    assert load_run(copy).checkpoint.step < 15
    DAMAGE[damage](copy / "best.safetensors")
    with one_line(
        SnfnpError, "best.safetensors is not of the best eval", "give more `epochs`"
    ):
        run_training(copy, resume=True)  # nothing is left to do but test it
    _, summary = run_training(copy, resume=True, epochs=4, report=said.append)
    assert summary["best_epoch"] == 4 and load_run(copy).checkpoint.step == 20
    assert any(
        "is lost or damaged: the best epoch is one after step 15" in s for s in said
    )


def test_a_checkpoint_is_not_damaged_where_memory_runs_out(copy, monkeypatch):
    def run_out(content):
        raise MemoryError

    monkeypatch.setattr("snfnp.training.runs.checkpoint.load", run_out)
    with pytest.raises(MemoryError):
        load_run(copy)


def test_metrics_that_were_lost_are_reported_and_training_goes_on(copy):
    (copy / "metrics.jsonl").unlink()
    said = []
    run, _ = run_training(copy, resume=True, epochs=4, report=said.append)
    assert any("metrics.jsonl has lost the metrics up to step 15" in s for s in said)
    assert [record["epoch"] for record in run.read_metrics()] == [4]
    run_training(copy, resume=True, epochs=5)
    assert [record["epoch"] for record in run.read_metrics()] == [4, 5]


def test_a_line_of_metrics_that_a_crash_cut_off_is_removed(copy):
    file = copy / "metrics.jsonl"
    file.write_bytes(file.read_bytes()[:-20])
    run, _ = run_training(copy, resume=True, epochs=4)
    assert [record["epoch"] for record in run.read_metrics()] == [1, 2, 4]


LINES = [
    "{",
    "[]",
    '{"epoch": 2}',
    "",
    '{"epoch": NaN}',
    # beside what an evaluation has
    *({name: 10**400} for name in ("epoch", "step", "seconds")),
    {"epoch": 0},
    {"epoch": [1]},
]


@pytest.mark.parametrize("line", LINES, ids=range(len(LINES)))
def test_a_damaged_line_of_metrics_is_named(copy, line):
    file = copy / "metrics.jsonl"
    lines = file.read_text().splitlines()
    if isinstance(line, dict):
        line = json.dumps(json.loads(lines[1]) | line)
    file.write_text("\n".join([lines[0], line, lines[2]]) + "\n")
    with one_line(
        SnfnpError, "metrics.jsonl is damaged (line 2: ", "delete it to go on without"
    ):
        RunFolder(copy).read_metrics()


def test_shapes_are_checked_before_anything_is_allocated(copy):
    record = config_json(copy)
    del record["sha256"]
    record["data"]["shape"] = [20_000, 20_000, 3]
    (copy / "config.json").write_text(json.dumps(record))
    with one_line(SnfnpError):
        load_run(copy)
