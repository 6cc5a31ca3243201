"""A run opened again, and the names that `import snfnp` offers."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from support.messages import one_line
from support.runs import assert_same_run
from support.trainers import small_dataset, without_time

import snfnp
from snfnp.errors import CheckpointError, UsageError
from snfnp.flow import Flow
from snfnp.ops import get_ops
from snfnp.training.loop import train
from snfnp.training.options import TrainConfig
from snfnp.training.runs.checkpoint import load_checkpoint
from snfnp.training.runs.folder import RunFolder

SIZES = {"fc": {}, "conv": {}, "glow": {"levels": 2, "depth": 1, "width": 4}}


def trained(folder, model="fc"):
    """A run of two epochs: `last` and `best` may differ in what they hold."""
    dataset, size = small_dataset(40, side=8), SIZES[model]
    config = TrainConfig(
        model=model, epochs=2, batch_size=20, lr=1e-3, backend="numpy", out=folder, **size
    ).resolve(40)
    run = RunFolder.create(folder)
    return dataset, config, train(config, dataset, get_ops("numpy"), run, report=lambda line: None)


@pytest.mark.parametrize("model", SIZES)
def test_a_run_comes_back_in_one_line(tmp_path, monkeypatch, model):
    dataset, config, summary = trained(tmp_path / "run", model)

    def draw(*arguments):
        raise AssertionError("an initialisation was drawn to learn shapes")

    monkeypatch.setattr(Flow, "init", draw)
    run = snfnp.load_run(tmp_path / "run")
    assert run.config == dataclasses.replace(config, threads=run.config.threads)
    assert run.ops.name == "numpy" and run.image_shape == (8, 8, 1)
    assert run.record == json.loads((tmp_path / "run" / "config.json").read_text())
    saved = load_checkpoint(run.folder.best, run.layout)
    views = run.layout.views(saved.p)
    for entry in run.layout.entries:
        found = run.params[entry.layer][entry.name]
        assert found.dtype == np.float64
        np.testing.assert_array_equal(found, views[entry.layer][entry.name])
    assert "likelihood" not in vars(run)  # a determinant is computed when it is asked for
    found = run.likelihood.evaluate(dataset.test, 0)
    assert found.nll == summary["test_nll_nats"]
    assert run.likelihood.sample(2, seed=0, exact=True).reshape(-1, *run.image_shape).shape[0] == 2
    last = snfnp.load_run(str(tmp_path / "run"), "last", backend="numba")
    assert last.ops.name == "numba" and last.checkpoint.step == 4
    assert snfnp.load_run(tmp_path / "run", ops=run.ops).ops is run.ops


def test_what_is_no_run_or_no_checkpoint_is_refused(tmp_path):
    with pytest.raises(UsageError, match="is no run folder"):
        snfnp.load_run(tmp_path)
    trained(tmp_path / "run")
    with pytest.raises(UsageError, match="checkpoint is 'first': choose one of best, last"):
        snfnp.load_run(tmp_path / "run", "first")
    (tmp_path / "run" / "best.safetensors").unlink()
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        snfnp.load_run(tmp_path / "run")


@pytest.mark.parametrize("rollback", [False, True])
def test_a_run_goes_on_from_a_notebook_as_from_the_command_line(tmp_path, rollback):
    """To the last bit, with changes, and the same summary as `train` returns."""
    dataset, config, _ = trained(tmp_path / "api")
    shutil.copytree(tmp_path / "api", tmp_path / "loop")
    said = []
    summary = snfnp.resume(
        tmp_path / "api", rollback=rollback, dataset=dataset, report=said.append, epochs=4, lr=1e-4
    )
    longer = dataclasses.replace(config, epochs=4, lr=1e-4)
    run = RunFolder(tmp_path / "loop")
    how = "best" if rollback else True
    expected = train(longer, dataset, get_ops("numpy"), run, how, report=lambda line: None)
    assert without_time([summary]) == without_time([expected])
    assert_same_run(tmp_path / "api", tmp_path / "loop")
    assert any("lr 0.0001 (was 0.001), epochs 4 (was 2)" in line for line in said)


def test_what_is_not_the_same_run_is_refused_in_a_notebook(tmp_path):
    dataset, *_ = trained(tmp_path / "run")
    for changes, message in (
        ({"epochs": 1}, "is at step 4, past `epochs=1`"),
        ({"dataset": small_dataset()}, "was trained on .* images .*, found"),
    ):
        with one_line(UsageError, match=message):
            snfnp.resume(tmp_path / "run", **{"dataset": dataset, **changes})
    with pytest.raises(TypeError, match="unexpected keyword argument 'colour'"):
        snfnp.resume(tmp_path / "run", dataset=dataset, colour=3)
    with pytest.raises(UsageError, match="is no run folder"):
        snfnp.resume(tmp_path)
    assert not (tmp_path / "run.lock").exists()
