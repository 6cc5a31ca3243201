"""`FlowDensity` as an estimator: scikit-learn's protocol, what is refused, names, files."""

import copy
import json
import os
import pickle
import sys
import warnings
from dataclasses import replace
from datetime import date
from functools import reduce
from operator import getitem
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from support.densities import (
    FAST,
    PAIR,
    Frame,
    assert_same,
    few_mixtures,  # noqa: F401
    fit,
    mixtures_of,
    moons,
)
from support.messages import one_line
from support.processes import python
from support.runs import around

import snfnp
from snfnp import threads
from snfnp.density import ensemble, files, fitting
from snfnp.density.training import Candidate
from snfnp.errors import CheckpointError, SnfnpError, UsageError
from snfnp.ops import get_ops
from snfnp.training.runs.checkpoint import save_checkpoint

# before scikit-learn's OpenMP, beside which Numba's threads are slower
get_ops("numba")
sklearn = pytest.importorskip("sklearn")
from sklearn.base import clone  # noqa: E402
from sklearn.model_selection import GridSearchCV  # noqa: E402
from sklearn.pipeline import make_pipeline  # noqa: E402
from sklearn.preprocessing import StandardScaler  # noqa: E402
from sklearn.utils.estimator_checks import parametrize_with_checks  # noqa: E402

WORKERS = """
import numba, numpy as np, snfnp
from joblib import Parallel, delayed
from snfnp.ops import get_ops
from threadpoolctl import threadpool_info
def fit(x):
    compiled = []
    with get_ops("numba").device.compilations(lambda: None, compiled.append):
        density = snfnp.FlowDensity(layers=2, epochs=2, members=1, random_state=0).fit(x)
    pools = [pool["num_threads"] for pool in threadpool_info()]
    return density.score(x), max(numba.get_num_threads(), *pools), sum(compiled)
x = np.random.default_rng(0).normal(size=(100, 2))
alone, *_ = fit(x)
for score, *rest in Parallel(n_jobs=2)(delayed(fit)(x) for _ in range(2)):
    print(score == alone, *rest, end=" ")
"""
with warnings.catch_warnings(action="ignore"):  # it does not inherit from BaseEstimator
    with_checks = parametrize_with_checks(
        [
            snfnp.FlowDensity(
                1, members=2, epochs=2, noise=0.0, activation="smooth-leaky-relu"
            )
        ]
    )


@pytest.mark.slow
@with_checks
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_check_of_scikit_learn_passes(estimator, check):
    check(estimator)


def test_pipelines_and_grid_searches_work():
    x = moons(200)
    pipeline = make_pipeline(StandardScaler(), snfnp.FlowDensity(**FAST))
    search = GridSearchCV(pipeline, {"flowdensity__noise": [0.0, 0.3]}, cv=2).fit(x)
    assert search.best_params_["flowdensity__noise"] in (0.0, 0.3)
    assert np.isfinite(search.score(x)) and search.transform(x).shape == x.shape
    assert clone(pipeline[-1]).get_params() == pipeline[-1].get_params()
    assert repr(pipeline[-1]).endswith("-relu', epochs=2, random_state=0)")
    with pytest.raises(
        ValueError, match="Invalid parameter 'depth' for estimator FlowDensity"
    ):
        pipeline[-1].set_params(depth=3)


def test_a_subclass_has_the_parameters_of_its_own_constructor():
    class Scaled(snfnp.FlowDensity):
        def __init__(self, scale=1.0, random_state=None):
            super().__init__(random_state=random_state)
            self.scale = scale

    cloned = clone(Scaled(scale=2.0))
    assert cloned.get_params() == {"scale": 2.0, "random_state": None}
    assert repr(cloned) == "Scaled(scale=2.0)"


@pytest.mark.slow
def test_processes_of_a_search_share_the_cores_and_compile_nothing():
    """Workers as GridSearchCV(n_jobs=2) starts: kernels are in the cache, and scores the same."""
    done = python(WORKERS, **{name: "" for name in os.environ if "NUM_THREADS" in name})
    most = max(1, os.cpu_count() // 2)
    assert done.stdout in {2 * f"True {n} 0 " for n in range(1, most + 1)}


def test_a_small_fit_takes_one_thread_and_gives_the_others_back(monkeypatch):
    before = threads.most()
    during = []
    note = lambda *_: during.append(threads.most())  # noqa: E731
    around(monkeypatch, fitting, "flow_candidate", note)
    fit(moons(60), noise=0.0)
    assert during == [1] and threads.most() == before


def test_scikit_learn_is_optional():
    with mock.patch.dict(sys.modules):
        for name in [each for each in sys.modules if each.startswith("sklearn")]:
            sys.modules[name] = None
        x = moons(20)
        assert fit(x).score_samples(x).shape == (20,)
        with pytest.raises(ValueError, match="^this FlowDensity is not fit") as caught:
            snfnp.FlowDensity().score(x)
    assert caught.type is ValueError


@pytest.mark.slow
@pytest.mark.parametrize("target", [(Candidate, "refitted"), (ensemble, "Likelihood")])
def test_an_interrupted_fit_keeps_the_former_one(target, monkeypatch):
    x = Frame(moons(60), ["a", "b"])
    density = fit(x, PAIR)
    before = density.score_samples(x)
    weights = density.weights_
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(*target, mock.Mock(side_effect=KeyboardInterrupt))
        density.fit(2 * x.values[:50])
    np.testing.assert_array_equal(density.score_samples(x), before)
    assert density.weights_ == weights and list(density.feature_names_in_) == ["a", "b"]


# ---------------------------------------------------------------- what is refused

TEXT = np.array([[1.0, "red"], [2.0, "blue"], [3.0, "red"]], object)
CATEGORIES = (
    "has text or gaps: leave it out, fill it in, or give a column of 0 and 1 for"
)
DATED = Frame(moons(60), "ab")  # polars makes numbers of dates
DATED.dtypes = [mock.Mock()]  # whose `is_temporal()` is true
SCALAR = "got scalar array instead, of type {}. Reshape your data"
SHAPES = {  # which `score_samples` refuses as well
    "one axis": (
        np.arange(4.0),
        "Expected 2D array, got 1D array instead of shape (4,). Reshape",
    ),
    "None": (None, f"Expected 2D array, {SCALAR.format('NoneType')}"),
    "an iterator": (iter([[1.0], [2.0]]), SCALAR.format("list_iterator")),
    "a dictionary": ({"a": [1.0, 2.0]}, SCALAR.format("dict")),
    "a path": (Path("x.csv"), SCALAR.format("PosixPath")),
    "records": (
        [{"a": 1.0}, {"a": 2.0}],
        "got 1D array instead of shape (2,). Reshape your data",
    ),
}
ROWS = SHAPES | {
    "one row": (np.ones((1, 3)), "X: there is only 1 sample; give more"),
    "two rows": (
        [[1.0, 5.0], [2.0, 6.0]],
        "X has 2 different rows: a density needs at least 3",
    ),
    "huge": (
        [[1.0], [2e300], [3e300]],
        "column 0 (from 0) has the standard deviation inf: leave",
    ),
    "masked": (
        np.ma.masked_array([[1.0], [2.0], [4.0]]),
        "X is a masked array: leave masked rows",
    ),
    "constant": (
        [[1.0, 5.0], [2.0, 5.0], [4.0, 5.0]],
        "column 1 (from 0) has the standard devia",
    ),
    "NaN": (
        [[1.0, 2.0], [np.nan, 1.0]],
        "X contains NaN or infinity, first in row 1, column 0",
    ),
    "text": (
        TEXT,
        f"could not convert string to float: 'red': column 1 (from 0) {CATEGORIES}",
    ),
    "gap": (np.array([[1.0], [object()]]), f"column 0 (from 0) {CATEGORIES}"),
    "named text": (Frame(TEXT, ["size", "colour"]), f"column 'colour' {CATEGORIES}"),
    "dates": (
        np.array([["2024-01-01"]] * 3, "M8[D]"),
        "X has dates or durations: turn them",
    ),
    "date objects": (np.array([[date(2024, 1, 1)]] * 3), "X has dates or durations"),
    "dates of polars": (DATED, "X has dates or durations"),
    "mixed names": (
        Frame(moons(60), ["a", 1]),
        "names of X's columns are text and other things",
    ),
}


@pytest.mark.parametrize("case", ROWS)
def test_rows_without_a_density_are_refused(case):
    rows, problem = ROWS[case]
    with one_line((ValueError, TypeError), problem):
        snfnp.FlowDensity().fit(rows)


def test_rows_of_another_shape_are_not_scored():
    density = fit(moons(20))
    for rows, problem in SHAPES.values():
        with one_line(ValueError, problem):
            density.score_samples(rows)


def test_copies_of_two_rows_are_too_few():
    with one_line(ValueError, "X has 2 different rows: a density needs at least 3"):
        fit([[0.1, 1.7], [0.2, 2.9]] * 3, ties="keep")


WRONG = [
    ({"layers": 0}, "`layers` is 0: it must be from 1 to 1000"),
    ({"layers": "3"}, "`layers` is '3': it must be a whole number"),
    ({"lr": "high"}, "`lr` is 'high': it must be a finite number"),
    ({"members": 0}, "members is 0: give a whole number from 1 to"),
    ({"members": True}, "members is True: give a whole number from 1 to"),
    ({"validation_fraction": 1.0}, "validation_fraction is 1.0: it must be in (0, 1)"),
    ({"validation_fraction": "a"}, "validation_fraction is 'a': it must be in (0, 1)"),
    ({"mixtures": "no"}, "mixtures is 'no': give an instance of bool"),
    ({"time_limit": -1}, "time_limit is -1: it must be in (0, inf) or 0"),
    (
        {"random_state": "a"},
        "random_state is 'a': give None, a whole number from 0 on, or a",
    ),
    (
        {"random_state": -1},
        "random_state is -1: give None, a whole number from 0 on, or a",
    ),
    ({"activation": "tanh"}, "`activation` is tanh: it must be one of"),
    ({"ties": "drop"}, "`ties` is drop: it must be one of dequantise, keep, raise"),
]


@pytest.mark.parametrize("options, problem", WRONG)
def test_parameters_are_refused_by_their_names(options, problem):
    with one_line(ValueError, problem):
        snfnp.FlowDensity(**options).fit(moons(20))


@pytest.mark.parametrize(
    "weights", [[1.0] * 59, [-1.0] + [1.0] * 59, [np.nan] * 60, [0.0] * 60]
)
def test_weights_are_finite_numbers_of_each_row(weights):
    with one_line(ValueError, "sample_weight"):
        fit(moons(60), sample_weight=weights)


@pytest.mark.parametrize("count", [0, 2**63, 1.5])
def test_a_number_of_samples_beyond_all_machines_is_refused(count):
    with one_line(
        ValueError, f"n_samples is {count}: give a whole number from 1 to 2**63 - 1"
    ):
        fit(moons(20)).sample(count)


# ---------------------------------------------------------------- names


def test_names_of_columns_have_to_be_those_of_fit(tmp_path):
    x = moons(60)
    density = fit(Frame(x, ["a", "b"]))
    density.save(tmp_path / "named")
    for each in (density, snfnp.FlowDensity.load(tmp_path / "named")):
        assert list(each.feature_names_in_) == ["a", "b"]
        assert each.score_samples(Frame(x, ["a", "b"])).shape == (60,)
        with pytest.raises(
            ValueError, match="should match .*\n.* must be in the same order"
        ):
            each.score(Frame(x[:, ::-1], ["b", "a"]))
        with pytest.raises(
            ValueError, match="unseen at fit time:\n- c\n.*now missing:\n- b\n$"
        ):
            each.transform(Frame(x, ["a", "c"]))
        with pytest.warns(UserWarning, match="X does not have valid feature names"):
            each.score(x)
    assert list(density.get_feature_names_out()) == ["flowdensity0", "flowdensity1"]
    density.fit(x)
    with pytest.warns(UserWarning, match="fitted without feature names"):
        density.score(Frame(x, ["a", "b"]))
    assert not hasattr(density, "feature_names_in_")


def test_a_data_frame_is_returned_where_it_was_asked_for(tmp_path, monkeypatch):
    (tmp_path / "pandas.py").write_text("def DataFrame(*a): return a")
    monkeypatch.syspath_prepend(tmp_path)
    x = moons(60)
    density = fit(x)
    with one_line(ValueError, "transform is 'frames': give default, pandas or polars"):
        density.set_output(transform="frames")
    with mock.patch.dict(sys.modules):
        sys.modules.pop("pandas", None)
        density.set_output(transform="pandas")
        for rows in (x, x.tolist(), Frame(x, ())):
            values, index, names = density.transform(rows)
            assert values.shape == x.shape and index is None and len(names) == 2
        density.fit(Frame(x, ["a", "b"]))
        samples, _, names = density.sample(3)
        assert samples.shape == (3, 2) and names == ["a", "b"]
        assert isinstance(density.set_output(transform="default").sample(3), np.ndarray)


# ---------------------------------------------------------------- files


def test_a_copy_a_pickle_and_a_file_are_the_same_density(tmp_path):
    """Parameters that are numbers of NumPy, too."""
    x = moons(seed=3)
    file = tmp_path / "moons.safetensors"
    numbers = {"layers": np.int64(1), "lr": np.float64(0.01), "noise": np.float32(0.0)}
    density = fit(moons(60), PAIR, **numbers)
    density.save(file)
    for same in (pickle.loads(pickle.dumps(density)), snfnp.FlowDensity.load(file)):
        assert_same(same, density, x)
        params, expected = (
            each.get_params() | {"random_state": None} for each in (same, density)
        )
        assert params == expected and same.epochs == 2
        assert (same.weights_, same.n_iter_) == (density.weights_, density.n_iter_)
        assert "members=2, " in repr(same)
    content = file.read_bytes()
    cut = content[: len(content) // 2]
    for damaged in (cut, content[:-1] + bytes([content[-1] ^ 1]), b"{}"):
        file.write_bytes(damaged)
        with one_line(CheckpointError, match="damaged|no snfnp checkpoint"):
            snfnp.FlowDensity.load(file)


def test_a_path_that_cannot_be_written_or_read_is_one_line(tmp_path):
    density = fit(moons(20))
    for path in (tmp_path, "/dev/null"):
        with one_line(UsageError, f"{path} is no regular file: give another path"):
            density.save(path)
    advice = "(No such file or directory): free some space, or give another path"
    with one_line(SnfnpError, tmp_path / "no" / "file", advice):
        density.save(tmp_path / "no" / "file")


FORGERIES = [  # keys of the record, and a value
    (["moments"], None),
    (["moments", 1, 0], -1.0),
    (["moments", 1, 0], 0.0),
    (["moments", 1, 0], 1e308),
    (["moments", 1, 0], 1e-320),
    (["moments", 0, 0], 1e308),
    (["params", "depth"], 3),
    (["params"], []),
    (["config", "epochs"], "many"),
    (["config", "model"], "os:system"),
    (["candidates", 0, 1], -0.5),
    (["candidates", 0, 3], 99),
    (["candidates"], []),
    (["names"], 3),
    (["shapes", "1.0"], {}),
    (["shapes", "0.0", "flat"], [10**12]),
    (["shapes", "0.0"], {"p": [320]}),  # as when every R lay in another order
]


@pytest.mark.parametrize("keys, value", FORGERIES)
def test_a_forged_file_is_one_line(keys, value, tmp_path, monkeypatch):
    path = tmp_path / "forged"

    def save(path, checkpoint, advice):
        record = json.loads(json.dumps(checkpoint.record))
        *parents, last = keys
        reduce(getitem, parents, record)[last] = value
        save_checkpoint(path, replace(checkpoint, record=record), advice)

    monkeypatch.setattr(files, "save_checkpoint", save)
    fit(moons(50)).save(path)
    with one_line(CheckpointError, "forged"):
        snfnp.FlowDensity.load(path)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, factor", [("means", 1e30), ("roots", 1e30), ("roots", 1e-30)]
)
def test_a_mixture_that_no_fit_leaves_is_damage(name, factor, tmp_path):
    forged = copy.deepcopy(fit(moons(), PAIR))
    mixture = mixtures_of(forged)[0].members[0]
    getattr(mixture, name)[...] *= factor
    forged.save(tmp_path / "forged")
    with one_line(
        CheckpointError, "forged is damaged (a mixture in it): use another file"
    ):
        snfnp.FlowDensity.load(tmp_path / "forged")
