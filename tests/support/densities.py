"""Tables of rows, and quick fits of `FlowDensity`, for its tests."""

import numpy as np
import pytest

import snfnp
from snfnp.density import fitting, training
from support.runs import around

# on NumPy, without kernels to compile
RELU = {"layers": 1, "activation": "smooth-leaky-relu", "random_state": 0}
FAST = RELU | {"epochs": 2, "members": 1}
PAIR = FAST | {"members": 2}
SPLINE = {"activation": "spline", "layers": 2}


@pytest.fixture(scope="module", autouse=True)
def few_mixtures():
    """Mixtures of two sizes, not of twelve; tests/test_mixtures.py has all."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(training, "_COMPONENTS", (1, 4))
        yield


def moons(rows=600, seed=0):
    """Two half circles, in other units in each column."""
    rng = np.random.default_rng(seed)
    angle = np.pi * rng.random(rows)
    upper = rng.random(rows) < 0.5
    x = np.where(upper, np.cos(angle), 1 - np.cos(angle))
    y = np.where(upper, np.sin(angle), 0.5 - np.sin(angle))
    return np.stack([30 * x, 5 + y], axis=1) + rng.normal(size=(rows, 2)) * [3.0, 0.1]


def fit(rows, options=FAST, sample_weight=None, **changes):
    """A density of rows; changes: of the options."""
    return snfnp.FlowDensity(**options | changes).fit(rows, None, sample_weight)


def assert_same(density, other, rows):
    """Two densities have the same scores, bit for bit."""
    np.testing.assert_array_equal(
        density.score_samples(rows), other.score_samples(rows)
    )


def mixtures_of(density):
    """The mixtures that an average has kept."""
    candidates = [candidate for candidate, _ in density._fit.kept]
    return [each for each in candidates if each.name.startswith("mixture")]


def noted_folds(monkeypatch):
    """A list that every candidate of flows adds its rows, folds and configuration to."""
    noted = []

    def note(config, flow, table, folds, *_):
        noted.append((table, folds, config))

    around(monkeypatch, fitting, "flow_candidate", note)
    return noted


def rows_in_fold_and_rest(table, fold):
    """The number of different rows of a fold that are also outside it."""
    inside = {tuple(row) for row in table[fold]}
    outside = {tuple(row) for row in np.delete(table, fold, axis=0)}
    return len(inside & outside)


class Frame:
    """What a DataFrame is to an estimator: an array, and names of its columns."""

    def __init__(self, values, columns):
        self.values = values
        self.columns = columns

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self.values, dtype)
