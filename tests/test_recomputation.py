"""A backward pass that recomputes its caches: the same gradients, and no memory for depth."""

from dataclasses import dataclass

import numpy as np
import pytest
from support.gradients import flow_backward, moved, peak

from snfnp.context import BackwardContext
from snfnp.flow import Flow
from snfnp.layers import (
    ActNorm,
    AffineCoupling,
    Linear,
    RationalQuadraticSpline,
    SmoothLeakyReLU,
    Split,
    Squeeze,
)
from snfnp.layers.baselines import Bias
from snfnp.maps import Conv2d
from snfnp.parameters import Layout
from snfnp.rules import Exact, SelfNormalizing

# Roundings: at most 4 layers are recomputed between two that keep their inputs. Each inverse
# rounds 5 times or less (difference or product, exponential, argument of the exponential), and
# stretches earlier errors by 1.5 or less at the parameters below: 5 (1 + 1.5 + 1.5² + 1.5³) < 50
# eps of x. A gradient is a sum of products of an input and a delta: about twice that. Of the
# norm of each gradient; kinks are further apart than that, see below.
ROUNDINGS = 100
N = 4


def mix(channels, rule=None):
    rule = rule or SelfNormalizing()
    return Linear(Conv2d((1, 1), channels), rule, init_kind="orthogonal")


def glow(rule=None, split=True):
    """[squeeze, step, step, split] twice: chains of up to four inverses."""
    layers = []
    channels = 1
    for level in (1, 2):
        channels *= 4
        layers.append((f"squeeze{level}", Squeeze()))
        for k in (1, 2):
            layers += [
                (f"actnorm{level}.{k}", ActNorm()),
                (f"mix{level}.{k}", mix(channels, rule)),
                (f"coupling{level}.{k}", AffineCoupling(channels, 6)),
            ]
        if split:
            layers += [
                (f"prior{level}", AffineCoupling(channels, 6)),
                (f"split{level}", Split()),
            ]
            channels //= 2
    return Flow((8, 8, 1), tuple(layers))


def splines():
    spline = RationalQuadraticSpline(gain=0.1)
    first = (
        ("mix1", Linear(Conv2d((3, 3), 1))),
        ("spline1", spline),
        ("actnorm1", ActNorm()),
    )
    rest = (
        ("squeeze1", Squeeze()),
        ("mix2", Linear(Conv2d((3, 3), 4))),
        ("spline2", spline),
    )
    return Flow((4, 4, 1), first + rest)


def mixed():
    """Layers without a cheap exact inverse at both ends, in between, and before a split."""
    layers = [
        Bias(),
        ActNorm(),
        SmoothLeakyReLU(),
        ActNorm(),
        ActNorm(),
        SmoothLeakyReLU(),
        Split(),
        Squeeze(),
        SmoothLeakyReLU(),
    ]
    names = [f"{type(layer).__name__}{index}" for index, layer in enumerate(layers)]
    return Flow((4, 4, 2), tuple(zip(names, layers, strict=True)))


FLOWS = {
    "glow": glow(),
    "glow, exact": glow(Exact()),
    "glow without splits": glow(split=False),
    "splines": splines(),
    "mixed": mixed(),
    "one layer": Flow((4, 4, 1), (("actnorm", ActNorm()),)),
    "one split": Flow(
        (4, 4, 2), (("coupling", AffineCoupling(2, 6)), ("split", Split()))
    ),
}


@pytest.fixture(params=FLOWS.values(), ids=FLOWS.keys())
def flow(request):
    return request.param


@dataclass
class Setup:
    """A flow at parameters that noise has moved, with a batch."""

    flow: Flow
    ops: object
    dtype: type = np.float64

    def __post_init__(self):
        rng = np.random.default_rng(1)
        params = moved(self.flow.init(0), rng, 0.05)
        self.layout = Layout.of(self.flow.parameter_shapes())
        self.params = self.layout.views(self.layout.pack(params, self.dtype))
        self.x = rng.standard_normal((N, *self.flow.shape)).astype(self.dtype)

    def gradients(self, recompute):
        """{parameter or "x": gradient} of the training objective, and ldj and all latents."""
        done = flow_backward(self.ops, self.flow, self.params, self.x, 1.0, recompute)
        result = {e.key: done.grads[e.layer][e.name] for e in self.layout.entries}
        return {"x": done.dx, **result}, (done.ldj, *done.latents)


def difference(result, expected) -> float:
    """The largest ‖found − expected‖/‖expected‖ over all gradients; NaN where one is."""
    errors = []
    for key, value in expected.items():
        error = np.linalg.norm(result[key] - value)
        # 0 where both are 0
        errors.append(error / np.linalg.norm(value) if error != 0 else 0.0)
    return float(np.max(errors))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_recomputed_gradients_equal_stored_ones(flow, ops, dtype):
    """To 100 roundings: 1.2e-5 in single and 2.2e-14 in double precision.

    Single precision can cross a kink (a ReLU's, a spline's knot), where a gradient jumps: the
    chance is about that of one of a few thousand values to lie within 1e-6 of one.
    """
    setup = Setup(flow, ops, dtype)
    stored, outputs = setup.gradients(recompute=False)
    recomputed, same = setup.gradients(recompute=True)
    for first, second in zip(outputs, same, strict=True):
        np.testing.assert_array_equal(first, second)  # the forward pass is the same
    assert {value.dtype for value in recomputed.values()} == {np.dtype(dtype)}
    assert all(np.linalg.norm(value) > 0 for value in stored.values())
    assert difference(recomputed, stored) <= ROUNDINGS * np.finfo(dtype).eps
    # a wrong gradient would be seen
    for key, value in recomputed.items():
        assert difference({**recomputed, key: 1.001 * value}, stored) > 5e-4


def height(flow, ops, recompute) -> int:
    """Bytes at the height of a forward and a backward pass."""
    setup = Setup(flow, ops, np.float32)
    setup.x = np.repeat(setup.x, 16, axis=0)
    count = len(setup.x)
    grads = setup.layout.views(np.empty(setup.layout.size, np.float32))
    weights = np.full(count, 1 / count, np.float32)

    def step():
        latents, _, caches = flow.forward(ops, setup.params, setup.x, recompute)
        ctx = BackwardContext.of(ops, weights, 1.0)
        flow.backward(ctx, setup.params, caches, flow.latent_gradients(latents), grads)

    return peak(step)


SHAPE = (8, 8, 4)
BYTES = 16 * N * 8 * 8 * 4 * 4  # one activation: batch 64, single precision
LAYERS = {
    "actnorm": lambda: ActNorm(),
    "spline": lambda: RationalQuadraticSpline(),
    "coupling": lambda: AffineCoupling(
        4, 16
    ),  # its cache is 4 times as wide as its input
}


@pytest.mark.slow
@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("kind", LAYERS)
def test_depth_costs_no_activation_memory(ops, kind):
    """Above 4 layers, 20 more do not add a single activation; stored, each adds one or more."""
    shallow, deep = (
        Flow(SHAPE, tuple((f"layer{k}", LAYERS[kind]()) for k in range(depth)))
        for depth in (4, 24)
    )
    growth = {
        recompute: height(deep, ops, recompute) - height(shallow, ops, recompute)
        for recompute in (False, True)
    }
    assert growth[False] >= 20 * BYTES
    # records of recomputed layers, a few hundred bytes each
    assert growth[True] < BYTES / 2
