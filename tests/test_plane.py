"""2-D toy data: densities, pictures and the animation, paths between latents, scores."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image
from support.messages import one_line
from support.runs import SHORT, around

import snfnp
from snfnp.cli import evaluate, train
from snfnp.data import toy as densities
from snfnp.errors import UsageError
from snfnp.likelihood import Likelihood
from snfnp.step.trainer import Trainer
from snfnp.training import plots
from snfnp.training.plots import Animation, View
from snfnp.training.progress import Record

ROOT = Path(__file__).resolve().parents[1]
RNG = np.random.default_rng(0)
FAST = ("--backend", "numpy", "--warmup-epochs", "0.5", "--lr", "0.01")


@pytest.mark.parametrize("name", densities.DENSITIES)
def test_a_density_is_a_data_set_by_name(name):
    data = snfnp.load_dataset(name)
    splits = [getattr(data, split) for split in snfnp.data.SPLITS]
    assert len(np.unique(np.concatenate(splits), axis=0)) == 17_000
    assert_array_equal(data.test, snfnp.load_dataset(name).test)
    assert (densities.draw(name, 50, 1) != densities.draw(name, 50, 0)).any()
    kinds = {"data_dir": "published data sets", "test": "own data", "seed": "own data"}
    for option, kind in kinds.items():
        with one_line(
            UsageError, f"`{option}` is for {kind}, and {name} is none: leave it out"
        ):
            snfnp.load_dataset(name, **{option: "x"})


def normal(x, mean, deviation):
    return np.exp(-0.5 * ((x - mean) / deviation) ** 2) / (
        deviation * np.sqrt(2 * np.pi)
    )


def blurred(curve, low, high, signs=(1, -1)):
    """The density around ± a curve with a uniform parameter and noise of 0.1, by quadrature."""
    nodes, weights = np.polynomial.legendre.leggauss(200)
    centres = curve(low + (high - low) * (nodes + 1) / 2)

    def density(point):
        apart = (abs(point[:, None] - sign * centres) for sign in signs)
        bumps = sum(normal(each, 0, 0.1) for each in apart)
        return bumps @ weights / (2 * len(signs)) * normal(0, 0, 0.1)

    return density


def arm_of_spiral(share):
    radius = np.pi * np.sqrt(share)
    return radius * np.exp(3j * radius)


def pinwheel(point):
    """Each arm is z ↦ 2 z exp(i φ(Re z)) with a turn, φ = exp(Re z)/4, and the determinant of its
    Jacobian is 4 (1 − φ' Im z): the roots Re z are bracketed on a grid, and bisected."""
    grid = np.linspace(-1.4, 3.4, 300)
    density = np.zeros(len(point))

    def back(turned, x):
        return turned * np.exp(-0.25j * np.exp(x))

    for arm in range(5):
        turned = point / 2 * np.exp(-2j * np.pi * arm / 5)
        above = back(turned[:, None], grid).real > grid
        index, left = np.nonzero(above[:, 1:] != above[:, :-1])
        low, high = grid[left], grid[left + 1]
        starts = above[index, left]
        for _ in range(40):
            x = (low + high) / 2
            same = (back(turned[index], x).real > x) == starts
            low, high = np.where(same, x, low), np.where(same, high, x)
        y = back(turned[index], x).imag
        mass = normal(x, 1, 0.3) * normal(y, 0, 0.1) / 5
        np.add.at(density, index, mass / abs(4 - y * np.exp(x)))
    return density


TRUE = {
    "moons": blurred(lambda t: np.exp(1j * t) - 0.5 - 0.25j, 0, np.pi),
    "rings": lambda point: sum(
        k / 6 * normal(abs(point), k, 0.1) / (2 * np.pi * abs(point)) for k in (1, 2, 3)
    ),
    "pinwheel": pinwheel,
    "checkerboard": lambda point: (
        (abs(point.real) < 2)
        * (abs(point.imag) < 2)
        * ((np.floor(point.real) + np.floor(point.imag)) % 2 == 0)
        / 8
    ),
    "spirals": blurred(arm_of_spiral, 0.01, 1),
    "gaussians": lambda point: sum(
        normal(abs(point - 2 * np.exp(0.25j * np.pi * k)), 0, 0.2)
        * normal(0, 0, 0.2)
        / 8
        for k in range(8)
    ),
}


@pytest.mark.parametrize("name", densities.DENSITIES)
def test_the_true_likelihood_of_the_test_points_is_that_of_their_density(name):
    """It is the density's entropy, and every square of side 1 has its share of points."""
    data = snfnp.load_dataset(name)
    nats = -np.log(TRUE[name](data.test @ (1, 1j)))
    assert abs(nats.mean() - data.true_nll) < 1e-6  # it has so many decimals
    step = 0.1
    side = np.arange(-4, 4, step) + step / 2
    mass = TRUE[name]((side[:, None] * 1j + side).ravel()) * step**2
    entropy = -np.sum(mass * np.log(np.maximum(mass, 1e-300) / step**2))
    assert abs(nats.mean() - entropy) < 5 * nats.std() / np.sqrt(len(nats)) + 1e-3
    expected = mass.reshape(8, 10, 8, 10).sum(axis=(1, 3)) * 8000
    points = densities.draw(name, 8000, 1)
    found, *_ = np.histogram2d(*points.T[::-1], bins=[np.arange(-4, 5)] * 2)
    # Chi squared with 63 degrees of freedom is above 125 once in 100,000 draws; the draw is fixed.
    assert np.sum((found - expected) ** 2 / (expected + 1)) < 125


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "moons"
    options = {"backend": "numpy", "lr": 0.01, "batch_size": 1000, "epochs": 1}
    config = snfnp.TrainConfig(data="moons", model="vector", out=path, **options)
    snfnp.train(config, snfnp.load_dataset("moons"), report=None)
    return path


@pytest.fixture(scope="module")
def run(folder):
    return snfnp.load_run(folder)


@pytest.mark.slow
def test_a_run_on_a_plane_leaves_a_picture_and_an_animation(tmp_path, capsys):
    folder = tmp_path / "moons"
    options = ("--data", "moons", *FAST, "--batch-size", "1000", "--epochs", "3")
    train.main([*options, "--out", str(folder)])
    with Image.open(folder / "training.gif") as animation:
        assert animation.n_frames == 3 and animation.info["loop"] == 0
        first = np.asarray(animation.convert("RGB"))
        animation.seek(2)
        assert animation.info["duration"] >= 2000, "it rests on its last frame"
        assert (first != np.asarray(animation.convert("RGB"))).any()
    assert (folder / "samples.png").read_bytes().startswith(b"\x89PNG")
    evaluate.main([str(folder)])
    assert "5,000 test rows from 2-D toy data" in capsys.readouterr().out
    kept = (folder / "training.gif").read_bytes()
    train.main(["--resume", "--out", str(folder)])  # nothing is left to do, and to draw
    assert (folder / "training.gif").read_bytes() == kept
    said = capsys.readouterr().out
    summary = json.loads((folder / "summary.json").read_text())
    above = summary["test_nll_nats"] - 1.006372
    assert f"has 1.0064 nats: the flow is {above:.4f} above it" in said
    assert "gif" not in said


def test_a_view_is_what_the_flow_says(run):
    view = View.of(
        run.likelihood, snfnp.load_dataset("moons").test, ["exact", "learned"]
    )
    x = np.linspace(*view.extent[:2], 128)
    y = np.linspace(*view.extent[2:], 128)
    expected = np.exp(
        run.likelihood.log_prob(np.array([[x[100], y[7]], [x[3], y[64]]]))
    )
    # a row is a height, the lowest first
    rows = [7, 64]
    columns = [100, 3]
    assert_allclose(view.density[rows, columns], expected, rtol=1e-12)
    assert not np.allclose(view.density[columns, rows], expected, rtol=1e-3)
    back = run.ops.to_host(run.likelihood.latents(view.grid.reshape(-1, 2))[0])
    for lines, still in zip(np.split(back.reshape(22, -1, 2), 2), (1, 0), strict=True):
        assert (
            np.ptp(lines[..., still], axis=1).max()
            < 1e-9
            < np.ptp(lines[..., 1 - still])
        )
    assert_array_equal(view.latents, run.likelihood.latents(view.data)[0])
    assert (view.samples["learned"] != view.samples["exact"]).any() and len(
        view.data
    ) >= 600


def test_the_example_of_the_readme_has_the_likelihood_of_the_true_density():
    text = (ROOT / "README.md").read_text("utf-8")
    code = text.partition("```python\n")[2].partition("density =")[0]
    namespace = {}
    exec(code, namespace)
    _, fresh = map(namespace["moon"], (1000, 5000))  # those of the fit come first
    true = blurred(lambda t: np.exp(1j * t), 0, np.pi, signs=[1])
    found = np.log(true(fresh @ (1, 1j))).mean()
    assert f"of the true density: {found:.2f}" in text


def test_a_small_table_is_drawn_with_all_of_its_rows(tmp_path, monkeypatch):
    """Of its validation rows alone there would be six points."""
    views = []
    monkeypatch.setattr(
        plots, "save_view", lambda path, view, *given: views.append(view)
    )
    monkeypatch.setattr(plots, "save_animation", lambda *of: None)
    rows = RNG.normal(size=(60, 2))
    np.save(tmp_path / "a.npy", rows)
    options = (*FAST, "--batch-size", "20", "--epochs", "1", "--out")
    train.main([str(tmp_path / "a.npy"), *options, str(tmp_path / "run")])
    assert {*map(tuple, views[0].data)} == {*map(tuple, rows)}


def record(epoch, likelihood=None):
    return Record(epoch, 300, epoch, 1.0, 0.0, 0.0, 0.0, nll=0.0, likelihood=likelihood)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_an_animation_is_thinned_and_skips_frames_that_are_not_finite(run, monkeypatch):
    monkeypatch.setattr(View, "of", lambda *given: given[2])
    animation = Animation(np.zeros((5, 2)))
    for epoch in range(1, 301):
        animation(record(epoch, run.likelihood))
        animation(record(epoch))  # of a step
    epochs = [int(re.match(r"epoch (\d+):", title)[1]) for title, _ in animation.frames]
    assert epochs == [*range(1, 301, 8)] and animation.frames[0][1] == ["learned"]
    infinite = run.params["dense1"]["R"] * np.inf
    monkeypatch.undo()
    monkeypatch.setitem(run.likelihood.params["dense1"], "R", infinite)
    for epoch in range(301, 309):
        animation(record(epoch, run.likelihood))
    assert len(animation.frames) == len(epochs)


def test_a_run_without_an_animation_builds_no_likelihood_for_it(shell, monkeypatch):
    """Those of two evaluations and the test's are all."""
    made = []
    around(monkeypatch, Trainer, "likelihood", lambda *_: made.append(1))
    np.save("a.npy", RNG.normal(size=(60, 3)))
    shell(f"train a.npy {SHORT}")
    assert len(made) == 3


def test_scores_are_the_log_likelihood_of_each_sample(run, folder, shell, capsys):
    """Of all samples of other data; a file that exists is left alone."""
    data = snfnp.load_dataset("moons").test
    far = np.concatenate([data[:20] + 3, [[1e300, -1e300]]])
    np.save("far.npy", far)
    line = f"evaluate {folder} --data far.npy --split all --scores far.csv"
    shell(line)
    out = Path("far.csv")
    before = out.read_text()
    first, *lines = before.splitlines()
    index, nats = zip(*(line.split(",") for line in lines), strict=True)
    assert first == "index,nats" and index == tuple(map(str, range(21)))
    assert nats[-1] == "-inf"
    expected = run.likelihood.log_prob(far[:-1])
    np.testing.assert_allclose(np.array(nats[:-1], float), expected, rtol=1e-12)
    said = capsys.readouterr().out
    assert "21 rows from " in said and "scores: far.csv" in said
    with one_line(UsageError, "`scores` is far.csv, which exists: choose another name"):
        shell(line)
    assert out.read_text() == before
    shell(f"evaluate {folder} --scores own.csv --batch-size 70")
    own = np.genfromtxt("own.csv", delimiter=",", names=True)["nats"]
    np.testing.assert_allclose(own, run.likelihood.log_prob(data), rtol=1e-12)


def test_a_warning_of_exact_samples_is_one_line(folder, shell, monkeypatch, capsys):
    monkeypatch.setattr(Likelihood, "_loss_of_digits", "exact samples have few digits")
    for inverse, said in (
        ("exact", "exact samples have few digits\n"),
        ("learned", ""),
    ):
        shell(f"sample {folder} --out s.npy --inverse {inverse}")
        assert capsys.readouterr().err == said
