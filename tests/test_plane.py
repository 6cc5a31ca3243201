"""2-D toy data: densities, pictures and the animation, paths between latents, scores."""

import re
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image
from support.messages import one_line

import snfnp
from snfnp.cli import evaluate, train
from snfnp.data import toy as densities
from snfnp.errors import UsageError
from snfnp.likelihood import Likelihood
from snfnp.step.trainer import Trainer
from snfnp.training.plots import Animation, View
from snfnp.training.progress import Record

RNG = np.random.default_rng(0)
FAST = ("--backend", "numpy", "--warmup-epochs", "0.5", "--lr", "0.01")


T = np.linspace(0, np.pi, 400)
CIRCLE = np.exp(2j * T)
ARM = (T * np.exp(3j * T))[40:]
HALF = np.exp(1j * T) - 0.5 - 0.25j
# the curves in the middle of each density, its noise across them (squared), its share of points
CURVES = {
    "moons": ([HALF, -HALF], 0.1**2, [1, 1]),
    "rings": ([CIRCLE, 2 * CIRCLE, 3 * CIRCLE], 0.1**2, [1, 2, 3]),
    "spirals": ([ARM, -ARM], 0.1**2, [1, 1]),
    "gaussians": (
        np.split(2 * np.exp(0.25j * np.pi * np.arange(8)), 8),
        2 * 0.2**2,
        [1] * 8,
    ),
}


@pytest.mark.parametrize("name", CURVES)
def test_points_lie_around_their_curves_with_their_noise(name):
    curves, noise, shares = CURVES[name]
    points = densities.draw(name, 4000, 3) @ (1, 1j)
    apart = np.array([np.abs(points[:, None] - curve).min(axis=1) for curve in curves])
    found = np.bincount(apart.argmin(axis=0), minlength=len(shares)) / len(points)
    assert_allclose(found, np.array(shares) / sum(shares), atol=0.03)
    assert_allclose(np.mean(apart.min(axis=0) ** 2), noise, rtol=0.12)


def test_the_checkerboard_has_its_squares_and_the_pinwheel_its_arms():
    column, row = np.floor(densities.draw("checkerboard", 8000, 1)).T.astype(int)
    counts = np.bincount(4 * (column + 2) + row + 2)
    assert {*(column + row) % 2} == {0} and {*column} == {*row} == {-2, -1, 0, 1}
    assert_allclose(counts[counts > 0], 1000, atol=150)
    angle = np.angle(densities.draw("pinwheel", 8000, 1) @ (1, 1j))
    turned = [abs(np.mean(np.exp(1j * n * angle))) for n in range(1, 6)]
    assert max(turned[:4]) < 0.05 and turned[4] > 0.3


@pytest.mark.parametrize("name", densities.DENSITIES)
def test_a_density_is_a_data_set_by_name(name):
    data = snfnp.load_dataset(name)
    splits = [getattr(data, split) for split in snfnp.data.SPLITS]
    assert len(np.unique(np.concatenate(splits), axis=0)) == 17_000
    assert_array_equal(data.test, snfnp.load_dataset(name).test)
    assert (densities.draw(name, 50, 1) != densities.draw(name, 50, 0)).any()
    with one_line(
        UsageError,
        f"`data_dir=x` is for published data sets, and {name} is none: leave it out",
    ):
        snfnp.load_dataset(name, "x")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "moons"
    options = ("--data", "moons", *FAST, "--batch-size", "1000", "--epochs", "3")
    train.main([*options, "--out", str(path)])
    return path


@pytest.fixture(scope="module")
def run(folder):
    return snfnp.load_run(folder)


def test_a_run_on_a_plane_leaves_a_picture_and_an_animation(folder, capsys):
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
    assert (
        folder / "training.gif"
    ).read_bytes() == kept and "gif" not in capsys.readouterr().out


def test_a_view_is_what_the_flow_says(run):
    view = View.of(
        run.likelihood, snfnp.load_dataset("moons").test, ["learned", "exact"]
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
    back = run.ops.to_host(run.likelihood.latents(view.grid["exact"].reshape(-1, 2))[0])
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


def record(epoch: int, likelihood=None) -> Record:
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


def test_a_run_without_an_animation_builds_no_likelihood_for_it(tmp_path, monkeypatch):
    made = []
    make = Trainer.likelihood
    monkeypatch.setattr(
        Trainer, "likelihood", lambda *given: made.append(1) or make(*given)
    )
    for columns, count in (
        (3, 3),
        (2, 5),
    ):  # two evaluations and the test's, and two of a frame
        np.save(tmp_path / "a.npy", RNG.normal(size=(60, columns)))
        options = (*FAST, "--batch-size", "20", "--epochs", "2", "--out")
        train.main([str(tmp_path / "a.npy"), *options, str(tmp_path / str(columns))])
        assert len(made) == count
        made.clear()


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
    assert "21 all rows from " in said and "scores: far.csv" in said
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
