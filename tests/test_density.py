"""FlowDensity: scikit-learn's checks, exactness, little data, bad input, names, weights, files."""

import copy
import math
import os
import pickle
import sys
import warnings
from datetime import date
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from support.messages import one_line
from support.processes import python

import snfnp
from snfnp import threads
from snfnp.density import estimator, files, training
from snfnp.density.rows import drawn
from snfnp.density.training import Candidate, flow_candidate, mixture_candidates
from snfnp.errors import CheckpointError, DivergedError, SnfnpError, UsageError
from snfnp.ops import get_ops, jit
from snfnp.training.options import TrainConfig
from snfnp.training.runs.checkpoint import save_checkpoint
from snfnp.training.trainer import Trainer

get_ops("numba")  # before scikit-learn's OpenMP, beside which Numba's threads are slower
sklearn = pytest.importorskip("sklearn")
from sklearn.base import clone  # noqa: E402
from sklearn.datasets import load_breast_cancer  # noqa: E402
from sklearn.model_selection import GridSearchCV  # noqa: E402
from sklearn.pipeline import make_pipeline  # noqa: E402
from sklearn.preprocessing import StandardScaler  # noqa: E402

FAST = {"layers": 2, "epochs": 2, "members": 1}
CHECKS = """
import sys, warnings, snfnp
from sklearn.utils.estimator_checks import check_estimator
warnings.simplefilter("ignore", UserWarning)
density = snfnp.FlowDensity(layers=2, epochs=2, noise=0.0, members=int(sys.argv[1]))
found = check_estimator(density, on_skip=None)
left = {(each["check_name"], each["status"]) for each in found if each["status"] != "passed"}
print(len(found), left - {("check_sample_weights_pandas_series", "skipped")})
"""
WORKERS = """
import numba, numpy as np, snfnp
from joblib import Parallel, delayed
from snfnp.ops import get_ops
from threadpoolctl import threadpool_info
def fit(x):
    compiled = []
    with get_ops("numba").device.compilations(lambda: None, compiled.append):
        snfnp.FlowDensity(layers=2, epochs=2, members=1, random_state=0).fit(x)
    pools = [pool["num_threads"] for pool in threadpool_info()]
    return max(numba.get_num_threads(), *pools), sum(compiled)
x = np.random.default_rng(0).normal(size=(100, 2))
fit(x)
print(*Parallel(n_jobs=2)(delayed(fit)(x) for _ in range(2)))
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
    return snfnp.FlowDensity(random_state=0, epochs=30, members=3).fit(moons())


@pytest.mark.parametrize("members", ["1", "2"])
def test_every_check_of_scikit_learn_passes(members):
    """In a process of its own: one check is skipped unless SciPy was told so before."""
    done = python(CHECKS, members, SCIPY_ARRAY_API="1")
    count, _, statuses = done.stdout.partition(" ")
    passed = statuses.strip() == "set()" and int(count) >= 50
    assert passed, done.stdout + done.stderr


def test_pipelines_and_grid_searches_work():
    x = moons(200)
    pipeline = make_pipeline(StandardScaler(), snfnp.FlowDensity(random_state=0, **FAST))
    search = GridSearchCV(pipeline, {"flowdensity__noise": [0.0, 0.3]}, cv=2).fit(x)
    assert search.best_params_["flowdensity__noise"] in (0.0, 0.3)
    assert np.isfinite(search.score(x)) and search.transform(x).shape == x.shape
    assert clone(pipeline[-1]).get_params() == pipeline[-1].get_params()
    assert repr(pipeline[-1]) == "FlowDensity(layers=2, members=1, epochs=2, random_state=0)"
    with pytest.raises(ValueError, match="Invalid parameter 'depth' for estimator FlowDensity"):
        pipeline[-1].set_params(depth=3)


def test_a_subclass_has_the_parameters_of_its_own_constructor():
    class Scaled(snfnp.FlowDensity):
        def __init__(self, scale=1.0, random_state=None):
            super().__init__(random_state=random_state)
            self.scale = scale

    copy = clone(Scaled(scale=2.0))
    assert copy.get_params() == {"scale": 2.0, "random_state": None}
    assert repr(copy) == "Scaled(scale=2.0)"


def test_processes_of_a_search_share_the_cores_and_compile_nothing():
    """Workers as GridSearchCV(n_jobs=2) starts: kernels are in the cache."""
    done = python(WORKERS, **{name: "" for name in os.environ if "NUM_THREADS" in name})
    most = max(1, os.cpu_count() // 2)
    assert done.stdout.strip() in {f"({n}, 0) ({n}, 0)" for n in range(1, most + 1)}


def test_a_small_fit_takes_one_thread_and_gives_the_others_back(monkeypatch):
    seen, before = [], threads.most()

    def seeing(*given, fit=flow_candidate):
        seen.append(threads.most())
        return fit(*given)

    monkeypatch.setattr("snfnp.density.estimator.flow_candidate", seeing)
    snfnp.FlowDensity(noise=0.0, **FAST).fit(moons(60))
    assert seen == [1] and threads.most() == before


def test_scikit_learn_is_optional():
    code = "import sys; sys.modules['sklearn'] = None; import snfnp, numpy as np; "
    code += "x = np.random.default_rng(0).normal(size=(50, 2)); d = snfnp.FlowDensity(1, epochs=1);"
    code += "print(d.fit(x).score_samples(x).shape, snfnp.FlowDensity().score(x))"
    last = python(code).stderr.splitlines()[-1]
    assert last.startswith("ValueError: this FlowDensity is not fitted yet")


def test_the_density_integrates_to_1(fitted):
    """Over a grid that reaches far beyond the rows: trapezoids."""
    sides = np.linspace(-90, 120, 500), np.linspace(2, 9, 500)
    grid = np.stack(np.meshgrid(*sides, indexing="ij"), axis=2).reshape(-1, 2)
    cell = (sides[0][1] - sides[0][0]) * (sides[1][1] - sides[1][0])
    assert abs(np.exp(fitted.score_samples(grid)).sum() * cell - 1) < 1e-3


def test_a_density_is_better_than_a_gaussian_and_samples_have_the_datas_spread(fitted):
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
    with one_line(UsageError, f"{tmp_path} is no regular file: give another path"):
        fitted.save(tmp_path)
    for same in (pickle.loads(pickle.dumps(fitted)), snfnp.FlowDensity.load(file)):
        np.testing.assert_array_equal(same.score_samples(x), fitted.score_samples(x))
        assert same.n_iter_ == fitted.n_iter_ and same.epochs == 30
        assert repr(same).startswith("FlowDensity(members=3, epochs=30")
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
    density = snfnp.FlowDensity(random_state=0, noise=0.0, members=2, ties="keep").fit(x)
    assert density.score(fresh) > -8  # −55 by a loop without held-out rows; a Gaussian: about −7
    assert all(0.7 < density.sample(500, 0, exact=exact).std() < 1.3 for exact in (True, False))


@pytest.mark.parametrize("columns, rows", [(1, 50), (3, 4), (60, 30)])
@pytest.mark.parametrize("activation", ["spline", "smooth-leaky-relu"])
def test_any_number_of_columns_and_rows(columns, rows, activation):
    x = np.random.default_rng(0).normal(size=(rows, columns))
    density = snfnp.FlowDensity(activation=activation, epochs=2, members=2).fit(x)
    assert np.isfinite(density.score_samples(3 * x)).all()
    np.testing.assert_allclose(density.inverse_transform(density.transform(x)), x, atol=1e-9)


@pytest.mark.parametrize(
    "rows, problem",
    [
        (np.ones((1, 3)), "n_samples = 1"),
        (np.array([[1.0, 5.0], [2.0, 6.0]]), "n_samples = 2: a density needs at least 3 rows"),
        (np.array([[1.0], [2e300], [3e300]]), "column 0 .* has the standard deviation inf: leave"),
        (np.ma.masked_array([[1.0], [2.0], [4.0]]), "X is a masked array: leave masked rows"),
        ([[1.0, 5.0], [2.0, 5.0], [4.0, 5.0]], "column 1 .* has the standard deviation 0: leave"),
        (np.array([[1.0, 2.0], [np.nan, 1.0]]), "X contains NaN or infinity, first in row 1"),
        (np.array([["a", "b"], ["c", "d"]]), "could not convert string to float"),
        (np.arange(4.0), "Expected 2D array, got 1D array .* Reshape your data"),
        (None, "Expected 2D array, got scalar array instead, of type NoneType. Reshape"),
        (iter([[1.0], [2.0]]), "got scalar array instead, of type list_iterator. Reshape"),
        ({"a": [1.0, 2.0]}, "got scalar array instead, of type dict. Reshape your data"),
        (Path("x.csv"), "got scalar array instead, of type PosixPath. Reshape your data"),
        ([{"a": 1.0}, {"a": 2.0}], "Expected 2D array, got 1D array instead of shape .2,.. Resh"),
    ],
)
def test_rows_without_a_density_are_refused(rows, problem, fitted):
    with one_line((ValueError, TypeError), match=problem):
        snfnp.FlowDensity().fit(rows)
    if problem.startswith(("Expected", "got")):
        with one_line(ValueError, match=problem):
            fitted.score_samples(rows)


@pytest.mark.parametrize(
    "given, problem",
    [
        ({"layers": 0}, "`layers` is 0: it must be from 1 to 1000"),
        ({"layers": "3"}, "`layers` is '3': it must be a whole number"),
        ({"lr": "high"}, "`lr` is 'high': it must be a finite number"),
        ({"validation_fraction": 1.0}, "validation_fraction is 1.0: it must be between 0 and 1"),
        ({"validation_fraction": "a"}, "validation_fraction is 'a': it must be between 0 and 1"),
        ({"random_state": "a"}, "random_state is 'a': give None, a whole number from 0 on, or a"),
        ({"random_state": -1}, "random_state is -1: give None, a whole number from 0 on, or a"),
        ({"activation": "tanh"}, "`activation` is tanh: it must be one of"),
    ],
)
def test_parameters_are_refused_by_their_names(given, problem):
    with one_line(ValueError, problem):
        snfnp.FlowDensity(**given).fit(moons(20))


def test_a_fit_that_diverges_keeps_its_best_step(monkeypatch):
    def diverges(trainer, images, step=Trainer.training_step):
        if trainer.step == 20:
            raise DivergedError("training diverged", 20)
        step(trainer, images)

    monkeypatch.setattr(Trainer, "training_step", diverges)
    density = snfnp.FlowDensity(random_state=0, members=2).fit(moons(100))
    assert density.n_iter_ <= 20 and np.isfinite(density.score(moons(100)))
    monkeypatch.undo()  # to a W that overflows, and has no determinant
    density = snfnp.FlowDensity(random_state=0, members=2, epochs=1, lr=1e38).fit(moons(100))
    assert np.isfinite(density.score(moons(100)))


def test_a_number_of_samples_beyond_all_machines_is_refused(fitted):
    for count in (0, 2**63, 1.5):
        with one_line(ValueError, f"n_samples is {count}: give a whole number from 1 to 2**63 - 1"):
            fitted.sample(count)


@pytest.mark.parametrize("late", [Candidate.refitted, estimator.Ensemble])
def test_an_interrupted_fit_keeps_the_former_one(late, monkeypatch):
    x, how = moons(60), {"layers": 2, "epochs": 2, "members": 2, "random_state": 0}
    density = snfnp.FlowDensity(**how).fit(Frame(x, ["a", "b"]))
    before, weights = density.score_samples(Frame(x, ["a", "b"])), density.weights_

    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(Candidate, "refitted", interrupted)
    if late is not Candidate.refitted:
        monkeypatch.undo()
        monkeypatch.setattr(estimator, "Ensemble", interrupted)
    with pytest.raises(KeyboardInterrupt):
        density.fit(2 * x[:50])
    monkeypatch.undo()
    np.testing.assert_array_equal(density.score_samples(Frame(x, ["a", "b"])), before)
    assert density.weights_ == weights and list(density.feature_names_in_) == ["a", "b"]


@pytest.mark.parametrize("state", [{"all": "raise"}, {"all": "call", "call": pytest.fail}])
def test_a_strict_numpy_changes_nothing(state, fitted, tmp_path):
    x, how = moons(60), {"layers": 2, "epochs": 2, "members": 2, "random_state": 0}
    usual = snfnp.FlowDensity(**how).fit(x)
    with np.errstate(**state):
        strict = snfnp.FlowDensity(**how).fit(x)
        for density in (strict, fitted):
            assert np.isneginf(density.score_samples([[1e308, -1e308]])).all()
            density.inverse_transform(density.transform(x))
        strict.save(tmp_path / "density")
        again = snfnp.FlowDensity.load(tmp_path / "density")
        np.testing.assert_array_equal(again.score_samples(x), usual.score_samples(x))
        np.testing.assert_array_equal(again.sample(50, 0), usual.sample(50, 0))


# ---------------------------------------------------------------- an average of densities


def test_an_average_is_the_mean_of_its_members_densities(fitted):
    x = moons(seed=4)
    ensemble = fitted._ensemble
    assert len(ensemble.members) >= 6 and sum(fitted.weights_.values()) == pytest.approx(1)
    each = np.exp([member.log_prob(x) for member in ensemble.members])
    np.testing.assert_allclose(np.exp(fitted.score_samples(x)), ensemble.weights @ each)


def test_mixtures_that_are_kept_are_fitted_to_all_rows_as_well(fitted):
    kept = [each for each, _ in fitted._fit[1] if each.name.startswith("mixture")]
    assert kept and {len(each.members) for each in kept} == {6}
    assert all(each.refit is None for each in kept)  # it holds the rows
    folds, rows = [np.arange(20)], np.random.default_rng(0).normal(size=(60, 2))
    first = mixture_candidates(rows, folds, 5, np.zeros(60))[0]
    alone, again = first.refitted(5).members
    assert not np.array_equal(again.means, alone.means)
    np.testing.assert_allclose(again.means, rows.mean(axis=0)[None])  # of one component


def test_one_noise_level_is_the_one_that_held_out_rows_prefer():
    x = moons(120)
    few = {"random_state": 0, "members": 1, "epochs": 40, "patience": 5}
    fits = [snfnp.FlowDensity(noise=noise, **few).fit(x) for noise in (0.0, 0.1, 0.2)]
    scores = [fit._fit[2].scores[:12].mean() for fit in fits]
    assert len(set(scores)) == 3
    chosen, best = snfnp.FlowDensity(**few).fit(x), fits[int(np.argmax(scores))]
    np.testing.assert_array_equal(chosen.score_samples(x), best.score_samples(x))
    assert list(chosen.weights_) == list(best.weights_) and chosen.n_iter_ == best.n_iter_


def test_patience_counts_from_the_best_evaluation_of_all_folds(monkeypatch):
    """Scores of two folds by a script: a better mean lets them wait again."""
    script = iter([0.0, 1.0, 0.5, 2.0, 1.5, 1.9, 2.0])
    mean, kept = [0.0], []

    def scripted(likelihood, rows):
        second = len(kept) % 2
        mean[0] = mean[0] if second else next(script)
        kept.append(likelihood.params)
        return np.full(len(rows), mean[0] + (2 * second - 1))

    monkeypatch.setattr("snfnp.likelihood.Likelihood.log_prob", scripted)
    x, folds = moons(80), [np.arange(0, 80, 2), np.arange(1, 80, 2)]
    size = {"depth": 1, "bins": 4, "batch_size": 20, "epochs": 40, "patience": 2}
    config = TrainConfig(model="vector", backend="numpy", **size).resolve(40, (2,))
    taken = []
    moments = x.mean(axis=0), x.std(axis=0)
    progress = training.Progress(advance=taken.append)
    found = flow_candidate(config, moments, x, folds, progress)
    assert found.step == 6 and taken == [2] * 10
    for member, params in zip(found.members, kept[6:8], strict=True):
        flow = config.build_flow((2,), moments)
        for layer, named in flow.layout.views(member.astype(float)).items():
            for name, values in named.items():
                np.testing.assert_array_equal(values, params[layer][name])
    assert set(found.scores[folds[0]]) == {1.0} and set(found.scores[folds[1]]) == {3.0}


@pytest.mark.parametrize("rows, levels", [(500, [0, 0.1, 0.2]), (600, [0, 0.1]), (1001, [0])])
def test_the_fewer_rows_the_more_noise_is_tried(rows, levels, monkeypatch):
    seen = noted_folds(monkeypatch)
    how = {"layers": 1, "epochs": 1, "members": 2, "mixtures": False, "random_state": 0}
    snfnp.FlowDensity(activation="smooth-leaky-relu", **how).fit(moons(rows))
    assert [config.noise for *_, config in seen] == levels


def test_every_member_has_a_seed_of_its_own_and_other_rows_than_judge_it(monkeypatch):
    """Also where training goes on with twice as many steps."""
    seen, original = [], training.Batches

    def noted(ops, rows, config, shape):
        seen.append((rows, config))
        return original(ops, rows, config, shape)

    monkeypatch.setattr(training, "Batches", noted)
    monkeypatch.setattr(training, "_WORTH", -math.inf)
    x, folds, steps = moons(80), [np.arange(0, 80, 4), np.arange(1, 80, 4)], []
    size = {"depth": 1, "activation": "smooth-leaky-relu", "batch_size": 20, "epochs": 2}
    config = TrainConfig(model="vector", backend="numpy", **size).resolve(60, (2,))
    progress = training.Progress(advance=steps.append)
    found = flow_candidate(config, (x.mean(axis=0), x.std(axis=0)), x, folds, progress, 12)
    assert len(steps) == 6 + 12 and 0 <= found.step <= 18
    assert len({config.seed for _, config in seen}) == len(seen) == 4
    for number, (rows, _) in enumerate(seen):
        assert not {tuple(row) for row in rows} & {tuple(row) for row in x[folds[number % 2]]}


def test_training_goes_on_as_long_as_it_is_worth_it(monkeypatch):
    """By a script of scores: from the best flows, and no further after too small a gain."""
    begun, scores = [], iter([-3.0, -2.0, -1.995])

    def trained(config, moments, rows, folds, progress, best, done):
        begun.append((config.epochs, best.members, done))
        return training.Candidate("flow", np.full(4, next(scores)), [len(begun)], done), 100

    monkeypatch.setattr(training, "_trained", trained)
    config = TrainConfig(model="vector", epochs=5)
    found = flow_candidate(config, (), moons(4), [], None, 10_000)
    assert begun == [(5, [], 0), (10, [1], 100), (20, [2], 200)] and found.mean == -1.995


def test_a_limit_of_time_stops_what_is_tried(monkeypatch):
    lines, x = [], moons(300)
    how = {"random_state": 0, "layers": 1, "members": 2, "activation": "smooth-leaky-relu"}
    monkeypatch.setattr(estimator, "tqdm", mock.MagicMock(write=lines.append))
    density = snfnp.FlowDensity(time_limit=0.0, verbose=True, **how).fit(x)
    assert np.isfinite(density.score(x)) and density.n_iter_ <= 20
    assert sum(line.startswith("mixture") for line in lines) == 1
    with one_line(ValueError, "time_limit is -1: give seconds, or None"):
        snfnp.FlowDensity(time_limit=-1).fit(x)


@pytest.mark.parametrize("rows", [60, 200])
def test_rows_of_many_judge_in_part(rows, monkeypatch):
    """Beyond a number of rows, most are trained on by all members; mixtures have other sizes."""
    seen = noted_folds(monkeypatch)
    for name, value in (("_JUDGED", 10), ("FEW", 100), ("_FIRST", 20), ("_LONGEST", 40)):
        monkeypatch.setattr(estimator, name, value)
    monkeypatch.setattr(training, "FEW", 100)
    how = {"random_state": 0, "layers": 1, "members": 3, "activation": "smooth-leaky-relu"}
    density = snfnp.FlowDensity(noise=0.0, **how).fit(moons(rows))
    table, folds, _ = seen[0]
    assert len(table) == rows and [len(fold) for fold in folds] == [10] * 3
    assert len(set(np.concatenate(folds))) == 30
    assert density.n_iter_ <= (60 if rows == 200 else 800)


def test_noise_has_the_units_of_its_column():
    x, how = moons(100), {"noise": 0.3, "random_state": 0, **FAST}
    one, other = (snfnp.FlowDensity(**how).fit(x * unit) for unit in (1.0, 1024.0))
    apart = one.score_samples(x) - other.score_samples(1024 * x)
    np.testing.assert_allclose(apart, 2 * np.log(1024), rtol=1e-9)
    plain = snfnp.FlowDensity(**{**how, "noise": 0.0}).fit(x)
    assert (plain.score_samples(x) != one.score_samples(x)).any()


def test_a_verbose_fit_has_a_line_for_each_candidate(capsys):
    x, how = moons(60), {"layers": 2, "epochs": 2, "members": 2, "random_state": 0}
    density = snfnp.FlowDensity(verbose=True, **how).fit(x)
    lines = capsys.readouterr().out.splitlines()
    assert all(line.endswith(" nats per row held out") for line in lines)
    assert {line.partition(":")[0] for line in lines} >= set(density.weights_)
    snfnp.FlowDensity(verbose=False, **how).fit(x)
    assert capsys.readouterr() == ("", "")


def test_equal_columns_get_a_line():
    x = moons(50)[:, [0, 1, 0]]
    with pytest.warns(UserWarning, match=r"column 0 .* and column 2 .* of X are equal: leave one"):
        snfnp.FlowDensity(**FAST).fit(x)


# ---------------------------------------------------------------- names, weights, odd rows


class Frame:
    """What a DataFrame is to an estimator: an array, and names of its columns."""

    def __init__(self, values, columns):
        self.values, self.columns = values, columns

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self.values, dtype)


def test_names_of_columns_have_to_be_those_of_fit(tmp_path, monkeypatch):
    x = moons(60)
    density = snfnp.FlowDensity(random_state=0, **FAST).fit(Frame(x, ["a", "b"]))
    density.save(tmp_path / "named")
    for each in (density, snfnp.FlowDensity.load(tmp_path / "named")):
        assert list(each.feature_names_in_) == ["a", "b"]
        assert each.score_samples(Frame(x, ["a", "b"])).shape == (60,)
        with pytest.raises(ValueError, match="should match .*\n.* must be in the same order"):
            each.score(Frame(x[:, ::-1], ["b", "a"]))
        with pytest.raises(ValueError, match="unseen at fit time:\n- c\n.*now missing:\n- b"):
            each.transform(Frame(x, ["a", "c"]))
        with pytest.warns(UserWarning, match="X does not have valid feature names"):
            each.score(x)
    assert list(density.get_feature_names_out()) == ["flowdensity0", "flowdensity1"]
    with pytest.warns(UserWarning, match="fitted without feature names"):
        snfnp.FlowDensity(**FAST).fit(x).score(Frame(x, ["a", "b"]))
    with pytest.raises(TypeError, match="names of X's columns are text and other things"):
        snfnp.FlowDensity(**FAST).fit(Frame(x, ["a", 1]))
    assert not hasattr(density.fit(x), "feature_names_in_")
    with one_line(ValueError, "transform is 'frames': give default, pandas or polars"):
        density.set_output(transform="frames")
    (tmp_path / "pandas.py").write_text("def DataFrame(*a): return a")
    monkeypatch.syspath_prepend(tmp_path)
    with mock.patch.dict(sys.modules):
        sys.modules.pop("pandas", None)
        values, index, names = density.set_output(transform="pandas").transform(x)
        listed, nothing, _ = density.transform(x.tolist())
        density.fit(Frame(x, ["a", "b"]))
        sampled, _, columns = density.sample(3)
        assert isinstance(density.set_output(transform="default").sample(3), np.ndarray)
    assert sampled.shape == (3, 2) and columns == ["a", "b"]
    assert values.shape == x.shape and index is None and len(names) == 2
    assert np.array_equal(listed, values) and nothing is None


@pytest.mark.filterwarnings("ignore:ties in")
def test_whole_weights_are_copies_and_others_are_drawn():
    x, how = moons(60), {"random_state": 0, **FAST}
    weights = np.arange(60) % 3
    one = snfnp.FlowDensity(**how).fit(x, sample_weight=weights)
    other = snfnp.FlowDensity(**how).fit(np.repeat(x, weights, axis=0)[::-1])
    np.testing.assert_array_equal(one.score_samples(x), other.score_samples(x))
    important = snfnp.FlowDensity(**how).fit(x, sample_weight=weights * 1.0000001)
    np.testing.assert_array_equal(one.score_samples(x), important.score_samples(x))
    numbers, weights = np.arange(40.0)[::-1, np.newaxis], np.linspace(0.5, 3.3, 40)
    table, groups = drawn(numbers, weights, np.random.default_rng(0))
    counts = np.bincount(table[:, 0].astype(int), minlength=40)[::-1]
    assert len(table) == 40 and groups[-1] + 1 == np.count_nonzero(counts)
    assert np.abs(counts - 40 * weights / weights.sum()).max() < 1
    many = drawn(numbers, np.full(40, 1e300), np.random.default_rng(0))
    np.testing.assert_array_equal(many[0][:, 0], np.arange(40))  # too many to be counts
    np.testing.assert_array_equal(many[1], np.arange(40))
    for wrong in ([1.0] * 59, [-1.0] + [1.0] * 59, [np.nan] * 60, [0.0] * 60):
        with one_line(ValueError, "sample_weight"):
            snfnp.FlowDensity(**how).fit(x, sample_weight=wrong)


def noted_folds(monkeypatch):
    """A list that every candidate of flows adds its rows and folds to."""
    seen, original = [], estimator.flow_candidate

    def noted(config, moments, table, folds, *rest):
        seen.append((table, folds, config))
        return original(config, moments, table, folds, *rest)

    monkeypatch.setattr(estimator, "flow_candidate", noted)
    return seen


@pytest.mark.parametrize("members", [1, 3])
def test_copies_that_weights_draw_are_no_ties_and_share_a_fold(members, monkeypatch):
    """Else what is held out would be trained on, and the choice of a candidate would overfit."""
    seen = noted_folds(monkeypatch)
    x, weights = moons(60), np.linspace(0.0, 3.3, 60)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        density = snfnp.FlowDensity(random_state=0, **FAST | {"members": members})
        density.fit(x, sample_weight=weights)
    for table, folds, _ in seen:
        assert len(table) == 60 and len(np.unique(table, axis=0)) < 50
        for fold in folds:
            rest = {tuple(row) for row in np.delete(table, fold, axis=0)}
            assert not rest & {tuple(row) for row in table[fold]}
    turned = snfnp.FlowDensity(random_state=0, **FAST | {"members": members})
    turned.fit(x[::-1], sample_weight=weights[::-1])
    np.testing.assert_array_equal(turned.score_samples(x), density.score_samples(x))


@pytest.mark.filterwarnings("ignore:ties in")
@pytest.mark.parametrize("lattice", [False, True])
def test_a_bootstrap_has_no_ties_but_those_of_distinct_rows(lattice, monkeypatch):
    """Copies share a fold, unless every column has steps: there, rows are equal by chance."""
    seen, rng = noted_folds(monkeypatch), np.random.default_rng(0)
    x = rng.integers(0, 9, (60, 2)) if lattice else np.c_[moons(60), rng.integers(0, 9, 60)]
    resampled = x[rng.integers(0, 60, 60)]
    density = snfnp.FlowDensity(random_state=0, **FAST | {"members": 3}).fit(resampled)
    np.testing.assert_array_equal(density.step_, [1, 1] if lattice else [0, 0, 1])
    table, folds, _ = seen[0]
    apart = 0
    for fold in folds:
        rest = {tuple(row) for row in np.delete(table, fold, axis=0)}
        apart += len(rest & {tuple(row) for row in table[fold]})
    assert (apart > 0) == lattice and len(table) == 60
    once = snfnp.FlowDensity(random_state=0, **FAST | {"members": 3})
    distinct, counts = np.unique(resampled, axis=0, return_counts=True)
    once.fit(distinct, sample_weight=counts)
    np.testing.assert_array_equal(once.score_samples(x), density.score_samples(x))
    alone = snfnp.FlowDensity(random_state=0, ties="keep", **FAST).fit(resampled[:, -1:])
    assert not alone.step_.any()
    with one_line(ValueError, "X has 2 different rows: a density needs at least 3"):
        snfnp.FlowDensity(ties="keep").fit([[0.1, 1.7], [0.2, 2.9]] * 3)


@pytest.mark.filterwarnings("ignore:ties in")
def test_samples_have_the_values_of_columns_with_ties():
    """Between the least and the greatest that occur; rows beyond them are drawn again, so no value
    at an end is too frequent."""
    rng = np.random.default_rng(0)
    x = np.stack([rng.integers(0, 3, 400), rng.exponential(20, 400).round(), rng.normal(size=400)])
    x = x.T + [0.5, 0.0, 0.0]
    density = snfnp.FlowDensity(random_state=0, members=2, epochs=5, layers=1).fit(x)
    drawn_rows = density.sample(4000, random_state=1)
    assert set(drawn_rows[:, 0]) == {0.5, 1.5, 2.5}
    assert set(drawn_rows[:, 1]) <= set(np.arange(x[:, 1].min(), x[:, 1].max() + 1))
    shares = [(each[:, 0] == 0.5).mean() for each in (drawn_rows, x)]
    assert abs(shares[0] - shares[1]) < 0.1
    assert not np.array_equal(drawn_rows[:, 2], drawn_rows[:, 2].round())
    far = density.inverse_transform(np.full((1, 3), 50.0))
    assert 0.5 <= far[0, 0] <= 2.5 and x[:, 1].min() <= far[0, 1] <= x[:, 1].max()


def test_scores_compare_on_rows_with_noise(monkeypatch):
    """One warning for all fits of a search says so."""
    monkeypatch.setattr(estimator, "_TOLD", set())
    rng = np.random.default_rng(0)
    x = np.stack([rng.integers(0, 5, 200) / 4, rng.normal(size=200)], axis=1)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        search = GridSearchCV(snfnp.FlowDensity(random_state=0, **FAST), {"noise": [0.0, 0.1]})
        density = search.fit(x).best_estimator_
    (message,) = [str(each.message) for each in told if "ties in" in str(each.message)]
    said = "Scores are of cells of `step_`: compare with other estimators by `dequantise(X)`"
    assert message.endswith(said)
    noisy, again, other = (density.dequantise(x, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(noisy, again)
    noise = noisy - x
    assert (noise[:, 1] == 0).all() and (noisy != other).any()
    assert 0.11 < np.abs(noise[:, 0]).max() <= 0.125 and abs(noise[:, 0].mean()) < 0.02
    # a cell's score is the mean density of rows with noise, by 16 points
    row = np.array([[0.5, 0.1]])
    apart = density._ensemble.members[0].log_prob(density.dequantise(np.repeat(row, 20_000, 0), 0))
    mass = np.log(np.exp(apart).mean())
    assert abs(mass - density.score_samples(row)[0]) < 0.05


def test_a_column_of_text_is_named():
    x = [[1.0, "red"], [2.0, "blue"], [3.0, "red"]]
    advice = "has text: leave it out, or give a column of 0 and 1 for each category"
    with one_line(
        ValueError, f"could not convert string to float: 'red': column 1 (from 0) {advice}"
    ):
        snfnp.FlowDensity().fit(np.array(x, object))
    with one_line(ValueError, f"column 'colour' {advice}"):
        snfnp.FlowDensity().fit(Frame(np.array(x, object), ["size", "colour"]))


def test_rows_beyond_all_numbers_have_no_density(recwarn):
    density = snfnp.FlowDensity(random_state=0, **FAST).fit(moons(60))
    far = np.array([[1e308, 0.0], [-1e308, 1e308], [0.0, 5.0]])
    assert list(np.isneginf(density.score_samples(far))) == [True, True, False]
    assert not recwarn.list
    for dates in (np.array([["2024-01-01"], ["2024-01-02"]], "M8[D]"), [[date(2024, 1, 1)]] * 3):
        with one_line(TypeError, "X has dates or durations"):
            density.fit(np.asarray(dates))


# ---------------------------------------------------------------- files


def test_numbers_of_numpy_survive_a_file_and_devices_are_refused(tmp_path):
    how = {"epochs": np.int64(2), "lr": np.float64(0.01), "noise": np.float32(0.0)}
    density = snfnp.FlowDensity(layers=np.int64(1), members=np.int64(2), **how).fit(moons(50))
    density.save(tmp_path / "density")
    same = snfnp.FlowDensity.load(tmp_path / "density")
    np.testing.assert_array_equal(same.score_samples(moons()), density.score_samples(moons()))
    assert same.get_params() == density.get_params() and same.weights_ == density.weights_
    with one_line(SnfnpError, "no regular file"):
        density.save("/dev/null")
    advice = "(No such file or directory): free some space, or give another path"
    with one_line(SnfnpError, tmp_path / "no" / "place", advice):
        density.save(tmp_path / "no" / "place")
    with one_line(CheckpointError, "is damaged", "use another file"):
        snfnp.FlowDensity.load(__file__)


@pytest.mark.parametrize(
    "change",
    [
        lambda record: record.pop("moments"),
        lambda record: record["moments"][1].__setitem__(0, -1.0),
        lambda record: record["moments"][1].__setitem__(0, 0.0),
        lambda record: record["moments"][1].__setitem__(0, 1e308),
        lambda record: record["moments"][1].__setitem__(0, 1e-320),
        lambda record: record["moments"][0].__setitem__(0, 1e308),
        lambda record: record["params"].update(depth=3),
        lambda record: record.update(params=[]),
        lambda record: record["config"].update(epochs="many"),
        lambda record: record["config"].update(model="os:system"),
        lambda record: record["candidates"][0].__setitem__(1, -0.5),
        lambda record: record["candidates"][0].__setitem__(3, 99),
        lambda record: record.update(candidates=[]),
        lambda record: record.update(names=3),
        lambda record: record["shapes"].popitem(),
        lambda record: next(iter(record["shapes"].values())).update(flat=[10**12]),
        # as before 2026-11-28, when every R lay in another order
        lambda record: record["shapes"]["0.0"].update(p=record["shapes"]["0.0"].pop("flat")),
    ],
)
def test_a_forged_file_is_one_line(change, tmp_path):
    density = snfnp.FlowDensity(random_state=0, **FAST).fit(moons(50))
    written = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "save_checkpoint", lambda path, saved, _: written.append(saved))
        density.save(tmp_path / "forged")
    change(written[0].record)
    save_checkpoint(tmp_path / "forged", written[0])
    with one_line(CheckpointError, "forged"):
        snfnp.FlowDensity.load(tmp_path / "forged")


@pytest.mark.slow
@pytest.mark.parametrize("name, factor", [("means", 1e30), ("roots", 1e30), ("roots", 1e-30)])
def test_a_mixture_that_no_fit_leaves_is_damage(name, factor, fitted, tmp_path):
    forged = copy.deepcopy(fitted)
    mixtures = [each.members[0] for each, _ in forged._fit[1] if each.name.startswith("mixture")]
    getattr(mixtures[0], name)[...] *= factor
    forged.save(tmp_path / "forged")
    with one_line(CheckpointError, "forged is damaged (a mixture in it): use another file"):
        snfnp.FlowDensity.load(tmp_path / "forged")


def test_short_kernels_give_the_same_bits_without_threads(monkeypatch):
    """All serial against all parallel: steps of a flow of rows, bit for bit."""
    found, activation = [], "smooth-leaky-relu"
    for short in (0, 1 << 60):
        monkeypatch.setattr(jit, "_SHORT", short)
        density = snfnp.FlowDensity(random_state=0, activation=activation, **FAST).fit(moons(300))
        found.append(density.score_samples(moons()))
    np.testing.assert_array_equal(*found)
