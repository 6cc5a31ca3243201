"""The paper's tables and figures from one command: killed, resumed, skipped, and shown."""

import json
import shutil
import subprocess

import numpy as np
import pytest
import reproduce
from benchmarks import sweep
from reproduction import figures, provenance, results, runs
from reproduction.rows import TABLES
from reproduction.targets import TARGETS
from support.reproduction import FullSize, rows_of
from support.runs import Killed, kill
from support.trainers import at_step

from snfnp.data import Dataset
from snfnp.errors import SnfnpError, UsageError
from snfnp.ops import get_ops
from snfnp.training.runs.folder import RunFolder
from snfnp.training.runs.load import load_run


@pytest.fixture
def command(monkeypatch, tmp_path, capsys):
    """`reproduce.py TARGET …` at the smoke scale on the sample that ships: what it prints."""
    offline(monkeypatch, tmp_path)

    def run(*options, folder="runs"):
        places = ("--runs", tmp_path / folder, "--scale", "smoke", "--backend", "numpy")
        reproduce.main([*map(str, (*options, *places))])
        return capsys.readouterr().out

    return run


def offline(patch, folder):
    patch.setenv("SNFNP_OFFLINE", "1")
    patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    patch.delenv("SNFNP_DATA_DIR", raising=False)


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """The folder of `reproduce.py all --scale smoke`, and what each target printed."""
    folder = tmp_path_factory.mktemp("reproduction")
    with pytest.MonkeyPatch.context() as patch:
        offline(patch, folder)
        printed = []
        for name, count in (("white", 3), ("white-parts", 2)):  # of many
            patch.setattr(TARGETS[name], "rows", TARGETS[name].rows[:count])
        patch.setattr("builtins.print", lambda *text, **_: printed.append(" ".join(text)))
        reproduce.main(["all", "--runs", str(folder), "--scale", "smoke", "--backend", "numpy"])
    tables = [text for text in printed if "(scale: smoke)" in text]
    return folder / "smoke", dict(zip(TARGETS, tables, strict=True))


def no_training(*_, **__):
    raise AssertionError("trained again")


def diverge(monkeypatch, step=1, gradient="exact"):
    def spoil(trainer):
        if trainer.config.gradient == gradient:
            trainer.p[:] = np.nan

    at_step(monkeypatch, step, spoil)


def test_without_a_target_there_is_a_list(capsys):
    reproduce.main([])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == [*TARGETS, "all", "page"]


# ---------------------------------------------------------------- what is done


@pytest.mark.slow
def test_all_makes_every_table_and_picture_of_results_json_alone(smoke):
    folder, tables = smoke
    records = results.read(folder / "results.json")
    assert list(records) == list(TARGETS)
    assert str(folder.parent) not in (folder / "results.json").read_text()
    for name, target in TARGETS.items():
        magic = {".svg": b"<?xml", ".png": b"\x89PNG"}[target.suffix]
        picture = (folder / f"{name}{target.suffix}").read_bytes()
        assert picture.startswith(magic) and "mean nothing" in tables[name]
        assert target.show(records[name]) == tables[name].strip("\n")
        if target.made_of_record:  # or every page would have new pictures of old results
            target.draw(records[name], folder / "again.svg")
            assert (folder / "again.svg").read_bytes() == picture


@pytest.mark.slow
def test_a_table_is_trained_once_and_shown_again(smoke, command, monkeypatch, tmp_path):
    folder, first = shutil.copytree(smoke[0], tmp_path / "runs/smoke"), smoke[1]["table4"]
    rows = [list(row.values()) for row in rows_of(first)]
    assert [row[:2] for row in rows[:14]] == [list(row.cells) for row in TABLES["table4"].rows[:14]]
    assert rows[14][:2] == ["2L-16K Glow", "100 (stand-in: 2L-4K of width 16)"]
    for row in rows:
        assert float(row[2]) > 0 and row[3] == "0" and row[6] == "other data"
    assert rows[3][4:6] == ["1 / 6,000", "946.3"]
    config = RunFolder.open(folder / "conv-lambda-0.3-seed-0")[1]["config"]
    assert (config["lam"], config["model"], config["epochs"]) == (0.3, "conv", 1)
    monkeypatch.setattr(runs, "train", no_training)
    for file in folder.glob("*/*.safetensors"):  # which no table needs
        file.unlink()
    assert first.strip() in command("table4")


@pytest.mark.slow
@pytest.mark.parametrize("target", ["table5", "figure2"])
def test_killed_half_way_and_started_again_it_is_the_same(
    smoke, command, monkeypatch, tmp_path, target
):
    killed = []

    def once(trainer):
        if trainer.config.model == "glow-2l-4k" and not killed:
            killed.append(trainer.step)
            kill()

    at_step(monkeypatch, 1, once)
    with pytest.raises(Killed):
        command(target, "--seeds", "0")
    command(target, "--seeds", "0")
    files = (tmp_path / "runs/smoke/results.json", smoke[0] / "results.json")
    found, whole = (results.read(file)[target] for file in files)
    for row in whole["rows"] if target == "table5" else ():
        row["runs"] = row["runs"][:1]
    assert killed == [1] and found == whole


BAD_DIVERGENCES = [{"step": "x"}, {"step": [1]}, {"config": 3}, {"before": 3}]
BAD_DIVERGENCES += [{"before": {"epoch": [1]}}, {"before": {"epoch": 1, "rho": "x"}}]
BAD_ORIGINS = ["[" * 100_000, "3", "{", "[3]", '[{"commit": "a"}]', "null"]
BAD_ORIGINS += ['[{"commit": "\\ud800", "processor": "a"}]']


def test_a_row_that_diverges_is_shown_to_where_it_went(command, monkeypatch, tmp_path):
    """However many epochs are asked for; also if it is not known at which step."""
    diverge(monkeypatch, step=3)
    row = ("table1", "--rows", "fc-exact", "--epochs")
    first = command(*row, "9")
    assert "| diverged at step 4" in first and "| 2 / 6,000 |" in first
    file = tmp_path / "runs/smoke/fc-exact-seed-0.diverged.json"
    record = json.loads(file.read_text())
    assert record["step"] == 4 and "is not finite" in record["message"]
    monkeypatch.setattr(runs, "train", no_training)
    assert command(*row, "30") == first
    file.write_text(json.dumps(record | {"step": None}))
    assert "| diverged at step unknown" in command(*row, "30")
    made_with = file.with_name("fc-exact-seed-0.made-with.json")
    for path, content in (
        *((file, json.dumps(record | change)) for change in BAD_DIVERGENCES),
        (file, "[" * 100_000),
        *((made_with, content) for content in BAD_ORIGINS),
    ):
        before = path.read_bytes()
        path.write_text(content)
        with pytest.raises(SnfnpError, match=f"{path.name} is damaged") as caught:
            command(*row, "30")
        assert "\n" not in str(caught.value)
        path.write_bytes(before)


def test_a_row_can_be_trained_longer_with_evaluations_here_and_there(command, tmp_path):
    command("all", "--rows", "fc-snf")
    shown = command("all", "--rows", "fc-snf", "--epochs", "5", "--eval-every", "2")
    titles = [TARGETS[name].title for name in ("table1", "table4", "figure3", "figure5")]
    heads = [line[2:].partition("**")[0] for line in shown.splitlines() if line.startswith("**")]
    assert heads == titles  # all that have such a row, and nothing else
    lines = (tmp_path / "runs/smoke/fc-snf-seed-0/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2, 4, 5]
    command("table1", "--rows", "conv-snf")
    again = command("table1", "--rows", "fc-snf")  # what is longer stays, other rows as well
    assert [row["epochs: ours / paper"] for row in rows_of(again)] == ["5 / 6,000", "1 / 1,000"]


# ---------------------------------------------------------------- what is shown


def write_metrics(run, nlls, **layer):
    run.folder.mkdir(exist_ok=True)
    with open(run.folder / "metrics.jsonl", "w") as file:
        for n, nll in nlls.items():
            line = {"epoch": n, "step": 500 * n, "seconds": 1.0, "reconstruction": 1.0}
            line["validation_nll_nats"] = nll
            line |= {"layers": {"a": {"rho": n / 8}}} if layer else {}
            print(json.dumps(line), file=file)


def test_means_deviations_and_how_far(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "of_run", lambda folder: {"commit": "c0ffee"})
    target, command = TARGETS["table5"], FullSize("paper", tmp_path, get_ops("numpy"), [0, 1])
    planned = target.plan(command)
    diverged = {"asked": 250, "diverged_at": 0, "before": {}, "epochs": 250}
    monitors = {"epoch": 3, "rho": 1.25}
    outcomes = [
        {"epochs": 250, "value": 680.0},
        {"epochs": 250, "value": 684.0},
        {"epochs": 10, "value": 680.3},
        diverged | {"epochs": 10, "diverged_at": 77, "before": monitors},
        diverged,
        diverged | {"diverged_at": 12},
    ]
    evaluated = ((700.0, (10, 11, 30, 60)), (702.0, (10, 30)))
    for run, (nll, epochs) in zip(planned, evaluated, strict=False):
        write_metrics(run, {n: nll - n for n in epochs})
    found = {run.folder: own for run, own in zip(planned, outcomes, strict=True)}
    record = target.collect(command, found)
    assert [row["made_with"] for row in record["rows"]] == [[{"commit": "c0ffee"}]] * 3
    shown, _, learning = target.show(record).partition("Exact validation NLL in nats while")
    (row,) = rows_of(learning)  # 10 and 30: both have them
    assert row == {"model": "Glow 1x1", "epoch 10": "691.0", "epoch 30": "671.0"}
    went = "680.3 and diverged at step 77 (seed 1), after epoch 3: ρ ≥ 1.25"
    both = "diverged at step unknown (seed 0) and diverged at step 12 (seed 1)"
    assert [list(row.values()) for row in rows_of(shown)] == [
        ["Glow 1x1", "682.0 ± 2.8", "0, 1", "250 / not given", "678.3 ± 2.0", "+3.7"],
        ["SNF 1x1", went, "0, 1", "10 / not given", "678.3 ± 9.7", "+2.0"],
        ["SNF 5x5", both, "0, 1", "250 / not given", "669.9 ± 2.8", ""],
    ]


def test_a_run_whose_likelihood_was_lost_says_from_which_step_on(tmp_path, monkeypatch):
    """The test likelihood is that of the best epoch: without this, nobody would see it."""
    monkeypatch.setattr(provenance, "of_run", lambda folder: {"commit": "c0ffee"})
    target = TARGETS["table4"]
    command = FullSize("hour", tmp_path, get_ops("numpy"), rows=("fc-lambda-0.05",))
    (run,) = target.plan(command)

    def ours(*nlls):
        write_metrics(run, dict(enumerate(nlls, start=1)), layer=True)
        outcome = {"epochs": 30, "value": 786.0, "best_epoch": 4}
        (row,) = rows_of(target.show(target.collect(command, {run.folder: outcome})))
        return row["ours"]

    assert ours(900.0, 800.0, 890.0, 790.0) == "786.0"  # what was lost in between came back
    # 870 is more than a tenth above 790, 868 is not
    assert ours(900.0, 800.0, 890.0, 790.0, 870.0, 1200.0) == (
        "786.0; best at epoch 4, lost from step 2500 on, after epoch 4: ρ ≥ 0.5"
    )
    assert "step 3000 on, after epoch 5" in ours(900.0, 800.0, 890.0, 790.0, 868.0, 1200.0)


@pytest.mark.slow
def test_colour_images_are_counted_in_bits_and_missing_ones_are_a_line(command, monkeypatch):
    shown = command("table2")
    assert [row["ours"] for row in rows_of(shown)] == ["no data"] * 4
    assert shown.count("* Not trained, for want of images: ") == 4
    assert "+" not in shown  # no difference from a figure that is not there

    def colours(name, folder):
        rng = np.random.default_rng(0)
        splits = [rng.integers(0, 256, (n, 32, 32, 3)).astype(np.uint8) for n in (200, 100, 100)]
        return Dataset(name, *splits, source="random images", is_sample=False)

    monkeypatch.setattr(runs, "load_dataset", colours)
    row, snf, *_ = rows_of(command("table2"))
    assert row["data"] == "CIFAR-10 (stand-in: 3L-4K of width 64)" and float(row["ours"]) < 20
    assert snf["paper"] == "3.370 ± 0.004"


@pytest.mark.slow
def test_times_stand_beside_the_papers_as_shares_of_the_exact_gradients(smoke):
    record = results.read(smoke[0] / "results.json")["table3"]
    exact, _, snf = record["rows"][:3]
    assert 0 < snf["batch"]["minimum"] <= snf["batch"]["median"]
    assert snf["batch"]["of_exact"] == snf["batch"]["median"] / exact["batch"]["median"]
    assert snf["batch"]["paper_of_exact"] == 18.7 / 44.9
    del record["rows"][8]["batch"]["median"], record["rows"][8]["sample"]["median"]
    shown = rows_of(TARGETS["table3"].show(record | {"scale": "hour"}))
    assert list(shown[8].values())[:4] == ["Glow 2L-16K", "MNIST", "–", "1.00"]
    assert f"Measured on {record['made_with']['processor']}, threads: " in smoke[1]["table3"]


@pytest.mark.slow
def test_figure_2_compares_both_inverses_of_one_run(smoke):
    folder, tables = smoke
    record = results.read(folder / "results.json")["figure2"]
    (row,) = record["rows"]
    likelihood = load_run(folder / "glow-2l-4k-lambda-100-seed-0").likelihood
    exact, learned = (likelihood.sample(64, 0, exact=how).astype(int) for how in (True, False))
    apart = np.abs(exact - learned)
    assert row["mean_difference"] == pytest.approx(apart.mean(), rel=1e-12)
    assert row["same_pixels"] == np.mean(apart <= 1)
    pixels = list(zip(exact.flat, learned.flat, strict=True))
    near = [abs(one - other) <= 1 for one, other in pixels if max(one, other) > 1]
    assert row["same_drawn"] == pytest.approx(np.mean(near), rel=1e-12)
    del row["same_pixels"]
    (shown,) = rows_of(TARGETS["figure2"].show(record))
    assert shown["pixels within 1 level of 256"] == "no finite samples"


@pytest.mark.slow
def test_figure_3_is_the_mean_over_the_layers(smoke):
    folder, tables = smoke
    record = results.read(folder / "results.json")["figure3"]
    (line,) = RunFolder(folder / "conv-snf-seed-0").read_metrics()
    angles = [own["angle"] for own in line["layers"].values()]
    ((epoch, *found),) = record["curves"][1]["points"]
    assert (epoch, len(angles)) == (1, 9)
    assert found == pytest.approx([np.mean(angles), np.std(angles)])
    assert rows_of(tables["figure3"])[1]["difference"] == "other data"
    for curve in record["curves"]:
        curve.update(is_sample=False, points=[[1, 2.0, 0.5], [6000, 0.25, 0.125]], epochs=6000)
        curve.update(largest=curve["points"][0], below=[5999, 6000])
    fc, conv = rows_of(TARGETS["figure3"].show(record | {"scale": "paper"}))
    assert [fc[head] for head in ("largest", "below 1°", "epochs: ours / paper", "difference")] == [
        *("2.00° at epoch 1", "5,999 of 6,000 epochs", "6,000 / 6,000", "+0.1°")
    ]
    assert conv["difference"] == "less as well"  # than a bound, from which nothing is subtracted


@pytest.mark.slow
def test_figure_4_has_both_layers_and_how_they_grow(smoke):
    record = results.read(smoke[0] / "results.json")["figure4"]
    dense, convolution = record["layers"]
    assert [row["D"] for row in dense["rows"]] == [8, 16, 24]
    assert [row["D"] for row in convolution["rows"]] == [64, 144, 256]
    papers = [row["paper"] for row in rows_of(smoke[1]["figure4"])]
    assert papers == ["O(D²)", "O(D³)", *["not measured"] * 3]
    rows = [{"D": d, "exact ms": 3e-6 * d**2.7} for d in (10, 1000, 2000, 4000, 5000)]
    assert sweep.growth(rows, "exact ms", 1000) == pytest.approx(2.7, abs=1e-12)
    assert sweep.growth(rows, "exact ms", 4000) is None
    record["layers"] = [dense | {"rows": rows, "growth": {"exact ms": 2.7}}]
    (row,) = rows_of(TARGETS["figure4"].show(record))  # a few, the largest among them
    assert row["ours, by D"] == "10: 0.0015, 2000: 2,454, 5000: 29,130"


@pytest.mark.slow
def test_figure_5_has_both_runs_and_the_share_of_the_time(smoke):
    folder, _ = smoke
    record, target = results.read(folder / "results.json")["figure5"], TARGETS["figure5"]
    exact, snf = record["curves"]
    (line,) = RunFolder(folder / "fc-snf-seed-0").read_metrics()
    assert snf["points"] == [[1, line["seconds"], line["validation_nll_nats"]]]
    for curve, seconds in ((exact, 40.0), (snf, 20.0)):
        curve.update(points=[[1, 1.0, 1000.0], [2, seconds, 990.0]], is_sample=False, epochs=2)
    shown = rows_of(target.show(record | {"scale": "hour"}))
    assert [row["time / exact's: ours"] for row in shown] == ["1.00", "0.50"]
    assert [row["difference in time"] for row in shown] == ["+0.00", "+0.08"]
    assert shown[1]["NLL at 2"] == "990.0"
    assert "different machines" not in target.show(record)
    snf["made_with"] = snf["made_with"] | {"processor": "another"}
    assert "different machines" in target.show(record)


def test_curves_keep_their_ends_and_what_is_to_be_kept():
    points = [[epoch] for epoch in range(1, 6001)]
    few = figures.thinned(points, keep=points[333])
    assert len(few) == 201 and few[0] == [1] and few[-1] == [6000] and points[333] in few
    assert few == sorted(few) and figures.thinned(points[:200]) == points[:200]


def test_a_diverged_run_has_no_curve_and_the_others_are_shown(command, monkeypatch, tmp_path):
    diverge(monkeypatch, gradient="self-normalizing")
    exact, snf = rows_of(command("figure5"))
    assert snf["s / epoch"] == "diverged" and snf["NLL at 1"] == "–" != exact["NLL at 1"]
    picture = tmp_path / "runs/smoke/figure3.svg"
    picture.write_text("older")
    shown = command("figure3", "--rows", "fc-snf")
    assert rows_of(shown)[0]["largest"] == "diverged"
    assert "Picture" not in shown and not picture.exists()


# ---------------------------------------------------------------- bad input


BAD_INPUT = """
table9                    there is no table9: choose from table1, table2
table4 --seeds -1         --seeds must be whole numbers
table4 --seeds 1 1        --seeds names a seed twice
table5 --rows fc-snf      there is no row fc-snf here: choose from glow-1x1-exact
table3 --rows x           --rows has no effect on table3: leave it out
figure4 --eval-every 7    --eval-every has no effect on figure4: leave it out
page                      --scale has no effect on page: leave it out
figure3 --seeds 0 1       --seeds has seeds without effect on figure3: name one
table4 --data-dir /none   /none
"""


@pytest.mark.parametrize("line", BAD_INPUT.strip().splitlines())
def test_bad_input_is_one_line(command, line):
    with pytest.raises(UsageError) as caught:
        command(*line[:26].split())
    assert line[26:] in str(caught.value) and "\n" not in str(caught.value)


def test_what_cannot_be_used_is_one_line_before_anything_is_trained(command, monkeypatch, tmp_path):
    row, folder = ("table1", "--rows", "fc-snf"), tmp_path / "runs/smoke/fc-snf-seed-0"
    command(*row)
    (tmp_path / "file").write_text("")
    whole = {name: (folder / name).read_bytes() for name in ("summary.json", "config.json")}

    def refused(said, *more, kind=SnfnpError, **where):
        with monkeypatch.context() as patch, pytest.raises(kind, match=said) as caught:
            patch.setattr(runs, "train", no_training)
            command(*(more or row), **where)
        assert "\n" not in str(caught.value) and "`out`" not in str(caught.value)

    refused("cannot make .* choose another --runs", folder="file")
    for name, content in whole.items():
        (folder / name).write_text("{")
        refused(f"{name} is damaged")
        (folder / name).write_bytes(content)
    with monkeypatch.context() as patch:
        patch.setitem(runs._SMOKE, "train", 300)
        refused(r"holds another run \(images differ\): choose another --runs", kind=UsageError)
    file = folder.with_name("results.json")
    whole = json.loads(file.read_text())
    (shown,) = whole["targets"]["table1"]["rows"]
    for part, name, value in (
        (whole, "format", 2),
        (whole, "targets", [1]),
        (whole["targets"]["table1"], "title", "\ud800"),
        (whole["targets"]["table1"], "rows", "x"),
        (shown, "data", {"name": "mnist", "is_sample": True}),
        (shown, "runs", None),
        (shown["runs"][0], "seed", "x"),
        (shown["runs"][0], "epochs", []),
        (shown, "made_with", None),
    ):
        before = part[name]
        part[name] = value
        file.write_text(json.dumps(whole))
        refused("results.json is damaged .*: restore it, or delete it")
        part[name] = before
    for content in ("{", "[" * 100_000):
        file.write_text(content)
        refused("results.json is damaged .*: restore it, or delete it")
    file.unlink()
    folder.rename(folder.with_name("fc-exact-seed-0"))
    said = r"holds another run \(gradient.* differ\): choose another --runs"
    refused(said, "table1", "--rows", "fc-exact", kind=UsageError)
    folder.mkdir()
    (folder / "stray").write_text("")
    with pytest.raises(UsageError, match="holds stray: choose another folder .`runs`.") as caught:
        command(*row)
    assert "`out`" not in str(caught.value)


def test_a_lost_summary_is_made_again(command, tmp_path):
    first = command("table1", "--rows", "fc-snf")
    (tmp_path / "runs/smoke/fc-snf-seed-0/summary.json").unlink()
    assert command("table1", "--rows", "fc-snf") == first


# ---------------------------------------------------------------- how it was made


def test_a_commit_is_marked_if_files_differ_from_it(tmp_path, monkeypatch):
    def git(*arguments):
        command = ["git", "-c", "user.name=a", "-c", "user.email=b", "-C", tmp_path, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    monkeypatch.setattr(provenance, "_ROOT", tmp_path)
    assert provenance.commit() == "not known"
    (tmp_path / "file").write_text("1")
    for command in (("init", "-q"), ("add", "file"), ("commit", "-qm", "one")):
        git(*command)
    assert provenance.commit() == git("rev-parse", "HEAD")[:12]
    (tmp_path / "file").write_text("2")
    assert provenance.commit().endswith(" with changes")


def test_a_run_that_was_gone_on_with_has_both_commits(tmp_path, monkeypatch):
    for commit in ("first", "first", "second"):
        here = {"commit": commit, "processor": "p"}
        monkeypatch.setattr(provenance, "here", lambda here=here: here)
        provenance.note(tmp_path / "run")
    record = {"platform": "Linux", "backend": "numpy", "device": {}, "versions": {}}
    numbers = (("openblas", 1), ("openblas", 2), ("openmp", 4))
    pools = [{"internal_api": library, "num_threads": number} for library, number in numbers]
    record["threads"] = {"blas": pools}
    monkeypatch.setattr(provenance.RunFolder, "open", lambda folder: (None, record))
    found = provenance.of_run(tmp_path / "run")
    assert (found["commit"], found["processor"], found["threads"]) == ("first, second", "p", 2)
