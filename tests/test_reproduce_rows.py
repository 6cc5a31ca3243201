"""The rows of the paper's tables: its settings and figures, and the runs that are planned."""

from dataclasses import replace

import pytest
from reproduction.page import TARGETS
from reproduction.rows import TABLES
from support.reproduction import FullSize

from snfnp.ops import get_ops
from snfnp.training.options import TrainConfig

ROWS = [row for name, table in TABLES.items() if name != "white" for row in table.rows]
EVERY_ROW = [pytest.param(row, id=f"{row.name}-{row.data}") for row in ROWS]


@pytest.fixture
def command(tmp_path):
    """command(…), with runs in tmp_path."""
    return lambda **more: FullSize(tmp_path, get_ops("numpy"), **more)


@pytest.mark.parametrize("row", EVERY_ROW)
def test_a_rows_configuration_is_that_of_a_3(row):
    """Appendix A.3, retyped: batch, rate, warm-up, clipping, λ, sizes and epochs of every model."""
    config = TrainConfig(**row.options).resolve(50_000)
    kind, exact = config.model, config.gradient == "exact"
    assert config.batch_size == (64 if kind == "glow-3l-48k" else 100)
    assert config.lr == (1e-4 if kind == "fc" else 1e-3)
    assert config.warmup_epochs == (0 if kind == "glow-3l-48k" else 10)
    clipped = kind == "glow-3l-48k" or kind == "glow-3l-32k" and not exact
    assert config.clip_norm == (10_000 if clipped else None)
    assert config.shuffle and config.augment == (row.data == "cifar-10")
    known = {"fc": 6000, "glow": 250, "glow-2l-4k": 250, "glow-3l-32k": 1000, "glow-3l-48k": 15}
    assert row.epochs == known.get(kind, 1000)
    sizes = {"glow": (2, 16), "glow-2l-4k": (2, 4), "glow-3l-32k": (3, 32), "glow-3l-48k": (3, 48)}
    assert (config.levels, config.depth) == sizes.get(kind, (None, None))
    assert config.width == {"glow-2l-4k": 16}.get(kind, config.levels and 512)
    if config.gradient == "self-normalizing":
        assert config.objective == "mixture"
        if kind == "glow-2l-4k":
            assert config.lambda_control == "geco" and config.lam == 1
        elif row.cells[-1] == f"{config.lam:g}":  # a row of Table 4
            assert config.lambda_control == "fixed"
        else:
            lam = {"fc": 1, "conv": 1, "glow": 100, "glow-3l-32k": 1000, "glow-3l-48k": 1000}
            assert config.lam == lam[kind] and config.lambda_control == "fixed"
    assert config.init == ("authors" if config.kernel == 5 else "paper")
    assert config.recipe == "paper" and config.effective("bias_init") in ("zero", None)


def test_rows_of_one_name_are_one_run_and_of_another_name_another():
    by_name, by_config = {}, {}
    for row in ROWS:
        config = TrainConfig(**row.options).resolve(50_000)
        config = str(replace(config, epochs=1, track_angle=None).as_dict())
        assert by_name.setdefault(row.name, (config, row.ours)) == (config, row.ours)
        assert by_config.setdefault(config, row.name) == row.name


def test_epochs_and_seeds_and_what_has_to_be_named(command):
    rows = TABLES["table5"].rows
    planned = command().plan(rows, 3)
    seeds = [(row.name, seed) for row in rows for seed in (0, 1, 2)]
    assert [(run.row.name, run.seed) for run in planned] == seeds
    assert {run.epochs for run in planned} == {10}
    assert {run.epochs for run in command(epochs=4).plan(rows, 1)} == {4}
    assert {run.seed for run in command(seeds=[7]).plan(rows, 3)} == {7}
    *_, glow = TABLES["table1"].rows
    assert command().plan([glow], 1) == []
    (run,) = command(rows=[glow.name]).plan([glow], 1)
    assert run.epochs == 250 and run.config(50_000, "numpy").depth == 16


def test_rows_are_trained_in_the_order_in_which_they_are_named(command):
    """What time runs out for is then what was named last."""
    wanted = ["fc-snf", "conv-exact", "fc-exact"]
    planned = TARGETS["table1"].plan(command(seeds=[1, 0], rows=wanted))
    assert [(run.row.name, run.seed) for run in planned] == [
        (name, seed) for name in wanted for seed in (1, 0)
    ]


def test_rows_of_the_recipe_have_the_papers_figures_and_nothing_else_of_their_own():
    """Of the row of the same model in Table 1 or 5, whatever the name of it."""
    figures = {(row.paper, row.spread, row.epochs) for row in ROWS}
    rows = TABLES["white"].rows
    assert len({row.name for row in rows} - {row.name for row in ROWS}) == len(rows)
    for row in rows:
        assert (row.paper, row.spread, row.epochs) in figures
        assert set(row.options) <= {"model", "gradient", "kernel", "init", "recipe"}
        assert TrainConfig(**row.options).resolve(50_000).coordinates == "white"
