"""Data of one's own: what is taken, from files and in code, and one line for everything else."""

import tracemalloc

import numpy as np
import pytest
from PIL import Image
from support.messages import one_line
from support.trainers import small_config

import snfnp
from snfnp.cli import angle, evaluate, sample, train
from snfnp.data import own_data
from snfnp.errors import DivergedError, SnfnpError, UsageError
from snfnp.gradcheck import central_difference
from snfnp.images import StoredArray
from snfnp.layers.preprocess import Scale, preprocess_by_name
from snfnp.models import PRESETS
from snfnp.ops import RandomKey
from snfnp.training.options import TrainConfig
from snfnp.training.runs.folder import RunFolder

RNG = np.random.default_rng(0)
ROWS = RNG.normal((5.0, -3e4), (0.1, 4e3), (200, 2))
GREY = RNG.integers(0, 256, (60, 4, 6)).astype(np.uint8)
COLOUR = RNG.integers(0, 256, (60, 4, 6, 3)).astype(np.uint8)
SHORT = ("--backend", "numpy", "--batch-size", "20", "--epochs", "2", "--warmup-epochs", "0.5")
KEY = RandomKey(0, 1)


def pictures(folder, images):
    folder.mkdir()
    (folder / "._hidden.png").write_bytes(b"")
    for place, image in enumerate(images):
        suffix = ".PNG" if place % 2 else ".png"
        Image.fromarray(image).save(folder / f"{place:03}{suffix}")
    return folder


def write(folder, name, array):
    """An array as a file or folder of that name."""
    path = folder / name
    if path.suffix == ".npy":
        np.save(path, array)
    elif path.suffix == ".npz":
        np.savez(path, array)
    elif path.suffix == ".csv":
        np.savetxt(path, array, fmt="%.17g", delimiter=";", header="first;second", comments="")
    else:
        pictures(path, array)
    return path


SOURCES = dict.fromkeys(("rows.npy", "rows.npz", "rows.csv"), ROWS)
SOURCES |= {"single.npy": ROWS.astype(np.float32), "grey.npy": GREY, "colour.npz": COLOUR}
SOURCES |= {"greys": GREY, "colours": COLOUR}


@pytest.mark.parametrize("name", SOURCES)
def test_every_kind_of_source_is_cut_by_the_seed(name, tmp_path, monkeypatch):
    monkeypatch.setattr("snfnp.images._SMALL", 0)
    path, array = write(tmp_path, name, SOURCES[name]), SOURCES[name]
    array = array[..., np.newaxis] if array.ndim == 3 else array
    found, again, other = (
        snfnp.load_dataset(str(path), validation="0.25", seed=seed) for seed in (3, 3, 4)
    )
    assert found.name == path.stem and found.source == str(path) and not found.is_sample
    splits = [found.train[:], found.validation[:], found.test[:]]
    assert [len(split) for split in splits[1:]] == [len(array) // 4, len(array) // 10]
    assert found.train.dtype == array.dtype and found.train.shape[1:] == array.shape[1:]
    everything = np.concatenate([split.reshape(len(split), -1) for split in splits])
    expected = array.reshape(len(array), -1)
    in_order = (each[np.lexsort(each.T)] for each in (everything, expected))
    np.testing.assert_array_equal(*in_order)
    assert found.fingerprint("train") == again.fingerprint("train") != other.fingerprint("train")
    assert isinstance(found.train, StoredArray) == (path.suffix == ".npy")


def test_splits_by_name_in_files_of_their_own_and_in_folders(tmp_path):
    parts = {"train": ROWS[:100], "validation": ROWS[100:150], "test": ROWS[150:]}
    np.savez(tmp_path / "named.npz", **parts, train_labels=np.arange(9))  # which nothing reads
    others = {split: str(write(tmp_path, f"{split}.npy", rows)) for split, rows in parts.items()}
    (tmp_path / "folder").mkdir()
    for split, images in zip(parts, np.split(GREY, 3), strict=True):
        pictures(tmp_path / "folder" / split, images)
    apart = own_data(others["train"], others["validation"], others["test"], 0)
    for found in (apart, snfnp.load_dataset(str(tmp_path / "named.npz"))):
        for split, rows in parts.items():
            np.testing.assert_array_equal(getattr(found, split)[:], rows)
    folder = snfnp.load_dataset(str(tmp_path / "folder"))
    np.testing.assert_array_equal(folder.test[..., 0], np.split(GREY, 3)[2])
    with pytest.raises(UsageError, match=r"named.npz has test data already: leave `test` out"):
        own_data(str(tmp_path / "named.npz"), None, "0.1", 0)


def cut_short(folder, name, array):
    path = write(folder, name, array)
    path = max(path.iterdir()) if path.is_dir() else path
    path.write_bytes(path.read_bytes()[:-40])


def text(folder, name, content):
    (folder / name).write_text(content)


def none(folder, name, content):
    np.savez(folder / name)


def mixed(folder, name, extra):
    pictures(folder / name, GREY[:3])
    Image.fromarray(extra).save(folder / name / "x.png")


def with_nan(value=np.nan):
    rows = ROWS.copy()
    rows[7, 1] = value
    return rows


PICKLED = "cannot be read (it is no array of numbers, and Python objects are never loaded)"
WRONG = {
    "a.npy": (write, with_nan(), "nan in row 7, column 1 (from 0); leave"),
    "b.csv": (write, with_nan(-np.inf), "has '-inf': fill it in, or leave such rows out with"),
    "c.npy": (write, ROWS[:1], "of the samples of "),
    "d.npy": (write, ROWS * (1, 0), "column 1 (from 0) has the standard deviation 0: leave such"),
    "y.npy": (write, ROWS * 1e300, "column 0 (from 0) has the standard deviation inf, and 1 more"),
    "e.npy": (write, ROWS.astype(object), PICKLED),
    "f.npz": (write, ROWS.astype(object), PICKLED),
    "g.npy": (write, ROWS.astype(str), "instead of numbers; give a NumPy array of uint8, (N"),
    "i.npy": (write, ROWS[:, 0], "float64 of shape (200,) is not (N, H, W, C); give"),
    "j.npy": (write, GREY / 255, "float64 from 0 to 1; multiply by 255 and cast to uint8"),
    "k.npy": (write, GREY.astype(int) - 9, "bring them to 0 to 255 and cast to uint8"),
    "l.npy": (cut_short, ROWS, "cannot be read ("),
    "m.npz": (cut_short, ROWS, "cannot be read ("),
    "n": (cut_short, GREY, "059.PNG cannot be read ("),
    "o": (pictures, (), "has no images (.png, .jpg, .jpeg): check the path"),
    "p": (mixed, COLOUR[0, :3], "x.png is 6 x 3, and "),
    "q": (mixed, GREY[0].astype(np.uint16), "its pixels have more than 8 bits"),
    "r.csv": (text, "a,b\n1,2\n3,x\n", "r.csv, line 3, column 'b' has 'x', which is not a number"),
    "s.csv": (
        text,
        "1,2\n3\n4\n5\n6\n",
        "s.csv, line 2: the number of cells is 1",
    ),
    "t.csv": (text, "a,b\n", "t.csv has no rows of numbers: check the file"),
    "u.csv": (text, "", "u.csv has no rows of numbers: check the file"),
    "v.xls": (text, "1 2", "give a .npy, .npz, .csv, .tsv or .txt file, or a folder of images"),
    "bad.csv.gz": (text, "a,b\n1,2\n", "cannot be read (Not a gzipped file"),
    "w.npy": (text, "", "cannot be read ("),
    "z.npz": (none, None, "has the arrays none: name them train, validation and test, or give"),
    "x.npz": (text, "not a zip file at all", "cannot be read (File is not a zip file)"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_fits_nothing_is_one_line_and_leaves_nothing(name, tmp_path):
    make, content, problem = WRONG[name]
    make(tmp_path / name, content) if make is pictures else make(tmp_path, name, content)
    with one_line(UsageError, name.partition(".")[0], problem):
        train.main([str(tmp_path / name), *SHORT, "--out", str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("state", [{"all": "raise"}, {"all": "call", "call": pytest.fail}])
def test_a_strict_numpy_changes_no_run(state):
    how = {"backend": "numpy", "activation": "smooth-leaky-relu", "epochs": 2, "report": None}
    usual = snfnp.fit(ROWS, **how)
    with np.errstate(**state):
        run = snfnp.fit(ROWS, **how)
        found = run.likelihood.log_prob(ROWS * [[1.0, 1e9]])
        run.likelihood.sample(20, exact=True)
        with pytest.raises(DivergedError):
            snfnp.fit(ROWS, **how | {"lr": 1e4, "epochs": 40})
    np.testing.assert_array_equal(found, usual.likelihood.log_prob(ROWS * [[1.0, 1e9]]))


@pytest.mark.parametrize(
    "options, problem",
    [
        (["mnits"], "'mnits' is neither a data set nor a path (did you mean mnist?): use one of"),
        (["{rows}", "--data", "mnist"], "rows.npy and `data=mnist`: give one of them"),
        (["{rows}", "--data-dir", "x"], "`data_dir=x` is for published data sets, and "),
        (["{rows}", "--test", "1.5"], "`test` is 1.5: give a fraction between 0 and 1, or a path"),
        (["{rows}", "--test", "there.npy"], "there.npy does not exist: check the path"),
        (["{rows}", "--test", "moons"], "moons does not exist: check the path"),
        (["{rows}", "--test", "0.995"], "would be left to train on"),
        (["{rows}", "--model", "conv"], "`model=conv` needs images, found rows of 2 numbers: ch"),
        (["{rows}", "--augment"], "`augment` needs images, found rows of 2 numbers: leave it out"),
        (["{rows}", "--preprocess", "logit"], "`preprocess=logit` is not for rows of numbers: cho"),
        (["{grey}", "--ties", "keep"], "`ties` needs rows of numbers, found images: leave it out"),
        (["{grey}", "--preprocess", "none"], "`preprocess=none` is not for images: choose logit"),
        (["{grey}", "--test", "{rows}"], "shape (200, 2) beside ("),
        (["{rows}", "--batch-size", "500"], "there are only 160 training rows: choose a smaller"),
        (["--data", "mnist-sample", "--test", "0.1"], "`test` only has an effect with `data=PATH`"),
    ],
)
def test_options_that_do_not_fit_are_one_line(options, problem, tmp_path):
    paths = {"rows": write(tmp_path, "rows.npy", ROWS), "grey": write(tmp_path, "g.npy", GREY)}
    given = [option.format(**paths) for option in options]
    with one_line(UsageError, problem):
        train.main([*SHORT, "--out", str(tmp_path / "run"), *given])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("way", ["scale", "standardise", "none"])
def test_a_way_back_a_jacobian_and_its_terms(way, ops):
    images = way == "scale"
    data = COLOUR if images else ROWS
    moments = ROWS.mean(axis=0), ROWS.std(axis=0)
    preprocess = preprocess_by_name(way, data.shape[1:], moments)
    x, ldj = preprocess.forward(ops, data, KEY, np.float64)
    assert x.shape == data.shape and ldj.shape == (len(data),)
    np.testing.assert_allclose(preprocess.inverse(ops, x), data, rtol=1e-12)
    real = data.astype(float)
    slopes = central_difference(
        lambda v: preprocess.forward(ops, v, KEY, np.float64)[0], real, np.ones_like(real), 1.0
    )
    expected = np.log(slopes).reshape(len(data), -1).sum(axis=1)
    np.testing.assert_allclose(ldj, expected, atol=1e-6)
    terms = preprocess.terms(float(ldj.mean()), data[0].size)
    np.testing.assert_allclose(sum(terms.values()), ldj.mean(), atol=1e-12)
    single = preprocess.forward(ops, data, KEY, np.float32)
    assert [each.dtype for each in single] == [np.float32] * 2
    if way == "standardise":
        np.testing.assert_allclose([x.mean(axis=0), x.std(axis=0)], [[0, 0], [1, 1]], atol=1e-12)


def test_the_moments_are_those_of_numpy_in_parts(monkeypatch):
    monkeypatch.setattr("snfnp.images._AT_ONCE", 14)
    dataset = snfnp.Dataset("mine", ROWS, ROWS[:9], ROWS[:9])
    for found, expected in zip(dataset.moments, (ROWS.mean(0), ROWS.std(0)), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-13)
    with pytest.raises(UsageError, match="the train rows of mine: MaskedArray instead of numbers"):
        snfnp.Dataset("mine", np.ma.masked_array(ROWS), ROWS, ROWS)
    with pytest.raises(UsageError, match="the train rows of mine: there is only one; give more"):
        snfnp.Dataset("mine", ROWS[:1], ROWS, ROWS)
    with pytest.raises(UsageError, match="test rows of mine: shape .* beside .200, 2. of train"):
        snfnp.Dataset("mine", ROWS, ROWS, COLOUR)
    with pytest.raises(UsageError, match="mine has 2 columns, and `columns` has 1 names: give"):
        snfnp.Dataset("mine", 0 * ROWS, ROWS, ROWS, columns=("a",))


@pytest.mark.parametrize("model", [name for name in PRESETS if "glow" in name])
@pytest.mark.parametrize("side, most", [(2, 1), (12, 2), (32, 5)])
def test_glow_squeezes_as_far_as_an_image_halves(model, side, most):
    shape = (side, 2 * side, 1)
    config = TrainConfig(model=model, width=2, depth=1).resolve(1000, shape)
    assert config.levels == min(PRESETS[model].size["levels"], most)
    assert config.build_flow(shape).layout.count > 0
    assert TrainConfig(model=model, levels=3).resolve(1000, shape).levels == 3


@pytest.fixture(params=["rows.npy", "grey.npy"])
def run(request, tmp_path, undrawn, monkeypatch, capsys):
    """A run by a relative path, the file, and what was printed."""
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path, request.param, SOURCES[request.param])
    train.main([request.param, *SHORT, "--out", "run", "--lr", "0.01"])
    return tmp_path / "run", path, capsys.readouterr().out


def test_a_run_finds_its_data_again_and_says_what_they_are(run, tmp_path, monkeypatch, capsys):
    out, path, said = run
    rows = path.stem == "rows"
    noun = "rows" if rows else "images"
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert f"training {noun} from {path}" in said and ("bits" in said) == (not rows)
    for command in (evaluate, angle):
        command.main([str(out)])
        said = capsys.readouterr().out
        assert f"{noun} from {path}" in said and ("bits" in said or "noise" in said) <= (not rows)
    moved = path.rename(tmp_path / f"moved{path.suffix}")
    for command in (evaluate, angle):
        with one_line(SnfnpError, str(path), "the path of your data (`data`)"):
            command.main([str(out)])
        command.main([str(out), "--data", str(moved)])
        assert "found others" not in capsys.readouterr().out
    train.main(["--resume", "--out", str(out), "--epochs", "3", "--data", str(moved)])
    assert snfnp.load_run(out, "last").checkpoint.step > 0
    other = write(tmp_path, "other.npy", SOURCES[path.name][::-1])
    with one_line(UsageError, f"{noun} (train, validation, test)", "with `data` (dataset= in"):
        train.main(["--resume", "--out", str(out), "--epochs", "4", "--data", str(other)])


def test_curves_that_were_not_drawn_are_not_listed(tmp_path, capsys):
    path, out = write(tmp_path, "rows.npy", ROWS), tmp_path / "run"
    train.main([str(path), *SHORT, "--out", str(out)])
    assert "curves.png" in capsys.readouterr().out
    for name in ("metrics.jsonl", "curves.png"):
        (out / name).unlink()
    train.main(["--resume", "--out", str(out)])
    assert "curves.png" not in capsys.readouterr().out and not (out / "curves.png").exists()


def test_a_run_of_rows_has_an_exact_likelihood_in_their_own_units(run, capsys):
    out, path, _ = run
    likelihood = snfnp.load_run(out).likelihood
    drawn = likelihood.sample(50, seed=0)
    if path.stem != "rows":
        assert drawn.dtype == np.uint8 and drawn.shape == (50, 4, 6, 1)
        return
    assert np.abs((drawn.mean(0) - ROWS.mean(0)) / ROWS.std(0)).max() < 2
    grid = np.stack(np.meshgrid(np.linspace(4, 6, 201), np.linspace(-7e4, 1e4, 201)), -1)
    density = np.exp(likelihood.log_prob(grid.reshape(-1, 2)))
    np.testing.assert_allclose(density.sum() * (2 / 200) * (8e4 / 200), 1, atol=1e-3)
    evaluation = likelihood.evaluate(ROWS)
    np.testing.assert_allclose(-likelihood.log_prob(ROWS).mean(), evaluation.nll, rtol=1e-12)
    assert "scale" in evaluation.terms and "logit" not in evaluation.terms
    with one_line(UsageError, "`seed` is -1"):
        snfnp.fit(ROWS, seed=-1)
    for bad in (with_nan(), ROWS[:, :1], ROWS.tolist(), ROWS[0], np.ma.masked_array(ROWS)):
        with pytest.raises(UsageError, match="^the rows: .*; "):
            likelihood.log_prob(bad)
    for suffix in (".npy", ".png"):
        sample.main([str(out), "--count", "5", "--out", str(out / f"s{suffix}")])
    np.testing.assert_array_equal(np.load(out / "s.npy"), likelihood.sample(5, seed=0))
    with pytest.raises(UsageError, match="`columns` is for pictures of images"):
        sample.main([str(out), "--columns", "2"])


@pytest.mark.parametrize("backend", ["numpy", pytest.param("numba", marks=pytest.mark.slow)])
@pytest.mark.parametrize("data, way", [(ROWS, "none"), (ROWS, None), (COLOUR, "scale")])
def test_arrays_in_code_are_trained_on_and_kept_by_name(data, way, backend, tmp_path):
    data = (data - data.mean(0)) / data.std(0) if way == "none" else data
    dataset = snfnp.Dataset("mine", data[20:], data[:10], data[10:20])
    folder = RunFolder(tmp_path / "run")
    config = small_config(
        preprocess=way, backend=backend, out=folder.path
    )  # which would be of mnist
    snfnp.train(config, dataset, report=None)
    snfnp.resume(folder.path, dataset=dataset, epochs=4, report=lambda line: None)
    run = snfnp.load_run(folder.path)
    assert run.record["data"]["name"] == run.config.data == "mine"
    assert f"mine {data.shape[1:]}" in repr(run)
    assert np.isfinite(run.likelihood.log_prob(dataset.test)).all()
    assert isinstance(run.flow.preprocess, Scale) == (way == "scale")
    with pytest.raises(UsageError, match="'mine' is neither a data set nor a path"):
        evaluate.main([str(folder.path)])
    record = run.record
    if data is not COLOUR:
        record["data"]["moments"][1][0] = 0.0
        folder.write_config(record)
        with pytest.raises(SnfnpError, match=r"is damaged \(its data\): restore it"):
            snfnp.load_run(folder.path)


def test_other_units_are_the_same_run_and_another_density(tmp_path):
    """By a power of two: every step has the same bits, and nats differ by D times its logarithm."""
    found = []
    for unit in (1.0, 2.0**-40):
        dataset = snfnp.Dataset("mine", *np.split(ROWS * unit, [150, 175]))
        config = small_config(backend="numpy", out=tmp_path / str(unit))
        found.append(snfnp.train(config, dataset, report=None))
    apart = found[1]["test_nll_nats"] - found[0]["test_nll_nats"]
    np.testing.assert_allclose(apart, -2 * 40 * np.log(2), rtol=1e-12)
    assert found[0]["reconstruction"] == found[1]["reconstruction"]


@pytest.mark.slow
def test_a_large_file_is_never_in_memory_whole(tmp_path, undrawn, monkeypatch):
    monkeypatch.setattr("snfnp.images._SMALL", 1 << 20)
    path, size = tmp_path / "large.npy", (80_000, 100)
    np.save(path, RNG.normal(size=size))  # 64 MB
    tracemalloc.start()
    options = ("--model", "fc", "--batch-size", "2000", "--epochs", "1")
    train.main([str(path), *SHORT, *options, "--out", str(tmp_path / "run")])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < path.stat().st_size / 2


def test_the_preset_fits_the_columns_and_the_rows():
    for columns, expected in ((1, (6, 0.01)), (16, (4, 0.01)), (64, (2, 0.005))):
        config = TrainConfig(model="vector").resolve(3000, (columns,))
        assert (config.depth, config.lr) == expected
    for rows, size in ((100, (3, 5, 16)), (1000, (3, 5, 125)), (9000, (6, 8, 500))):
        config = TrainConfig(model="vector").resolve(rows, (2,))
        assert (config.depth, config.bins, config.batch_size) == size
        steps = config.epochs * config.steps_per_epoch(rows)
        assert 0 <= steps - min(max(rows, 800), 2000) < rows / config.batch_size
    for rows, steps in ((50_000, 6250), (200_000, 8000)):  # many rows have more to tell
        config = TrainConfig(model="vector").resolve(rows, (2,))
        assert 0 <= config.epochs * config.steps_per_epoch(rows) - steps < rows / 500
    assert TrainConfig(model="vector", depth=3, lr=1.0).resolve(3000, (2,)).depth == 3
    for model, images, shape in (("vector", 10**7, (2,)), ("glow", 50_000, (28, 28, 1))):
        config = TrainConfig(model=model, recipe="white").resolve(images, shape)
        assert (config.epochs, config.warmup_epochs) == (1, 0.5)
