"""FlowDensity: scikit-learn's checks, exactness, little data, bad input, files; and its model."""

import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
from support.messages import one_line

import snfnp
from snfnp.errors import CheckpointError, DivergedError
from snfnp.layers.whiten import _shrunk
from snfnp.models import PRESETS
from snfnp.ops import get_ops, jit
from snfnp.training.options import TrainConfig
from snfnp.training.trainer import Trainer

get_ops("numba")  # before scikit-learn's OpenMP, beside which Numba's threads are slower
sklearn = pytest.importorskip("sklearn")
from sklearn.base import clone  # noqa: E402
from sklearn.datasets import load_breast_cancer  # noqa: E402
from sklearn.model_selection import GridSearchCV  # noqa: E402
from sklearn.pipeline import make_pipeline  # noqa: E402
from sklearn.preprocessing import StandardScaler  # noqa: E402

FAST = {"layers": 2, "epochs": 2}
CHECKS = """
import warnings, snfnp
from sklearn.utils.estimator_checks import check_estimator
warnings.simplefilter("ignore", UserWarning)
found = check_estimator(snfnp.FlowDensity(layers=2, epochs=2), on_skip=None)
print(len(found), {each["status"] for each in found})
"""


def moons(rows=600, seed=0):
    """Two half circles, in other units in each column."""
    rng = np.random.default_rng(seed)
    angle, upper = np.pi * rng.random(rows), rng.random(rows) < 0.5
    x = np.where(upper, np.cos(angle), 1 - np.cos(angle))
    y = np.where(upper, np.sin(angle), 0.5 - np.sin(angle))
    return np.stack([30 * x, 5 + y], axis=1) + rng.normal(size=(rows, 2)) * [3.0, 0.1]


@pytest.fixture(scope="module")
def fitted():
    return snfnp.FlowDensity(random_state=0, epochs=30).fit(moons())


def test_every_check_of_scikit_learn_passes():
    """In a process of its own: one check is skipped unless SciPy was told so before."""
    env = {**os.environ, "SCIPY_ARRAY_API": "1"}
    how = {"env": env, "capture_output": True, "text": True}
    done = subprocess.run([sys.executable, "-c", CHECKS], **how)
    count, _, statuses = done.stdout.partition(" ")
    assert statuses.strip() == "{'passed'}" and int(count) >= 40, done.stdout + done.stderr


def test_it_works_in_a_pipeline_and_in_a_search_over_a_grid():
    x = moons(200)
    pipeline = make_pipeline(StandardScaler(), snfnp.FlowDensity(random_state=0, **FAST))
    search = GridSearchCV(pipeline, {"flowdensity__noise": [0.0, 0.3]}, cv=2).fit(x)
    assert search.best_params_["flowdensity__noise"] in (0.0, 0.3)
    assert np.isfinite(search.score(x)) and search.transform(x).shape == x.shape
    assert clone(pipeline[-1]).get_params() == pipeline[-1].get_params()
    assert repr(pipeline[-1]) == "FlowDensity(layers=2, epochs=2, random_state=0)"
    with pytest.raises(ValueError, match="Invalid parameter 'depth' for estimator FlowDensity"):
        pipeline[-1].set_params(depth=3)


def test_without_scikit_learn_it_fits_too():
    code = "import sys; sys.modules['sklearn'] = None; import snfnp, numpy as np; "
    code += "x = np.random.default_rng(0).normal(size=(50, 2)); d = snfnp.FlowDensity(1, epochs=1);"
    code += "print(d.fit(x).score_samples(x).shape, snfnp.FlowDensity().score(x))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.splitlines()[-1].startswith("ValueError: this FlowDensity is not fitted yet")


# ---------------------------------------------------------------- exactness


def test_the_density_integrates_to_1(fitted):
    """Over a grid that reaches far beyond the rows: trapezoids."""
    sides = np.linspace(-90, 120, 500), np.linspace(2, 9, 500)
    grid = np.stack(np.meshgrid(*sides, indexing="ij"), axis=2).reshape(-1, 2)
    cell = (sides[0][1] - sides[0][0]) * (sides[1][1] - sides[1][0])
    assert abs(np.exp(fitted.score_samples(grid)).sum() * cell - 1) < 1e-3


def test_it_learns_where_rows_are(fitted):
    """Better than a Gaussian of the same covariance, on other rows; samples are as they are."""
    x, fresh = moons(), moons(seed=1)
    z = np.linalg.solve(np.linalg.cholesky(np.cov(x.T)), (fresh - x.mean(axis=0)).T)
    gaussian = -(z**2).sum(axis=0).mean() / 2 - np.log(2 * np.pi)
    gaussian -= np.linalg.slogdet(np.cov(x.T))[1] / 2
    assert fitted.score(fresh) > gaussian + 0.3
    for exact in (True, False):
        drawn = fitted.sample(1000, random_state=1, exact=exact)
        np.testing.assert_allclose(drawn.std(axis=0), x.std(axis=0), rtol=0.15)
    np.testing.assert_array_equal(fitted.sample(3, 5), fitted.sample(3, np.int64(5)))


def test_rows_come_back_from_their_latents(fitted):
    x = moons(seed=2)
    z = fitted.transform(x)
    back, learned = fitted.inverse_transform(z), fitted.inverse_transform(z, exact=False)
    assert np.abs((back - x) / x.std(axis=0)).max() < 1e-10
    error = np.abs((learned - x) / x.std(axis=0)).max()
    assert 1e-10 < error < 1.0  # another inverse, which is learned


def test_a_copy_a_pickle_and_a_file_are_the_same_density(fitted, tmp_path):
    x, file = moons(seed=3), tmp_path / "moons.safetensors"
    fitted.save(file)
    for same in (pickle.loads(pickle.dumps(fitted)), snfnp.FlowDensity.load(file)):
        np.testing.assert_array_equal(same.score_samples(x), fitted.score_samples(x))
        assert same.n_iter_ == fitted.n_iter_ and same.epochs == 30
    content = file.read_bytes()
    for damaged in (content[: len(content) // 2], content[:-1] + bytes([content[-1] ^ 1]), b"{}"):
        file.write_bytes(damaged)
        with one_line(CheckpointError, match="damaged|no snfnp checkpoint"):
            snfnp.FlowDensity.load(file)


# ---------------------------------------------------------------- small and odd data


def test_on_little_data_nothing_explodes():
    """Breast cancer, 455 rows of 30 columns: better than a Gaussian, and samples of its spread."""
    x = load_breast_cancer().data
    x = x[np.random.default_rng(0).permutation(len(x))]
    fresh, x = np.split((x - x[114:].mean(axis=0)) / x[114:].std(axis=0), [114])
    density = snfnp.FlowDensity(random_state=0, noise=0.0).fit(x)
    assert density.score(fresh) > -8  # −55 by a loop without held-out rows; a Gaussian: about −7
    assert all(0.7 < density.sample(500, 0, exact=exact).std() < 1.3 for exact in (True, False))


@pytest.mark.parametrize("columns, rows", [(1, 50), (3, 4), (60, 30)])
@pytest.mark.parametrize("activation", ["spline", "smooth-leaky-relu"])
def test_any_number_of_columns_and_rows(columns, rows, activation):
    x = np.random.default_rng(0).normal(size=(rows, columns))
    density = snfnp.FlowDensity(activation=activation, epochs=2, random_state=0).fit(x)
    assert np.isfinite(density.score_samples(3 * x)).all()
    np.testing.assert_allclose(density.inverse_transform(density.transform(x)), x, atol=1e-9)


@pytest.mark.parametrize(
    "rows, problem",
    [
        (np.ones((1, 3)), "n_samples = 1"),
        (np.array([[1.0, 5.0], [2.0, 6.0]]), "n_samples = 2: a density needs at least 3 rows"),
        (np.array([[1.0], [2e300], [3e300]]), "column 0 .* has the standard deviation inf: leave"),
        (np.ma.masked_array([[1.0], [2.0], [4.0]]), "X is a masked array: leave masked rows"),
        (
            np.array([[1.0, 5.0], [2.0, 5.0], [4.0, 5.0]]),
            "column 1 .* has the standard deviation 0: leave",
        ),
        (np.array([[1.0, 2.0], [np.nan, 1.0]]), "X contains NaN or infinity, first in row 1"),
        (np.array([["a", "b"], ["c", "d"]]), "could not convert string to float"),
        (np.arange(4.0), "Expected 2D array, got 1D array .* Reshape your data"),
    ],
)
def test_rows_that_no_density_can_be_of_are_refused(rows, problem):
    with one_line((ValueError, TypeError), match=problem):
        snfnp.FlowDensity().fit(rows)


@pytest.mark.parametrize(
    "given, problem",
    [
        ({"layers": 0}, "layers is 0: it must be from 1 to 1000"),
        ({"lr": "high"}, "lr is high: it must be a finite number"),
        ({"validation_fraction": 1.0}, "validation_fraction is 1.0: it must be between 0 and 1"),
        ({"activation": "tanh"}, "activation is tanh: it must be one of"),
    ],
)
def test_parameters_are_refused_by_their_names(given, problem):
    with one_line(ValueError, problem):
        snfnp.FlowDensity(**given).fit(moons(20))


def test_training_that_diverges_leaves_the_best_before(monkeypatch):
    def diverges(trainer, images, step=Trainer.training_step):
        if trainer.step == 20:
            raise DivergedError("training diverged", 20)
        step(trainer, images)

    monkeypatch.setattr(Trainer, "training_step", diverges)
    density = snfnp.FlowDensity(random_state=0).fit(moons(100))
    assert density.n_iter_ <= 20 and np.isfinite(density.score(moons(100)))


# ---------------------------------------------------------------- the model and its steps


def test_the_preset_fits_the_columns():
    for columns, expected in ((1, (6, 0.01)), (16, (4, 0.01)), (64, (2, 0.005))):
        config = TrainConfig(model="vector").resolve(1000, (columns,))
        assert (config.depth, config.lr) == expected
    assert TrainConfig(model="vector", depth=3, lr=1.0).resolve(1000, (2,)).depth == 3
    assert PRESETS["vector"].fits((2000,)) == {"depth": 1, "lr": 0.01 * (16 / 2000) ** 0.5}


def test_a_covariance_is_shrunk_by_as_much_as_its_rows_deserve():
    rng = np.random.default_rng(0)
    turn, _ = np.linalg.qr(rng.normal(size=(20, 20)))
    true = (turn * np.geomspace(0.1, 10, 20)) @ turn.T
    for rows in (15, 40, 4000):
        x = rng.multivariate_normal(np.zeros(20), true, rows)
        found = x.T @ x / rows
        shrunk = _shrunk(found, rows)
        assert np.linalg.norm(shrunk - true) <= 1.001 * np.linalg.norm(found - true)
        assert np.trace(shrunk) == pytest.approx(np.trace(found))
        assert np.linalg.eigvalsh(shrunk).min() > 1e-3
    few = rng.normal(size=(10, 50))
    assert np.abs(_shrunk(few.T @ few / 10, 10) - np.eye(50)).max() < 0.6
    np.testing.assert_allclose(_shrunk(np.eye(5), 3), np.eye(5))


def test_short_kernels_give_the_same_bits_without_threads(monkeypatch):
    """All in turn against all in parallel: steps of a flow of rows, bit for bit."""
    found, activation = [], "smooth-leaky-relu"
    for short in (0, 1 << 60):
        monkeypatch.setattr(jit, "_SHORT", short)
        density = snfnp.FlowDensity(random_state=0, activation=activation, **FAST).fit(moons(300))
        found.append(density.score_samples(moons()))
    np.testing.assert_array_equal(*found)
