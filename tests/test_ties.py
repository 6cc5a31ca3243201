"""Columns with ties: their steps, the noise in them, and samples on their lattices."""

import numpy as np
import pytest
from numpy.random import default_rng
from numpy.testing import assert_allclose, assert_array_equal
from support.arrays import normal
from support.densities import PAIR, fit
from support.messages import one_line
from support.runs import SHORT

import snfnp
from snfnp.data.ties import decimals, find_steps
from snfnp.flow import Flow
from snfnp.layers import Linear
from snfnp.layers.preprocess import Standardise
from snfnp.maps import Dense
from snfnp.ops import get_ops
from snfnp.rules import SelfNormalizing


def test_steps_of_columns_with_ties():
    rng = default_rng(0)
    zeros = np.where(rng.random(400) < 0.3, 0.0, rng.exponential(size=400))
    columns = {
        "whole": (rng.poisson(4.0, 400), 1.0),
        "tenths": (rng.integers(40, 80, 400) / 10, 0.1),
        "25 g": (rng.integers(100, 160, 400) * 25.0, 25.0),
        "rescaled": (rng.integers(0, 30, 400) * np.pi / 7 - 1.3, np.pi / 7),
        "six digits": (rng.normal(size=400).round(6), 0.0),
        "continuous": (rng.normal(size=400), 0.0),
    }
    rows = np.stack([values for values, _ in columns.values()], axis=1)
    step, origin, *ends = find_steps(rows)
    assert_allclose(step, [expected for _, expected in columns.values()], rtol=1e-6)
    assert list(decimals(step, origin)[:3]) == [1.0, 10.0, 1.0]
    extremes = [rows.min(axis=0), rows.max(axis=0)]
    assert_allclose((origin + ends * step)[:, :4], np.array(extremes)[:, :4], rtol=1e-6)
    (step,), (origin,), *_ = find_steps(zeros[:, None])
    assert origin == 0 and 1e-3 < step < 0.1  # as far as the other values lie apart
    ordered = np.stack([rng.normal(size=25_000), np.arange(25_000) // 12_500], axis=1)
    assert_array_equal(find_steps(ordered)[0], [0.0, 1.0])


@pytest.mark.parametrize("step, most", [(0.1, 20_000), (0.01, 1000), (0.001, 5000)])
def test_numbers_of_single_precision_have_the_steps_that_were_written(step, most):
    """Larger numbers, whose eight digits single precision holds, stay as they are."""
    counts = default_rng(0).integers(0, most, 20_000)
    table = np.stack([counts * step, 1_234_567.25 + counts % 7 / 4], axis=1).astype(
        np.float32
    )
    steps, origin, *_ = find_steps(table)
    assert list(steps) == [step, 0.25] and origin[0] == round(origin[0], 3)
    assert list(decimals(steps, origin)) == [round(1 / step), 100.0]


@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize(
    "step, most", [(1 / 60, 4320), (1 / 3, 20_000), (np.pi, 1000), (2.54, 20)]
)
def test_a_lattice_fits_all_values_of_a_step_without_decimals(step, most, kind):
    """Single precision rounds the smallest gap: by it alone, far values lie beside the lattice."""
    counts = default_rng(0).integers(0, most, 20_000)
    values = (counts * step + 1.7).astype(kind)
    (size,), (origin,), (least,), (greatest,) = find_steps(values[:, None])
    steps = (values - origin) / size
    assert np.abs(steps - np.rint(steps)).max() < 0.01
    assert size == pytest.approx(step, rel=1e-5) and greatest - least == np.ptp(counts)


def test_a_few_badly_written_numbers_do_not_hide_the_decimals_of_a_column():
    values = default_rng(0).integers(100, 1400, 400) / 100
    values[7] = 9.899999  # as in scikit-learn's table of wines
    assert find_steps(values[:, None])[0] == 0.01
    values[:40] += 0.005
    assert find_steps(values[:, None])[0] != 0.01


def test_steps_may_be_small_and_spikes_rare_among_the_rows_looked_at():
    rng = default_rng(0)
    lattice = np.r_[5.0, rng.integers(0, 400, 999) * 1e-7]
    rain = np.where(rng.random(2000) < 0.2, 0.0, rng.exponential(1e-4, 2000)) * 1e-3
    for values in (lattice, rain):
        step, origin, *_ = find_steps(values[:, None])
        (unit,) = decimals(step, origin)
        preprocess = Standardise((0.0,), (1.0,), tuple(step), tuple(origin), (unit,))
        rounded = preprocess.inverse(get_ops("numpy"), values[:, None])
        assert 0 < step < 2e-7 and np.abs(rounded[:, 0] - values).max() <= 0.51 * step
    rare = np.zeros((200_000, 1))
    rare[:5, 0] = np.arange(1, 6)
    assert find_steps(rare)[0] == 1.0
    few = np.where(rng.random(4000) < 0.05, 0.0, rng.normal(size=4000))
    assert find_steps(few[:, None])[0] > 0  # a spike of 5 % of the rows
    few = rng.normal(size=200)
    few[:3] = 0.0  # of three rows
    assert find_steps(few[:, None])[0] == 0
    # ten times that is beyond 53 bits
    large = 1e15 + rng.integers(0, 100, (300, 1)) / 8
    assert find_steps(large)[0] == 0.125


@pytest.mark.slow
def test_columns_with_steps_are_dequantised_and_samples_lie_on_them():
    """Each cell's probability is its frequency, and those of all cells sum to 1."""
    rng = default_rng(0)
    x = rng.choice([4.9, 5.0, 5.1, 5.2], (600, 1), p=[0.1, 0.4, 0.3, 0.2])
    density = snfnp.FlowDensity(**PAIR | {"noise": 0.0, "epochs": 20})
    message = r"ties in column 0 \(from 0\) \(step 0.1\): noise of one"
    with pytest.warns(UserWarning, match=message) as caught:
        density.fit(x)
    assert caught[0].filename == __file__  # the line that calls `fit`
    cells = np.arange(30, 70)[:, None] / 10
    mass = np.exp(density.score_samples(cells)) * 0.1
    assert mass.sum() == pytest.approx(1, abs=1e-3) and density.step_ == pytest.approx(
        0.1
    )
    assert_allclose(mass[19:23], [0.1, 0.4, 0.3, 0.2], atol=0.06)
    samples = density.sample(400, random_state=0)
    assert set(samples.ravel()) == {4.9, 5.0, 5.1, 5.2}  # not 5.1000000000000005
    assert 4.9 <= density.inverse_transform([[50.0]])[0, 0] <= 5.2
    assert_array_equal(density.inverse_transform(density.transform(x)), x)
    assert "dequantisation" in density.likelihood_.evaluate(x).terms
    with one_line(
        ValueError, "ties in column 0 (from 0) (step 0.1): choose `ties=dequantise`"
    ):
        snfnp.FlowDensity(ties="raise").fit(x)
    kept = fit(x, ties="keep")
    assert not kept.step_.any()
    assert "dequantisation" not in kept.likelihood_.evaluate(x).terms


@pytest.mark.parametrize("way", ["standardise", "none"])
def test_columns_with_ties_are_dequantised_by_every_preprocessing(way, shell, capsys):
    rows = normal(100, 2).round(1)
    np.savetxt("t.csv", rows, delimiter=",", fmt="%.1f")
    options = f"--preprocess {way} --activation smooth-leaky-relu"
    shell(f"train t.csv {SHORT} {options} --out run")
    assert "samples are rounded" in capsys.readouterr().out
    shell("train --resume --out run --epochs 3")
    shell("sample run --count 50 --out s.npy")
    samples = np.load("s.npy")
    assert_array_equal(samples, samples.round(1))


@pytest.mark.parametrize("fields", [2, 5, 7])
def test_a_note_on_ties_only_if_a_preprocessing_of_ones_own_has_steps(fields, tmp_path):
    numbers = (0.0, 1.0, 1.0, 0.0, 1.0, 0.0, 8.0)
    preprocess = Standardise(*zip(numbers[:fields], numbers[:fields], strict=True))
    flow = Flow(
        (2,), (("dense", Linear(Dense(2), SelfNormalizing())),), preprocess=preprocess
    )
    rows = default_rng(0).integers(0, 9, (100, 2)).astype(float)
    options = {"epochs": 1, "batch_size": 20, "warmup_epochs": 0, "backend": "numpy"}
    lines = []
    run = snfnp.fit(
        rows, flow=flow, out=tmp_path / "run", report=lines.append, **options
    )
    assert run.flow.preprocess == preprocess
    assert ("ties in" in "".join(lines)) == (fields > 2)
