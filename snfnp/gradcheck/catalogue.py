"""Small examples of all layers, rules and maps, which `python -m snfnp check` checks."""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np

from snfnp.gradcheck.case import Report
from snfnp.gradcheck.layers import check_layer
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
    Split,
    Squeeze,
    Whiten,
)
from snfnp.maps import Conv2d, Dense
from snfnp.rules import Exact, Relative, SelfNormalizing


class Check(NamedTuple):
    """kind: layer, rule or map; run(ops=…, …): the check."""

    kind: str
    name: str
    run: Callable[..., Report]


_MAPS = {
    "dense": (Dense(5), (5,)),
    "dense, one feature": (Dense(1), (1,)),
    "conv 1x1": (Conv2d((1, 1), 3), (2, 3, 3)),
    "conv 1x1, one channel": (Conv2d((1, 1), 1), (1, 2, 1)),
    "conv 3x3": (Conv2d((3, 3), 2), (3, 4, 2)),
    "conv 7x3": (Conv2d((7, 3), 1), (2, 3, 1)),
    "conv 3x3, whole matrix": (Conv2d((3, 3), 2, exact="dense"), (3, 4, 2)),
    "conv 1x1, 3 to 1 channels": (Conv2d((1, 1), 3, 1), (2, 2, 3)),
    "conv 1x5, 1 to 4 channels": (Conv2d((1, 5), 1, 4), (3, 4, 1)),
}


def catalogue() -> list[Check]:
    """All checks: every layer, linear ones with every rule and in several shapes; rules; maps."""
    maps = list(_MAPS)
    rules = [
        ("self-normalizing", SelfNormalizing(), maps[:4]),
        ("self-normalizing, forward", SelfNormalizing("forward"), maps[:4]),
        ("exact", Exact(), maps[:5]),
        ("relative", Relative(), maps[:2]),
    ]
    return [
        *(
            Check("layer", name, partial(check_layer, layer, shape, **dict(*settings)))
            for name, layer, shape, *settings in _linear() + _other_layers()
        ),
        *(
            Check("rule", f"{name}, {of}", partial(check_rule, rule, *_MAPS[of]))
            for name, rule, names in rules
            for of in names
        ),
        *(Check("map", name, partial(check_map, *of)) for name, of in _MAPS.items()),
    ]


def _linear() -> list[tuple]:
    forward = SelfNormalizing("forward")
    exact = Exact()
    rotation = {"init_kind": "orthogonal"}

    def dense(name, features, **options):
        return f"dense{name}", Linear(Dense(features), **options), (features,)

    def conv(name, kernel, shape, **options):
        layer = Linear(Conv2d(kernel, shape[2]), **options)
        return f"conv {kernel[0]}x{kernel[1]}{name}", layer, shape

    return [
        dense("", 5),
        dense(", one feature", 1),
        dense(", without bias, from the identity", 5, bias=False, init_kind="identity"),
        dense(", forward objective", 5, rule=forward),
        dense(", exact gradient", 5, rule=exact),
        dense(", exact gradient, without bias", 5, rule=exact, bias=False),
        conv("", (3, 3), (3, 3, 2)),
        conv(", one channel", (3, 3), (4, 3, 1)),
        conv(", forward objective", (3, 3), (3, 3, 2), rule=forward, bias=False),
        conv(", exact gradient", (3, 3), (3, 3, 2), rule=exact),
        conv(", inverse 5x5", (3, 3), (3, 4, 2), inverse_map=Conv2d((5, 5), 2)),
        conv(", inverse 5x3", (3, 5), (4, 3, 1), inverse_map=Conv2d((5, 3), 1)),
        # the 1×1 convolutions of Glow, plain and self-normalizing, and Table 5's larger kernel
        conv(", exact gradient", (1, 1), (2, 3, 4), rule=exact, bias=False, **rotation),
        conv("", (1, 1), (2, 3, 3), **rotation),
        conv("", (5, 5), (3, 4, 2), **rotation),
    ]


def _other_layers() -> list[tuple]:
    def spline(name, shape, **options):
        # 5 bins each: Numba compiles its kernels for every number of bins
        layer = RationalQuadraticSpline(5, **options)
        # and in the tails
        points = np.linspace(-1.3, 1.3, 7 * math.prod(shape)).reshape(7, *shape)
        return name, layer, shape, {"x": layer.bound * points}

    def coupling(name, width, shape):
        # at other seeds some ReLU has its kink nearer than the shortest differences reach
        return name, AffineCoupling(shape[2], width), shape, {"seed": 4}

    return [
        ("smooth leaky ReLU", SmoothLeakyReLU(), (6,)),
        ("smooth leaky ReLU, 0.95", SmoothLeakyReLU(0.95), (1,)),
        ("smooth leaky ReLU, images", SmoothLeakyReLU(0.05), (2, 3, 2)),
        spline("spline", (2, 1, 2), bound=4.0),
        spline("spline, one feature", (1,), bound=10.0),
        spline("spline, larger bins", (3,), bound=2.0, eps=0.01),
        ("actnorm", ActNorm(), (3, 2, 4)),
        ("actnorm, features", ActNorm(), (5,)),
        ("actnorm, one channel", ActNorm(), (1, 2, 1)),
        ("squeeze", Squeeze(), (4, 2, 3)),
        ("squeeze, one channel", Squeeze(), (2, 2, 1)),
        coupling("coupling", 8, (3, 2, 4)),
        coupling("coupling, 2 channels", 8, (2, 3, 2)),
        coupling("coupling, 6 channels", 5, (1, 2, 6)),
        ("split", Split(), (3, 2, 4)),
        ("split, two channels", Split(), (2, 3, 2)),
        ("whitening", Whiten(5), (5,)),
        ("whitening, one feature", Whiten(1), (1,)),
        ("bias", Bias(), (3, 4, 2)),
        ("bias, features", Bias(), (5,)),
        ("causal conv", CausalConv2d(3), (3, 2, 3)),
        (
            "causal conv, one channel, without bias",
            CausalConv2d(1, bias=False),
            (5, 4, 1),
        ),
        ("anticausal conv", CausalConv2d(3, reverse=True), (3, 2, 3)),
        ("conv exponential, one channel", ConvExponential(1), (5, 4, 1)),
        # beyond the bound of an exponential the norm's gradient counts
        ("conv exponential", ConvExponential(2, gain=4, terms=(13, 13)), (3, 4, 2)),
        (
            "conv exponential 1x3",
            ConvExponential(3, (1, 3), gain=2, iterations=1, terms=(13, 13)),
            (2, 2, 3),
        ),
    ]
