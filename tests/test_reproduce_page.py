"""The rows of the paper's tables, and the page that is made of results.json alone."""

import doctest
import json
import re
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
import reproduce
from reproduction import hours, results
from reproduction import page as module
from reproduction.facts import facts
from reproduction.page import NAME, TARGETS, commands, committed, gaps, page
from reproduction.results import FOLDER, merged
from reproduction.rows import TABLES
from support.messages import one_line
from support.reproduction import FullSize

from snfnp.errors import UsageError
from snfnp.ops import get_ops
from snfnp.training.options import TrainConfig

pytestmark = pytest.mark.slow

RUN = {"seed": 0, "epochs": 30, "value": 1.0}
DIVERGED = {"seed": 2, "epochs": 5, "asked": 30, "diverged_at": 7}
ROWS = [row for name, table in TABLES.items() if name != "white" for row in table.rows]
EVERY_ROW = [pytest.param(row, id=f"{row.name}-{row.data}") for row in ROWS]


def row(name, paper, *values, **more):
    runs = [{"seed": n, "epochs": 3, "value": value} for n, value in enumerate(values)]
    made_with = {
        "commit": "c0ffee",
        "processor": "a processor",
        "platform": "Linux-6, x86_64",
        "backend": "numba",
        "device": {},
        "threads": 2,
        "versions": {"python": "3.11", "numpy": "2.4"},
    }
    return {
        "name": name,
        "cells": [name.upper()],
        "unit": "nats",
        "paper": paper,
        "paper_spread": 0.5,
        "paper_epochs": 3,
        "config": {"model": "fc"},
        "data": "mnist",
        "runs": runs,
        "made_with": [made_with],
    } | more


@pytest.fixture
def records():
    rows = [
        row("fc-exact", 947.6, 950.0, 952.0),
        row("fc-snf", 947.1, 953.5),
        row("conv-exact", 637.4, 640.0, paper_epochs=9),
        row("emerging", 638.6, 641.0, paper_epochs=9),
    ]
    return {"table1": {"rows": rows}}


@pytest.fixture
def folder(tmp_path, monkeypatch, records):
    """Derivations without a page, and a --runs folder with results."""
    monkeypatch.setattr(results, "FOLDER", tmp_path / "derivations")
    (tmp_path / "derivations/figures").mkdir(parents=True)
    runs = tmp_path / "runs"
    runs.mkdir()
    results.write(runs / "results.json", records, list(TARGETS))
    return tmp_path


def publish(folder):
    reproduce.main(["page", "--runs", str(folder / "runs")])


def drawn(picture):
    """What an SVG file says, and where its points, lines and ticks are within each of its axes: all
    but the margins and the legends, which every version of Matplotlib makes a little different."""
    svg = picture.read_text("utf-8")
    places = []
    for axes in svg.split('<g id="axes_')[1:]:
        axes = axes.partition('<g id="legend_')[0]
        found = re.findall(r'<use [^>]*x="([1-9][\d.]*)" y="([\d.]+)"', axes)
        for line in re.findall(r'<path d="([^"]*)" clip-path', axes):
            found += re.findall(r"([\d.-]+) ([\d.-]+)", line)
        at = np.array(found, float)
        places.append((at - at.min(axis=0)) / np.ptp(at, axis=0))
    return re.findall("<!-- (.*?) -->", svg), places


def same_picture(one, other):
    texts, places = drawn(one)
    others, where = drawn(other)
    shapes = [[own.shape for own in each] for each in (places, where)]
    same = texts == others and shapes[0] == shapes[1]
    return same and all(
        np.allclose(*pair, rtol=0, atol=1e-4)
        for pair in zip(places, where, strict=True)
    )


def test_the_committed_page_is_that_of_the_committed_results(tmp_path):
    """`python scripts/reproduce.py page` makes it; page and results exist both or neither."""
    assert (FOLDER / NAME).exists() == (FOLDER / results.NAME).exists()
    if (FOLDER / NAME).exists():
        text = page(committed())
        assert (FOLDER / NAME).read_text("utf-8") == text
        for name, record in committed().items():
            picture = FOLDER / "figures" / module.picture_of(name)
            again = tmp_path / f"{name}.svg"
            # others are of what a test measured before, in this process
            if TARGETS[name].made_of_record:
                TARGETS[name].draw(record, again)
            assert picture.exists() == (again.exists() or name == "figure2")
            if again.exists():
                assert same_picture(picture, again), f"{picture} is of other results"


def test_rows_are_reproduced_by_the_commands_printed():
    """A committed row has the configuration that its command makes now."""
    compared = 0
    for name, record in committed().items():
        settings = {row.name: row.settings for row in TARGETS[name].rows}
        for row in record["rows"] if settings else ():
            now = TrainConfig(**settings[row["name"]]).resolve(50_000).as_dict()
            assert len(row["config"]) > 15 and "lr" in row["config"]
            assert row["config"] == {
                key: now.get(key, value) for key, value in row["config"].items()
            }
            compared += 1
    assert compared > 50


def test_the_page_has_every_table_and_picture(records):
    records["table1"]["rows"].append(row("glow-exact", 575.7, 576.0, 577.0))
    text = page(records)
    table = TARGETS["table1"].show(records["table1"])
    assert table in text and "@" not in text
    assert (
        "\n\nNot run here: `python scripts/reproduce.py table2 --rows …` does it."
        in text
    )
    words = " ".join(text.replace("\\\n", "").split())
    assert (
        "as the paper's: FC-EXACT 951.0 ± 1.4 nats, the paper's 947.6 ± 0.5; FC-SNF"
        in words
    )
    assert "as long as the paper's: 3 of 5 rows (those of Table 1" in words
    assert (
        "s, fully connected: +3.5 nats (test, 3 epochs, seed 0); in the paper -0.5"
        in words
    )
    assert [
        line for line in text.splitlines() if len(line) > 100 and line[0] not in "|!"
    ] == []


def test_every_row_has_a_command(records, capsys):
    records["table1"]["rows"][1]["runs"][0]["eval_every"] = 20
    records["table1"]["rows"].append(row("glow-exact", 575.7, 576.0, 577.0))
    title, *lines = commands(records).splitlines()
    assert title == "Table 1: test NLL in nats on MNIST"
    said = "    python scripts/reproduce.py table1 "
    assert {line.removeprefix(said) for line in lines} == {
        "--epochs 3 --seeds 0 --rows conv-exact emerging",
        "--epochs 3 --eval-every 20 --seeds 0 --rows fc-snf",
        "--epochs 3 --seeds 0 1 --rows fc-exact glow-exact",
    }
    reproduce.main(["commands"])
    assert capsys.readouterr().out == f"{commands(committed())}\n"


# What the paper says, or a setting, not a result of ours.
TYPED = {"-0.5", "0.1", "0.3", "8 nats", "7 nats", "0.001", "0.9", "574.8"}


def typed_figures(text):
    """Figures of results in the prose of page.md that nobody computes."""
    prose = re.sub(r"(?ms)```.*?```|`[^`]*`|\$[^$]*\$|\]\([^)]*\)|^\|[^\n]*", "", text)
    return set(re.findall(r"[-+]?\d+\.\d+|\d+ nats", prose)) - TYPED


def test_the_time_of_a_row_is_that_of_its_measured_steps(capsys):
    """Of 500 steps an epoch; without a measured step there is none, not that of another row."""
    labels = ("Self Normalizing FC 2-Layer", "Exact Conv. 9-Layer")
    timed = [{"label": label, "batch": {"median": 72.0}} for label in labels]
    records = {"table3": {"rows": timed}}
    cost = {
        name: each
        for target in TARGETS.values()
        for each in hours.costs(target.rows, records)
        for name in each.names
    }
    times = {name: each.time(each.ours) for name, each in cost.items()}
    assert {name: time for name, time in times.items() if time[0].isdigit()} == {
        name: "18 min"  # 72 ms · 500 · 30
        for name in cost
        if name == "fc-snf" or name.startswith("fc-lambda")
    }
    assert cost["fc-snf"].time(cost["fc-snf"].paper) == "60.0 h"  # 6,000 epochs
    for name in ("fc-white-20", "conv-exact", "conv-snf", "glow-1x1-geco", "fc-exact"):
        # (exact convolutions were, by another way)
        assert times[name] == "not measured"
    assert times["glow-exact"] == "–"  # trained only if it is named
    for argv in ([], ["--help"]):
        with suppress(SystemExit):
            reproduce.main(argv)
        said = capsys.readouterr().out
        assert "| `conv-exponential` | 30 | 10 min | 1,000 | 5.6 h |" in said
        assert "`glow-1x1-geco`, `glow-5x5-geco` | 10 | not measured | – | – |" in said


def test_the_figures_in_the_prose_come_from_the_results():
    text = module._TEXT.read_text("utf-8")
    assert typed_figures(text) == set()
    assert typed_figures(f"{text} It is 12.5 ahead, or 3 nats.") == {"12.5", "3 nats"}
    known = facts(committed())
    assert set(re.findall(r"@(\w+)@", text)) >= known.keys(), "each is used"
    assert "–" not in known.values() and set(facts({}).values()) == {"–"}
    diverged = {"name": "fc-snf", "runs": [{"largest": None}]}
    assert facts({"figure3": {"rows": [diverged]}})["fc_angle"] == "–"


def stored_figures(records):
    """Likelihoods (nats and bits, of every run and of every row) and times, as texts have them."""
    rows = [row for name in ("table1", "white") for row in records[name]["rows"]]
    found = {f"{row[key]}" for row in rows for key in ("paper", "paper_spread")}
    for row in rows:
        values = [run["value"] for run in row["runs"] if "value" in run]
        spread = {f"{np.std(values, ddof=1):.1f}"} if values[1:] else set()
        for nats in (*values, np.mean(values)):
            found |= {f"{nats:.1f}", f"{nats / (784 * np.log(2)):.3f}"} | spread
    times = [row["batch"].get("median", np.nan) for row in records["table3"]["rows"]]
    return found | {f"{time:.1f}" for time in times}


def test_the_figures_of_the_readme_come_from_the_results():
    text = (FOLDER.parent / "README.md").read_text("utf-8")
    results_of_it = text.partition("\n## Results\n")[2].partition("\n## ")[0]
    known = stored_figures(committed())
    found = set(re.findall(r"\d+\.\d+", results_of_it))
    assert found <= known and len(found) > 15
    assert "637.8" not in known and "39.1" not in known


def test_the_facts_are_differences_over_the_seeds_of_both(records):
    """By hand, from two rows with a common seed and one that only one of them has."""
    exact, snf = records["table1"]["rows"][:2]
    snf["runs"][0]["validation"] = [[20, 990.0], [30, 980.0]]
    exact["runs"][0]["validation"] = [[30, 955.0], [60, 950.0]]
    exact["runs"][1]["validation"] = [[30, 1.0]]
    assert facts(records)["fc_30"] == "25" and facts(records)["fc_60"] == "–"
    records["white"] = {
        "rows": [
            row("glow-5x5-white", 669.9, 660.0, 664.0, 668.0),
            row("glow-1x1-white", 678.3, 667.0, 662.0, 681.0),
        ]
    }
    found = facts(records)  # -7, 2, -13: mean -6, deviation √57
    assert (found["kernels_100"], found["kernels_100_error"]) == ("-6.0", "4.4")


def test_the_gap_is_between_rows_of_the_same_seeds(records):
    ((model, gap),) = gaps(records).items()  # the convolution has no SNF
    assert model == "FC 2-layer"  # exact gradients have another seed as well
    assert gap == "+3.5 nats (test, 3 epochs, seed 0); in the paper -0.5 (3 epochs)"
    both = records["table1"]["rows"][1]["runs"]
    both.append(both[0] | {"seed": 1, "value": 956.5})
    assert "+4.0 nats (test, 3 epochs, seeds 0, 1)" in gaps(records)["FC 2-layer"]
    both[1]["epochs"] = 9  # trained longer than the exact gradient
    assert gaps(records) == {}
    records["table1"]["rows"][1]["runs"] = [{"seed": 0, "epochs": 3, "diverged_at": 7}]
    assert gaps(records) == {} and gaps({}) == {}


def test_a_published_page_is_complete_and_its_doctest_passes(folder, capsys):
    publish(folder)
    written = capsys.readouterr().out.split()
    names = [path.rpartition("/")[2] for path in written]
    assert names == ["results.json", NAME]
    assert {path.name for path in (folder / "derivations").rglob("*.*")} == set(names)
    text = (folder / "derivations" / NAME).read_text("utf-8")
    test = doctest.DocTestParser().get_doctest(text, {}, NAME, None, 0)
    found = doctest.DocTestRunner().run(test)
    assert found.failed == 0 and found.attempted
    said = "SNF minus exact +3.5 nats (test, 3 epochs, seed 0); in the paper -0.5 (3 epochs)\n"
    assert f"FC 2-layer: {said}" in text


def test_published_results_are_merged_with_those_that_are_there(folder, records):
    """Whoever trains one row, on another machine, adds it to the page and loses none."""
    publish(folder)
    longer = row("fc-snf", 947.1, 948.0)
    shorter = row("fc-exact", 947.6, 1.0)
    longer["runs"][0]["epochs"] = 6000
    shorter["runs"][0]["epochs"] = 1
    own = {"table1": {"rows": [longer, shorter]}}
    own["figure2"] = {"rows": [row("glow-2l-4k-lambda-100", "not given", runs=[RUN])]}
    results.write(folder / "runs/results.json", own, list(TARGETS))
    page_before = (folder / "derivations" / NAME).read_bytes()
    with pytest.raises(UsageError, match=r"figure2.png: reproduce figure2 again"):
        publish(folder)
    assert (folder / "derivations" / NAME).read_bytes() == page_before
    (folder / "runs/figure2.png").write_bytes(b"samples")
    publish(folder)
    rows = {own["name"]: own for own in committed()["table1"]["rows"]}
    assert rows.keys() == {"fc-exact", "fc-snf", "conv-exact", "emerging"}
    assert rows["fc-snf"] == longer and rows["fc-exact"] == records["table1"]["rows"][0]
    assert list(committed()) == ["table1", "figure2"]
    assert (
        folder / "derivations/figures/reproduced-figure2.png"
    ).read_bytes() == b"samples"


@pytest.mark.parametrize(
    "targets, said",
    [
        (["table9"], "has a table9 that belongs to no page: name other"),
        ([], "reproduce something first, or name its --runs"),
    ],
)
def test_what_belongs_on_no_page_is_refused(folder, records, targets, said):
    content = dict.fromkeys(targets, records["table1"])
    (folder / "runs/results.json").write_text(
        json.dumps({"format": 1, "targets": content})
    )
    with one_line(UsageError, said):
        publish(folder)
    assert not list((folder / "derivations").rglob("*.*"))


def merge(known, new):
    """The row of two tables of one row."""
    first, second = ({"rows": [own]} for own in (known, new))
    (found,) = merged(TARGETS["table1"], first, second)["rows"]
    return found


def test_seeds_come_together_and_the_new_one_of_two_counts():
    own = row("fc-snf", 947.1)
    last = RUN | {"seed": 2}
    (origin,) = own["made_with"]
    known = own | {"runs": [RUN, last]}
    new = own | {"runs": [RUN | {"value": 5.0}, RUN | {"seed": 1}, DIVERGED]}
    new["made_with"] = [origin | {"commit": "decade"}]
    # a run that diverged takes the place of none that did not
    found = merge(known, new)
    assert found["runs"] == [RUN | {"value": 5.0}, RUN | {"seed": 1}, last]
    assert found["made_with"] == [origin, *new["made_with"]]
    # RUN was replaced
    assert merge(own | {"runs": [RUN]}, new)["made_with"] == new["made_with"]
    assert merge(own | {"runs": [DIVERGED]}, own | {"runs": [last]})["runs"] == [last]


def test_rows_are_in_the_order_of_the_table_and_what_is_measured_is_new():
    first, second = (
        {"rows": [row(own.name, 1.0, cells=list(own.cells), runs=[RUN])]}
        for own in TARGETS["figure3"].rows
    )
    found = merged(TARGETS["figure3"], second, first)["rows"]
    assert found == first["rows"] + second["rows"]
    assert merged(TARGETS["table3"], {"rows": [2]}, {"rows": [1]}) == {"rows": [1]}


@pytest.fixture
def command(tmp_path):
    """command(…), with runs in tmp_path."""
    return lambda **more: FullSize(tmp_path, get_ops("numpy"), **more)


# Epochs, levels, depth and width of Glow, and λ.
A_3 = {
    "fc": (6000, None, None, None, 1),
    "glow": (250, 2, 16, 512, 100),
    "glow-2l-4k": (250, 2, 4, 16, 1),
    "glow-3l-32k": (1000, 3, 32, 512, 1000),
    "glow-3l-48k": (15, 3, 48, 512, 1000),
}


@pytest.mark.parametrize("row", EVERY_ROW)
def test_a_row_has_the_configuration_of_appendix_a_3(row):
    """Appendix A.3, retyped: batch, rate, warm-up, clipping, λ, sizes and epochs of every model."""
    config = TrainConfig(**row.settings).resolve(50_000)
    kind = config.model
    large = kind == "glow-3l-48k"
    epochs, *sizes, lam = A_3.get(kind, (1000, None, None, None, 1))
    assert config.batch_size == (64 if large else 100)
    assert config.lr == (1e-4 if kind == "fc" else 1e-3)
    assert config.warmup_epochs == (0 if large else 10)
    clipped = large or kind == "glow-3l-32k" and config.gradient != "exact"
    assert config.clip_norm == (10_000 if clipped else None)
    assert config.shuffle and config.augment == (row.data == "cifar-10")
    assert row.epochs == epochs and [config.levels, config.depth, config.width] == sizes
    if config.gradient == "self-normalizing":
        assert config.objective == "mixture"
        of_table_4 = row.cells[-1] == f"{config.lam:g}"
        assert config.lam == lam or of_table_4 and kind != "glow-2l-4k"
        assert config.lambda_control == ("geco" if kind == "glow-2l-4k" else "fixed")
    assert config.init == ("authors" if config.kernel == 5 else "paper")
    assert config.recipe == "paper" and config.effective("bias_init") in ("zero", None)


def test_rows_of_one_name_are_one_run_and_of_another_name_another():
    by_name = {}
    by_config = {}
    for row in ROWS:
        config = TrainConfig(**row.settings).resolve(50_000)
        config = str(replace(config, epochs=1, track_angle=None).as_dict())
        assert by_name.setdefault(row.name, (config, row.ours)) == (config, row.ours)
        assert by_config.setdefault(config, row.name) == row.name


def test_epochs_and_seeds_and_what_has_to_be_named(command):
    rows = TABLES["table5"].rows
    planned = command().plan(rows, 3)
    seeds = [(row.name, seed) for row in rows for seed in (0, 1, 2)]
    assert [(run.row.name, run.seed) for run in planned] == seeds
    assert {run.epochs for run in planned} == {10}
    configs = [run.config(50_000, "numpy") for run in planned]
    assert {config.warmup_epochs for config in configs} == {10}  # not a quarter
    assert {run.epochs for run in command(epochs=4).plan(rows, 1)} == {4}
    assert {run.seed for run in command(seeds=[7]).plan(rows, 3)} == {7}
    wanted = ["fc-snf", "conv-exact"]  # the last is left out if time runs out
    planned = TARGETS["table1"].plan(command(seeds=[1, 0], rows=wanted))
    order = [(name, seed) for name in wanted for seed in (1, 0)]
    assert [(run.row.name, run.seed) for run in planned] == order
    *_, glow = TABLES["table1"].rows
    assert command().plan([glow], 1) == []
    (run,) = command(rows=[glow.name]).plan([glow], 1)
    assert run.epochs == 250 and run.config(50_000, "numpy").depth == 16


def test_rows_of_the_recipe_have_the_papers_figures_and_nothing_else_of_their_own():
    """Those of the row of the same model in Table 1 or 5."""
    figures = {(row.paper, row.spread, row.epochs) for row in ROWS}
    rows = TABLES["white"].rows
    assert len({row.name for row in rows} - {row.name for row in ROWS}) == len(rows)
    for row in rows:
        assert (row.paper, row.spread, row.epochs) in figures
        assert set(row.options) <= {"model", "gradient", "kernel", "init", "recipe"}
        assert TrainConfig(**row.settings).resolve(50_000).coordinates == "white"
