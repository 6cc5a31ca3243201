"""Checks of what goes beyond the paper, in small (`python -m snfnp check`)."""

from __future__ import annotations

from functools import partial

from snfnp.beyond.chain import Chain
from snfnp.beyond.checks.inverse_updates import check_inverse_update
from snfnp.beyond.checks.jacobians import check_jvp
from snfnp.beyond.checks.variational import check_variational
from snfnp.beyond.least_squares import LeastSquares
from snfnp.beyond.probes import JacobianPenalty, Probe
from snfnp.beyond.projection import Projection
from snfnp.beyond.variational import Variational
from snfnp.gradcheck.catalogue import Check, spline_points
from snfnp.gradcheck.layers import check_layer
from snfnp.gradcheck.linear import check_rule
from snfnp.layers import ActNorm, Linear, RationalQuadraticSpline, SmoothLeakyReLU, Squeeze
from snfnp.maps import Conv2d, Dense
from snfnp.rules import SelfNormalizing

__all__ = ["check_inverse_update", "check_jvp", "check_variational", "checks"]


def checks() -> list[Check]:
    """All of them, layers first."""
    return [*_layers(), *_jvps(), *_rules(), *_inverse_updates(), *_variational()]


def _layers():
    penalty, probes = JacobianPenalty(weight=0.4, probes=2), Probe(probes=2)
    dense, conv, larger = Dense(5), Conv2d((3, 3), 2), Conv2d((5, 5), 2)
    chain = Chain(conv, 2)
    cases = [
        ("dense, Eq. 31", Linear(dense, penalty), (5,)),
        ("dense, probes", Linear(dense, probes), (5,)),
        ("conv 3x3, Eq. 31", Linear(conv, penalty), (3, 4, 2)),
        ("conv 3x3, probes, inverse 5x5", Linear(conv, probes, inverse_map=larger), (3, 4, 2)),
        (
            "conv 3x3, inverse of two 3x3",
            Linear(conv, SelfNormalizing(), inverse_map=chain),
            (3, 4, 2),
        ),
    ]
    return [Check("layer", name, partial(check_layer, *case)) for name, *case in cases]


def _jvps():
    spline = RationalQuadraticSpline(bound=4.0)
    cases = [
        ("dense, J ν", Linear(Dense(5)), (5,), {}),
        ("conv 3x3, J ν", Linear(Conv2d((3, 3), 2)), (3, 4, 2), {}),
        ("smooth leaky ReLU, J ν", SmoothLeakyReLU(), (6,), {}),
        ("spline, J ν", spline, (2, 1, 2), {"x": spline_points(spline, (2, 1, 2))}),
        ("actnorm, J ν", ActNorm(), (3, 2, 4), {}),
        ("squeeze, J ν", Squeeze(), (4, 2, 3), {}),
    ]
    return [
        Check("jvp", name, partial(check_jvp, layer, shape, **settings))
        for name, layer, shape, settings in cases
    ]


def _rules():
    cases = [("dense", Dense(5), (5,)), ("conv 1x1", Conv2d((1, 1), 3), (2, 3, 3))]
    return [
        Check(
            "rule",
            f"self-normalizing, Eq. 31, {name}",
            partial(check_rule, JacobianPenalty(), each, shape),
        )
        for name, each, shape in cases
    ]


def _inverse_updates():
    convolution, larger = Conv2d((3, 3), 2), Conv2d((5, 5), 2)
    small = {"inverse_map": Conv2d((3, 5), 2)}
    cases = [
        ("projection, dense", Projection(), Dense(5), (5,), {}),
        ("least squares, conv 1x1", LeastSquares(), Conv2d((1, 1), 3), (2, 3, 3), {}),
        ("least squares, conv 3x3", LeastSquares(), convolution, (3, 4, 2), {}),
        ("least squares, 5x5", LeastSquares(), convolution, (4, 3, 2), {"inverse_map": larger}),
        ("least squares, pulled", LeastSquares(tolerance=1e-4), convolution, (3, 4, 2), small),
    ]
    return [
        Check("rule", name, partial(check_inverse_update, rule, each, shape, **more))
        for name, rule, each, shape, more in cases
    ]


def _variational():
    rule, larger = Variational(0.6, vectors=2), {"inverse_map": Conv2d((5, 5), 2)}
    chain = {"inverse_map": Chain(Conv2d((3, 3), 2), 2)}
    cases = [
        ("dense", Dense(5), (5,), {}),
        ("dense, R = W⁻¹", Dense(5), (5,), {"inverted": True}),
        ("conv 1x1, R = W⁻¹", Conv2d((1, 1), 3), (2, 3, 3), {"inverted": True}),
        ("conv 3x3", Conv2d((3, 3), 2), (4, 3, 2), {}),
        ("conv 3x3, inverse 5x5", Conv2d((3, 3), 2), (3, 4, 2), larger),
        ("conv 3x3, inverse of two 3x3", Conv2d((3, 3), 2), (3, 4, 2), chain),
    ]
    return [
        Check("rule", f"variational, {name}", partial(check_variational, rule, each, shape, **more))
        for name, each, shape, more in cases
    ]
