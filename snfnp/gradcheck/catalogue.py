"""Every layer, rule and map of the package in small, ready to be checked (`python -m snfnp check`).

Central differences are wrong across a kink: where a layer has kinks, the points keep away from
them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from snfnp import registry
from snfnp.gradcheck.layers import Report, check_layer
from snfnp.gradcheck.linear import check_map, check_rule
from snfnp.layers import (
    ActNorm,
    AffineCoupling,
    Bias,
    CausalConv2d,
    ConvExponential,
    Linear,
    RationalQuadraticSpline,
    SmoothLeakyReLU,
    SplitPrior,
    Squeeze,
)
from snfnp.maps import Conv2d, Dense
from snfnp.rules import Exact, Relative, SelfNormalizing


@dataclass(frozen=True)
class Check:
    """kind: layer, jvp, rule or map; name: what is checked; run(ops=…, …) -> Report."""

    kind: str
    name: str
    run: Callable[..., Report]


def catalogue() -> list[Check]:
    """All checks, layers first."""
    beyond = {"layer": [], "jvp": [], "rule": []}
    for check in registry.find("checks")():
        beyond[check.kind].append(check)
    rules = [*_rules(), *beyond["rule"]]
    return [*_layers(), *beyond["layer"], *beyond["jvp"], *rules, *_maps()]


def spline_points(layer: RationalQuadraticSpline, shape) -> np.ndarray:
    """Points in the middle of bins, and in both tails: a spline has kinks of ℓ at its knots."""
    rng = np.random.default_rng(7)
    bins, bound = layer.bins, layer.bound
    width = 2 * bound / bins
    middles = -bound + width * (np.arange(-1, bins + 1) + 0.5)
    x = rng.permuted(np.broadcast_to(middles, (np.prod(shape, dtype=int), bins + 2)), axis=1).T
    return x.reshape(bins + 2, *shape) + width / 16 * rng.uniform(-1, 1, (bins + 2, *shape))


def coupling_point(layer: AffineCoupling, shape) -> dict:
    """x and parameters that keep every ReLU away from its kink, at pixels of either side.

    x₁ is about ±2 and w1 mostly its centre tap, so that the first layer is ±(1 to 2) and some
    noise; w2 is mostly ± one unit each, which is 0 or (1 to 2), and b2 = ∓1/2. The stencils move
    by 0.03 along random directions, what a ReLU sees by less than its distance; a crossed kink
    would be an error of about 1e-4, and could not hide.
    """
    rng = np.random.default_rng(14)
    width, half = layer.width, layer.channels // 2
    units = np.arange(width)
    initial = layer.init(rng, shape)
    p = {k: 0.02 * rng.standard_normal(v.shape) for k, v in initial.items()}
    p["w1"][1, 1, units % half, units] += rng.choice([-1, 1], width) * rng.uniform(0.6, 0.9, width)
    signs = rng.choice([-1, 1], width)
    p["w2"][units, (units + 1) % width] += signs
    p["b2"] -= signs / 2
    for name in ("w3", "b3", "logs"):
        p[name] *= 10
    x = rng.standard_normal((3, *shape))
    x[..., :half] = 2 * np.sign(x[..., :half]) + 0.1 * x[..., :half]
    return {"x": x, "params": p}


def _layers():
    spline, coupling = RationalQuadraticSpline(bound=4.0), AffineCoupling(4, 8)
    mixture, exact = SelfNormalizing(), Exact()
    larger = Conv2d((5, 5), 2)
    cases = [
        ("dense", Linear(Dense(5), mixture), (5,), {}),
        ("dense, forward objective", Linear(Dense(5), SelfNormalizing("forward")), (5,), {}),
        ("dense, exact gradient", Linear(Dense(5), exact), (5,), {}),
        ("conv 3x3", Linear(Conv2d((3, 3), 2), mixture), (3, 3, 2), {}),
        (
            "conv 3x3, inverse 5x5",
            Linear(Conv2d((3, 3), 2), mixture, inverse_map=larger),
            (3, 4, 2),
            {},
        ),
        ("conv 3x3, exact gradient", Linear(Conv2d((3, 3), 2), exact), (3, 3, 2), {}),
        ("conv 1x1", Linear(Conv2d((1, 1), 3), mixture), (2, 2, 3), {}),
        ("smooth leaky ReLU", SmoothLeakyReLU(), (6,), {}),
        ("spline", spline, (2, 1, 2), {"x": spline_points(spline, (2, 1, 2))}),
        ("actnorm", ActNorm(), (3, 2, 4), {}),
        ("coupling", coupling, (3, 2, 4), coupling_point(coupling, (3, 2, 4))),
        ("split prior", SplitPrior(coupling), (3, 2, 4), coupling_point(coupling, (3, 2, 4))),
        ("squeeze", Squeeze(), (4, 2, 3), {}),
        ("causal conv", CausalConv2d(3), (3, 2, 3), {}),
        ("anticausal conv", CausalConv2d(3, reverse=True), (3, 2, 3), {}),
        ("conv exponential", ConvExponential(2, terms=(13, 13)), (3, 4, 2), {}),
        ("bias", Bias(), (3, 4, 2), {}),
    ]
    return [
        Check("layer", name, partial(check_layer, layer, shape, **settings))
        for name, layer, shape, settings in cases
    ]


def _rules():
    rules = [
        ("self-normalizing", SelfNormalizing()),
        ("self-normalizing, forward", SelfNormalizing("forward")),
        ("exact", Exact()),
    ]
    dense = [
        *rules,
        *((f"relative, {bias}", Relative(bias)) for bias in ("plain", "full", "gresele")),
    ]
    return [
        *(
            Check("rule", f"{name}, dense", partial(check_rule, rule, Dense(5), (5,)))
            for name, rule in dense
        ),
        *(
            Check(
                "rule", f"{name}, conv 1x1", partial(check_rule, rule, Conv2d((1, 1), 3), (2, 3, 3))
            )
            for name, rule in rules
        ),
    ]


def _maps():
    maps = [
        ("dense", Dense(5), (5,)),
        ("conv 3x3", Conv2d((3, 3), 2), (4, 3, 2)),
        ("conv 5x3", Conv2d((5, 3), 2), (3, 4, 2)),
        ("conv 1x1", Conv2d((1, 1), 3), (2, 2, 3)),
        ("conv 3x3, whole matrix", Conv2d((3, 3), 2, exact="dense"), (4, 3, 2)),
    ]
    return [Check("map", name, partial(check_map, each, shape)) for name, each, shape in maps]
