"""Runs that start, stop, go on, or go wrong: as before, changed, or from the best."""

import dataclasses
import math
import re
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from support.messages import assert_one_line, one_line
from support.runs import (
    START,
    Killed,
    around,
    arrays,
    assert_same_run,
    forge,
    kill,
    state,
    stopped_at,
)
from support.trainers import at_step, run_training, small_config, spoil

from snfnp.errors import CheckpointError, DivergedError, SnfnpError, in_flags
from snfnp.flow import Flow
from snfnp.likelihood import Likelihood
from snfnp.ops.step.definition import StepScalars
from snfnp.step.trainer import Trainer
from snfnp.step.update import learning_rate
from snfnp.training import checkpointer
from snfnp.training.evaluation import _explosion_threshold
from snfnp.training.runs.checkpoint import Checkpoint, load_checkpoint
from snfnp.training.runs.folder import RunFolder
from snfnp.training.runs.load import load_run

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("here")]

EVERY = [
    ("3", [0, 3, 5, 8, 10, 13, 15]),
    ("1000", [0, 5, 10, 15]),
    ("10m", [0, 5, 10, 15]),
]
WRITES = ["save_checkpoint", "cut_metrics", "write_config", "remove_summary"]


@pytest.mark.parametrize("owner, method", [(Trainer, "begin"), (Checkpoint, "of")])
def test_a_run_killed_before_its_first_checkpoint_starts_again(
    snfnp_train, monkeypatch, owner, method
):
    start = f"{START} --out run"
    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(owner, method, kill)
        snfnp_train(start)
    Path("run/run.lock").write_text("process 1 on elsewhere\n")
    Path("run/last.safetensors.1-abcdef01.partial").write_bytes(b"half")
    Path("run/notes.1-2.partial").touch()
    with one_line(SnfnpError, match="no checkpoint|is no run folder"):
        snfnp_train("--resume --out run")
    snfnp_train(start)
    snfnp_train(f"{START} --out other")
    assert_same_run("run", "other")
    assert list(Path("run").glob("*.partial")) == [Path("run/notes.1-2.partial")]


# for `stopped_at`: by the signal that a cluster sends before it kills
TERMINATED = lambda trainer: signal.raise_signal(signal.SIGTERM), KeyboardInterrupt


def test_one_command_starts_goes_on_and_reports_the_end(
    snfnp_train, monkeypatch, capsys
):
    same = f"{START} --resume auto --out run"
    for step in (2, 8):
        with stopped_at(monkeypatch, step, *TERMINATED):
            snfnp_train(same)
    snfnp_train(same)
    capsys.readouterr()
    before = state("run")
    snfnp_train(same)
    out = capsys.readouterr().out
    assert "is finished: give more --epochs" in out and "best epoch" in out
    assert state("run").step == before.step == 15
    snfnp_train("--resume --epochs 4 --out run")
    snfnp_train(same)  # asks for 3 again, which is less than there is
    assert state("run").step == 20
    snfnp_train(f"{START} --epochs 4 --out whole")
    assert_same_run("whole", "run")


@pytest.fixture
def saved_steps(monkeypatch):
    """The steps at which last.safetensors is written."""
    steps = []

    def note(path, checkpoint):
        steps.extend([checkpoint.step] * (path.name == "last.safetensors"))

    around(monkeypatch, checkpointer, "save_checkpoint", note)
    return steps


@pytest.mark.parametrize("every, steps", [*EVERY, ("0.000001m", list(range(16)))])
def test_checkpoints_come_between_evaluations(saved_steps, every, steps):
    run_training("run", checkpoint_every=every)
    assert saved_steps == steps


@pytest.mark.parametrize(
    "name", ["append_metrics", "last.safetensors", "best.safetensors"]
)
@pytest.mark.parametrize("epoch", [1, 3])
def test_a_kill_between_the_files_of_an_evaluation_changes_no_number(
    finished, monkeypatch, name, epoch
):
    def saved(path, checkpoint):
        if path.name == name and checkpoint.step == 5 * epoch:
            raise Killed

    def appended(run, record):
        if name == "append_metrics" and record["epoch"] == epoch:
            raise Killed

    with monkeypatch.context() as patched, pytest.raises(Killed):
        around(patched, checkpointer, "save_checkpoint", after=saved)
        around(patched, RunFolder, "append_metrics", after=appended)
        run_training("part")
    run_training("part", resume=True)
    assert_same_run(finished, "part")
    assert state(finished, "best").step == state("part", "best").step


def test_time_spent_on_checkpoints_is_not_training_time(monkeypatch, advance):
    around(monkeypatch, checkpointer, "save_checkpoint", lambda *_: advance(1000))
    run, _ = run_training("run", epochs=1, checkpoint_every="1")
    assert run.read_metrics()[0]["seconds"] < 1000


def test_a_resumed_run_may_change_how_it_is_trained(snfnp_train, tmp_path, capsys):
    run = tmp_path / "run"
    snfnp_train(f"{START} --epochs 1 --out {run}")
    changes = "--lr 0.002 --lambda 3 --clip-norm 5"
    snfnp_train(f"--resume --out {run} --epochs 2 {changes}")
    changed = "from step 5 on: lam 3.0 (was 1.0), lr 0.002 (was 0.0001), clip_norm 5.0 (was None)"
    assert changed in capsys.readouterr().out
    snfnp_train(f"--resume --out {run} --epochs 3")  # they stay
    loaded = load_run(run, "last")
    assert (loaded.config.lr, loaded.config.clip_norm, loaded.lam) == (0.002, 5, 3)
    first, second = loaded.record["history"]
    assert (first["step"], first["rollback"]) == (5, False)
    # fmt: skip
    assert first["changed"] == {
        "epochs": [1, 2],
        "lr": [1e-4, 0.002],
        "lam": [1.0, 3.0],
        "clip_norm": [None, 5.0],
    }
    assert (second["step"], second["changed"]) == (10, {"epochs": [2, 3]})
    assert [record["lam"] for record in loaded.folder.read_metrics()] == [1, 3, 3]


def test_patience_counts_evaluations_however_far_apart(monkeypatch):
    with monkeypatch.context() as patched:
        at_step(patched, 16, spoil)
        run_training("run", epochs=6, eval_every=3, lr=1e-9)
    run, _ = run_training("run", resume=True, epochs=9, eval_every=1, patience=3)
    assert [record["epoch"] for record in run.read_metrics()] == [3, 6, 7, 8]


@pytest.mark.parametrize("every", [2, 4])
def test_a_run_that_is_cut_short_is_evaluated_at_its_end(monkeypatch, every):
    with stopped_at(monkeypatch, 14, *TERMINATED):
        run_training("part", epochs=5, eval_every=every)
    run_training("part", resume=True, epochs=3)
    assert RunFolder("part").read_metrics()[-1]["step"] == state("part").step == 15


def test_a_run_of_several_processes_goes_on_in_one():
    """As older versions trained: their steps were the same, whatever the number of processes."""
    whole, _ = run_training("whole")
    part, _ = run_training("part", epochs=1)
    _, record = part.open(part.path)
    forge("part", record | {"processes": 4})
    run_training("part", resume=True)
    assert_same_run("whole", "part")


def test_a_changed_option_applies_from_the_next_step(monkeypatch):
    """The same numbers as of a trainer that is changed by hand."""
    changes = {"lam": 3.0, "lr": 2e-3, "clip_norm": 5.0}

    def change(trainer):
        trainer.multipliers.initial = 3.0
        trainer.config = small_config(**changes)

    with monkeypatch.context() as patched:
        at_step(patched, 5, change)
        run_training("by hand")
    run_training("run", epochs=1)
    run_training("run", resume=True, **changes)
    found = state("run")
    expected = load_checkpoint(Path("by hand/last.safetensors"), found.layout)
    np.testing.assert_equal(arrays(found), arrays(expected))


def test_a_schedule_goes_on_as_if_there_had_been_no_end(monkeypatch):
    """After a kill, and with the rates of more epochs if there are more."""
    falling = {"lr_schedule": "cosine", "final_lr_fraction": 0.1}
    rates = {}
    with stopped_at(monkeypatch, 12):
        run_training("run", **falling)
    note = lambda _, step, rate, *rest: rates.update({step: rate})  # noqa: E731
    around(monkeypatch, StepScalars, "set", note)
    for first, epochs in ((10, 3), (15, 4)):
        rates.clear()
        run_training("run", resume=True, epochs=epochs, **falling)
        config = small_config(epochs=epochs, **falling)
        assert rates == {
            n: learning_rate(config, n, 5) for n in range(first, 5 * epochs)
        }


@pytest.fixture
def spoiled(tmp_path, monkeypatch):
    """A run of three epochs whose best is the first, at λ = 1; the rest is at λ = 2."""
    run_training(tmp_path / "run", epochs=1)
    with monkeypatch.context() as patched:
        at_step(patched, 6, spoil)
        run_training(tmp_path / "run", resume=True, lam=2.0)
    assert load_run(tmp_path / "run").checkpoint.step == 5
    return tmp_path / "run"


def test_rollback_goes_back_to_the_best_with_its_settings(spoiled, snfnp_train):
    again = shutil.copytree(spoiled, "again")
    snfnp_train(f"--rollback --out {spoiled}")
    run_training("never", epochs=1)
    run_training("never", resume=True)
    assert_same_run(spoiled, "never")
    event = load_run(spoiled).record["history"][-1]
    assert event == {"step": 5, "rollback": True, "changed": {"lam": [2.0, 1.0]}}
    snfnp_train(f"--rollback --out {again} --lr 1e-5 --lambda 4")
    loaded = load_run(again, "last")
    assert (loaded.config.lr, loaded.lam, loaded.checkpoint.step) == (1e-5, 4, 15)
    assert [record["lam"] for record in loaded.folder.read_metrics()] == [1, 4, 4]


def test_rollback_before_the_first_evaluation_goes_back_to_the_start(
    snfnp_train, tmp_path, monkeypatch
):
    whole = tmp_path / "whole"
    part = tmp_path / "part"
    snfnp_train(f"{START} --out {whole}")
    with stopped_at(monkeypatch, 3, *TERMINATED):
        snfnp_train(f"{START} --out {part}")
    assert state(part).step == 4
    snfnp_train(f"--rollback --out {part}")
    assert_same_run(whole, part)


@pytest.mark.parametrize("name", WRITES)
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_crash_during_a_rollback_is_repaired_by_the_same_command(
    spoiled, snfnp_train, monkeypatch, name, when
):
    again = shutil.copytree(spoiled, "again")
    snfnp_train(f"--rollback --out {spoiled} --lr 1e-5")
    owner = checkpointer if name == "save_checkpoint" else RunFolder
    with monkeypatch.context() as patched, pytest.raises(Killed):
        around(patched, owner, name, **{when: kill})
        snfnp_train(f"--rollback --out {again} --lr 1e-5")
    plain = shutil.copytree(again, "plain")
    snfnp_train(f"--resume --out {plain}")  # goes on as well, from wherever that was
    assert state(plain).step == 15
    snfnp_train(f"--rollback --out {again} --lr 1e-5")
    assert_same_run(spoiled, again)
    histories = [load_run(path).record["history"] for path in (spoiled, again)]
    assert histories[0][-1]["step"] == histories[1][-1]["step"] == 5


def ways_on(error):
    """The options that an error's advice names."""
    return re.findall(r"--r\w+ --out .*? --lr \S+", in_flags(str(error)))


@pytest.mark.parametrize(
    "step, where", [(2, "the start"), (8, "the best evaluation saved")]
)
def test_every_command_advised_after_a_nan_works(snfnp_train, monkeypatch, step, where):
    path = Path("a run")  # a shell needs quotes
    error = pytest.raises(DivergedError, match=where)
    with monkeypatch.context() as patched, error as caught:
        at_step(
            patched, step, lambda trainer: trainer.params["dense1"]["W"].fill(np.nan)
        )
        snfnp_train(f"{START} --lr 0.01 --out '{path}'")
    said = f"diverged at step {step + 1}"
    assert_one_line(caught.value, said, "`clip_norm`", "`lam`")
    ways = ways_on(caught.value)
    assert [way.split()[0] for way in ways] == ["--resume", "--rollback"]
    kept = shutil.copytree(path, "kept")
    for way in ways:
        shutil.rmtree(path)
        shutil.copytree(kept, path)
        snfnp_train(way)
        assert state(path).step == 15 and load_run(path, "last").config.lr == 0.001


def test_worse_than_twice_the_best_and_the_pixels_is_an_explosion(monkeypatch):
    at_step(
        monkeypatch, 12, lambda trainer: trainer.params["dense1"]["W"].__imul__(100)
    )
    with pytest.raises(DivergedError, match="epoch 3 has exploded") as caught:
        run_training("run", lr=1e-6)
    assert "best evaluation saved" in str(caught.value)
    metrics = RunFolder("run").read_metrics()
    best = min(record["validation_bits_per_dimension"] for record in metrics)
    assert best > 8 and f"(a run that learns has at most {2 * best:.4g})" in str(
        caught.value
    )
    assert [way[:10] for way in ways_on(caught.value)] == ["--rollback"]
    assert not Path("run/summary.json").exists()  # it is never called done


@pytest.mark.parametrize(
    "usual, most", [(8.0, 16.0), (1.0, 9.0), (-2.0, 6.0), (-30.0, 0.0)]
)
def test_the_limit_of_an_explosion_is_above_what_is_usual_also_in_small_units(
    usual, most
):
    assert _explosion_threshold(usual) == most


def test_a_start_far_from_the_images_is_no_explosion(monkeypatch):
    original = Flow.init

    def far(flow, seed):
        drawn = original(flow, seed)
        drawn["dense1"]["W"] *= 10
        return drawn

    monkeypatch.setattr(Flow, "init", far)
    run, _ = run_training("run", lr=1e-7, epochs=1)
    assert run.read_metrics()[0]["validation_bits_per_dimension"] > 32


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_what_overflows_is_one_line_without_warnings(snfnp_train, backend):
    """NumPy's Adam overflows in the first epoch, before any checkpoint."""
    with one_line(DivergedError, "from the start with ", "a smaller `lam`") as caught:
        snfnp_train(f"{START} --backend {backend} --lambda 1e30 --out run")
    for way in ways_on(caught.value):
        with pytest.raises(DivergedError):  # again, λ being the same
            snfnp_train(way)


@pytest.mark.parametrize("name", ["surrogate", "reconstruction", "gradient_norm"])
def test_figures_that_are_not_finite_stop_a_run(monkeypatch, name):
    original = Trainer.averages
    nan = {name: math.nan}
    spoiled = lambda trainer: original(trainer)._replace(**nan)  # noqa: E731
    monkeypatch.setattr(Trainer, "averages", spoiled)
    with pytest.raises(
        DivergedError, match=f"{name.replace('_', ' ')} after epoch 1 is not fin"
    ):
        run_training("run")
    assert not RunFolder("run").metrics_file.exists()


def test_a_test_likelihood_that_is_not_finite_is_never_called_done(monkeypatch):
    # three epochs, the test images
    original = Likelihood.evaluate
    calls = []

    def evaluate(*args, **options):
        calls.append(original(*args, **options))
        spoiled = dataclasses.replace(calls[-1], terms={"x": math.nan})
        return spoiled if len(calls) == 4 else calls[-1]

    monkeypatch.setattr(Likelihood, "evaluate", evaluate)
    with pytest.raises(
        DivergedError, match="exact test likelihood at the best epoch is not fin"
    ):
        run_training("run")
    assert len(calls) == 4 and not RunFolder("run").summary_file.exists()


def test_the_test_figure_is_never_that_of_another_epoch_than_the_best(monkeypatch):
    run, _ = run_training("run", epochs=1)
    older = run.best.read_bytes()

    def swap(path, *_):
        if path.name == "best.safetensors":
            path.write_bytes(older)

    around(monkeypatch, checkpointer, "save_checkpoint", after=swap)
    with pytest.raises(
        CheckpointError, match="is of step 5, but the best evaluation was at"
    ):
        run_training("run", resume=True)
