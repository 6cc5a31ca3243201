"""Densities of `FlowDensity`: exactness, averages, folds, candidates, ties."""

import math
import warnings
from unittest import mock

import numpy as np
import pytest
from numpy.random import default_rng
from numpy.testing import assert_allclose, assert_array_equal, assert_equal
from support.arrays import normal
from support.densities import (
    FAST,
    PAIR,
    RELU,
    SPLINE,
    assert_same,
    few_mixtures,  # noqa: F401
    fit,
    mixtures_of,
    moons,
    noted_folds,
    rows_in_fold_and_rest,
)
from support.runs import around

import snfnp
from snfnp.density import fitting, training
from snfnp.density.rows import drawn
from snfnp.density.training import (
    Candidate,
    Progress,
    flow_candidate,
    mixture_candidates,
)
from snfnp.errors import DivergedError
from snfnp.ops import jit
from snfnp.processes import forked
from snfnp.step.trainer import Trainer
from snfnp.training.options import TrainConfig


@pytest.fixture(scope="module")
def fitted():
    return snfnp.FlowDensity(random_state=0, epochs=15, members=3).fit(moons())


def test_the_density_integrates_to_1(fitted, alone):
    """Over a grid that reaches far beyond the rows: trapezoids."""
    x = np.linspace(-90, 120, 140)
    y = np.linspace(2, 9, 140)
    grid = np.stack(np.meshgrid(x, y), axis=2).reshape(-1, 2)
    cell = (x[1] - x[0]) * (y[1] - y[0])
    assert abs(np.exp(fitted.score_samples(grid)).sum() * cell - 1) < 1e-3


def test_a_density_is_better_than_a_gaussian_and_samples_have_the_datas_spread(fitted):
    """Better than a Gaussian of the same covariance, on other rows; samples are as they are."""
    x = moons()
    fresh = moons(seed=1)
    root = np.linalg.cholesky(np.cov(x.T))
    z = np.linalg.solve(root, (fresh - x.mean(axis=0)).T)
    gaussian = (
        -(z**2).sum(axis=0).mean() / 2 - np.log(2 * np.pi) - np.log(np.diag(root)).sum()
    )
    assert fitted.score(fresh) > gaussian + 0.3
    for exact in (True, False):
        samples = fitted.sample(1000, random_state=1, exact=exact)
        assert_allclose(samples.std(axis=0), x.std(axis=0), rtol=0.15)
    assert_array_equal(fitted.sample(3, 5), fitted.sample(3, np.int64(5)))


def test_rows_come_back_from_their_latents(fitted):
    x = moons(seed=2)
    z = fitted.transform(x)
    errors = [
        np.abs((fitted.inverse_transform(z, exact=exact) - x) / x.std(axis=0)).max()
        for exact in (True, False)
    ]
    assert errors[0] < 1e-10 < errors[1] < 1.0  # the second inverse is learned


# ---------------------------------------------------------------- small and odd data


@pytest.mark.slow
def test_on_little_data_nothing_explodes():
    """Breast cancer, 455 rows of 30 columns: better than a Gaussian, and samples of its spread."""
    x = pytest.importorskip("sklearn.datasets").load_breast_cancer().data
    x = x[default_rng(0).permutation(len(x))]
    x = (x - x[114:].mean(axis=0)) / x[114:].std(axis=0)
    density = snfnp.FlowDensity(random_state=0, noise=0.0, members=2, ties="keep").fit(
        x[114:]
    )
    # −55 by a loop without held-out rows; a Gaussian: about −7
    assert density.score(x[:114]) > -8
    assert all(
        0.7 < density.sample(500, 0, exact=exact).std() < 1.3 for exact in (True, False)
    )


@pytest.mark.slow
@pytest.mark.parametrize("columns, rows", [(1, 50), (3, 4), (60, 30)])
@pytest.mark.parametrize("activation", ["spline", "smooth-leaky-relu"])
def test_any_number_of_columns_and_rows(columns, rows, activation):
    x = normal(rows, columns)
    density = snfnp.FlowDensity(activation=activation, epochs=2, members=2).fit(x)
    assert np.isfinite(density.score_samples(3 * x)).all()
    assert_allclose(density.inverse_transform(density.transform(x)), x, atol=1e-9)


@pytest.mark.slow
def test_a_fit_that_diverges_keeps_its_best_step(monkeypatch):
    def diverges(trainer, images, step=Trainer.training_step):
        if trainer.step == 20:
            raise DivergedError("training diverged", 20)
        step(trainer, images)

    x = moons(100)
    monkeypatch.setattr(Trainer, "training_step", diverges)
    density = snfnp.FlowDensity(random_state=0, members=2).fit(x)
    assert density.n_iter_ <= 20 and np.isfinite(density.score(x))
    monkeypatch.undo()  # to a W that overflows, and has no determinant
    density = snfnp.FlowDensity(random_state=0, members=2, epochs=1, lr=1e38).fit(x)
    assert np.isfinite(density.score(x))


def test_a_strict_numpy_changes_nothing(fitted, tmp_path):
    x = moons(60)
    usual = fit(x, PAIR, **SPLINE)
    with np.errstate(all="call", call=pytest.fail):
        strict = fit(x, PAIR, **SPLINE)
        for density in (strict, fitted):
            assert np.isneginf(density.score_samples([[1e308, -1e308]])).all()
            density.inverse_transform(density.transform(x))
        strict.save(tmp_path / "density")
        again = snfnp.FlowDensity.load(tmp_path / "density")
        assert_same(again, usual, x)
        assert_array_equal(again.sample(50, 0), usual.sample(50, 0))


def test_rows_beyond_all_numbers_have_no_density(recwarn):
    density = fit(moons(60))
    far = np.array([[1e308, 0.0], [-1e308, 1e308], [0.0, 5.0]])
    assert list(np.isneginf(density.score_samples(far))) == [True, True, False]
    assert not recwarn.list


def test_short_kernels_give_the_same_bits_without_threads(monkeypatch):
    """All serial against all parallel: steps of a flow of rows, bit for bit."""
    densities = []
    for short in (0, 1 << 60):
        monkeypatch.setattr(jit, "_SHORT", short)
        densities.append(fit(moons(300), activation="smooth-leaky-relu"))
    assert_same(*densities, moons())


# ---------------------------------------------------------------- an average of densities


def test_an_average_is_the_mean_of_its_members_densities(fitted):
    x = moons(seed=4)
    ensemble = fitted._ensemble
    assert len(ensemble.members) >= 6 and sum(
        fitted.weights_.values()
    ) == pytest.approx(1)
    densities = np.exp([member.log_prob(x) for member in ensemble.members])
    assert_allclose(np.exp(fitted.score_samples(x)), ensemble.weights @ densities)


def test_mixtures_that_are_kept_are_fitted_to_all_rows_as_well(fitted):
    kept = mixtures_of(fitted)
    assert kept and {len(each.members) for each in kept} == {6}
    assert all(each.refit is None for each in kept)  # it holds the rows
    rows = normal(60, 2)
    first = mixture_candidates(rows, [np.arange(20)], 5, np.zeros(60))[0]
    alone, again = first.refitted(5).members
    assert not np.array_equal(again.means, alone.means)
    assert_allclose(again.means, rows.mean(axis=0)[None])  # of one component


def test_one_noise_level_is_the_one_that_held_out_rows_prefer():
    x = moons(120)
    options = {"random_state": 0, "members": 1, "epochs": 15, "patience": 5}
    fits = [fit(x, options, noise=noise) for noise in (0.0, 0.1, 0.2)]
    scores = [each._fit.best.scores.mean() for each in fits]
    assert len(set(scores)) == 3
    chosen = fit(x, options)
    best = fits[int(np.argmax(scores))]
    assert_same(chosen, best, x)
    assert list(chosen.weights_) == list(best.weights_)
    assert chosen.n_iter_ == best.n_iter_


@pytest.mark.parametrize(
    "rows, levels", [(500, [0, 0.1, 0.2]), (600, [0, 0.1]), (1001, [0])]
)
def test_the_fewer_rows_the_more_noise_is_tried(rows, levels, monkeypatch):
    noted = noted_folds(monkeypatch)
    fit(moons(rows), RELU, epochs=1, members=2, mixtures=False)
    assert [config.noise for *_, config in noted] == levels


def test_noise_has_the_units_of_its_column():
    x = moons(100)
    one = fit(x, noise=0.3)
    other = fit(1024 * x, noise=0.3)
    difference = one.score_samples(x) - other.score_samples(1024 * x)
    assert_allclose(difference, 2 * np.log(1024), rtol=1e-9)
    assert (fit(x, noise=0.0).score_samples(x) != one.score_samples(x)).any()


# ---------------------------------------------------------------- the training of candidates


class Bar:
    """A progress bar that keeps what it was told."""

    total = 0

    def __init__(self):
        self.steps = []
        self.names = []
        self.update = self.steps.append
        self.set_description = self.names.append

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass


def small_flow(rows, **options):
    """The configuration of a small flow of two columns, for so many rows, and the flow."""
    options = {"depth": 1, "batch_size": 20} | options
    config = TrainConfig(model="vector", backend="numpy", **options).resolve(rows, (2,))
    x = moons(80)
    return config, config.build_flow((2,), (x.mean(axis=0), x.std(axis=0)))


def test_patience_counts_from_the_best_evaluation_of_all_folds(monkeypatch):
    """Scores of two folds by a script: a better mean lets them wait again."""
    script = iter([0.0, 1.0, 0.5, 2.0, 1.5, 1.9, 2.0])
    seen = []
    mean = 0.0

    def scripted(likelihood, rows):
        nonlocal mean
        second = len(seen) % 2
        mean = mean if second else next(script)
        seen.append(likelihood.params)
        return np.full(len(rows), mean + (2 * second - 1))

    monkeypatch.setattr("snfnp.likelihood.Likelihood.log_prob", scripted)
    folds = [np.arange(0, 80, 2), np.arange(1, 80, 2)]
    config, flow = small_flow(40, bins=4, epochs=40, patience=2)
    bar = Bar()
    best = flow_candidate(config, flow, moons(80), folds, Progress(bar))
    assert best.step == 6 and bar.steps == [0] + [4] * 5
    for member, params in zip(best.members, seen[6:8], strict=True):
        assert_equal(flow.layout.views(member.astype(float)), params)
    assert set(best.scores[folds[0]]) == {1.0} and set(best.scores[folds[1]]) == {3.0}


def test_every_member_has_a_seed_of_its_own_and_other_rows_than_judge_it(monkeypatch):
    """Also where training goes on with twice as many steps."""
    seen = []

    def note(ops, rows, config, shape):
        seen.append((rows, config.seed))

    around(monkeypatch, training, "Batches", note)
    monkeypatch.setattr(training, "_WORTH", -math.inf)
    x = moons(80)
    folds = [np.arange(0, 80, 4), np.arange(1, 80, 4)]
    config, flow = small_flow(60, activation="smooth-leaky-relu", epochs=2)
    bar = Bar()
    best = flow_candidate(config, flow, x, folds, Progress(bar), 12)
    assert sum(bar.steps) == 2 * (6 + 12) and 0 <= best.step <= 18
    assert len({seed for _, seed in seen}) == len(seen) == 4
    for index, (rows, _) in enumerate(seen):
        assert_array_equal(rows, np.delete(x, folds[index % 2], axis=0))


def test_training_goes_on_as_long_as_it_is_worth_it(monkeypatch):
    """By a script of scores: from the best flows, and no further after too small a gain."""
    begun = []
    scores = iter([-3.0, -2.0, -1.995])

    def trained(config, flow, rows, folds, progress, best, done):
        begun.append((config.epochs, best.members, done))
        return Candidate("flow", np.full(4, next(scores)), [len(begun)], done), 100

    monkeypatch.setattr(training, "_trained", trained)
    config, flow = small_flow(60, epochs=5)
    best = flow_candidate(config, flow, moons(4), [], Progress(), 10_000)
    assert begun == [(5, [], 0), (10, [1], 100), (20, [2], 200)] and best.mean == -1.995


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"patience": 2}, {"mixtures": False}])
def test_processes_give_the_bits_of_one(options, monkeypatch):
    """Flows and mixtures side by side in forks, against one after another; this process takes one
    step, which compiles the kernels."""
    x = moons(80)
    options = FAST | SPLINE | {"members": 3, "epochs": 6, "noise": 0.1} | options
    densities = []
    note = lambda trainer, _: steps.append(trainer.step)  # noqa: E731
    around(monkeypatch, Trainer, "training_step", note)
    for parallel in (False, True):
        steps = []
        monkeypatch.setattr(forked, "is_useful", lambda parallel=parallel: parallel)
        densities.append(fit(x, options))
    assert steps == [0]
    assert_same(*densities, x)
    assert densities[0].weights_ == densities[1].weights_
    assert densities[0].n_iter_ == densities[1].n_iter_


@pytest.mark.slow
def test_many_rows_are_trained_on_for_longer(monkeypatch):
    """Up to a step for 32 rows, as long as each doubling is worth it."""
    noted = []
    note = lambda *of: noted.append(of[5])  # noqa: E731
    around(monkeypatch, fitting, "flow_candidate", note)
    monkeypatch.setattr(fitting, "FEW", 100)
    monkeypatch.setattr(fitting, "_FIRST", 4)
    monkeypatch.setattr(fitting, "_LONGEST", 8)
    for rows in (90, 200, 640):
        fit(moons(rows), RELU, members=2, mixtures=False, noise=0.0)
    assert noted == [0, 8, 20]


def test_a_limit_of_time_stops_what_is_tried(monkeypatch):
    lines = []
    monkeypatch.setattr(fitting, "tqdm", mock.MagicMock(write=lines.append))
    x = moons(300)
    density = fit(x, RELU, members=2, time_limit=0.0, verbose=True)
    assert np.isfinite(density.score(x)) and density.n_iter_ <= 20
    assert sum(line.startswith("mixture") for line in lines) == 1


@pytest.mark.slow
@pytest.mark.parametrize("rows", [60, 200])
def test_rows_of_many_judge_in_part(rows, monkeypatch):
    """Beyond a number of rows, most are trained on by all members; mixtures have other sizes."""
    noted = noted_folds(monkeypatch)
    for name, value in {
        "_JUDGED": 10,
        "FEW": 100,
        "_FIRST": 20,
        "_LONGEST": 40,
    }.items():
        monkeypatch.setattr(fitting, name, value)
    monkeypatch.setattr(training, "FEW", 100)
    density = fit(moons(rows), RELU, members=3, noise=0.0)
    table, folds, _ = noted[0]
    assert len(table) == rows and [len(fold) for fold in folds] == [10] * 3
    assert len(set(np.concatenate(folds))) == 30
    assert density.n_iter_ <= (60 if rows == 200 else 800)


def test_the_bar_says_what_is_tried(monkeypatch):
    bar = Bar()
    monkeypatch.setattr(fitting, "progress_bar", lambda **options: bar)
    density = fit(moons(60), RELU, epochs=1, members=2)
    flows = [f"flow, noise {noise}" for noise in ("0", "0.1", "0.2")]
    assert bar.names == [*flows, "mixtures"] and bar.total == sum(bar.steps) > 0
    assert {name for name in density.weights_ if "flow" in name} <= set(flows)


def test_a_verbose_fit_has_a_line_for_each_candidate(capsys):
    x = moons(60)
    density = fit(x, PAIR, verbose=True)
    lines = capsys.readouterr().out.splitlines()
    assert all(line.endswith(" nats per row held out") for line in lines)
    assert {line.partition(":")[0] for line in lines} >= set(density.weights_)
    fit(x, PAIR, verbose=False)
    assert capsys.readouterr() == ("", "")


# ---------------------------------------------------------------- weights, copies, ties


@pytest.mark.filterwarnings("ignore:ties in")
def test_whole_weights_are_copies_and_others_are_drawn():
    x = moons(60)
    weights = np.arange(60) % 3
    density = fit(x, sample_weight=weights)
    assert_same(fit(np.repeat(x, weights, axis=0)[::-1]), density, x)
    important = fit(x, sample_weight=weights * 1.0000001)
    assert_same(important, density, x)


def test_rows_are_drawn_as_often_as_their_weights_say():
    numbers = np.arange(40.0)[::-1, None]
    weights = np.linspace(0.5, 3.3, 40)
    table, groups = drawn(numbers, weights, default_rng(0))
    counts = np.bincount(table[:, 0].astype(int), minlength=40)[::-1]
    assert len(table) == 40 and groups[-1] + 1 == np.count_nonzero(counts)
    assert np.abs(counts - 40 * weights / weights.sum()).max() < 1
    table, groups = drawn(numbers, np.full(40, 1e300), default_rng(0))
    assert_array_equal(table[:, 0], np.arange(40))  # too many to be counts
    assert_array_equal(groups, np.arange(40))


@pytest.mark.slow
@pytest.mark.parametrize("members", [1, 3])
def test_copies_that_weights_draw_are_no_ties_and_share_a_fold(members, monkeypatch):
    """Else what is held out would be trained on, and the choice of a candidate would overfit."""
    noted = noted_folds(monkeypatch)
    x = moons(60)
    weights = np.linspace(0.0, 3.3, 60)
    with warnings.catch_warnings(action="error"):
        density = fit(x, members=members, sample_weight=weights)
    for table, folds, _ in noted:
        assert len(table) == 60 and len(np.unique(table, axis=0)) < 50
        assert not any(rows_in_fold_and_rest(table, fold) for fold in folds)
    turned = fit(x[::-1], members=members, sample_weight=weights[::-1])
    assert_same(turned, density, x)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:ties in")
@pytest.mark.parametrize("lattice", [False, True])
def test_a_bootstrap_has_no_ties_but_those_of_distinct_rows(lattice, monkeypatch):
    """Copies share a fold, unless every column has steps: there, rows are equal by chance."""
    noted = noted_folds(monkeypatch)
    rng = default_rng(0)
    x = (
        rng.integers(0, 9, (60, 2))
        if lattice
        else np.c_[moons(60), rng.integers(0, 9, 60)]
    )
    resampled = x[rng.integers(0, 60, 60)]
    density = fit(resampled, members=3)
    assert_array_equal(density.step_, [1, 1] if lattice else [0, 0, 1])
    table, folds, _ = noted[0]
    assert any(rows_in_fold_and_rest(table, fold) for fold in folds) == lattice
    assert len(table) == 60
    distinct, counts = np.unique(resampled, axis=0, return_counts=True)
    once = fit(distinct, members=3, sample_weight=counts)
    assert_same(once, density, x)
    assert not fit(resampled[:, -1:], ties="keep").step_.any()


def test_scores_compare_on_rows_with_noise(monkeypatch):
    """One warning for all fits of a search says so."""
    search = pytest.importorskip("sklearn.model_selection").GridSearchCV
    monkeypatch.setattr(fitting, "_warned", set())
    rng = default_rng(0)
    x = np.stack([rng.integers(0, 5, 200) / 4, rng.normal(size=200)], axis=1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        searched = search(snfnp.FlowDensity(**FAST), {"noise": [0.0, 0.1]}).fit(x)
    density = searched.best_estimator_
    messages = [str(each.message) for each in caught]
    (message,) = [each for each in messages if "ties in" in each]
    advice = "compare with other estimators by `dequantise(X)`"
    assert message.endswith(f"Scores are those of cells, `step_` wide: {advice}")
    noisy, again, other = (density.dequantise(x, seed) for seed in (0, 0, 1))
    assert_array_equal(noisy, again)
    assert (noisy != other).any()
    # a cell's score is the mean density of rows with noise, by 16 points
    row = np.array([[0.5, 0.1]])
    many = density.dequantise(np.repeat(row, 20_000, axis=0), 0)
    mass = np.log(np.exp(density._ensemble.members[0].log_prob(many)).mean())
    assert abs(mass - density.score_samples(row)[0]) < 0.05


def test_equal_columns_get_a_line():
    x = moons(50)[:, [0, 1, 0]]
    with pytest.warns(
        UserWarning, match=r"column 0 .* and column 2 .* of X are equal: leave one"
    ):
        fit(x)
