"""Runs opened again: from Python, on other images, beside each other."""

import dataclasses
import json
import re
import shutil
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.messages import one_line
from support.reproduction import rows_of
from support.runs import config_json
from support.trainers import run_training, small_dataset

import snfnp
from snfnp.cli import angle, compare, evaluate, sample, shared
from snfnp.data import LOADERS, SPLITS, Dataset
from snfnp.data.sets import SAMPLE
from snfnp.errors import CheckpointError, UsageError
from snfnp.flow import Flow
from snfnp.likelihood import EVALUATION_NOISE
from snfnp.training.options import TrainConfig
from snfnp.training.runs.checkpoint import load_checkpoint
from snfnp.training.runs.folder import RunFolder
from snfnp.training.session import train

pytestmark = pytest.mark.usefixtures("here")

SIZES = {"fc": {}, "conv": {}, "glow": {"levels": 2, "depth": 1, "width": 4}}


def trained(folder, model="fc"):
    """A run of two epochs: `last` and `best` may differ in what they hold."""
    dataset = small_dataset(40, side=8)
    size = SIZES[model]
    config = TrainConfig(
        model=model,
        epochs=2,
        batch_size=20,
        lr=1e-3,
        backend="numpy",
        out=folder,
        **size,
    ).resolve(40)
    return dataset, config, train(config, dataset, report=None)


@pytest.mark.parametrize("model", SIZES)
def test_a_run_comes_back_in_one_line(monkeypatch, model):
    dataset, config, summary = trained("run", model)

    def draw(*arguments):
        raise AssertionError("an initialisation was drawn to learn shapes")

    monkeypatch.setattr(Flow, "init", draw)
    run = snfnp.load_run("run")
    assert run.config == dataclasses.replace(config, threads=run.config.threads)
    assert run.ops.name == "numpy" and run.image_shape == (8, 8, 1)
    assert run.record == config_json("run")
    saved = load_checkpoint(run.folder.best, run.layout)
    views = run.layout.views(saved.p)
    for entry in run.layout.entries:
        found = run.params[entry.layer][entry.name]
        assert found.dtype == np.float64
        np.testing.assert_array_equal(found, views[entry.layer][entry.name])
    # a determinant is computed when it is asked for
    assert "likelihood" not in vars(run)
    found = run.likelihood.evaluate(dataset.test, 0)
    assert found.nll == summary["test_nll_nats"]
    assert len(run.likelihood.sample(2, seed=0, exact=True)) == 2
    last = snfnp.load_run("run", "last", backend="numba")
    assert last.ops.name == "numba" and last.checkpoint.step == 4
    assert snfnp.load_run("run", ops=run.ops).ops is run.ops


ROOT = Path(__file__).parents[1]


def program(page):
    """The Python of a page with one program."""
    text = (ROOT / page).read_text(encoding="utf-8")
    (code,) = re.findall(r"(?ms)^```python\n(.*?)^```$", text.split("## ", 1)[1])
    return code


@pytest.mark.slow
def test_weights_that_ship_have_the_likelihood_of_their_page(
    monkeypatch, tmp_path, capsys
):
    """On the 1,000 test images that ship, by the command and beside plain NumPy, which computes
    log|det T(w)| by elimination and no recursion: to the rounding of sums of 1e4 terms."""
    page = (ROOT / "snfnp/pretrained/README.md").read_text(encoding="utf-8")
    (nats,) = re.findall(r"(\d+\.\d+) nats on the 1,000", page)
    monkeypatch.chdir(tmp_path)
    evaluate.main(["mnist-conv", "--data", "mnist-sample", "--backend", "numpy"])
    assert f"NLL {nats} nats" in capsys.readouterr().out
    sample.main(["mnist-conv", "--count", "4", "--backend", "numpy"])
    assert Path("mnist-conv-sample-learned.png").stat().st_size > 1000

    monkeypatch.chdir(ROOT)
    names = {}
    exec(program("scripts/weights.md"), names)
    run = snfnp.load_pretrained("mnist-conv", backend="numpy")
    images = names["images"]
    key = snfnp.RandomKey(0, EVALUATION_NOISE)
    noise = run.ops.random.uniform(key, images.shape, np.float64)
    by_hand = names["log_prob"](images, noise)
    np.testing.assert_allclose(run.likelihood.log_prob(images), by_hand, rtol=1e-13)


def test_weights_alone_are_evaluated_and_not_trained_further(tmp_path, monkeypatch):
    """Those of a run of one's own, left as the page says, and names of none."""
    dataset, _, _ = trained(tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    code = program("snfnp/pretrained/README.md")
    exec(code.replace("runs/conv-white", "run"), {})
    weights = snfnp.load_run("mnist-conv")
    loaded = snfnp.load_run("run")
    assert weights.folder.best.stat().st_size < 0.6 * loaded.folder.best.stat().st_size
    np.testing.assert_array_equal(weights.checkpoint.p, loaded.checkpoint.p)
    shutil.copy(weights.folder.best, weights.folder.last)
    with one_line(CheckpointError, "weights alone"):
        snfnp.resume("mnist-conv", dataset=dataset, epochs=3)
    with one_line(UsageError, "did you mean mnist-conv?"):
        snfnp.load_pretrained("mnist_conv")


def test_what_is_no_run_or_no_checkpoint_is_refused(tmp_path):
    with pytest.raises(UsageError, match="is no run folder"):
        snfnp.load_run(tmp_path)
    trained("run")
    with pytest.raises(
        UsageError, match="checkpoint is 'first': choose one of best, last"
    ):
        snfnp.load_run("run", "first")
    for name, advice in (
        ("best", "train until an evaluation succeeds"),  # as after an explosion
        ("last", "train first (without `resume`)"),
    ):
        Path(f"run/{name}.safetensors").unlink()
        said = f"there is no checkpoint run/{name}.safetensors: restore it, or {advice}"
        with one_line(CheckpointError, said):
            snfnp.load_run("run", name)


def test_a_run_does_not_go_on_to_an_epoch_that_is_past(tmp_path):
    dataset, *_ = trained("run")
    with one_line(UsageError, "is at step 4, past `epochs=1`"):
        snfnp.resume("run", dataset=dataset, epochs=1)
    with pytest.raises(UsageError, match="is no run folder"):
        snfnp.resume(tmp_path)
    assert not Path("run.lock").exists()


SAME = small_dataset()
FEWER = small_dataset(90, side=6)
# the same images in another order, split by split
OTHERS = {
    s: replace(SAME, source="elsewhere", **{s: getattr(SAME, s)[::-1]}) for s in SPLITS
}
COMMANDS = {"evaluate": evaluate, "angle": angle}
SEES = {"evaluate": ("test",), "angle": ("train",), "resume": SPLITS}


@pytest.fixture(scope="module")
def with_photographs(tmp_path_factory):
    """A run of the user's own photographs."""
    path = tmp_path_factory.mktemp("runs") / "run"
    own = replace(SAME, name="photographs")
    return run_training(path, own)[0].path


@pytest.fixture
def photographs(with_photographs, tmp_path):
    return shutil.copytree(with_photographs, tmp_path / "run")


@pytest.fixture
def said(monkeypatch, capsys):
    """Lines that a command prints that finds this data, or that are reported of more training."""

    def look(way, path, dataset, *options):
        monkeypatch.setattr(
            shared, "load_dataset", lambda name, folder, **splits: dataset
        )
        lines = []
        if way == "resume":
            snfnp.resume(path, dataset=dataset, epochs=4, report=lines.append)
        else:
            COMMANDS[way].main([str(path), *options])
        return lines or capsys.readouterr().out.splitlines()

    return look


def refusal(path, images="[100, 30, 30] of shape (5, 5, 1)", source="elsewhere"):
    return (
        f"{path} was trained on [100, 30, 30] images (train, validation, test) of shape (5, 5, 1), "
        f"photographs from random images, but these are {images}, mnist from {source}"
    )


@pytest.mark.parametrize(
    "way, split", [(way, split) for way in SEES for split in SEES[way]]
)
def test_other_images_are_refused(way, split, photographs, said):
    others = "" if way == "resume" else ", or other data of that shape to evaluate,"
    advice = f"give the original data{others} with `data` (dataset= in Python)"
    with one_line(UsageError, f"{refusal(photographs)}: {advice}"):
        said(way, photographs, OTHERS[split])
    counts = "[90, 30, 30] of shape (6, 6, 1)"
    message = f"{refusal(photographs, counts, 'random images')}: {advice}"
    options = () if way == "resume" else ("--data-dir", "there")
    with one_line(UsageError, message):
        said(way, photographs, FEWER, *options)


@pytest.mark.parametrize("way", COMMANDS)
def test_others_that_were_asked_for_are_said_to_be_others(way, photographs, said):
    first, second, *_ = said(
        way, photographs, OTHERS[SEES[way][0]], "--data-dir", "there"
    )
    assert first == refusal(photographs) and "images from elsewhere" in second


@pytest.mark.parametrize("way", SEES)
def test_nothing_is_said_of_the_same_images(way, photographs, said):
    """Under another name, and even if a split that is not used differs."""
    unused = OTHERS["validation"] if way in COMMANDS else SAME
    lines = said(way, photographs, unused)
    assert lines and not any(
        "trained on" in line or "SHA-256" in line for line in lines
    )


def test_a_runs_data_dir_is_not_for_other_data(photographs, monkeypatch):
    """Other data are read once where the run has no files of splits."""
    run = snfnp.load_run(photographs)
    run = replace(run, config=replace(run.config, data_dir="there"))
    folders = []
    other = OTHERS["train"]
    monkeypatch.setattr(
        shared, "load_dataset", lambda _, folder, **__: folders.append(folder) or other
    )
    for data in (None, run.config.data, "mine.npy"):
        args = Namespace(data=data, data_dir=None, drop_incomplete=False)
        shared.images_of(run, args, "test")
    assert folders == [Path("there"), Path("there"), None]


def test_a_fingerprint_is_of_values_order_and_shape_alone():
    apart = np.zeros((100, 5, 10, 1), np.uint8)
    apart[:, :, ::2] = SAME.train
    np.save("images.npy", SAME.train)
    known = SAME.fingerprint("train")
    for images in (apart[:, :, ::2], np.load("images.npy", mmap_mode="r")):
        assert replace(SAME, train=images).fingerprint("train") == known
    changed = SAME.train.copy()
    changed[-1, -1, -1] ^= 1
    for images in (
        changed,
        SAME.train[::-1],
        SAME.train[:-1],
        SAME.train.reshape(25, 10, 10, 1),
    ):
        other = Dataset("mnist", images, images[:1], images[:1], "random images", False)
        assert other.fingerprint("train") != known


def test_a_run_of_the_sample_finds_it_again(tmp_path, monkeypatch, capsys):
    """Even if MNIST has been downloaded since. (Small images stand in for both.)"""
    path = tmp_path / "run"
    sample = replace(SAME, source=SAMPLE, is_sample=True)
    run_training(path, sample, epochs=1)
    for name, data in (
        ("mnist", replace(SAME, source="the cache")),
        ("mnist-sample", sample),
    ):
        monkeypatch.setitem(LOADERS, name, lambda *arguments, data=data: data)
    resume = lambda arguments: snfnp.resume(  # noqa: E731
        arguments[0], data="mnist", epochs=2, report=print
    )
    for way in (evaluate.main, angle.main, resume):
        capsys.readouterr()
        way([str(path)])
        assert "from sample shipped with the package" in capsys.readouterr().out
    with one_line(UsageError, "in its own folder: leave out `out`"):
        snfnp.resume(path, out="other")


@pytest.mark.parametrize("name", ["mnist", "mnist-sample"])
def test_a_folder_that_is_given_has_files_of_mnist_and_no_sample(name, tmp_path):
    data = {"source": SAMPLE, "images": [1, 1, 1], "shape": [2, 2, 1], "sha256": {}}
    record = {"config": {"data": name}, "data": data}
    assert RunFolder(tmp_path).data_name(record, None) == "mnist-sample"
    assert RunFolder(tmp_path).data_name(record, tmp_path) == "mnist"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs of three epochs that differ in their seed, and one of two epochs."""
    folder = tmp_path_factory.mktemp("runs")
    for name, changes in (
        ("a", {}),
        ("b", {"seed": 1}),
        ("c", {"seed": 2, "epochs": 2}),
    ):
        run_training(folder / name, **{"epochs": 3, **changes})
    return folder


def metrics(run):
    return [record["validation_nll_nats"] for record in RunFolder(run).read_metrics()]


def test_the_table_has_the_metrics_of_every_run_at_their_common_epochs(runs, capsys):
    compare.main([str(runs / name) for name in "abc"])
    rows = rows_of(capsys.readouterr().out)
    assert [row["run"] for row in rows] == ["`a`", "`b`", "`c`"]
    assert [row["options"] for row in rows] == [f"`--seed {seed}`" for seed in range(3)]
    for row, name in zip(rows, "abc", strict=True):
        found = metrics(runs / name)
        assert [row["NLL at 1"], row["NLL at 2"]] == [f"{nll:.2f}" for nll in found[:2]]
        assert "NLL at 3" not in row
        assert row["best"].startswith(f"{min(found):.2f} at ")
        test = json.loads((runs / name / "summary.json").read_text())["test_nll_nats"]
        assert row["test"] == f"{test:.2f}"


def test_runs_of_the_same_name_are_told_apart_by_their_paths(runs, capsys):
    assert (
        compare.names_of(compare.open_runs([runs / "a"] * 2)) == [str(runs / "a")] * 2
    )
    compare.main([str(runs / "a")])
    assert "options" not in rows_of(capsys.readouterr().out)[0]  # none differs


DIFFERENT = {
    "a recipe, which implies others": (
        [{}, {"recipe": "white"}],
        ["--recipe paper", "--recipe white"],
    ),
    "one beside it": (
        [{"lr": 0.01}, {"recipe": "white"}],
        [
            "--recipe paper --lr 0.01",
            f"--recipe white --lr {TrainConfig(recipe='white').filled().lr:g}",
        ],
    ),
    "models, each with its presets' options": (
        [{"model": "conv"}, {"model": "glow-2l-4k"}],
        ["--model conv", "--model glow-2l-4k"],
    ),
    "λ as it is by default, and another": (
        [{}, {"lam": 10.0}],
        ["--lambda 1", "--lambda 10"],
    ),
    "a flow of one's own": (
        [
            {"model": snfnp.Flow((2,), [("a", snfnp.layers.SmoothLeakyReLU())])},
            {"model": "fc"},
        ],
        ["--model own flow --gradient exact", "--model fc --gradient self-normalizing"],
    ),
    "the length alone": ([{"epochs": 3}, {"epochs": 4}], ["", ""]),
}


@pytest.mark.parametrize("options, expected", DIFFERENT.values(), ids=DIFFERENT)
def test_options_that_follow_from_others_are_not_listed(options, expected):
    runs = [
        compare.ComparedRun(
            Path("a"), TrainConfig(**{"epochs": 30, **each}).filled(), [], {}, None
        )
        for each in options
    ]
    assert compare.differences(runs) == expected


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("names", ["ac", "a"])
def test_a_picture_is_drawn(runs, capsys, names):
    compare.main([*(str(runs / name) for name in names), "--plot", "runs.svg"])
    assert "</svg>" in Path("runs.svg").read_text()
    assert "runs.svg" in capsys.readouterr().out
