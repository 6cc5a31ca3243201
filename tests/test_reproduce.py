"""The paper's tables from one command: planned, killed, resumed, skipped, and shown."""

import json

import numpy as np
import pytest
import reproduce
from reproduction import runs
from reproduction.report import markdown
from reproduction.runs import Result, plan
from reproduction.tables import TABLES
from support.runs import Killed, kill
from support.trainers import at_step

from snfnp.data import Dataset, load_dataset
from snfnp.errors import SnfnpError, UsageError
from snfnp.ops import get_ops
from snfnp.training.config import TrainConfig
from snfnp.training.run import RunFolder

EVERY_ROW = [pytest.param(row, id=row.name) for table in TABLES.values() for row in table.rows]


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


def table_rows(text):
    """The cells of a printed table, without its two lines of head."""
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line[1:-1].split("|")] for line in lines[2:]]


def no_training(monkeypatch):
    def fail(*_, **__):
        raise AssertionError("trained again")

    monkeypatch.setattr(runs, "train", fail)


# ---------------------------------------------------------------- what is planned


def test_without_a_target_there_is_a_list(capsys):
    reproduce.main([])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == list(TABLES)
    assert "table4: Table 4: test NLL in nats" in lines[0] and "(14 rows)" in lines[0]


@pytest.mark.parametrize("row", EVERY_ROW)
def test_a_rows_configuration_is_that_of_a_3(row):
    config = TrainConfig(**row.options).resolve(50_000)
    assert (config.batch_size, config.warmup_epochs, config.clip_norm) == (100, 10, None)
    assert config.lr == (1e-4 if config.model == "fc" else 1e-3)
    assert row.epochs == {"fc": 6000, "conv": 1000, "glow-2l-4k": 250}[config.model]
    if config.model == "glow-2l-4k":
        assert (config.levels, config.depth, config.width) == (2, 4, 16)
        assert config.lambda_control == ("fixed" if config.gradient == "exact" else "geco")
    else:
        assert config.gradient == "self-normalizing" and config.objective == "mixture"
        assert row.cells[1] == f"{config.lam:g}" and config.init == "paper"


def test_the_papers_figures():
    """Tables 4 and 5 as they are printed."""
    printed = {row.name: (row.paper, row.spread) for t in TABLES.values() for row in t.rows}
    for model, figures in (
        ("fc", (946.3, 954.6, 1007.4, 1039.8)),
        ("conv", (639.6, 642.9, 646.3, 660.6)),
    ):
        assert [printed[f"{model}-lambda-{lam}"][0] for lam in (1, 10, 100, 1000)] == list(figures)
        assert [printed[f"{model}-lambda-{lam}"][0] for lam in (0.05, 0.1)] == ["–", "–"]
        assert printed[f"{model}-lambda-0.3"][0] == "not given"
    assert printed["glow-1x1-exact"] == (678.3, 2.0)
    assert printed["glow-1x1-geco"] == (678.3, 9.7)
    assert printed["glow-5x5-geco"] == (669.9, 2.8)


def test_scales_and_seeds(tmp_path):
    table = TABLES["table5"]
    hour, paper = (plan(table, scale, tmp_path, None) for scale in ("hour", "paper"))
    assert [(run.row.name, run.seed) for run in hour] == [
        (row.name, seed) for row in table.rows for seed in (0, 1, 2)
    ]
    assert [run.folder for run in hour] == [run.folder for run in paper]  # one extends the other
    assert {run.epochs for run in paper} == {250} and {run.epochs for run in hour} == {10}
    (only,) = {run.seed for run in plan(TABLES["table4"], "hour", tmp_path, None)}
    assert only == 0
    smoke = plan(table, "smoke", tmp_path, [7])
    assert {run.seed for run in smoke} == {7} and {run.epochs for run in smoke} == {1}
    assert smoke[0].folder.parent == tmp_path / "smoke"


# ---------------------------------------------------------------- what is done


def test_a_table_is_trained_once_and_shown_again(command, monkeypatch, tmp_path):
    first = command("table4")
    rows = table_rows(first)
    assert [row[:2] for row in rows] == [list(row.cells) for row in TABLES["table4"].rows]
    for row in rows:
        assert float(row[2]) > 0 and row[3] == "0" and row[6] == "other data"
    assert rows[3][4:6] == ["1 / 6,000", "946.3"]
    assert "their figures mean nothing" in first
    config = RunFolder.open(tmp_path / "runs/smoke/conv-lambda-0.3-seed-0")[1]["config"]
    assert (config["lam"], config["model"], config["epochs"]) == (0.3, "conv", 1)
    no_training(monkeypatch)
    assert command("table4") == first


def test_killed_and_started_again_it_shows_the_same(command, monkeypatch):
    whole = command("table5", "--seeds", "1", "0", folder="whole")
    killed = []

    def once(trainer):
        if trainer.config.lambda_control == "geco" and not killed:
            killed.append(trainer.step)
            kill()

    at_step(monkeypatch, 1, once)
    with pytest.raises(Killed):
        command("table5", "--seeds", "1", "0")
    assert command("table5", "--seeds", "1", "0") == whole
    assert killed == [1]
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


def test_a_longer_scale_goes_on_with_a_shorter_one(command, monkeypatch, tmp_path):
    command("table5", "--seeds", "3")
    longer = plan(TABLES["table5"], "smoke", tmp_path / "runs", [3])[0]
    longer = runs.Run(longer.row, 3, 2, longer.folder)
    dataset = runs.images_at("smoke", load_dataset("mnist"))
    assert runs.found(longer, dataset, "numpy") is None
    result = runs.perform(longer, dataset, get_ops("numpy"), lambda text: None)
    assert result.epochs == 2 and runs.found(longer, dataset, "numpy") == result
    # what was trained longer than it is asked for stays as it is
    shorter = runs.Run(longer.row, 3, 1, longer.folder)
    assert runs.found(shorter, dataset, "numpy") == result
    assert table_rows(command("table5", "--seeds", "3"))[0][3] == "2 / 250"


# ---------------------------------------------------------------- what is shown


def test_means_deviations_and_how_far():
    table = TABLES["table5"]
    exact, one, five = table.rows
    results = {
        exact: [(0, Result(680.0, 250)), (1, Result(684.0, 250))],
        one: [(0, Result(680.3, 10)), (1, Result(None, 10, 77))],
        five: [(0, Result(None, 250, 0)), (1, Result(None, 250, 12))],
    }
    splits = [np.zeros((count, 28, 28, 1), np.uint8) for count in (500, 100, 100)]
    full = Dataset("mnist", *splits, source="somewhere", is_sample=False)
    rows = table_rows(markdown(table, "paper", full, results))
    assert rows == [
        ["Glow 1x1", "682.0 ± 2.8", "0, 1", "250 / 250", "678.3 ± 2.0", "+3.7"],
        [
            "SNF 1x1",
            "680.3 and diverged at step 77 (seed 1)",
            "0, 1",
            "10 / 250",
            "678.3 ± 9.7",
            "+2.0 (not trained as long)",
        ],
        [
            "SNF 5x5",
            "diverged at step unknown (seed 0) and diverged at step 12 (seed 1)",
            "0, 1",
            "250 / 250",
            "669.9 ± 2.8",
            "",
        ],
    ]


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    "options, said",
    [
        (("table9",), "there is no table9: choose from table4, table5"),
        (("table4", "--seeds", "-1"), "--seeds must be whole numbers"),
        (("table4", "--seeds", "1", "1"), "--seeds names a seed twice"),
        (("table4", "--seeds", "x"), "invalid int value: 'x'"),
        (("table4", "--scale", "day"), "invalid choice: 'day'"),
        (("table4", "--data-dir", "/nowhere"), "/nowhere"),
    ],
)
def test_bad_input_is_one_line(command, options, said):
    with pytest.raises(UsageError) as caught:
        command(*options)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_another_run_in_a_folder_is_refused(command, tmp_path):
    command("table5")
    folder = tmp_path / "runs/smoke"
    (folder / "glow-1x1-exact-seed-0").rename(folder / "aside")
    (folder / "glow-1x1-geco-seed-0").rename(folder / "glow-1x1-exact-seed-0")
    with pytest.raises(UsageError, match="holds another run .*gradient.* choose another --runs"):
        command("table5")


def test_other_images_are_refused(command, monkeypatch):
    command("table5")
    monkeypatch.setitem(runs._SMOKE, "train", 300)
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
