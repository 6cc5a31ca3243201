"""What is proved of a learned inverse: never more than is true, on both sides of ρ = 1."""

import math

import numpy as np
import pytest
from support.trainers import run_training, small_dataset

from snfnp.beyond.certificates import Certificate, certificates, certify
from snfnp.beyond.chain import Chain
from snfnp.errors import UsageError
from snfnp.gradcheck import as_matrix
from snfnp.maps import Conv2d, Dense
from snfnp.models import PRESETS, Choices
from snfnp.ops import get_ops
from snfnp.rules import Exact

OPS = get_ops("numpy")


def pair(rng, size, rho):
    """W and R with ‖I − R W‖₂ = rho, with singular values of all kinds of decay."""
    w = np.eye(size) + rng.uniform(0, 0.3) * rng.standard_normal((size, size))
    left, right = (np.linalg.qr(rng.standard_normal((size, size)))[0] for _ in range(2))
    e = left * (rho * np.linspace(1, 0, size) ** rng.uniform(0, 6)) @ right
    return w, (np.eye(size) - e) @ np.linalg.inv(w)


def sum_of_log_dets(w, r):
    return np.linalg.slogdet(w)[1] + np.linalg.slogdet(r)[1]


def test_the_bound_holds_wherever_there_is_one():
    """500 random pairs: ρ from 1e-6 to 2, sizes from 1 to 20. A certificate where ρ is 1 or more is
    wrong, and one is missing only where ρ is near 1."""
    rng = np.random.default_rng(0)
    certified = tight = 0
    for _ in range(500):
        size = int(rng.integers(1, 21))
        rho = float(rng.choice([rng.uniform(0, 1), rng.uniform(1, 2), 10 ** rng.uniform(-6, 0)]))
        w, r = pair(rng, size, rho)
        found = certify(OPS, "a", Dense(size), Dense(size), w, r, (size,))
        e = np.eye(size) - r @ w
        exact = np.linalg.norm(e, 2)
        assert found.lower <= exact * (1 + 1e-12) and exact <= found.upper
        assert np.linalg.norm(e) <= found.frobenius * (1 + 1e-12)
        assert abs(found.trace - np.trace(e)) <= 2 * found.rounding
        assert found.holds == (found.upper < 1) and (not found.holds or exact < 1)
        if found.holds:
            off = abs(sum_of_log_dets(w, r) + found.trace)
            noise = 1e-13 * size * np.linalg.cond(w)  # of the determinants
            assert off <= found.slack + noise
            assert abs(sum_of_log_dets(w, r)) <= found.difference + noise
            certified, tight = certified + 1, max(tight, off / found.slack)
        else:
            assert found.slack is None and found.difference is None
            assert exact > 0.95  # otherwise it could have been proved
    assert certified > 200 and tight > 0.5  # half the bound is needed somewhere


def test_a_singular_matrix_is_never_certified():
    """However near to I the product is in all other directions."""
    rng = np.random.default_rng(1)
    for _ in range(300):
        size = int(rng.integers(1, 15))
        w, r = pair(rng, size, 10 ** rng.uniform(-6, 0))
        which = (w, r)[rng.integers(2)]
        if rng.integers(2):
            which[-1] = which[0] if size > 1 else 0
        else:
            u, s, vt = np.linalg.svd(which)
            s[-1] = 0
            which[...] = u * s @ vt
        assert not certify(OPS, "a", Dense(size), Dense(size), w, r, (size,)).holds


def test_it_decides_close_to_one():
    """ρ = 1 ± 1e-3: below it is proved where one gain stands out, above it never is."""
    rng = np.random.default_rng(2)
    size = 12
    w = np.eye(size) + 0.1 * rng.standard_normal((size, size))
    u, v = (rng.standard_normal(size) for _ in range(2))
    for rho, expected in ((0.999, True), (1.001, False)):
        e = rho * np.outer(u, v) / np.linalg.norm(u) / np.linalg.norm(v)
        r = (np.eye(size) - e) @ np.linalg.inv(w)
        assert certify(OPS, "a", Dense(size), Dense(size), w, r, (size,)).holds is expected


def test_powers_prove_what_the_frobenius_norm_does_not():
    """Many equal gains: ‖E‖_F is √D ρ."""
    rng = np.random.default_rng(3)
    size = 64
    q = np.linalg.qr(rng.standard_normal((size, size)))[0]
    found = certify(
        OPS, "a", Dense(size), Dense(size), np.eye(size), np.eye(size) - 0.7 * q, (size,)
    )
    assert found.frobenius == pytest.approx(0.7 * 8, rel=1e-12)
    assert 0.7 <= found.upper < 0.73 and found.holds


MAPS = [
    (Conv2d((1, 1), 3), Conv2d((1, 1), 3), (4, 5, 3)),
    (Conv2d((3, 3), 2), Conv2d((3, 3), 2), (4, 5, 2)),
    (Conv2d((3, 3), 2), Conv2d((5, 5), 2), (4, 5, 2)),
    (Conv2d((3, 3), 2), Chain(Conv2d((3, 3), 2), 2), (4, 5, 2)),
]


@pytest.mark.parametrize("f, g, shape", MAPS)
@pytest.mark.parametrize("noise", [1e-4, 0.02, 0.3])
def test_convolutions_by_their_matrices(f, g, shape, noise):
    """Trace and norms with the image's border, for 1×1 kernels from one pixel."""
    rng = np.random.default_rng(4)
    w = f.identity() + noise * rng.standard_normal(f.weight_shape)
    r = g.identity() + noise * rng.standard_normal(g.weight_shape)
    t_w, t_r = as_matrix(f, OPS, w, shape), as_matrix(g, OPS, r, shape)
    e = np.eye(len(t_w)) - t_r @ t_w
    found = certify(OPS, "a", f, g, w, r, shape)
    assert found.trace == pytest.approx(np.trace(e), rel=1e-10, abs=1e-12)
    assert found.frobenius == pytest.approx(np.linalg.norm(e), rel=1e-10)
    assert found.lower <= np.linalg.norm(e, 2) * (1 + 1e-12)
    assert np.linalg.norm(e, 2) <= found.upper < 1.1 * np.linalg.norm(e, 2) or not found.holds
    assert found.holds == (np.linalg.norm(e, 2) < 1)
    if found.holds:
        assert abs(sum_of_log_dets(t_w, t_r) + found.trace) <= found.slack + 1e-12


def test_rounding_is_part_of_the_bound():
    """R = W⁻¹ as far as doubles go: the bound is tiny and not 0, although E may be all noise."""
    rng = np.random.default_rng(5)
    w = np.eye(50) + 0.05 * rng.standard_normal((50, 50))
    found = certify(OPS, "a", Dense(50), Dense(50), w, np.linalg.inv(w), (50,))
    assert 0 < found.upper < 1e-9 and abs(sum_of_log_dets(w, np.linalg.inv(w))) <= found.difference
    whole = certify(OPS, "a", Dense(3), Dense(3), np.eye(3), np.eye(3), (3,))
    assert whole.holds and 0 < whole.upper < 1e-13
    assert not certify(OPS, "a", Dense(3), Dense(3), np.nan * np.eye(3), np.eye(3), (3,)).holds


def test_a_flow_has_one_for_every_learned_inverse():
    flow = PRESETS["fc"].build(Choices(), (4, 4, 1))
    params = flow.init(0)
    params["dense2"]["R"] *= 3
    first, second = certificates(OPS, flow, params)
    assert (first.layer, first.holds) == ("dense1", True)
    assert (second.layer, second.holds) == ("dense2", False) and second.lower > 1
    assert math.isfinite(second.upper)
    exact = PRESETS["fc"].build(Choices(rule=Exact()), (4, 4, 1))
    with pytest.raises(UsageError, match="nothing to certify"):
        certificates(OPS, exact, exact.init(0))


def test_the_command_says_what_is_proved(tmp_path, capsys, monkeypatch):
    from snfnp.cli import evaluate

    run, _ = run_training(tmp_path / "run")
    monkeypatch.setattr(evaluate, "load_dataset", lambda *at: small_dataset())
    evaluate.main([str(run.path), "--certify"])
    out = capsys.readouterr().out
    assert "proved for 2 of 2 layers" in out and "all layers together: at most" in out
    assert out.count(" nats\n") >= 3 and "none" not in out


def test_the_command_says_what_is_not_proved():
    from snfnp.cli.evaluate import _proof

    fine = Certificate("one", 0.1, 0.125, 0.5, 0.25, 0.0)
    text = _proof([fine, Certificate("two", 0.9, 1.5, 0.5, 2.0, 0.0)]).splitlines()
    assert text[2].split() == ["one", "0.1", "0.125", "0.5", f"{fine.difference:.4g}", "nats"]
    assert text[3].split() == ["two", "0.9", "1.5", "0.5", "none"]
    assert "proved for 1 of 2 layers" in text[4]
    assert text[5].startswith("none: ρ < 1 is not proved there") and len(text) == 6
    assert fine.difference == pytest.approx(0.5 + 0.25**2 / (2 * 0.875), rel=1e-12)
