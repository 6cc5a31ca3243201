"""What is proved of a learned inverse: never more than is true, on both sides of ρ = 1."""

import math
import re
from types import SimpleNamespace

import numpy as np
import pytest
from numpy.random import default_rng
from support.gradients import moved
from support.trainers import SMALL_GLOW, small_dataset

from snfnp.beyond import certificates as module
from snfnp.beyond.certificates import (
    Certificate,
    activations_part,
    certificates,
    certify,
)
from snfnp.diagnostics import _Generated, with_layers
from snfnp.errors import UsageError
from snfnp.gradcheck import as_matrix
from snfnp.likelihood import EVALUATION_NOISE
from snfnp.maps import Conv2d, Dense
from snfnp.models import PRESETS, Choices
from snfnp.ops import RandomKey, get_ops
from snfnp.rules import Exact
from snfnp.training.runs.load import load_run

OPS = get_ops("numpy")


def pair(rng, size, rho):
    """W and R with ‖I − R W‖₂ = rho, with singular values of all kinds of decay."""
    w = np.eye(size) + rng.uniform(0, 0.3) * rng.standard_normal((size, size))
    left, right = (np.linalg.qr(rng.standard_normal((size, size)))[0] for _ in range(2))
    e = left * (rho * np.linspace(1, 0, size) ** rng.uniform(0, 6)) @ right
    return w, (np.eye(size) - e) @ np.linalg.inv(w)


def sum_of_log_dets(w, r):
    return np.linalg.slogdet(w)[1] + np.linalg.slogdet(r)[1]


def certified(w, r):
    dense = Dense(len(w))
    return certify(OPS, "a", dense, dense, w, r, (len(w),))


def test_every_bound_that_is_given_holds():
    """500 random pairs: ρ from 1e-6 to 2, sizes from 1 to 20. A certificate where ρ is 1 or more is
    wrong, and one is missing only where ρ is near 1."""
    rng = default_rng(0)
    proved = tight = 0
    for _ in range(500):
        size = int(rng.integers(1, 21))
        rho = float(
            rng.choice([rng.uniform(0, 1), rng.uniform(1, 2), 10 ** rng.uniform(-6, 0)])
        )
        w, r = pair(rng, size, rho)
        found = certified(w, r)
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
            proved = proved + 1
            tight = max(tight, off / found.slack)
        else:
            assert found.slack is None and found.difference is None
            assert exact > 0.95  # otherwise it could have been proved
    assert proved > 200 and tight > 0.5  # half the bound is needed somewhere


def test_a_singular_matrix_is_never_certified():
    """However near to I the product is in all other directions."""
    rng = default_rng(1)
    for _ in range(300):
        matrices = pair(rng, int(rng.integers(1, 15)), 10 ** rng.uniform(-6, 0))
        which = matrices[rng.integers(2)]
        u, s, vt = np.linalg.svd(which)
        which[...] = u[:, :-1] * s[:-1] @ vt[:-1]
        assert not certified(*matrices).holds


@pytest.mark.parametrize(
    "size, gains, most",
    [
        (12, (0.999,), 1),  # ρ = 1 ± 1e-3 where one gain stands out
        (12, (1.001,), None),
        (64, (0.7,) * 64, 0.7001),  # where all are equal, ‖E‖_F is √D ρ
        (784, (0.99,) * 784, 0.99 + 1e-8),
    ],
)
def test_certificates_decide_close_to_rho_1(size, gains, most):
    rng = default_rng(2)
    eye = np.eye(size)
    w = eye + 0.1 * rng.standard_normal((size, size)) if size == 12 else eye
    left, right = (np.linalg.qr(rng.standard_normal((size, size)))[0] for _ in range(2))
    e = left[:, : len(gains)] * gains @ right[: len(gains)]
    found = certified(w, (eye - e) @ np.linalg.inv(w))
    assert found.holds == bool(most)
    assert not most or gains[0] <= found.upper < most
    assert found.frobenius == pytest.approx(np.linalg.norm(gains), rel=1e-9)


def test_the_series_is_summed():
    """Σ ρ^(k−2)/k: the first terms from below, and what is left over from above."""
    for rho in (0.0, 1e-9, 1e-3, 0.0099, 0.01, 0.3, 0.75, 0.9, 0.99):
        first = math.fsum(rho ** (k - 2) / k for k in range(2, 5000))
        assert first * (1 - 1e-12) <= module._series(rho) <= first * (1 + 3e-5)


MAPS = [
    (Conv2d((1, 1), 3), Conv2d((1, 1), 3), (4, 5, 3)),
    (Conv2d((3, 3), 2), Conv2d((3, 3), 2), (4, 5, 2)),
    (Conv2d((3, 3), 2), Conv2d((5, 5), 2), (4, 5, 2)),
    (
        Conv2d((1, 1), 2),
        Conv2d((3, 3), 2),
        (4, 5, 2),
    ),  # one of them sees more than a pixel
]


@pytest.mark.parametrize("f, g, shape", MAPS)
@pytest.mark.parametrize("noise", [1e-4, 0.02, 0.3])
def test_convolutions_by_their_matrices(f, g, shape, noise):
    """Trace and norms with the image's border, for 1×1 kernels from one pixel."""
    rng = default_rng(4)
    w = f.identity() + noise * rng.standard_normal(f.weight_shape)
    r = g.identity() + noise * rng.standard_normal(g.weight_shape)
    t_w = as_matrix(f, OPS, w, shape)
    t_r = as_matrix(g, OPS, r, shape)
    e = np.eye(len(t_w)) - t_r @ t_w
    found = certify(OPS, "a", f, g, w, r, shape)
    assert found.trace == pytest.approx(np.trace(e), rel=1e-10, abs=1e-12)
    assert found.frobenius == pytest.approx(np.linalg.norm(e), rel=1e-10)
    assert found.lower <= np.linalg.norm(e, 2) * (1 + 1e-12)
    assert (
        np.linalg.norm(e, 2) <= found.upper < 1.1 * np.linalg.norm(e, 2)
        or not found.holds
    )
    assert found.holds == (np.linalg.norm(e, 2) < 1)
    if found.holds:
        assert abs(sum_of_log_dets(t_w, t_r) + found.trace) <= found.slack + 1e-12


def test_rounding_is_part_of_the_bound():
    """R = W⁻¹ as far as doubles go: the bound is tiny and not 0, although E may be all noise."""
    w = np.eye(50) + 0.05 * default_rng(5).standard_normal((50, 50))
    inverse = np.linalg.inv(w)
    found = certified(w, inverse)
    whole = certified(np.eye(3), np.eye(3))
    assert (
        0 < found.upper < 1e-9 and abs(sum_of_log_dets(w, inverse)) <= found.difference
    )
    assert whole.holds and 0 < whole.upper < 1e-13
    assert not certified(np.nan * np.eye(3), np.eye(3)).holds


@pytest.mark.parametrize("worst", ["trace", "frobenius", "gain"])
@pytest.mark.parametrize("f, g, shape", [(Dense(9), Dense(9), (9,)), *MAPS[:2]])
def test_a_certificate_holds_for_the_worst_rounding(monkeypatch, f, g, shape, worst):
    """E is written out with an error of all that `_rounding` admits, in the direction that hurts
    most: along I the trace is off by √D of it, along E the norm, along a gain that one."""
    rng = default_rng(7)
    off = 1e-3
    w = f.identity()
    r = g.identity() + 0.02 * rng.standard_normal(g.weight_shape)
    t_w = as_matrix(f, OPS, w, shape)
    t_r = as_matrix(g, OPS, r, shape)
    e = np.eye(len(t_w)) - t_r @ t_w
    exact = module._written_out
    gain = np.linalg.norm(e, 2)

    def wrong(*arguments):
        own = exact(*arguments)
        u, _, vt = np.linalg.svd(own)
        direction = {
            "trace": np.eye(len(own)),
            "frobenius": own,
            "gain": np.outer(u[:, 0], vt[0]),
        }
        return own - off * direction[worst] / np.linalg.norm(direction[worst])

    monkeypatch.setattr(module, "_written_out", wrong)
    monkeypatch.setattr(module, "_rounding", lambda *arguments: off)
    found = certify(OPS, "a", f, g, w, r, shape)
    assert found.lower <= gain * (1 + 1e-12) and gain <= found.upper < gain + 3 * off
    assert np.linalg.norm(e) <= found.frobenius
    assert abs(found.trace - np.trace(e)) <= found.rounding
    assert abs(sum_of_log_dets(t_w, t_r) + found.trace) <= found.slack
    if worst == "trace":  # all of it is needed
        assert abs(found.trace - np.trace(e)) > 0.99 * found.rounding


@pytest.mark.parametrize("off", [-1e-3, 1e-3])
def test_the_bounds_survive_a_wrong_decomposition_that_rounding_hides(monkeypatch, off):
    """Every product is as near to what it should be as rounding can make it, with units of 1e-4."""
    monkeypatch.setattr(module, "_UNIT", 1e-4)
    e = np.diag([0.9, 0.3, 0.2, 0.1])
    wanted = [np.eye(4), np.eye(4), e]

    def matmul(a, b):
        product = a @ b
        right = wanted.pop(0)
        apart = np.linalg.norm(product - right)
        most = 4e-4 * np.linalg.norm(a) * np.linalg.norm(b)
        return product + (right - product) * min(1, most / max(apart, 1e-300))

    def svd(e):
        u, s, vt = np.linalg.svd(e)
        return u, s * (1 + off), vt

    xp = SimpleNamespace(linalg=SimpleNamespace(svd=svd), eye=np.eye)
    linalg = SimpleNamespace(norms=OPS.linalg.norms, matmul=matmul)
    lower, upper = module._largest_gain(SimpleNamespace(linalg=linalg, xp=xp), e)
    assert 0.89 < lower < 0.9 < upper < 0.91


def test_norms_and_traces_survive_the_worst_rounding_of_a_sum(monkeypatch):
    """Every sum of n numbers loses n units, here of 1e-4, of all their absolute values."""
    e = 0.1 * np.eye(5)
    unit = 1e-4
    monkeypatch.setattr(module, "_UNIT", unit)
    monkeypatch.setattr(module, "_written_out", lambda *arguments: e)
    monkeypatch.setattr(module, "_rounding", lambda *arguments: 0.0)
    linalg = SimpleNamespace(
        norms=lambda *all: [
            np.linalg.norm(m) * math.sqrt(1 - m.size * unit) for m in all
        ],
        matmul=np.matmul,
    )
    trace = lambda m: np.trace(m) * (1 - len(m) * unit)  # noqa: E731
    xp = SimpleNamespace(trace=trace, linalg=np.linalg, eye=np.eye)
    ops = SimpleNamespace(linalg=linalg, xp=xp)
    dense = Dense(5)
    found = certify(ops, "a", dense, dense, e, e, (5,))
    assert np.linalg.norm(e) <= found.frobenius < 1.01 * np.linalg.norm(e)
    assert 0 < abs(found.trace - np.trace(e)) <= found.rounding


def test_rounding_counts_every_product():
    """(n_W + n_R + 2) u ‖(I + |R| |W|) 1‖; here each row of the latter is 2."""
    for f, shape in ((Dense(9), (9,)), (Conv2d((1, 1), 3), (1, 1, 3))):
        n = shape[-1]
        off = module._rounding(OPS, f, f, f.identity(), -f.identity(), shape)
        assert off >= (2 * n + 2) * 2.0**-53 * 2 * math.sqrt(n)


def log_densities(flow, params, x):
    """log p^f(x), and log p^g at g(f(x)) by running g⁻¹, with determinants: two flows of their own,
    in which nothing of a certificate is used."""
    latents, ldj, _ = flow.forward(OPS, params, x)
    log_dets = flow.log_dets(OPS, params)
    learned = flow.learned_inverses()
    of_f = flow.log_density(OPS, latents) + ldj + sum(log_dets.values())
    back = with_layers(
        flow, {name: _Generated(own.maps[1]) for name, (own, _) in learned.items()}
    )
    again, ldj, _ = back.forward(OPS, params, flow.inverse(OPS, params, latents))
    for one, other in zip(latents, again, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-7, atol=1e-7)
    for name, (layer, shape) in learned.items():
        t_r = as_matrix(layer.maps[1], OPS, params[name]["R"], shape)
        log_dets[name] = -np.linalg.slogdet(t_r)[1]
    return of_f, back.log_density(OPS, again) + ldj + sum(log_dets.values())


def bounds(flow, params, x):
    """What is said of their difference, and of the log-determinants alone."""
    proved = certificates(OPS, flow, params)
    assert all(found.holds for found in proved)
    total = sum(found.difference for found in proved)
    return activations_part(OPS, flow, params, x), total


@pytest.mark.parametrize(
    "model, flows, side", [("fc", 60, 3), ("conv", 20, 4), ("glow", 20, 4)]
)
def test_the_densities_of_a_flow_are_within_the_bound(model, flows, side):
    """100 flows, R near W⁻¹: at every latent within the bound, and outside that of the
    log-determinants alone, which is none of the densities'."""
    rng = default_rng(8)
    outside = 0
    choices = Choices(**SMALL_GLOW if model == "glow" else {})
    flow = PRESETS[model].build(choices, (side, side, 1))
    for _ in range(flows):
        params = moved(flow.init(int(rng.integers(1000))), rng, 0.05)
        for layer, (linear, _) in flow.learned_inverses().items():
            own = params[layer]
            f, g = linear.maps
            noise = rng.standard_normal(own["W"].shape)
            if model == "fc":
                own["R"] = np.linalg.inv(own["W"]) + 10 ** rng.uniform(-4, -1.5) * noise
            else:
                own["W"], own["R"] = f.identity() + 0.02 * noise, 0.99 * g.identity()
        x = rng.standard_normal((20, *flow.shape))
        of_f, of_g = log_densities(flow, params, x)
        part, total = bounds(flow, params, x)
        assert (np.abs(of_f - of_g - part) <= total + 1e-9).all()
        outside += (np.abs(of_f - of_g) > total).sum()
    # whose few couplings hardly bend so near their start
    assert outside > 0 or model == "glow"


def test_a_flow_has_a_certificate_for_each_learned_inverse():
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


def test_the_command_prints_what_is_proved(finished, capsys, monkeypatch):
    from snfnp.cli import evaluate, shared

    monkeypatch.setattr(shared, "load_dataset", lambda *at: small_dataset())
    evaluate.main([str(finished), "--certify"])
    out = capsys.readouterr().out
    assert "proved for 2 of 2 layers" in out and "none" not in out
    assert "log|W| and -log|R| differ by at most as many nats" in out
    loaded = load_run(finished)
    key = RandomKey(0, EVALUATION_NOISE)
    x, _ = loaded.flow.encode(loaded.ops, small_dataset().test, key, np.float64)
    of_f, of_g = log_densities(loaded.flow, loaded.params, x)
    (said,) = re.findall(
        r"of 30 samples differ by at most (\S+) nats, and by (\S+) on", out
    )
    total = bounds(loaded.flow, loaded.params, x)[1]
    apart = np.abs(of_f - of_g)
    assert f"their sums differ by at most {total:.4g} nats" in out
    for printed, true in zip(
        map(float, said), (apart.max(), apart.mean()), strict=True
    ):
        assert true <= printed * 1.001 and printed <= true + 2 * total + 1e-3


def test_the_command_prints_what_is_not_proved():
    from snfnp.cli.evaluate import _proof

    fine = Certificate("one", 0.1, 0.125, 0.5, 0.25, 0.0)
    poor = Certificate("two", 0.9, 1.5, 0.5, 2.0, 0.0)
    text = _proof([fine, poor], None).splitlines()
    assert text[2].split() == [
        "one",
        "0.1",
        "0.125",
        "0.5",
        f"{fine.difference:.4g}",
        "nats",
    ]
    assert text[3].split() == ["two", "0.9", "1.5", "0.5", "none"]
    assert "proved for 1 of 2 layers" in text[4]
    assert text[5].startswith("none: ρ < 1 is not proved there") and len(text) == 6
    expected = 0.5 + 0.25**2 * (-math.log(1 - 0.125) - 0.125) / 0.125**2
    assert fine.difference == pytest.approx(expected, rel=1e-11)
