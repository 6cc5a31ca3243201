"""Figs. 2 to 5 and Table 3 from `reproduce.py`: what they show beside the paper's."""

import json

import numpy as np
import pytest
import reproduce
from benchmarks import sweep
from reproduction import curves, results, table3
from reproduction.figure4 import Figure4
from reproduction.setting import Setting
from reproduction.table3 import FAMILIES, Table3
from reproduction.targets import TARGETS
from support.runs import Killed, kill
from support.trainers import at_step

from snfnp.ops import get_ops
from snfnp.training.options import TrainConfig
from snfnp.training.runs.folder import RunFolder
from snfnp.training.runs.load import load_run

MEASURED = ("table3", "figure4")


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """The folder of `reproduce.py all --scale smoke`, and what each target printed."""
    folder = tmp_path_factory.mktemp("reproduction")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SNFNP_OFFLINE", "1")
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        patch.delenv("SNFNP_DATA_DIR", raising=False)
        printed = []
        patch.setattr("builtins.print", lambda *text, **_: printed.append(" ".join(text)))
        reproduce.main(command(folder))
    tables = [text for text in printed if "(scale: smoke)" in text]
    return folder / "smoke", dict(zip(TARGETS, tables, strict=True))


def command(folder, target="all", *options):
    places = ("--runs", str(folder), "--scale", "smoke", "--backend", "numpy")
    return [target, *places, *options]


def rows_of(text):
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    head, _, *rows = ([cell.strip() for cell in line[1:-1].split("|")] for line in lines)
    return [dict(zip(head, row, strict=True)) for row in rows]


def test_all_makes_every_table_and_picture(smoke):
    folder, tables = smoke
    assert list(results.read(folder / "results.json")) == list(TARGETS) == list(tables)
    for name, target in TARGETS.items():
        magic = {".svg": b"<?xml", ".png": b"\x89PNG"}[target.suffix]
        assert (folder / f"{name}{target.suffix}").read_bytes().startswith(magic)
        assert tables[name].startswith("\n" * (name != "table1") + f"**{target.title}**")
        assert "mean nothing" in tables[name]


def test_what_is_shown_is_in_results_json(smoke):
    """A page can be made of the file alone."""
    folder, tables = smoke
    records = results.read(folder / "results.json")
    for name, target in TARGETS.items():
        assert target.show(records[name]) == tables[name].strip("\n")


def without_seconds(record):
    """But for what a clock has a part in: Fig. 5's points are [epoch, seconds, NLL]."""
    for curve in record.get("curves", []):
        curve["points"] = [[point[0], point[-1]] for point in curve["points"]]
    return record


@pytest.mark.parametrize(
    "target, model",
    [("table1", "conv"), ("figure2", "glow-2l-4k"), ("figure3", "conv"), ("figure5", "fc")],
)
def test_killed_half_way_and_started_again_it_is_the_same(
    smoke, monkeypatch, tmp_path, target, model
):
    folder, _ = smoke
    monkeypatch.setenv("SNFNP_OFFLINE", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("SNFNP_DATA_DIR", raising=False)
    killed = []

    def once(trainer):
        if trainer.config.model == model and not killed:
            killed.append(trainer.step)
            kill()

    at_step(monkeypatch, 1, once)
    with pytest.raises(Killed):
        reproduce.main(command(tmp_path, target))
    reproduce.main(command(tmp_path, target))
    assert killed == [1]
    found, whole = (results.read(each / "results.json") for each in (tmp_path / "smoke", folder))
    assert without_seconds(found[target]) == without_seconds(whole[target])


@pytest.mark.parametrize("name", [name for name, own in TARGETS.items() if not own.made_of_runs])
def test_a_picture_is_the_same_for_the_same_record(smoke, tmp_path, name):
    """Or every page would have new pictures of old results."""
    record = results.read(smoke[0] / "results.json")[name]
    drawn = []
    for number in range(2):
        TARGETS[name].draw(record, tmp_path / f"{number}.svg", None)
        drawn.append((tmp_path / f"{number}.svg").read_bytes())
    assert drawn[0] == drawn[1]


def test_nothing_in_results_json_is_of_this_machines_folders(smoke):
    folder, _ = smoke
    assert str(folder.parent) not in (folder / "results.json").read_text()


def test_what_is_there_is_neither_trained_nor_measured_again(smoke, monkeypatch, capsys):
    folder, tables = smoke

    def fail(*_, **__):
        raise AssertionError("once more")

    monkeypatch.setenv("SNFNP_OFFLINE", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder.parent / "cache"))
    monkeypatch.setattr("reproduction.runs.train", fail)
    monkeypatch.setattr("reproduction.figure4.sweep", fail)
    monkeypatch.setattr("reproduction.table3._times", fail)
    before = (folder / "results.json").read_bytes()
    reproduce.main(command(folder.parent))
    assert (folder / "results.json").read_bytes() == before
    shown = capsys.readouterr().out
    assert all(text in shown for text in tables.values())
    for target in MEASURED:
        with pytest.raises(AssertionError, match="once more"):
            reproduce.main(command(folder.parent, target, "--measure-again"))
        other = command(folder.parent, target, "--backend", "numba")
        with pytest.raises(AssertionError, match="once more"):
            reproduce.main(other)


# ---------------------------------------------------------------- Table 3


def test_the_papers_times():
    """Table 3 as it is printed, in its order, with one row of ours between."""
    printed = [(row.label, row.data, row.batch, row.sample) for f in FAMILIES for row in f]
    assert printed == [
        ("Exact FC 2-Layer", "MNIST", (44.9, 4.4), (61.5, 5.8)),
        ("Relative Gradient FC 2-Layer", "MNIST", (7.0, 0.4), (69.2, 5.6)),
        ("Self Normalizing FC 2-Layer", "MNIST", (18.7, 0.8), (38.6, 3.1)),
        ("Exact Conv. 9-Layer", "MNIST", (372.2, 24.5), (241.6, 12.9)),
        ("(Exact Conv. 9-Layer by block recursion)", "MNIST", None, None),
        ("Emerging Conv. 9-Layer", "MNIST", (305.0, 14.5), (71.7, 8.8)),
        ("Conv. Exponential 9-Layer", "MNIST", (304.4, 11.9), (84.2, 9.2)),
        ("Self Normalizing Conv. 9-Layer", "MNIST", (212.5, 37.3), (29.9, 6.3)),
        ("Glow 2L-16K", "MNIST", (583.4, 21.2), (163.1, 21.8)),
        ("Self Normalizing Glow 2L-16K", "MNIST", (476.4, 16.7), (30.6, 2.2)),
        ("Glow 3L-32K", "CIFAR-10", (1841.3, 85.4), (126.3, 13.9)),
        ("Self Normalizing Glow 3L-32K", "CIFAR-10", (1761.2, 104.5), (97.8, 12.9)),
        ("Glow 3L-48K", "ImageNet 32x32", (2397.2, 204.0), (174.8, 16.7)),
        ("Self Normalizing Glow 3L-48K", "ImageNet 32x32", (2047.9, 152.8), (150.7, 20.8)),
    ]


@pytest.mark.parametrize(
    "row", [row for family in FAMILIES for row in family], ids=lambda r: r.label
)
def test_a_timed_model_is_that_of_a_3(row):
    config = TrainConfig(model=row.model, gradient=row.gradient).resolve(50_000)
    assert config.batch_size == table3._BATCH.get(row.data, 100)
    label = row.label
    assert label.startswith("Self") == (row.gradient == "self-normalizing")
    assert ("Relative" in label) == (row.gradient == "relative")
    sizes = {"Glow 2L-16K": (2, 16), "Glow 3L-32K": (3, 32), "Glow 3L-48K": (3, 48)}
    expected = sizes.get(label.removeprefix("Self Normalizing "), (None, None))
    assert (config.levels, config.depth) == expected


def test_times_stand_beside_the_papers_as_shares_of_the_exact_gradients(smoke):
    folder, tables = smoke
    record = results.read(folder / "results.json")["table3"]
    for row in record["rows"]:
        for kind in ("batch", "sample"):
            assert 0 < row[kind]["minimum"] <= row[kind]["median"]
    exact, _, snf = record["rows"][:3]
    assert snf["batch"]["of_exact"] == snf["batch"]["median"] / exact["batch"]["median"]
    assert snf["batch"]["paper_of_exact"] == 18.7 / 44.9
    shown = [line for line in tables["table3"].splitlines() if line.startswith("| Self Norm")]
    assert "| 18.7 ± 0.8 |" in shown[0] and "| 0.42 |" in shown[0]
    assert f"Measured on {record['made_with']['processor']}, threads: " in tables["table3"]


def test_what_a_scale_leaves_out_has_no_figure_of_ours(tmp_path, monkeypatch):
    """Neither a time nor a share, and the paper's are not in their place."""
    monkeypatch.setitem(table3._REPEATS, "hour", (1, 0, 0, 0, 0))
    timing = table3.measure({"nothing": lambda: None}, 1)["nothing"]
    kinds = ("batch", "sample")
    monkeypatch.setattr(
        table3,
        "_times",
        lambda family, *_: {(row, kind): timing for row in family for kind in kinds},
    )
    setting = Setting("hour", tmp_path, get_ops("numpy"))
    record = Table3().collect(setting, {})
    for row in record["rows"][3:]:
        assert "median" not in row["batch"] and "of_exact" not in row["batch"]
    text = Table3().show(record)
    (glow,) = (line for line in text.splitlines() if line.startswith("| Glow 2L-16K"))
    assert glow == (
        "| Glow 2L-16K | MNIST | – | 583.4 ± 21.2 | – | 1.00 | – | 163.1 ± 21.8 | – | 1.00 |"
    )
    assert "are measured at --scale paper" in text
    assert " a self-normalizing step takes " not in text  # the convolutions were not measured


# ---------------------------------------------------------------- Figs. 2 to 5


def test_figure_2_compares_both_inverses_of_one_run(smoke):
    folder, tables = smoke
    (row,) = results.read(folder / "results.json")["figure2"]["rows"]
    likelihood = load_run(folder / "glow-2l-4k-lambda-100-seed-0").likelihood
    exact, learned = (likelihood.sample(64, 0, exact=how).astype(int) for how in (True, False))
    apart = np.abs(exact - learned)
    assert row["mean_difference"] == pytest.approx(apart.mean(), rel=1e-12)
    assert row["same_pixels"] == np.mean(apart <= 1)
    pixels = list(zip(exact.flat, learned.flat, strict=True))
    near = [abs(one - other) <= 1 for one, other in pixels if max(one, other) > 1]
    assert row["same_drawn"] == pytest.approx(np.mean(near), rel=1e-12)
    assert rows_of(tables["figure2"])[0]["paper"] == '"nearly exact", no figure'


def test_figure_2_of_a_run_without_finite_samples_says_so(smoke, monkeypatch):
    folder, _ = smoke
    target = TARGETS["figure2"]
    record = results.read(folder / "results.json")["figure2"]
    (row,) = record["rows"]
    del row["same_pixels"], row["mean_difference"]
    assert rows_of(target.show(record))[0]["pixels within 1 level of 256"] == "no finite samples"


def test_figure_2_of_less_than_is_there_changes_nothing(smoke, monkeypatch, capsys):
    """Neither the record nor the picture, and it is said; nor does one without any images."""
    folder, _ = smoke
    file, picture = folder / "results.json", folder / "figure2.png"
    whole = json.loads(file.read_text())
    whole["targets"]["figure2"]["rows"][0]["epochs"] = 10
    monkeypatch.setenv("SNFNP_OFFLINE", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder.parent / "cache"))
    before = file.read_bytes(), picture.read_bytes()
    file.write_text(json.dumps(whole))
    try:
        for name, said in (
            ("glow-2l-4k-lambda-100", "figure2 stays as it is in "),
            ("glow-3l-32k-snf-small", "figure2: no row has its images"),
        ):
            reproduce.main(command(folder.parent, "figure2", "--rows", name))
            assert said in capsys.readouterr().out
            assert json.loads(file.read_text()) == whole and picture.read_bytes() == before[1]
    finally:
        file.write_bytes(before[0])


def test_figure_3_is_the_mean_over_the_layers(smoke):
    folder, tables = smoke
    fc, conv = results.read(folder / "results.json")["figure3"]["curves"]
    (line,) = RunFolder(folder / "conv-snf-seed-0").read_metrics()
    angles = [own["angle"] for own in line["layers"].values()]
    ((epoch, mean, spread),) = conv["points"]
    assert (epoch, len(angles)) == (1, 9)
    assert mean == pytest.approx(np.mean(angles)) and spread == pytest.approx(np.std(angles))
    first, second = rows_of(tables["figure3"])
    papers = [row["paper, throughout"] for row in (first, second)]
    assert papers == ["close to 0.1°", "less than 1°"]
    assert second["below 1°"] == f"{int(mean < 1)} of 1 epochs"
    assert second["at the end"] == f"{mean:.2f}° ± {spread:.2f}°"
    assert second["difference"] == "other data" and fc["epochs"] == 1


def test_the_largest_angle_is_in_the_picture():
    """Of many points some are left out, but not that one, nor the ends."""
    points = [[epoch, 0.0, 0.0] for epoch in range(1000)]
    kept = curves.thinned(points, keep=points[333])
    assert points[333] in kept and points[0] == kept[0] and points[-1] == kept[-1]
    assert kept == sorted(kept) and len(kept) == 201
    assert curves.thinned(points[:200], keep=points[7]) == points[:200]


def test_figure_3_on_all_images_has_a_difference(smoke):
    folder, _ = smoke
    record = results.read(folder / "results.json")["figure3"] | {"scale": "paper"}
    for curve in record["curves"]:
        curve.update(is_sample=False, points=[[1, 2.0, 0.5], [6000, 0.25, 0.125]], epochs=6000)
        curve.update(largest=curve["points"][0], below=[5999, 6000])
    fc, conv = rows_of(TARGETS["figure3"].show(record))
    assert fc["largest"] == "2.00° at epoch 1" and fc["difference"] == "+0.15°"
    assert fc["below 1°"] == "5,999 of 6,000 epochs"
    assert conv["difference"] == "less as well"  # than a bound, from which nothing is subtracted
    record["curves"][1]["points"][-1][1] = 1.0
    assert rows_of(TARGETS["figure3"].show(record))[1]["difference"] == "more"
    assert fc["epochs: ours / paper"] == "6,000 / 6,000"


def test_figure_4_has_both_layers_and_how_they_grow(smoke):
    folder, tables = smoke
    dense, convolution = results.read(folder / "results.json")["figure4"]["layers"]
    assert [row["D"] for row in dense["rows"]] == [8, 16, 24]
    assert [row["D"] for row in convolution["rows"]] == [64, 144, 256]
    assert set(dense["growth"]) == {"self-normalizing ms", "exact ms"}
    assert set(convolution["growth"]) == {*dense["growth"], "exact-dense ms"}
    papers = [row["paper"] for row in rows_of(tables["figure4"])]
    assert papers == ["O(D²)", "O(D³)", *["not measured"] * 3]


def test_growth_is_the_exponent():
    rows = [{"D": d, "ms": 3e-6 * d**2.7} for d in (10, 1000, 2000, 4000)]
    assert sweep.growth(rows, "ms", 1000) == pytest.approx(2.7, abs=1e-12)
    assert sweep.growth(rows, "ms", 2000) is None


def test_figure_4_shows_a_few_dimensions_the_largest_among_them():
    rows = [{"D": d, "exact ms": float(d)} for d in range(1, 11)]
    layer = {"label": "l", "rows": rows, "growth": {"exact ms": 1.0}, "above": 0}
    made_with = {"device": {}, "processor": "p", "threads": 1, "backend": "numpy"}
    record = {"title": "t", "scale": "hour", "layers": [layer], "made_with": made_with}
    (row,) = rows_of(Figure4().show(record))
    assert row["ours, by D"] == "1: 1, 4: 4, 7: 7, 10: 10"


def test_figure_5_has_three_runs_and_the_share_of_the_time(smoke):
    folder, tables = smoke
    record = results.read(folder / "results.json")["figure5"]
    exact, snf, recipe = record["curves"]
    (line,) = RunFolder(folder / "fc-snf-seed-0").read_metrics()
    assert snf["points"] == [[1, line["seconds"], line["validation_nll_nats"]]]
    config = RunFolder.open(folder / "fc-snf-recipe-seed-0")[1]["config"]
    assert config["inverse_update"] == "projection"
    for curve, seconds in ((exact, 40.0), (snf, 20.0), (recipe, 30.0)):
        curve.update(points=[[1, 1.0, 1000.0], [2, seconds, 990.0]], is_sample=False, epochs=2)
    shown = rows_of(TARGETS["figure5"].show(record | {"scale": "hour"}))
    assert [row["time / exact's: ours"] for row in shown] == ["1.00", "0.50", "0.75"]
    assert [row["paper"] for row in shown] == ["1.00", "0.42", "–"]
    assert [row["difference in time"] for row in shown] == ["+0.00", "+0.08", ""]
    assert shown[1]["NLL at 2"] == "990.0"
    assert "different machines" not in TARGETS["figure5"].show(record)
    snf["made_with"] = snf["made_with"] | {"processor": "another"}
    assert "different machines" in TARGETS["figure5"].show(record)


def test_curves_keep_their_ends():
    points = [[epoch] for epoch in range(1, 6001)]
    few = curves.thinned(points)
    assert len(few) == 200 and few[0] == [1] and few[-1] == [6000]
    assert few == sorted(few) and curves.thinned(points[:200]) == points[:200]


def test_a_diverged_run_has_a_curve_up_to_there(tmp_path, monkeypatch):
    """In the first epoch: no curve at all, and the other runs are shown."""
    monkeypatch.setenv("SNFNP_OFFLINE", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def spoil(trainer):
        if trainer.config.gradient == "self-normalizing" and trainer.config.recipe == "paper":
            trainer.p[:] = np.nan

    at_step(monkeypatch, 1, spoil)
    reproduce.main(command(tmp_path, "figure5"))
    reproduce.main(command(tmp_path, "figure3"))
    records = json.loads((tmp_path / "smoke/results.json").read_text())["targets"]
    points = [curve["points"] for curve in records["figure5"]["curves"]]
    assert [len(own) for own in points] == [1, 0, 1]
    _, snf, _ = rows_of(TARGETS["figure5"].show(records["figure5"]))
    assert snf["s / epoch"] == "diverged" and snf["NLL at 1"] == "–"
    first, _ = rows_of(TARGETS["figure3"].show(records["figure3"]))
    assert first["largest"] == "diverged"
