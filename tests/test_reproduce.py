"""The paper's tables from one command: killed, resumed, skipped, and shown."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import reproduce
from reproduction import provenance, results, runs
from reproduction import setting as settings
from reproduction.runs import Result, plan
from reproduction.setting import Setting
from reproduction.tables import TABLES
from reproduction.targets import TARGETS
from support import processes
from support.reproduction import FullSize
from support.runs import Killed, kill
from support.trainers import at_step

from snfnp.data import Dataset
from snfnp.errors import SnfnpError, UsageError
from snfnp.ops import get_ops
from snfnp.training.run import RunFolder


@pytest.fixture
def command(monkeypatch, tmp_path, capsys):
    """`reproduce.py TARGET …` at the smoke scale on the sample: what it prints."""
    monkeypatch.setenv("SNFNP_OFFLINE", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("SNFNP_DATA_DIR", raising=False)

    def run(*options, folder="runs"):
        places = ("--runs", tmp_path / folder, "--scale", "smoke", "--backend", "numpy")
        reproduce.main([*map(str, (*options, *places))])
        return capsys.readouterr().out

    return run


@pytest.fixture
def setting(tmp_path, monkeypatch):
    """setting(scale, …) without any images but the sample's."""
    monkeypatch.setenv("SNFNP_OFFLINE", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("SNFNP_DATA_DIR", raising=False)

    def make(scale="smoke", seeds=None, epochs=None):
        return Setting(scale, tmp_path / "runs", get_ops("numpy"), seeds, epochs)

    return make


def table_rows(text):
    """The cells of a printed table, without its two lines of head."""
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line[1:-1].split("|")] for line in lines[2:]]


def no_training(monkeypatch):
    def fail(*_, **__):
        raise AssertionError("trained again")

    monkeypatch.setattr(runs, "train", fail)


def test_without_a_target_there_is_a_list(capsys):
    reproduce.main([])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == [*TARGETS, "all", "page"]
    assert "table4: Table 4: test NLL in nats on MNIST for self-normalizing flows with" in lines[3]


# ---------------------------------------------------------------- what is done


def test_a_table_is_trained_once_and_shown_again(command, monkeypatch, tmp_path):
    first = command("table4")
    rows = table_rows(first)
    assert [row[:2] for row in rows[:14]] == [list(row.cells) for row in TABLES["table4"].rows[:14]]
    assert rows[14][:2] == ["2L-16K Glow", "100 (stand-in: 2L-4K of width 16)"]
    for row in rows:
        assert float(row[2]) > 0 and row[3] == "0" and row[6] == "other data"
    assert rows[3][4:6] == ["1 / 6,000", "946.3"]
    assert "their figures mean nothing" in first
    config = RunFolder.open(tmp_path / "runs/smoke/conv-lambda-0.3-seed-0")[1]["config"]
    assert (config["lam"], config["model"], config["epochs"]) == (0.3, "conv", 1)
    no_training(monkeypatch)
    assert command("table4") == first


def of(text):
    """What is printed but where the picture is."""
    return text[: text.index("* Picture: ")]


def test_killed_and_started_again_it_ends_with_the_same_results(command, monkeypatch, tmp_path):
    whole = command("table5", "--seeds", "1", "0", folder="whole")
    killed = []

    def once(trainer):
        if trainer.config.lambda_control == "geco" and not killed:
            killed.append(trainer.step)
            kill()

    at_step(monkeypatch, 1, once)
    with pytest.raises(Killed):
        command("table5", "--seeds", "1", "0")
    assert of(command("table5", "--seeds", "1", "0")) == of(whole)
    assert killed == [1]
    record, again = (results.read(tmp_path / f / "smoke/results.json") for f in ("whole", "runs"))
    assert record == again and list(record) == ["table5"]
    assert all(" ± " in row[1] and row[2] == "1, 0" for row in table_rows(whole))


def test_a_row_that_diverges_says_at_which_step(command, monkeypatch, tmp_path):
    def spoil(trainer):
        if trainer.config.gradient == "exact":
            trainer.p[:] = np.nan

    at_step(monkeypatch, 1, spoil)
    shown = command("table5")
    first, *others = table_rows(shown)
    assert first[1] == "diverged at step 2" and float(others[0][1]) > 0
    record = json.loads((tmp_path / "runs/smoke/glow-1x1-exact-seed-0.diverged.json").read_text())
    assert record["step"] == 2 and "is not finite" in record["message"]
    no_training(monkeypatch)
    assert command("table5") == shown


def test_a_longer_scale_goes_on_with_a_shorter_one(command, setting):
    command("table5", "--seeds", "3")
    here = setting(seeds=[3], epochs=2)
    longer, dataset = plan(TABLES["table5"].rows, here)[0], here.dataset("mnist")
    assert runs.found(longer, dataset, "numpy") is None
    result = runs.perform(longer, dataset, get_ops("numpy"), lambda text: None)
    assert result.epochs == 2 and runs.found(longer, dataset, "numpy") == result
    # what was trained longer than it is asked for stays as it is
    shorter = replace(longer, epochs=1)
    assert runs.found(shorter, dataset, "numpy") == result
    assert table_rows(command("table5", "--seeds", "3"))[0][3] == "2 / not given"


def test_a_table_is_shown_as_soon_as_its_runs_are_done(command, monkeypatch, tmp_path, capsys):
    """Whoever stops `all` in the middle has the tables before."""

    def last(trainer):
        if trainer.config.kernel == 5:
            kill()

    at_step(monkeypatch, 1, last)
    with pytest.raises(Killed):
        command("all")
    shown = capsys.readouterr().out
    assert all(TABLES[name].title in shown for name in ("table1", "table4"))
    assert list(results.read(tmp_path / "runs/smoke/results.json")) == list(TARGETS)[:4]


def test_single_rows_can_be_trained_longer_than_others(command, tmp_path):
    said = command("all", "--rows", "glow-1x1-geco", "fc-snf", "--epochs", "2")
    titles = [TARGETS[name].title for name in ("table1", "table4", "table5", "figure3", "figure5")]
    shown = [line[2:].partition("**")[0] for line in said.splitlines() if line.startswith("**")]
    assert shown == titles  # all that have such rows, and nothing else
    assert [row[0] for row in table_rows(command("table5", "--rows", "glow-5x5-geco"))] == [
        "SNF 1x1",  # is kept
        "SNF 5x5",
    ]
    names = sorted(path.name for path in (tmp_path / "runs/smoke").glob("*-seed-0"))
    assert names == ["fc-snf-seed-0", "glow-1x1-geco-seed-0", "glow-5x5-geco-seed-0"]
    epochs = [row[3] for row in table_rows(command("table5"))]
    assert epochs == ["1 / not given", "2 / not given", "1 / not given"]


def test_runs_can_be_evaluated_less_often(command, tmp_path):
    command("table1", "--rows", "conv-snf", "--epochs", "5", "--eval-every", "2")
    lines = (tmp_path / "runs/smoke/conv-snf-seed-0/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [2, 4, 5]
    said = command("table1", "--rows", "conv-snf", "--epochs", "5")  # a finished run is the same
    assert table_rows(said)[0][3] == "5 / 1,000"


# ---------------------------------------------------------------- what is shown


def test_means_deviations_and_how_far(tmp_path, monkeypatch):
    target = TARGETS["table5"]
    setting = FullSize("paper", tmp_path, get_ops("numpy"), [0, 1])
    exact, one, five = [
        [run.folder for run in target.plan(setting) if run.row == row]
        for row in TABLES["table5"].rows
    ]
    found = {
        exact[0]: Result(680.0, 250),
        exact[1]: Result(684.0, 250),
        one[0]: Result(680.3, 10),
        one[1]: Result(None, 10, 77, before={"epoch": 3, "rho": 1.25}),
        five[0]: Result(None, 250, 0, before={}),
        five[1]: Result(None, 250, 12, before={}),
    }
    monkeypatch.setattr("reproduction.provenance.of_run", lambda folder: {"commit": "c0ffee"})
    for folder, nll in ((exact[0], 700.0), (exact[1], 702.0)):
        figures = {"step": 1, "seconds": 1.0, "reconstruction": 1.0}
        lines = [
            figures | {"epoch": n, "validation_nll_nats": nll - n} for n in (1, 5, 10, 11, 30, 60)
        ]
        folder.mkdir()
        text = "".join(json.dumps(line) + "\n" for line in lines[: 6 - (folder == exact[1])])
        (folder / "metrics.jsonl").write_text(text)
    record = target.collect(setting, found)
    assert [row["made_with"] for row in record["rows"]] == [[{"commit": "c0ffee"}]] * 3
    config = record["rows"][2]["config"]
    assert (config["kernel"], config["lambda_rate"], config["lr"]) == (5, 1e-3, 1e-3)
    shown, _, learning = target.show(record).partition("Exact validation NLL in nats while")
    assert table_rows(learning) == [["Glow 1x1", "691.0", "671.0"]]  # 10 and 30: both have them
    assert "| epoch 10 | epoch 30 |" in learning
    assert table_rows(shown) == [
        ["Glow 1x1", "682.0 ± 2.8", "0, 1", "250 / not given", "678.3 ± 2.0", "+3.7"],
        [
            "SNF 1x1",
            "680.3 and diverged at step 77 (seed 1), after epoch 3: ρ ≥ 1.25",
            "0, 1",
            "10 / not given",
            "678.3 ± 9.7",
            "+2.0",
        ],
        [
            "SNF 5x5",
            "diverged at step unknown (seed 0) and diverged at step 12 (seed 1)",
            "0, 1",
            "250 / not given",
            "669.9 ± 2.8",
            "",
        ],
    ]


def test_a_run_whose_likelihood_was_lost_says_from_which_step_on(tmp_path, monkeypatch):
    """The test likelihood is that of the best epoch: without this, nobody would see it."""
    target, nll = TARGETS["table4"], (900.0, 800.0, 890.0, 790.0, 870.0, 1200.0)
    setting = FullSize("hour", tmp_path, get_ops("numpy"), rows=("fc-lambda-0.05",))
    (run,) = target.plan(setting)
    run.folder.mkdir()
    lines = [
        {"epoch": n, "step": 500 * n, "seconds": 1.0, "reconstruction": 1.0}
        | {"validation_nll_nats": value, "layers": {"a": {"rho": n / 8}}}
        for n, value in enumerate(nll, start=1)
    ]
    monkeypatch.setattr("reproduction.provenance.of_run", lambda folder: {"commit": "c0ffee"})

    def ours(count):
        text = "".join(json.dumps(line) + "\n" for line in lines[:count])
        (run.folder / "metrics.jsonl").write_text(text)
        record = target.collect(setting, {run.folder: Result(786.0, 30, best_epoch=4)})
        return table_rows(target.show(record))[0][2]

    assert ours(4) == "786.0"  # what was lost in between came back
    # 870 is more than a tenth above 790
    assert ours(6) == "786.0; best at epoch 4, lost from step 2500 on, after epoch 4: ρ ≥ 0.5"
    lines[4]["validation_nll_nats"] = 868.0
    assert ours(5) == "786.0" and "step 3000 on, after epoch 5: ρ ≥ 0.625" in ours(6)


def test_a_row_without_its_images_is_a_line(command, capsys):
    shown = command("table2")
    assert [row[2] for row in table_rows(shown)] == ["no data"] * 4
    assert shown.count("* Not trained, for want of images: ") == 4
    assert "+" not in shown  # no difference from a figure that is not there


def test_colour_images_are_counted_in_bits(command, monkeypatch, tmp_path):
    def colours(name, folder):
        count = {"train": 200, "validation": 100, "test": 100}
        rng = np.random.default_rng(0)
        splits = [rng.integers(0, 256, (n, 32, 32, 3)).astype(np.uint8) for n in count.values()]
        return Dataset(name, *splits, source="random images", is_sample=False)

    monkeypatch.setattr(settings, "load_dataset", colours)
    shown = command("table2")
    glow, snf, *_ = table_rows(shown)
    assert glow[:2] == ["Glow", "CIFAR-10 (stand-in: 3L-4K of width 64)"]
    summary = tmp_path / "runs/smoke/glow-3l-32k-exact-small-seed-0/summary.json"
    bits = json.loads(summary.read_text())["test_bits_per_dimension"]
    assert glow[2] == f"{bits:.3f}" and snf[5] == "3.370 ± 0.004"


def test_the_same_figure_for_the_same_record(command, tmp_path):
    command("table5")
    picture = tmp_path / "runs/smoke/table5.svg"
    first = picture.read_bytes()
    picture.unlink()
    command("table5")
    assert first.startswith(b"<?xml") and picture.read_bytes() == first


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    "options, said",
    [
        (("table9",), "there is no table9: choose from table1, table2"),
        (("table4", "--seeds", "-1"), "--seeds must be whole numbers"),
        (("table4", "--seeds", "1", "1"), "--seeds names a seed twice"),
        (("table5", "--rows", "fc-snf"), "there is no row fc-snf here: choose from glow-1x1-exact"),
        (("table3", "--rows", "x"), "--rows has no effect on table3: leave it out"),
        (("figure4", "--seeds", "5"), "--seeds has no effect on figure4: leave it out"),
        (("figure4", "--epochs", "7"), "--epochs has no effect on figure4: leave it out"),
        (("figure4", "--eval-every", "7"), "--eval-every has no effect on figure4: leave it out"),
        (("table3", "--data-dir", "."), "--data-dir has no effect on table3: leave it out"),
        (("table1", "--measure-again"), "--measure-again has no effect on table1: leave it out"),
        (("figure3", "--seeds", "0", "1"), "--seeds has seeds without effect on figure3: name one"),
        (
            ("all", "--rows", "conv-snf", "--measure-again"),
            "--measure-again has no effect on table1, table4, figure3: leave it out",
        ),
        (("table4", "--epochs", "0"), "--epochs is 0: it must be at least 1"),
        (("table4", "--eval-every", "0"), "--eval-every is 0: it must be at least 1"),
        (("table4", "--seeds", "x"), "invalid int value: 'x'"),
        (("table4", "--scale", "day"), "invalid choice: 'day'"),
        (("table4", "--data-dir", "/nowhere"), "/nowhere"),
    ],
)
def test_bad_input_is_one_line(command, options, said):
    with pytest.raises(UsageError) as caught:
        command(*options)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_a_place_that_no_folder_can_have_is_one_line(command, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot make .* choose another --runs"):
        command("table5", folder="file")


def test_another_run_in_a_folder_is_refused(command, tmp_path):
    command("table5")
    folder = tmp_path / "runs/smoke"
    (folder / "glow-1x1-exact-seed-0").rename(folder / "aside")
    (folder / "glow-1x1-geco-seed-0").rename(folder / "glow-1x1-exact-seed-0")
    with pytest.raises(UsageError, match="holds another run .*gradient.* choose another --runs"):
        command("table5")


def test_a_run_that_went_on_with_another_learning_rate_is_refused(command, setting):
    here = setting(seeds=[0])
    run, dataset = plan(TABLES["table5"].rows, here)[0], here.dataset("mnist")
    faster = replace(run, row=replace(run.row, options=run.row.options | {"lr": 0.01}))
    runs.perform(faster, dataset, get_ops("numpy"), lambda text: None)
    with pytest.raises(UsageError, match=r"holds another run \(lr differ\)"):
        command("table5")


def test_other_images_are_refused(command, monkeypatch):
    command("table5")
    monkeypatch.setitem(settings._SMOKE, "train", 300)
    with pytest.raises(UsageError, match=r"was trained on \[200, 100, 100\] images .* found \[300"):
        command("table5")


@pytest.mark.parametrize("file", ["config.json", "summary.json"])
def test_a_damaged_folder_is_one_line(command, tmp_path, file):
    command("table5")
    path = tmp_path / "runs/smoke/glow-5x5-geco-seed-0" / file
    path.write_text("{")
    with pytest.raises(SnfnpError, match=f"{file} is damaged") as caught:
        command("table5")
    assert "\n" not in str(caught.value)


def test_a_lost_summary_is_made_again(command, tmp_path):
    first = command("table5")
    (tmp_path / "runs/smoke/glow-5x5-geco-seed-0/summary.json").unlink()
    assert command("table5") == first


@pytest.mark.parametrize("content", ["{", "[]", '{"format": 2, "targets": {}}', '{"format": 1}'])
def test_damaged_results_are_one_line(command, tmp_path, content):
    command("table5")
    (tmp_path / "runs/smoke/results.json").write_text(content)
    with pytest.raises(SnfnpError, match="results.json is damaged") as caught:
        command("table5")
    assert "\n" not in str(caught.value)


def test_a_damaged_note_of_the_commit_is_one_line(command, tmp_path):
    command("table5")
    (tmp_path / "runs/smoke/glow-5x5-geco-seed-0.made-with.json").write_text("{")
    with pytest.raises(SnfnpError, match="made-with.json is damaged") as caught:
        command("table5")
    assert "\n" not in str(caught.value)


@pytest.mark.mpi
def test_processes_train_a_row_together_and_one_of_them_speaks(tmp_path, monkeypatch):
    monkeypatch.setenv("SNFNP_OFFLINE", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("SNFNP_DATA_DIR", raising=False)
    script = Path(reproduce.__file__)
    where = ("table1", "--rows", "fc-snf", "--scale", "smoke", "--backend", "numpy")
    found = {}
    for count in (1, 2):
        runs_of = tmp_path / str(count)
        done = subprocess.run(
            [sys.executable, script, *where, "--runs", runs_of, "--processes", str(count)],
            env=processes.environment(),
            capture_output=True,
            text=True,
            timeout=100,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        assert [row[0] for row in table_rows(done.stdout)] == ["SNF FC 2-Layer"]
        assert done.stdout.count("* Picture: ") == 1
        assert done.stderr.count("fc-snf-seed-0, to epoch 1; runs left: 1") == 1
        folder = runs_of / "smoke" / "fc-snf-seed-0"
        assert provenance.of_run(folder)["processes"] == count
        found[count] = json.loads((folder / "summary.json").read_text())["test_nll_nats"]
    assert found[2] == pytest.approx(found[1], rel=1e-4)  # float32
