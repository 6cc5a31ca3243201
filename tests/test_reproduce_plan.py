"""Which runs `reproduce.py` plans for the rows of the paper's tables, and the paper's figures."""

from dataclasses import replace

import pytest
from reproduction import runs
from reproduction.runs import plan
from reproduction.setting import SCALES
from reproduction.tables import TABLES
from reproduction.targets import TARGETS
from support.reproduction import FullSize

from snfnp.ops import get_ops
from snfnp.training.options import TrainConfig

ROWS = [row for table in TABLES.values() for row in table.rows]
EVERY_ROW = [pytest.param(row, id=f"{row.name}-{row.data}") for row in ROWS]
CIFAR = "cifar-10"


@pytest.fixture
def setting(tmp_path):
    """setting(scale, …), with runs in tmp_path."""

    def make(scale="smoke", seeds=None, epochs=None, rows=None):
        ops = get_ops("numpy")
        return FullSize(scale, tmp_path / "runs", ops, seeds, epochs, rows=rows)

    return make


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
    assert config.shuffle and config.augment == (row.data == CIFAR)
    known = {"fc": 6000, "glow": 250, "glow-2l-4k": 250, "glow-3l-32k": 1000, "glow-3l-48k": 15}
    assert row.epochs == known.get(kind, 1000)
    sizes = {"glow": (2, 16), "glow-2l-4k": (2, 4), "glow-3l-32k": (3, 32), "glow-3l-48k": (3, 48)}
    assert (config.levels, config.depth) == sizes.get(kind, (None, None))
    assert config.width == {"glow-2l-4k": 16}.get(kind, config.levels and 512)
    if config.gradient == "self-normalizing":
        assert config.objective == "mixture" and config.inverse_update == "gradient"
        if kind == "glow-2l-4k":
            assert config.lambda_control == "geco" and config.lam == 1
        elif row.cells[-1] == f"{config.lam:g}":  # a row of Table 4
            assert config.lambda_control == "fixed"
        else:
            lam = {"fc": 1, "conv": 1, "glow": 100, "glow-3l-32k": 1000, "glow-3l-48k": 1000}
            assert config.lam == lam[kind] and config.lambda_control == "fixed"
    assert config.init == ("authors" if config.kernel == 5 else "paper")
    assert config.recipe == "paper" and config.chosen("bias_init") in ("zero", None)


def test_rows_of_one_name_are_one_run_and_of_another_name_another():
    """Also where a stand-in takes a row's place."""
    for scale in SCALES:
        by_name, by_config = {}, {}
        for row in (row.at(scale) for row in ROWS):
            config = TrainConfig(**row.options).resolve(50_000)
            config = str(replace(config, epochs=1, track_angle=None).as_dict())
            assert by_name.setdefault(row.name, (config, row.options)) == (config, row.options)
            assert by_config.setdefault(config, row.name) == row.name


def test_the_papers_figures():
    """Tables 1, 2, 4 and 5 as they are printed."""
    printed = {(name, row.cells): row for name, t in TABLES.items() for row in t.rows}
    for label, *figures in (
        ("Relative Grad. FC 2-Layer", 1096.5, 0.5),
        ("Exact Gradient FC 2-Layer", 947.6, 0.2),
        ("SNF FC 2-Layer", 947.1, 0.2),
        ("Emerging Conv. 9-Layer", 645.7, 3.6),
        ("SNF Conv. 9-Layer", 638.6, 0.9),
        ("Conv. Exponential 9-Layer", 638.1, 1.0),
        ("Exact Gradient Conv. 9-Layer", 637.4, 0.2),
        ("Glow 2L-16K", 575.7, 0.8),
        ("SNF Glow 2L-16K", 575.4, 1.4),
    ):
        row = printed.pop(("table1", (label,)))
        assert [row.paper, row.spread] == figures and row.unit == "nats"
    for label, cifar, imagenet in (
        ("Glow", (3.36, 0.002), (4.12, 0.002)),
        ("SNF Glow", (3.37, 0.004), (4.14, 0.007)),
    ):
        for title, figures in (("CIFAR-10", cifar), ("ImageNet32", imagenet)):
            row = printed.pop(("table2", (label, title)))
            assert (row.paper, row.spread) == figures and row.unit == "bits/dim"
    for label, *figures in (
        ("2L FC", "–", "–", "not given", 946.3, 954.6, 1007.4, 1039.8),
        ("9L Conv.", "–", "–", "not given", 639.6, 642.9, 646.3, 660.6),
        ("2L-16K Glow", *[None] * 5, 574.1, 574.8),
    ):
        lambdas = ("0.05", "0.1", "0.3", "1", "10", "100", "1000")
        for lam, figure in zip(lambdas, figures, strict=True):
            if figure is not None:
                assert printed.pop(("table4", (label, lam))).paper == figure
    for label, *figures in (
        ("Glow 1x1", 678.3, 2.0),
        ("SNF 1x1", 678.3, 9.7),
        ("SNF 5x5", 669.9, 2.8),
    ):
        row = printed.pop(("table5", (label,)))
        assert [row.paper, row.spread] == figures
    assert not printed


def test_scales_and_seeds(setting, tmp_path):
    rows = TABLES["table5"].rows
    hour, paper = (plan(rows, setting(scale), 3) for scale in ("hour", "paper"))
    assert [(run.row.name, run.seed) for run in hour] == [
        (row.name, seed) for row in rows for seed in (0, 1, 2)
    ]
    assert [run.folder for run in hour] == [run.folder for run in paper]  # one extends the other
    assert {run.epochs for run in paper} == {250} and {run.epochs for run in hour} == {10}
    assert {run.seed for run in plan(TABLES["table4"].rows, setting("hour"))} == {0}
    smoke = plan(rows, setting(seeds=[7]))
    assert {run.seed for run in smoke} == {7} and {run.epochs for run in smoke} == {1}
    assert smoke[0].folder.parent == tmp_path / "runs/smoke"
    assert {run.epochs for run in plan(rows, setting("paper", epochs=4))} == {4}


def test_a_smaller_model_stands_in_below_the_papers_scale(setting):
    _, *_, glow = TABLES["table1"].rows
    (small,), (large,) = (plan([glow], setting(scale, [0])) for scale in ("hour", "paper"))
    assert large.row == glow and large.config(50_000, "numpy").depth == 16
    assert small.row.instead == "2L-4K of width 16" and small.config(50_000, "numpy").depth == 4
    assert small.folder != large.folder


def test_a_run_that_two_targets_need_is_done_once_and_as_long_as_either_says(setting):
    (run,) = plan(TABLES["table1"].rows[:1], setting())
    assert runs.united([run, replace(run, epochs=5), run]) == [replace(run, epochs=5)]


def test_rows_are_trained_in_the_order_in_which_they_are_named(setting):
    """What time runs out for is then what was named last."""
    wanted = ("fc-snf", "conv-exact", "fc-exact")
    planned = TARGETS["table1"].plan(setting("hour", [1, 0], rows=wanted))
    assert [(run.row.name, run.seed) for run in planned] == [
        (name, seed) for name in wanted for seed in (1, 0)
    ]
    own = [row.name for row in TABLES["table1"].rows if row.name in wanted]
    assert own != list(wanted)  # the order of the table is another one
