"""The paper's tables and figures from one command: killed, resumed, skipped, and shown."""

import json
import shutil
import subprocess
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import reproduce
from reproduction import figures, provenance, results, runs
from reproduction.page import TARGETS
from reproduction.rows import TABLES
from support import reproduction
from support.messages import one_line
from support.reproduction import FullSize, rows_of, small
from support.trainers import at_step

from snfnp.errors import SnfnpError, UsageError
from snfnp.ops import get_ops
from snfnp.training.options import TrainConfig
from snfnp.training.runs.folder import RunFolder
from snfnp.training.runs.load import load_run

pytestmark = pytest.mark.slow

SEED = ("--seeds", "0", "--epochs", "1")


@pytest.fixture
def command(monkeypatch, tmp_path, capsys):
    """`reproduce.py TARGET …` on small images: what it prints."""
    small(monkeypatch)

    def run(*options, folder="runs"):
        given = [] if "--epochs" in options else ["--epochs", "1"]
        places = ("--runs", tmp_path / folder, "--backend", "numpy")
        reproduce.main([*map(str, (*options, *given, *places))])
        return capsys.readouterr().out

    return run


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    """The folder of `reproduce.py all`, and what each target printed."""
    folder = tmp_path_factory.mktemp("reproduction")
    with pytest.MonkeyPatch.context() as patch:
        small(patch)
        printed = []
        patch.setattr(
            "builtins.print", lambda *text, **_: printed.append(" ".join(text))
        )
        reproduce.main(["all", "--runs", str(folder), "--backend", "numpy", *SEED])
    tables = [text for text in printed if text.startswith("**")]
    names = [name for name in TARGETS if name != "table2"]  # whose images are not there
    return folder, dict(zip(names, tables, strict=True))


def train_nothing(patch):
    for name in ("train", "resume"):
        patch.setattr(runs, name, lambda *_, **__: pytest.fail("trained again"))


def diverge(monkeypatch, step=1, gradient="exact"):
    def spoil(trainer):
        if trainer.config.gradient == gradient:
            trainer.p[:] = np.nan

    at_step(monkeypatch, step, spoil)


@pytest.mark.slow
def test_all_makes_every_table_and_picture_of_results_json_alone(everything):
    folder, tables = everything
    records = results.read(folder / "results.json")
    assert list(records) == list(tables)
    assert str(folder) not in (folder / "results.json").read_text()
    for name, record in records.items():
        target = TARGETS[name]
        assert target.show(record) in tables[name]
        picture = folder / f"{name}{target.suffix}"
        assert picture.exists() == name.startswith("figure")
        # or every page would have new pictures of old results
        if picture.exists() and target.made_of_record:
            target.draw(record, folder / "again.svg")
            assert (folder / "again.svg").read_bytes() == picture.read_bytes()
    assert (folder / "figure2.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "figure3.svg").read_bytes().startswith(b"<?xml")
    config = records["white"]["rows"][0]["config"]  # all that decides, whoever set it
    recorded = {
        name: config[name] for name in ("lam", "lr", "lr_schedule", "objective")
    }
    assert recorded == {
        "lam": 0.1,
        "lr": 1.79e-4,  # of two steps: 4e-3 √(2/1000)
        "lr_schedule": "cosine",
        "objective": "forward",
    }
    assert not {"seed", "epochs", "backend", "out"} & set(config)


@pytest.mark.slow
def test_a_table_is_trained_once_and_shown_again(
    everything, command, monkeypatch, tmp_path
):
    folder = shutil.copytree(everything[0], tmp_path / "runs")
    first = everything[1]["table4"]
    rows = [list(row.values()) for row in rows_of(first)]
    assert [row[:2] for row in rows] == [
        list(row.cells) for row in TABLES["table4"].rows[:14]
    ]
    assert rows[3][4:6] == ["1 / 6,000", "946.3"]  # and no Glow, which nobody named
    assert all(float(row[2]) > 0 and row[3] == "0" for row in rows)
    config = RunFolder.open(folder / "conv-lambda-0.3-seed-0")[1]["config"]
    assert (config["lam"], config["model"], config["epochs"]) == (0.3, "conv", 1)
    train_nothing(monkeypatch)
    for file in folder.glob("*/*.safetensors"):  # which no table needs
        file.unlink()
    assert first.strip() in command("table4")


def test_a_row_that_diverges_is_shown_with_its_step(command, monkeypatch, tmp_path):
    """However many epochs are asked for; also if it is not known at which step."""
    diverge(monkeypatch, step=3)
    row = ("table1", "--rows", "fc-exact", "--epochs")
    first = command(*row, "9")
    assert "| diverged at step 4" in first and "| 2 / 6,000 |" in first
    file = tmp_path / "runs/fc-exact-seed-0.diverged.json"
    record = json.loads(file.read_text())
    assert record["step"] == 4 and "is not finite" in record["message"]
    train_nothing(monkeypatch)
    assert command(*row, "30") == first
    file.write_text(json.dumps(record | {"step": None}))
    assert "| diverged at step unknown" in command(*row, "30")
    made_with = file.with_name("fc-exact-seed-0.made-with.json")
    for path, content in (
        (file, json.dumps(record | {"step": "x"})),
        (file, json.dumps(record | {"before": {"epoch": 1, "rho": "x"}})),
        (file, "[" * 100_000),
        (made_with, '[{"commit": "a"}]'),
        (made_with, "{"),
    ):
        before = path.read_bytes()
        path.write_text(content)
        with one_line(SnfnpError, f"{path.name} is damaged"):
            command(*row, "30")
        path.write_bytes(before)


def test_a_row_can_be_trained_longer_with_fewer_evaluations(command, tmp_path):
    command("all", "--rows", "fc-snf")
    shown = command("all", "--rows", "fc-snf", "--epochs", "5", "--eval-every", "2")
    titles = [
        TARGETS[name].title for name in ("table1", "table4", "figure3", "figure5")
    ]
    heads = [
        line[2:].partition("**")[0]
        for line in shown.splitlines()
        if line.startswith("**")
    ]
    assert heads == titles  # all that have such a row, and nothing else
    lines = (tmp_path / "runs/fc-snf-seed-0/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2, 4, 5]
    (run,) = results.read(tmp_path / "runs/results.json")["table1"]["rows"][0]["runs"]
    assert (run["epochs"], run["eval_every"]) == (5, 2)
    command("table1", "--rows", "conv-snf")
    (tmp_path / "runs/fc-snf-seed-0/summary.json").unlink()  # made again
    # what is longer stays, other rows as well
    again = command("table1", "--rows", "fc-snf")
    assert [row["epochs: ours / paper"] for row in rows_of(again)] == [
        "5 / 6,000",
        "1 / 1,000",
    ]


def write_metrics(run, nlls, **layer):
    run.folder.mkdir(exist_ok=True)
    with open(run.folder / "metrics.jsonl", "w") as file:
        for n, nll in nlls.items():
            line = {"epoch": n, "step": 500 * n, "seconds": 1.0, "reconstruction": 1.0}
            line["validation_nll_nats"] = nll
            line |= {"layers": {"a": {"rho": n / 8}}} if layer else {}
            print(json.dumps(line), file=file)


@pytest.fixture
def made_up(tmp_path, monkeypatch):
    """made_up(target, …): the target, the runs that it plans, and its collect."""
    monkeypatch.setattr(provenance, "of_run", lambda folder: {"commit": "c0ffee"})
    monkeypatch.setattr(
        RunFolder, "config", lambda folder: TrainConfig(model="fc").resolve(500)
    )

    def planned(name, **options):
        command = FullSize(tmp_path, get_ops("numpy"), **options)
        collect = partial(TARGETS[name].collect, command)
        return TARGETS[name], TARGETS[name].plan(command), collect

    return planned


def test_a_table_has_means_deviations_and_epochs(made_up):
    target, planned, collect = made_up("table5", seeds=[0, 1])
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
    for run in planned:
        write_metrics(run, {})
    curves = ((700.0, (10, 11, 30, 60)), (702.0, (10, 30)))
    for run, (nll, epochs) in zip(planned, curves, strict=False):
        write_metrics(run, {n: nll - n for n in epochs})
    found = {run.folder: own for run, own in zip(planned, outcomes, strict=True)}
    record = collect(planned, found)
    assert [row["made_with"] for row in record["rows"]] == [[{"commit": "c0ffee"}]] * 3
    shown, _, learning = target.show(record).partition(
        "Exact validation NLL in nats while"
    )
    (row,) = rows_of(learning)  # 10 and 30: both have them
    assert row == {"model": "Glow 1x1", "epoch 10": "691.0", "epoch 30": "671.0"}
    went = "680.3 and diverged at step 77 (seed 1), after epoch 3: ρ ≥ 1.25"
    both = "diverged at step unknown (seed 0) and diverged at step 12 (seed 1)"
    assert [list(row.values()) for row in rows_of(shown)] == [
        ["Glow 1x1", "682.0 ± 2.8", "0, 1", "250 / not given", "678.3 ± 2.0", "+3.7"],
        ["SNF 1x1", went, "0, 1", "10 / not given", "678.3 ± 9.7", "+2.0"],
        ["SNF 5x5", both, "0, 1", "250 / not given", "669.9 ± 2.8", ""],
    ]


def test_a_run_whose_likelihood_was_lost_says_from_which_step_on(made_up):
    """The test likelihood is that of the best epoch: without this, nobody would see it."""
    target, (run,), collect = made_up("table4", rows=["fc-lambda-0.05"])

    def ours(*nlls):
        write_metrics(run, dict(enumerate(nlls, start=1)), layer=True)
        outcome = {"epochs": 30, "value": 786.0, "best_epoch": 4}
        (row,) = rows_of(target.show(collect([run], {run.folder: outcome})))
        return row["ours"]

    # what was lost in between came back
    assert ours(900.0, 800.0, 890.0, 790.0) == "786.0"
    # 870 is more than a tenth above 790, 868 is not
    assert ours(900.0, 800.0, 890.0, 790.0, 870.0, 1200.0) == (
        "786.0; best at epoch 4, lost from step 2500 on, after epoch 4: ρ ≥ 0.5"
    )
    assert "step 3000 on, after epoch 5" in ours(
        900.0, 800.0, 890.0, 790.0, 868.0, 1200.0
    )


@pytest.mark.slow
def test_figures_and_times_are_made_of_metrics_and_timings(everything):
    """Of the runs' metrics, likelihoods and timings; how it is shown is in the committed page."""
    folder, tables = everything
    records = results.read(folder / "results.json")

    exact, _, snf = records["table3"]["rows"][:3]
    assert 0 < snf["batch"]["minimum"] <= snf["batch"]["median"]
    assert snf["batch"]["of_exact"] == snf["batch"]["median"] / exact["batch"]["median"]
    assert snf["batch"]["paper_of_exact"] == 18.7 / 44.9
    shown = rows_of(tables["table3"])
    assert len(shown) == sum(
        "median" in row["batch"] for row in records["table3"]["rows"]
    )

    (run,) = records["figure2"]["rows"][0]["runs"]
    likelihood = load_run(folder / "glow-2l-4k-lambda-100-seed-0").likelihood
    exact, learned = (
        likelihood.sample(64, 0, exact=how).astype(int) for how in (True, False)
    )
    apart = np.abs(exact - learned)
    drawn = (exact > 1) | (learned > 1)
    assert run["mean_difference"] == pytest.approx(apart.mean(), rel=1e-12)
    assert run["same_pixels"] == np.mean(apart <= 1)
    assert run["same_drawn"] == pytest.approx(np.mean(apart[drawn] <= 1), rel=1e-12)

    (line,) = RunFolder(folder / "conv-snf-seed-0").read_metrics()
    angles = [own["angle"] for own in line["layers"].values()]
    ((epoch, *found),) = records["figure3"]["rows"][1]["runs"][0]["points"]
    assert (epoch, len(angles)) == (1, 9)
    assert found == pytest.approx([np.mean(angles), np.std(angles)])

    sizes = [
        [point["D"] for point in row["points"]] for row in records["figure4"]["rows"]
    ]
    assert sizes == [[8, 16, 24], [64, 144, 256]]
    (line,) = RunFolder(folder / "fc-snf-seed-0").read_metrics()
    points = records["figure5"]["rows"][1]["runs"][0]["points"]
    assert points == [[1, line["seconds"], line["validation_nll_nats"]]]


def test_curves_keep_their_ends():
    points = [[epoch] for epoch in range(1, 6001)]
    few = figures.thinned(points, 200)
    assert (
        len(few) == 200 and few[0] == [1] and few[-1] == [6000] and few == sorted(few)
    )
    assert all(figures.thinned(points[:n], 200) == points[:n] for n in (0, 1, 200))


def test_a_diverged_run_has_no_curve_and_the_others_are_shown(
    command, monkeypatch, tmp_path
):
    diverge(monkeypatch, gradient="self-normalizing")
    exact, snf = rows_of(command("figure5"))
    assert (
        snf["s / epoch"] == "diverged" and snf["NLL at 1"] == "–" != exact["NLL at 1"]
    )
    picture = tmp_path / "runs/figure3.svg"
    picture.write_text("older")
    shown = command("figure3", "--rows", "fc-snf")
    assert rows_of(shown)[0]["largest"] == "diverged"
    assert "Picture" not in shown and not picture.exists()


BAD_INPUT = """
table9                    there is no table9: choose from table1, table2
table4 --seeds -1         --seeds must be different whole numbers
table4 --seeds 1 1        --seeds must be different whole numbers
table5 --rows fc-snf      there is no row fc-snf here: choose from glow-1x1-exact
table3 --rows x           --rows has no effect on table3: leave it out
figure4 --eval-every 7    --eval-every has no effect on figure4: leave it out
page --epochs 3           --epochs has no effect on page: leave it out
figure3 --seeds 0 1       --seeds: a figure shows one run for each row: name one
"""


@pytest.mark.parametrize("line", BAD_INPUT.strip().splitlines())
def test_bad_input_is_one_line(monkeypatch, tmp_path, line):
    small(monkeypatch)
    with one_line(UsageError, line[26:]):
        reproduce.main([*line[:26].split(), "--runs", str(tmp_path)])


def test_a_sample_of_mnist_is_not_enough(monkeypatch, tmp_path):
    monkeypatch.setattr(
        runs,
        "load_dataset",
        lambda *_: replace(reproduction.mnist("mnist"), is_sample=True),
    )
    with pytest.raises(
        UsageError, match="200 training images of mnist, a sample: give"
    ):
        reproduce.main(["table1", "--runs", str(tmp_path)])


def test_unusable_runs_are_one_line_before_training(command, monkeypatch, tmp_path):
    row = ("table1", "--rows", "fc-snf")
    folder = tmp_path / "runs/fc-snf-seed-0"
    command(*row)
    (tmp_path / "file").write_text("")
    whole = {
        name: (folder / name).read_bytes() for name in ("summary.json", "config.json")
    }

    def refused(said, *more, kind=SnfnpError, **where):
        with monkeypatch.context() as patch, one_line(kind, match=said) as caught:
            train_nothing(patch)
            command(*(more or row), **where)
        assert "`out`" not in str(caught.value)

    refused("cannot make .* choose another --runs", folder="file")
    for name, content in whole.items():
        (folder / name).write_text("{")
        refused(f"{name} (is|was edited,) damaged")
        (folder / name).write_bytes(content)
    with monkeypatch.context() as patch:
        patch.setattr(runs, "load_dataset", partial(reproduction.mnist, count=199))
        refused("was trained on .* but these are", kind=UsageError)
    file = folder.with_name("results.json")
    others = '{"format": 2, "targets": {}}', '{"format": 1, "targets": 3}'
    for content in ("{", "[" * 100_000, *others):
        file.write_text(content)
        refused("results.json is damaged .*: restore it, or delete it")
    file.unlink()
    folder.rename(folder.with_name("fc-exact-seed-0"))
    said = r"holds another run \(gradient.* differ\): choose another --runs"
    refused(said, "table1", "--rows", "fc-exact", kind=UsageError)
    folder.mkdir()
    (folder / "stray").write_text("")
    refused("holds stray: choose another folder .`runs`.", kind=UsageError)


def test_a_commit_is_marked_if_files_differ_from_it(tmp_path, monkeypatch):
    def git(*arguments):
        who = ("-c", "user.name=a", "-c", "user.email=b")
        return subprocess.check_output(
            ["git", *who, *arguments], cwd=tmp_path, text=True
        )

    monkeypatch.setattr(provenance, "_ROOT", tmp_path)
    assert provenance.commit() == "not known"
    (tmp_path / "file").write_text("1")
    for command in (("init", "-q"), ("add", "file"), ("commit", "-qm", "one")):
        git(*command)
    assert provenance.commit() == git("rev-parse", "HEAD")[:12]
    (tmp_path / "file").write_text("2")
    assert provenance.commit().endswith(" with changes")


def test_a_run_that_was_resumed_has_both_commits(tmp_path, monkeypatch):
    for commit in ("first", "first", "second"):
        here = {"commit": commit, "processor": "p"}
        monkeypatch.setattr(provenance, "here", lambda here=here: here)
        provenance.note(tmp_path / "run")
    record = {"platform": "Linux", "backend": "numpy", "device": {}, "versions": {}}
    numbers = (("openblas", 1), ("openblas", 2), ("openmp", 4))
    pools = [{"internal_api": name, "num_threads": n} for name, n in numbers]
    record["threads"] = {"blas": pools}
    monkeypatch.setattr(provenance.RunFolder, "open", lambda folder: (None, record))
    found = provenance.of_run(tmp_path / "run")
    expected = {"commit": "first, second", "processor": "p", "threads": 2}
    assert expected.items() <= found.items()
