"""The plane: densities one can see, their pictures and film, paths between latents, scores."""

import re

import numpy as np
import pytest
from PIL import Image
from support.messages import one_line

import snfnp
from snfnp.cli import evaluate, interpolate, score, train
from snfnp.data import plane as densities
from snfnp.errors import DivergedError, UsageError
from snfnp.training import plots
from snfnp.training.plane import Film, View
from snfnp.training.progress import Record

RNG = np.random.default_rng(0)
FAST = ("--backend", "numpy", "--warmup-epochs", "1", "--lr", "0.01")


# ---------------------------------------------------------------- densities


def curve(name):
    """A fine line through the middle of a density."""
    t = np.linspace(0, np.pi, 4000)
    circle = np.stack([np.cos(2 * t), np.sin(2 * t)], 1)
    half = np.stack([np.cos(t) - 0.5, np.sin(t) - 0.25], 1)
    arm = (t * np.stack([np.cos(3 * t), np.sin(3 * t)]))[:, 400:].T
    return {
        "moons": [half, -half],
        "rings": [circle, 2 * circle, 3 * circle],
        "spirals": [arm, -arm],
        "gaussians": np.split(2 * circle[::500], 8),
    }[name]


@pytest.mark.parametrize("name, noise, shares", [
    ("moons", 0.1, [1, 1]), ("rings", 0.1, [1, 2, 3]), ("spirals", 0.1, [1, 1]),
    ("gaussians", 0.2, [1] * 8),
])  # fmt: skip
def test_points_lie_around_their_curves_with_their_noise(name, noise, shares):
    points = densities.draw(name, 4000, 3)
    apart = np.array([
        np.linalg.norm(points[:, None] - part[:: max(1, len(part) // 400)], axis=2).min(axis=1)
        for part in curve(name)
    ])  # fmt: skip
    of = np.bincount(apart.argmin(axis=0), minlength=len(shares)) / len(points)
    np.testing.assert_allclose(of, np.array(shares) / sum(shares), atol=0.03)
    columns = 2 if name == "gaussians" else 1  # distance to a point, or to a line
    np.testing.assert_allclose(np.mean(apart.min(axis=0) ** 2), columns * noise**2, rtol=0.12)


def test_the_checkerboard_is_uniform_on_its_squares():
    column, row = np.floor(densities.draw("checkerboard", 8000, 1)).T.astype(int)
    assert {*(column + row) % 2} == {0} and {*column} == {*row} == {-2, -1, 0, 1}
    counts = np.bincount(4 * (column + 2) + row + 2)
    np.testing.assert_allclose(counts[counts > 0], 1000, atol=150)


def test_the_pinwheel_has_five_arms():
    x, y = densities.draw("pinwheel", 8000, 1).T
    turned = [abs(np.mean(np.exp(1j * n * np.arctan2(y, x)))) for n in range(1, 6)]
    assert max(turned[:4]) < 0.05 and turned[4] > 0.3


@pytest.mark.parametrize("name", densities.DENSITIES)
def test_a_density_is_a_data_set_by_name(name):
    data = snfnp.load_dataset(name)
    assert [len(getattr(data, split)) for split in snfnp.data.SPLITS] == [10_000, 2_000, 5_000]
    everything = np.concatenate([data.train, data.validation, data.test])
    assert len(np.unique(everything, axis=0)) == len(everything)
    assert data.fingerprint("test") == snfnp.load_dataset(name).fingerprint("test")
    assert (densities.draw(name, 50, 1) != densities.draw(name, 50, 0)).any()
    with one_line(UsageError, f"{name} is drawn, not read: leave --data-dir x out"):
        snfnp.load_dataset(name, "x")


# ---------------------------------------------------------------- pictures


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "moons"
    train.main(
        ["--data", "moons", *FAST, "--batch-size", "1000", "--epochs", "3", "--out", str(path)]
    )
    return path


@pytest.fixture(scope="module")
def run(folder):
    return snfnp.load_run(folder)


def test_a_run_on_a_plane_leaves_a_picture_and_a_film(folder, capsys):
    with Image.open(folder / "training.gif") as film:
        assert film.n_frames == 3 and film.info["loop"] == 0
        film.seek(0)
        first = np.asarray(film.convert("RGB")).astype(int)
        film.seek(2)
        assert film.info["duration"] >= 2000, "it rests on its last frame"
        assert (first != np.asarray(film.convert("RGB"))).any()
    with Image.open(folder / "samples.png") as picture:
        assert len(np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0)) > 100
    evaluate.main([str(folder)])
    assert "5,000 test rows from a density of the plane" in capsys.readouterr().out
    kept = (folder / "training.gif").read_bytes()
    train.main(["--resume", "--out", str(folder)])
    assert (folder / "training.gif").read_bytes() == kept and "gif" not in capsys.readouterr().out


def test_a_view_is_what_the_flow_says(run):
    data = snfnp.load_dataset("moons").test
    view = View.of(run.likelihood, data, ["learned", "exact"])
    left, right, bottom, top = view.extent
    x, y = np.linspace(left, right, 128), np.linspace(bottom, top, 128)
    places = np.array([[x[100], y[7]], [x[3], y[64]]])  # rows are heights, the lowest first
    expected = np.exp(run.likelihood.log_prob(places))
    np.testing.assert_allclose([view.density[7, 100], view.density[64, 3]], expected, rtol=1e-12)
    assert not np.allclose([view.density[100, 7], view.density[3, 64]], expected, rtol=1e-3)
    cell = (x[1] - x[0]) * (y[1] - y[0])
    inside = (np.abs(run.likelihood.sample(4000, 1, exact=True) - [x.mean(), y.mean()])
              < [right - x.mean(), top - y.mean()]).all(axis=1).mean()  # fmt: skip
    np.testing.assert_allclose(view.density.sum() * cell, inside, atol=0.03)
    back = run.ops.to_host(run.likelihood.latents(view.grid["exact"].reshape(-1, 2))[0])
    lines = back.reshape(22, -1, 2)
    np.testing.assert_allclose(lines[:11, :, 1], lines[:11, :1, 1] + np.zeros(101), atol=1e-9)
    np.testing.assert_allclose(lines[11:, :, 0], lines[11:, :1, 0] + np.zeros(101), atol=1e-9)
    shown = run.ops.to_host(run.likelihood.latents(view.data)[0])
    np.testing.assert_array_equal(view.latents, shown)
    assert (view.grid["learned"] != view.grid["exact"]).any() and len(view.data) >= 600


def test_axes_of_comparable_units_have_one_scale(run):
    wide = View.of(run.likelihood, RNG.normal(0, (1, 2), (500, 2)), ["exact"]).extent
    np.testing.assert_allclose(wide[1] - wide[0], wide[3] - wide[2])
    wide = View.of(run.likelihood, RNG.normal(0, (1, 20), (500, 2)), ["exact"]).extent
    assert 15 < (wide[3] - wide[2]) / (wide[1] - wide[0]) < 25


def record(epoch: int, likelihood=None) -> Record:
    return Record(epoch, 300, epoch, 1.0, 0.0, 0.0, 0.0, nats=0.0, likelihood=likelihood)


def test_a_long_film_keeps_evaluations_that_are_evenly_spaced(run, monkeypatch):
    monkeypatch.setattr(View, "of", lambda *given: given[2])
    film = Film(np.zeros((5, 2)))
    for epoch in range(1, 301):
        film(record(epoch, run.likelihood))
        film(record(epoch))  # of a step
    epochs = [int(re.match(r"epoch (\d+):", title)[1]) for title, _ in film.frames]
    assert 24 <= len(epochs) <= 48 and epochs == [*range(1, 301, 8)]
    assert film.frames[0][1] == ["learned"]


def test_an_inverse_that_is_not_finite_costs_a_frame_and_not_the_run(run, monkeypatch):
    def diverged(*_):
        raise DivergedError("samples are not finite")

    monkeypatch.setattr(View, "of", diverged)
    film = Film(np.zeros((5, 2)))
    film(record(1, run.likelihood))
    assert film.frames == []


# ---------------------------------------------------------------- paths


@pytest.mark.parametrize("spherical", [True, False])
def test_paths_end_at_their_ends_and_circles_keep_the_norm(spherical):
    start, end = RNG.standard_normal((2, 5, 400))
    end[3], end[4], start[2] = -start[3], 2 * start[4], 0  # all straight
    paths = interpolate.between(start, end, 5, spherical)
    np.testing.assert_allclose([paths[:, 0], paths[:, -1]], [start, end], atol=1e-12)
    straight = np.linspace(start, end, 5, axis=1)
    np.testing.assert_allclose(paths[2:], straight[2:], atol=1e-12)
    norms = np.linalg.norm(paths[:2], axis=2)
    if not spherical:
        np.testing.assert_allclose(paths, straight, atol=1e-12)
        assert (norms[:, 2] < 0.85 * norms.min(axis=1, initial=20.0, where=[1, 0, 0, 0, 1])).all()
        return
    np.testing.assert_allclose(norms, np.linspace(norms[:, 0], norms[:, -1], 5, axis=1))
    unit = paths[:2] / norms[..., None]
    turns = (unit[:, 1:] * unit[:, :-1]).sum(axis=2)
    np.testing.assert_allclose(turns, turns[:, :1] + np.zeros(4))  # even


@pytest.fixture(scope="module", params=["glow", "rows"])
def other_run(request, tmp_path_factory):
    """A run of images with two latents each, or of rows of three numbers, and its data."""
    path = tmp_path_factory.mktemp(request.param)
    data, options = RNG.normal(size=(60, 3)), []
    if request.param == "glow":
        data = RNG.integers(0, 256, (60, 4, 4, 1)).astype(np.uint8)
        options = ["--model", "glow", "--levels", "2", "--depth", "1", "--width", "4"]
    np.save(path / "data.npy", data)
    options += [*FAST, "--batch-size", "20", "--epochs", "1", "--out", str(path / "run")]
    train.main([str(path / "data.npy"), "--test", "0.4", *options])
    return snfnp.load_run(path / "run"), data


def test_paths_between_test_samples_begin_and_end_with_these(other_run, tmp_path, monkeypatch):
    run, data = other_run
    rows = data.ndim == 2
    out, drawn = tmp_path / ("paths.npy" if rows else "paths.png"), []
    monkeypatch.setattr(plots, "save_samples", lambda out, panels, *_: drawn.append(panels))
    options = ["--inverse", "exact", "--pairs", "3", "--steps", "4", "--out", str(out)]
    interpolate.main([str(run.folder.path), *options])
    paths = np.load(out) if rows else next(iter(drawn[0].values())).reshape(3, 6, 4, 4, 1)
    ends = paths[:, [0, -1]].reshape(6, *data.shape[1:])
    test = {each.tobytes() for each in data}
    if rows:
        assert paths.shape == (3, 4, 3)
        apart = np.abs(ends[:, None] - data).max(axis=2).min(axis=1)
        assert (apart < 1e-9).all()
    else:  # beside the images themselves, which the exact inverse returns to
        assert {each.tobytes() for each in ends} <= test
        np.testing.assert_array_equal(paths[:, [1, -2]], paths[:, [0, -1]])
        assert (paths[:, 2] != paths[:, 1]).any()


@pytest.mark.parametrize("inverse", ["learned", "exact"])
def test_paths_of_a_plane_are_a_picture(inverse, folder, tmp_path, monkeypatch, capsys):
    drawn = []
    monkeypatch.setattr(plots, "_save", lambda figure, path: drawn.append((figure, path)))
    interpolate.main([str(folder), "--inverse", inverse, "--out", str(tmp_path / "a.svg")])
    ((figure, path),) = drawn
    assert path == tmp_path / "a.svg" and f"{path}\n" == capsys.readouterr().out
    assert [len(axis.lines) for axis in figure.axes] == [8, 8]


@pytest.mark.parametrize("options, problem", [
    (["--steps", "1"], "--steps is 1: it must be at least 2"),
    (["--pairs", "0"], "--pairs is 0: it must be at least 1"),
    (["--pairs", "3000"], "--pairs 3000 needs 6000 test rows, and there are 5000: ask for fewer"),
    (["--path", "curved"], "invalid choice: 'curved'"),
    (["--out", "a.txt"], "--out is a.txt: its name must end in one of .png"),
])  # fmt: skip
def test_paths_that_cannot_be_are_one_line(options, problem, folder):
    with one_line(UsageError, problem):
        interpolate.main([str(folder), *options])


# ---------------------------------------------------------------- scores


def test_the_area_under_the_curve_is_a_share_of_pairs():
    ours, others = RNG.integers(0, 9, 50), RNG.integers(2, 12, 70)
    first, second = ours[:, None], others
    expected = np.mean((first > second) + 0.5 * (first == second))
    np.testing.assert_allclose(score.auroc(ours, others), expected, rtol=1e-14)


def test_scores_are_log_likelihoods_of_both(run, folder, tmp_path, capsys):
    data = snfnp.load_dataset("moons").test
    far = np.concatenate([data[:20] + 3, [[1e300, -1e300]]])
    np.save(tmp_path / "far.npy", far)
    score.main([str(folder), str(tmp_path / "far.npy"), "--count", "900"])
    lines = (folder / "score-far.csv").read_text().splitlines()
    assert lines[0] == "data,place,nats" and len(lines) == 1 + 900 + 21
    own = np.array([float(line.split(",")[2]) for line in lines[1:901]])
    others = np.array([float(line.split(",")[2]) for line in lines[901:]])
    np.testing.assert_allclose(own, run.likelihood.log_prob(data[:900]), rtol=1e-12)
    np.testing.assert_allclose(others[:20], run.likelihood.log_prob(far[:20]), rtol=1e-12)
    assert others[20] == -np.inf and lines[901].startswith("other,0,")
    said = capsys.readouterr().out
    assert f"median log-likelihood {np.median(own):.3f} nats for 900 rows of test moons" in said
    assert f"{score.auroc(own, others):.4f}" in said and "Nalisnick" not in said
    assert (folder / "score-far.png").read_bytes().startswith(b"\x89PNG")


def test_other_data_that_are_likelier_get_a_word(folder, tmp_path, capsys):
    """Black images beside digits, in small: points at the mode."""
    np.save(tmp_path / "mode.npy", np.zeros((30, 2)) + RNG.normal(0, 1e-3, (30, 2)))
    out = tmp_path / "a.pdf"
    score.main([str(folder), str(tmp_path / "mode.npy"), "--out", str(out), "--count", "500"])
    said = capsys.readouterr().out
    assert "likelier than the test data" in said and "Nalisnick et al. 2019" in said
    assert out.exists() and out.with_suffix(".csv").exists()
    score.main([str(folder), "moons", "--out", str(out)])
    assert "AUROC 0.5000" in capsys.readouterr().out


@pytest.mark.parametrize("other, problem", [
    ("mons", "'mons' is neither a data set nor a path (did you mean moons?)"),
    ("mnist-sample", "mnist-sample: shape (1000, 28, 28, 1) is not (N, 2)"),
    ("nan.npy", "nan.npy: nan in row 1, column 0"),
    ("three.npy", "three.npy: shape (4, 3) is not (N, 2)"),
])  # fmt: skip
def test_what_has_no_score_is_one_line(other, problem, folder, tmp_path):
    np.save(tmp_path / "nan.npy", [[0.0, 1.0], [np.nan, 2.0]])
    np.save(tmp_path / "three.npy", np.ones((4, 3)))
    with one_line(UsageError, problem):
        score.main([str(folder), str(tmp_path / other) if ".npy" in other else other])
