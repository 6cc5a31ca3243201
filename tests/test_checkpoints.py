"""Files of a run that are damaged, missing or another run's: one line each."""

import dataclasses
import hashlib
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save
from support.messages import assert_one_line
from support.trainers import at_step, make_trainer, run_training, spoil

from snfnp.errors import CheckpointError, SnfnpError, UsageError
from snfnp.ops import get_ops
from snfnp.training.options import TrainConfig
from snfnp.training.runs import checkpoint as checkpoints
from snfnp.training.runs.checkpoint import load_checkpoint, save_checkpoint
from snfnp.training.runs.folder import RunFolder
from snfnp.training.runs.load import load_run
from snfnp.training.runs.resume import resumed_config

OPS = get_ops("numpy")
NAMES = ("last.safetensors", "best.safetensors", "config.json", "metrics.jsonl", "summary.json")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run. Not to be changed: see `copy`."""
    path = tmp_path_factory.mktemp("runs") / "finished"
    run_training(path, backend="numpy")
    return path


@pytest.fixture
def copy(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "copy")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A checkpoint's path, its layout and its bytes."""
    trainer = make_trainer(OPS, side=4)
    trainer.step, trainer.m[:], trainer.v[:] = 41, 0.5, 0.25
    path = tmp_path_factory.mktemp("saved") / "c.safetensors"
    record = {"seconds": 2.5, "best": None, "config": trainer.config.as_dict()}
    save_checkpoint(path, trainer.checkpoint(record))
    return path, trainer.layout, path.read_bytes()


def refused(path, layout, content):
    """The line that says what is wrong with a file of that content."""
    changed = path.with_name("changed.safetensors")
    changed.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(changed, layout)
    assert_one_line(caught.value, changed)
    return str(caught.value)


# ---------------------------------------------------------------- the whole file is under the sum


def test_the_checksum_is_of_the_file_with_its_own_place_as_zeros(saved):
    """What another program can check."""
    _, _, content = saved
    size = int.from_bytes(content[:8], "little")
    checksum = json.loads(content[8 : 8 + size])["__metadata__"]["sha256"].encode()
    assert content.count(checksum) == 1
    blank = content.replace(checksum, b"0" * 64)
    assert hashlib.sha256(blank).hexdigest().encode() == checksum


HEADER_CHANGES = [
    (b'"step":"41"', b'"step":"40"'),
    (b'"lam":"1.0"', b'"lam":"1.5"'),
    (b'"seed":"0"', b'"seed":"1"'),
    (b'"sums":"[0.0,', b'"sums":"[1.0,'),
    (b'\\"seconds\\": 2.5', b'\\"seconds\\": 2.6'),
    (b'\\"batch_size\\": 6', b'\\"batch_size\\": 7'),
    (b'"F32"', b'"I32"'),
    (b'"F32"', b'"U32"'),
    (b'"shape":[16,16]', b'"shape":[2,128]'),
    (b"adam_m.dense1.W", b"adam_v.dense1.W"),
    (b"snfnp checkpoint 2", b"snfnp checkpoint 1"),
    (b"snfnp checkpoint 2", b"snfnp checkpoint 3"),
    (b'"format"', b'"farmat"'),
    (b'"sha256"', b'"sha257"'),
    (b'"__metadata__"', b'"__metadato__"'),
]


@pytest.mark.parametrize("before, after", HEADER_CHANGES)
def test_a_changed_header_is_found(saved, before, after):
    path, layout, content = saved
    assert before in content and len(before) == len(after)
    refused(path, layout, content.replace(before, after, 1))


@settings(max_examples=400, derandomize=True, deadline=None, database=None)
@given(data=st.data())
def test_no_flip_and_no_cut_is_loaded(saved, data):
    path, layout, content = saved
    header = 8 + int.from_bytes(content[:8], "little")
    where = st.one_of(st.integers(0, header - 1), st.integers(header, len(content) - 1))
    at, how = data.draw(where), data.draw(st.integers(0, 3))
    if how == 0:
        changed = bytearray(content)
        changed[at] ^= data.draw(st.integers(1, 255))
    elif how == 1:
        changed = content[:at]
    elif how == 2:
        changed = content[:at] + data.draw(st.binary(min_size=1, max_size=9)) + content[at:]
    else:
        changed = content[:at] + content[at + 1 :]
    if bytes(changed) != content:
        refused(path, layout, bytes(changed))


NOISE = [
    b"",
    b"\0" * 7,
    b"\xff" * 64,
    b"\x02" + bytes(7) + b"{}",
    b"\x04" + bytes(7) + b"null",
    b"\x02" + bytes(7) + b"[]",
    (200_000).to_bytes(8, "little") + b"[" * 200_000,
    b"PK\x03\x04" + bytes(100),
    json.dumps({"step": 3}).encode(),
    save({"a": np.zeros(3)}),
    save({"a": np.zeros(3)}, metadata={"format": checkpoints.FORMAT}),
    save({"a": np.zeros(3)}, metadata={"format": checkpoints.FORMAT, "sha256": "0"}),
    save({"a": np.zeros(3)}, metadata={"format": "snfnp checkpoint 1", "sha256": "0" * 64}),
    save({}, metadata={"format": checkpoints.FORMAT, "sha256": "0" * 64}),
]


@pytest.mark.parametrize("content", NOISE)
def test_what_was_never_a_checkpoint_is_refused(saved, content):
    refused(*saved[:2], content)


@pytest.mark.parametrize(
    "name, value",
    [("p", np.nan), ("p", np.inf), ("m", -np.inf), ("v", np.nan), ("v", -1.0)],
)
def test_a_valid_checksum_is_not_enough_for_values(saved, tmp_path, name, value):
    path, layout, _ = saved
    checkpoint = load_checkpoint(path, layout)
    getattr(checkpoint, name)[3] = value
    save_checkpoint(tmp_path / "c", checkpoint)
    with pytest.raises(CheckpointError, match="NaN, infinity, or a negative v"):
        load_checkpoint(tmp_path / "c", layout)


@pytest.mark.parametrize("dtypes", [("i4",) * 3, ("f2",) * 3, ("f4", "f8", "f4"), ("c8",) * 3])
def test_a_valid_checksum_is_not_enough_for_types(saved, tmp_path, dtypes):
    path, layout, _ = saved
    checkpoint = load_checkpoint(path, layout)
    for name, dtype in zip(("p", "m", "v"), dtypes, strict=True):
        setattr(checkpoint, name, getattr(checkpoint, name).astype(dtype))
    save_checkpoint(tmp_path / "c", checkpoint)
    with pytest.raises(CheckpointError, match="is damaged") as caught:
        load_checkpoint(tmp_path / "c", layout)
    assert_one_line(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        {"step": -1},
        {"step": 1.5},
        {"lam": -1.0},
        {"lam": np.nan},
        {"lam": np.inf},
        {"seed": -1},
        {"seed": 2**63},
        {"seed": "x"},
        {"sums": (1.0, 2.0)},
        {"sums": (1.0, 2.0, 3.0, np.nan)},
        {"sums": "abcd"},
        {"record": []},
        {"record": {"seconds": np.nan}},
    ],
    ids=str,
)
def test_a_valid_checksum_is_not_enough_for_a_header(saved, tmp_path, change):
    path, layout, _ = saved
    checkpoint = dataclasses.replace(load_checkpoint(path, layout), **change)
    save_checkpoint(tmp_path / "c", checkpoint)
    with pytest.raises(CheckpointError, match="is damaged") as caught:
        load_checkpoint(tmp_path / "c", layout)
    assert_one_line(caught.value)


# ---------------------------------------------------------------- another run's files


OTHERS = {
    "seed": {"seed": 1},
    "batch_size": {"batch_size": 10},
    "shuffle": {"shuffle": False},
    "warmup_epochs": {"warmup_epochs": 2},
    "dtype": {"dtype": "float64"},
    "objective": {"objective": "forward"},
    "run": {"lr": 2e-3},
}


@pytest.mark.parametrize("differs", OTHERS)
@pytest.mark.parametrize("name", ["last", "best"])
def test_a_checkpoint_of_another_run_is_refused(copy, tmp_path, differs, name):
    run_training(tmp_path / "other", epochs=1, **{"backend": "numpy", **OTHERS[differs]})
    shutil.copy(tmp_path / "other" / f"{name}.safetensors", copy)
    with pytest.raises(CheckpointError, match=f"belongs to another run .*another {differs}"):
        load_run(copy, name)


def test_a_config_of_another_run_is_refused(copy, tmp_path):
    run_training(tmp_path / "other", epochs=1, backend="numpy", lr=2e-3)
    shutil.copy(tmp_path / "other" / "config.json", copy)
    with pytest.raises(CheckpointError, match="belongs to another run"):
        load_run(copy)
    with pytest.raises(CheckpointError, match="belongs to another run"):
        run_training(copy, resume=True, backend="numpy")


@pytest.mark.parametrize(
    "change",
    [
        {"config": None},
        {"config": {"lr": "fast"}},
        {"seconds": -1.0},
        {"seconds": "long"},
        {"best": []},
        {"best": {"epoch": 1}},
        {"best": {"epoch": 9, "step": 99, "seconds": 1, "validation_nll_nats": 1.0}},
    ],
    ids=str,
)
def test_a_record_that_no_run_leaves_is_refused(copy, change):
    saved = load_run(copy, "last").checkpoint
    saved.record |= change
    save_checkpoint(copy / "last.safetensors", saved)
    with pytest.raises(CheckpointError, match="the run's record in its header") as caught:
        load_run(copy, "last")
    assert_one_line(caught.value)


# ---------------------------------------------------------------- every file, every way


def missing(path):
    path.unlink()


def folder(path):
    path.unlink()
    path.mkdir()


def content(new):
    def change(path):
        path.write_bytes(new(path.read_bytes()) if callable(new) else new)

    return change


DAMAGE = {
    "missing": missing,
    "a folder": folder,
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
WAYS = {
    "load last": lambda path: load_run(path, "last").likelihood,
    "load best": lambda path: load_run(path, "best").likelihood,
    "resume": lambda path: run_training(path, resume=True, backend="numpy", epochs=4),
    "rollback": lambda path: run_training(path, resume="best", backend="numpy"),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", NAMES)
def test_every_damage_is_one_line_or_does_no_harm(copy, monkeypatch, name, damage, way):
    file = copy / name
    before = file.read_bytes()
    DAMAGE[damage](file)
    same = file.is_file() and file.read_bytes() == before
    needed = {
        "load last": ("config.json", "last.safetensors"),
        "load best": ("config.json", "best.safetensors"),
        "resume": ("config.json", "last.safetensors", "metrics.jsonl"),
        "rollback": ("config.json", "best.safetensors", "metrics.jsonl"),
    }[way]
    try:
        WAYS[way](copy)
    except SnfnpError as error:
        assert_one_line(error)
        assert len(str(error)) < 500
        assert str(copy) in str(error)
        assert name in needed or damage == "a folder"
    else:
        # lines after the cut of a rollback or a resume are written anew, in any case
        lost = name == "metrics.jsonl" and damage in ("missing", "twice", "later digits", "cut")
        assert same or lost or name not in needed


def test_what_cannot_be_read_is_one_line(copy, monkeypatch):
    original = os.open
    for name in ("config.json", "last.safetensors", "metrics.jsonl"):

        def refuse(path, *args, name=name):
            if Path(path).name == name:
                raise PermissionError(13, "Permission denied", str(path))
            return original(path, *args)

        monkeypatch.setattr(os, "open", refuse)
        with pytest.raises(SnfnpError, match=f"{name} .*Permission denied") as caught:
            run_training(copy, resume=True, backend="numpy")
        assert_one_line(caught.value)


LEAVES = [
    ("config", "lr"), ("config", "epochs"), ("config", "seed"), ("config", "model"),
    ("config", "batch_size"), ("data", "images"), ("data", "shape"), ("run",), ("versions",),
]  # fmt: skip


@pytest.mark.parametrize("leaf", LEAVES, ids=".".join)
def test_every_change_of_config_json_is_found(copy, leaf):
    record = json.loads((copy / "config.json").read_text())
    *way, last = leaf
    inner = record
    for name in way:
        inner = inner[name]
    inner[last] = 7
    (copy / "config.json").write_text(json.dumps(record))
    with pytest.raises(SnfnpError, match="config.json is damaged .its checksum differs") as caught:
        load_run(copy)
    assert_one_line(caught.value)


VALUES = [None, "x", "", -1, 0, 7, 2.5, True, [], {}, [1, 2, 3], ["a"] * 3, 10**30, 1e300]


@pytest.mark.parametrize("value", VALUES, ids=str)
def test_an_old_config_json_without_a_checksum_never_ends_in_a_traceback(copy, value):
    record = json.loads((copy / "config.json").read_text())
    del record["sha256"]
    places = [(record, name) for name in ("config", "data", "run", "history")]
    places += [(record["data"], name) for name in ("images", "shape")]
    places += [(record["config"], name) for name in record["config"]]
    for inner, name in places:
        before = inner.get(name)
        inner[name] = value
        (copy / "config.json").write_text(json.dumps(record))
        for way in (
            lambda: load_run(copy),
            lambda: resumed_config(RunFolder(copy), {}, rollback=True),
        ):
            try:
                way()
            except SnfnpError as error:
                assert_one_line(error)
        inner[name] = before


# ---------------------------------------------------------------- what is lost, and not needed


@pytest.mark.parametrize("damage", ["missing", "cut", "a digit"])
def test_without_the_best_checkpoint_the_best_epoch_is_a_later_one(tmp_path, monkeypatch, damage):
    copy = tmp_path / "run"
    with monkeypatch.context() as patched:
        at_step(patched, 12, spoil)
        run_training(copy, backend="numpy")
    assert load_run(copy).checkpoint.step < 15
    DAMAGE[damage](copy / "best.safetensors")
    with pytest.raises(SnfnpError, match="best.safetensors is not of the best eval") as caught:
        run_training(copy, resume=True, backend="numpy")  # nothing is left to do but test it
    assert_one_line(caught.value, "give more --epochs")
    said = []
    _, summary = run_training(copy, resume=True, backend="numpy", epochs=4, report=said.append)
    assert summary["best_epoch"] == 4 and load_run(copy).checkpoint.step == 20
    assert any("is lost or damaged: the best epoch is one after step 15" in s for s in said)


def test_metrics_that_were_lost_are_reported_and_training_goes_on(copy):
    (copy / "metrics.jsonl").unlink()
    said = []
    run, _ = run_training(copy, resume=True, backend="numpy", epochs=4, report=said.append)
    assert any("metrics.jsonl is missing: the metrics up to step 15 are lost" in s for s in said)
    assert [record["epoch"] for record in run.read_metrics()] == [4]
    run_training(copy, resume=True, backend="numpy", epochs=5)
    assert [record["epoch"] for record in run.read_metrics()] == [4, 5]


@pytest.mark.parametrize(
    "line", ['{"epoch": 2}', "{", "[]", '{"epoch": "2"}', "", '{"epoch": NaN}', "null"]
)
def test_a_damaged_line_of_metrics_is_named(copy, line):
    file = copy / "metrics.jsonl"
    lines = file.read_text().splitlines()
    file.write_text("\n".join([lines[0], line, lines[2]]) + "\n")
    with pytest.raises(SnfnpError, match="metrics.jsonl is damaged .line 2: ") as caught:
        RunFolder(copy).read_metrics()
    assert_one_line(caught.value, "delete it to go on without")


def test_metrics_that_cannot_be_written_are_one_line(copy):
    folder(copy / "metrics.jsonl")
    with pytest.raises(SnfnpError, match="cannot write .*metrics.jsonl") as caught:
        RunFolder(copy).append_metrics({"epoch": 1})
    assert_one_line(caught.value)


# ---------------------------------------------------------------- the log


@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_averages_go_on_where_a_checkpoint_left_them(backend):
    ops = get_ops(backend)
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (6, 8, 8, 1)).astype(np.uint8) for _ in range(5)]
    whole, part, rest = (make_trainer(ops) for _ in range(3))
    for index, batch in enumerate(images):
        whole.training_step(batch)
        (part if index < 2 else rest).training_step(batch)
        if index == 1:
            rest.restore(part.checkpoint({}))
    assert whole.averages() == rest.averages()


def test_a_config_may_be_of_a_model_that_is_too_large_to_be(copy):
    """Shapes are compared before anything is allocated."""
    record = json.loads((copy / "config.json").read_text())
    del record["sha256"]
    record["data"]["shape"] = [20_000, 20_000, 3]
    (copy / "config.json").write_text(json.dumps(record))
    with pytest.raises(SnfnpError) as caught:
        load_run(copy)
    assert_one_line(caught.value)


def test_options_of_a_run_are_not_changed_in_the_file(copy):
    file = copy / "config.json"
    file.write_text(file.read_text().replace('"lr": 0.001', '"lr": 0.002'))
    with pytest.raises(SnfnpError, match="options are changed by --resume, not in the file"):
        resumed_config(RunFolder(copy), {})
    with pytest.raises(UsageError, match="no JSON object"):
        TrainConfig.from_dict([])
