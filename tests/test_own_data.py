"""Data of one's own: what is taken, from files and in code, and one line for everything else."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from support.arrays import pixels
from support.data_files import GREY, ROWS, picture, put
from support.messages import one_line
from support.runs import SHORT
from support.trainers import small_config

import snfnp
from snfnp.cli import evaluate, train
from snfnp.data import own_data
from snfnp.errors import DivergedError, SnfnpError, UsageError
from snfnp.gradcheck import central_difference
from snfnp.layers.preprocess import preprocess_by_name
from snfnp.models import PRESETS
from snfnp.ops import RandomKey
from snfnp.training.options import TrainConfig
from snfnp.training.runs.folder import RunFolder

COLOUR = pixels(60, 4, 6, 3)
KEY = RandomKey(0, 1)


def pictures(folder, images):
    put(folder, {"._hidden.png": b""})
    for index, image in enumerate(images):
        suffix = ".PNG" if index % 2 else ".png"
        picture(folder / f"{index:03}{suffix}", image)


def write(folder, name, array):
    """An array as a file or folder of that name."""
    path = folder / name
    text = {"fmt": "%.17g", "delimiter": ";", "header": "first;second", "comments": ""}
    save = {".npy": np.save, ".npz": np.savez, "": pictures}
    save[".csv"] = partial(np.savetxt, **text)
    save[path.suffix](path, array)
    return path


SOURCES = dict.fromkeys(("rows.npy", "rows.npz", "rows.csv"), ROWS)
SOURCES |= {
    "single.npy": ROWS.astype(np.float32),
    "grey.npy": GREY,
    "colour.npz": COLOUR,
    "greys": GREY,
    "colours": COLOUR,
}


@pytest.mark.parametrize("name", SOURCES)
def test_every_kind_of_source_is_cut_by_the_seed(name, tmp_path):
    array = SOURCES[name]
    path = write(tmp_path, name, array)
    with one_line(UsageError, "seed is -1: give a whole number from 0"):
        snfnp.load_dataset(path, seed=-1)
    with pytest.raises(TypeError, match="argument 'colums'"):
        snfnp.load_dataset(path, colums="a")
    data, again, other = (
        snfnp.load_dataset(path, validation="0.25", seed=seed) for seed in (3, 3, 4)
    )
    assert data.name == path.stem and data.source == str(path) and not data.is_sample
    splits = [data.train[:], data.validation[:], data.test[:]]
    assert [len(split) for split in splits[1:]] == [len(array) // 4, len(array) // 10]
    assert data.train.dtype == array.dtype
    assert data.train.shape[1:] == array.shape[1:] + (1,) * (array.ndim == 3)
    everything = np.concatenate([split.reshape(len(split), -1) for split in splits])
    expected = array.reshape(len(array), -1)
    assert_array_equal(*(rows[np.lexsort(rows.T)] for rows in (everything, expected)))
    assert (
        data.fingerprint("train")
        == again.fingerprint("train")
        != other.fingerprint("train")
    )


def test_splits_by_name_in_files_of_their_own_and_in_folders(tmp_path):
    parts = {"train": ROWS[:100], "validation": ROWS[100:150], "test": ROWS[150:]}
    named = tmp_path / "named.npz"
    np.savez(named, **parts, train_labels=np.arange(9))  # which nothing reads
    files = [write(tmp_path, f"{split}.npy", rows) for split, rows in parts.items()]
    for data in (own_data(*files), snfnp.load_dataset(named)):
        for split, rows in parts.items():
            assert_array_equal(getattr(data, split)[:], rows)
    for split, images in zip(parts, np.split(GREY, 3), strict=True):
        pictures(tmp_path / "folder" / split, images)
    folder = snfnp.load_dataset(tmp_path / "folder")
    assert_array_equal(folder.test[..., 0], GREY[40:])
    with one_line(UsageError, "named.npz has test data already: leave `test` out"):
        own_data(named, None, "0.1")


def test_a_strict_numpy_changes_no_run():
    options = {
        "backend": "numpy",
        "activation": "smooth-leaky-relu",
        "epochs": 2,
        "report": None,
    }
    far = ROWS * [[1.0, 1e9]]
    usual = snfnp.fit(ROWS, **options).likelihood.log_prob(far)
    with np.errstate(all="call", call=pytest.fail):
        run = snfnp.fit(ROWS, **options)
        strict = run.likelihood.log_prob(far)
        run.likelihood.sample(20, exact=True)
        with pytest.raises(DivergedError):
            snfnp.fit(ROWS, **options | {"lr": 1e4, "epochs": 40})
    assert_array_equal(strict, usual)


@pytest.mark.parametrize("way", ["standardise", "none"])
def test_a_way_back_a_jacobian_and_its_terms(way, ops):
    data = ROWS
    moments = ROWS.mean(axis=0), ROWS.std(axis=0)
    preprocess = preprocess_by_name(way, data.shape[1:], moments)
    x, ldj = preprocess.forward(ops, data, KEY, np.float64)
    assert x.shape == data.shape and ldj.shape == (len(data),)
    assert_allclose(preprocess.inverse(ops, x), data, rtol=1e-12)
    real = data.astype(float)
    slopes = central_difference(
        lambda v: preprocess.forward(ops, v, KEY, np.float64)[0],
        real,
        np.ones_like(real),
        1.0,
    )
    expected = np.log(slopes).reshape(len(data), -1).sum(axis=1)
    assert_allclose(ldj, expected, atol=1e-6)
    terms = preprocess.terms(float(ldj.mean()), data[0].size)
    assert_allclose(sum(terms.values()), ldj.mean(), atol=1e-12)
    single = preprocess.forward(ops, data, KEY, np.float32)
    assert [each.dtype for each in single] == [np.float32] * 2
    if way == "standardise":
        assert_allclose([x.mean(axis=0), x.std(axis=0)], [[0, 0], [1, 1]], atol=1e-12)


def test_the_moments_are_those_of_numpy_in_parts(monkeypatch):
    monkeypatch.setattr("snfnp.data.dataset._AT_ONCE", 14)
    dataset = snfnp.Dataset("mine", ROWS, ROWS[:9], ROWS[:9])
    assert_allclose(dataset.moments, (ROWS.mean(0), ROWS.std(0)), rtol=1e-13)


@pytest.mark.parametrize("model", [name for name in PRESETS if "glow" in name])
@pytest.mark.parametrize("side, most", [(2, 1), (12, 2), (32, 5)])
def test_glow_squeezes_as_far_as_an_image_halves(model, side, most):
    shape = (side, 2 * side, 1)
    config = TrainConfig(model=model, width=2, depth=1).resolve(1000, shape)
    assert config.levels == min(PRESETS[model].size["levels"], most)
    assert config.build_flow(shape).layout.count > 0
    assert TrainConfig(model=model, levels=3).resolve(1000, shape).levels == 3


@pytest.fixture(params=["rows.npy", "grey.npy"])
def run(request, shell, tmp_path, capsys):
    """A run by a relative path, the file, and what was printed."""
    path = write(tmp_path, request.param, SOURCES[request.param])
    shell(f"train {request.param} {SHORT} --out run --lr 0.01")
    return tmp_path / "run", path, capsys.readouterr().out


def test_a_run_finds_its_data_again_and_says_what_they_are(
    run, shell, tmp_path, monkeypatch, capsys
):
    out, path, printed = run
    rows = path.stem == "rows"
    noun = "rows" if rows else "images"
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert f"training {noun} from {path}" in printed
    assert ("bits" in printed) == (not rows)
    for command in ("evaluate", "angle"):
        shell(f"{command} {out}")
        printed = capsys.readouterr().out
        assert f"{noun} from {path}" in printed
        assert not (rows and ("bits" in printed or "noise" in printed))
    moved = path.rename(tmp_path / "moved.npy")
    for command in ("evaluate", "angle"):
        with one_line(SnfnpError, str(path), "the path of your data (`data`)"):
            shell(f"{command} {out}")
        shell(f"{command} {out} --data {moved}")
        assert "but these are" not in capsys.readouterr().out
    shell(f"train --resume --out {out} --epochs 3 --data {moved}")
    assert snfnp.load_run(out, "last").checkpoint.step > 0
    write(tmp_path, "other.npy", SOURCES[path.name][::-1])
    known = f"{noun} (train, validation, test)"
    with one_line(UsageError, known, "with `data` (dataset= in"):
        shell(f"train --resume --out {out} --epochs 4 --data ../other.npy")


def test_curves_that_were_not_drawn_are_not_listed(tmp_path, monkeypatch, capsys):
    write(tmp_path, "rows.npy", ROWS[:, :1])
    monkeypatch.chdir(tmp_path)
    train.main(f"rows.npy {SHORT} --out run".split())
    assert "curves.png" in capsys.readouterr().out
    for name in ("metrics.jsonl", "curves.png"):
        Path("run", name).unlink()
    train.main(["--resume", "--out", "run"])
    assert "curves.png" not in capsys.readouterr().out
    assert not Path("run/curves.png").exists()


def test_a_run_has_an_exact_likelihood_in_the_units_of_its_data(run, shell):
    out, path, _ = run
    likelihood = snfnp.load_run(out).likelihood
    samples = likelihood.sample(50, seed=0)
    if path.stem != "rows":
        assert samples.dtype == np.uint8 and samples.shape == (50, 4, 6, 1)
        return
    assert np.abs((samples.mean(0) - ROWS.mean(0)) / ROWS.std(0)).max() < 2
    axes = np.linspace(4, 6, 201), np.linspace(-7e4, 1e4, 201)
    grid = np.stack(np.meshgrid(*axes), -1)
    density = np.exp(likelihood.log_prob(grid.reshape(-1, 2)))
    assert_allclose(density.sum() * (2 / 200) * (8e4 / 200), 1, atol=1e-3)
    evaluation = likelihood.evaluate(ROWS)
    nll = -likelihood.log_prob(ROWS).mean()
    assert_allclose(nll, evaluation.nll, rtol=1e-12)
    assert "scale" in evaluation.terms and "logit" not in evaluation.terms
    for suffix in ("npy", "csv"):
        shell(f"sample run --count 5 --out s.{suffix}")
    assert_array_equal(np.load("s.npy"), likelihood.sample(5, seed=0))
    masked = np.ma.masked_array(ROWS)
    for bad in (ROWS + [0, np.nan], ROWS[:, :1], ROWS.tolist(), ROWS[0], masked):
        with pytest.raises(UsageError, match="^the rows: .*; "):
            likelihood.log_prob(bad)


@pytest.mark.parametrize("data, way", [(ROWS, "none"), (ROWS, None), (COLOUR, "logit")])
def test_arrays_in_code_are_trained_on_and_kept_by_name(data, way, ops, tmp_path):
    data = (data - data.mean(0)) / data.std(0) if way == "none" else data
    dataset = snfnp.Dataset("mine", data[20:], data[:10], data[10:20])
    folder = RunFolder(tmp_path / "run")
    # which would be of mnist
    config = small_config(preprocess=way, backend=ops.name, out=folder.path)
    snfnp.train(config, dataset, report=None)
    snfnp.resume(folder.path, dataset=dataset, epochs=4, report=lambda line: None)
    run = snfnp.load_run(folder.path)
    assert run.record["data"]["name"] == run.config.data == "mine"
    assert f"mine {data.shape[1:]}" in repr(run)
    assert np.isfinite(run.likelihood.log_prob(dataset.test)).all()
    with one_line(UsageError, "'mine' is neither a data set nor a path"):
        evaluate.main([str(folder.path)])
    record = run.record
    if data is not COLOUR:
        record["data"]["moments"][1][0] = 0.0
        folder.write_config(record)
        with pytest.raises(SnfnpError, match=r"is damaged \(its data\): restore it"):
            snfnp.load_run(folder.path)


def test_other_units_are_the_same_run_and_another_density(tmp_path):
    """By a power of two: every step has the same bits, and nats differ by D times its logarithm."""
    summaries = []
    for unit in (1.0, 2.0**-40):
        dataset = snfnp.Dataset("mine", *np.split(ROWS * unit, [150, 175]))
        config = small_config(backend="numpy", out=tmp_path / str(unit))
        summaries.append(snfnp.train(config, dataset, report=None))
    one, other = summaries
    difference = other["test_nll_nats"] - one["test_nll_nats"]
    assert_allclose(difference, -2 * 40 * np.log(2), rtol=1e-12)
    assert one["reconstruction"] == other["reconstruction"]


def test_the_preset_fits_the_columns_and_the_rows():
    for columns, expected in ((1, (6, 0.01)), (16, (4, 0.01)), (64, (2, 0.005))):
        config = TrainConfig(model="vector").resolve(3000, (columns,))
        assert (config.depth, config.lr) == expected
    for rows, size, steps in (
        (100, (3, 5, 16), 800),
        (1000, (3, 5, 125), 1000),
        (9000, (6, 8, 500), 2000),
        (50_000, (6, 8, 500), 6250),  # many rows have more to tell
        (200_000, (6, 8, 500), 8000),
    ):
        config = TrainConfig(model="vector").resolve(rows, (2,))
        assert (config.depth, config.bins, config.batch_size) == size
        taken = config.epochs * config.steps_per_epoch(rows)
        assert 0 <= taken - steps < rows / config.batch_size
    assert TrainConfig(model="vector", depth=3, lr=1.0).resolve(3000, (2,)).depth == 3
    for model, shape in (("vector", (2,)), ("glow", (28, 28, 1))):
        config = TrainConfig(model=model, recipe="white").resolve(10**7, shape)
        assert (config.epochs, config.warmup_epochs) == (1, 0.5)
