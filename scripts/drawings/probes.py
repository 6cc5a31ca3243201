"""The gradient by probes beside the self-normalizing one: its bias and its noise."""

import numpy as np

from drawings.style import BLUE, GREEN, INK, ORANGE, PURPLE, plt
from snfnp.beyond.probes import Probe
from snfnp.context import BackwardContext, layer_key
from snfnp.layers import Linear
from snfnp.maps import Conv2d, Dense
from snfnp.ops import RandomKey, get_ops
from snfnp.rules import SelfNormalizing

_DRAWS = 40


class _Layer:
    """A layer near the identity, with W's likelihood gradient where nothing comes from the data."""

    def __init__(self, linear_map, shape):
        rng = np.random.default_rng(0)
        self.ops, self.map = get_ops("numpy"), linear_map
        layer = Linear(linear_map, bias=False)
        noise = {"W": 0.0, "R": 0.3 / np.sqrt(linear_map.fans[0])}
        self.p = {
            name: value + noise[name] * rng.standard_normal(value.shape)
            for name, value in layer.init(rng, shape).items()
        }
        self.x = np.zeros((1, *shape))
        self.expected = self.gradient(SelfNormalizing("forward"))

    def gradient(self, rule, step=0):
        grads = {name: np.empty_like(value) for name, value in self.p.items()}
        ctx = BackwardContext.of(self.ops, np.ones(1), key=layer_key(RandomKey(0, 0, step), 0))
        layer = Linear(self.map, rule, bias=False)
        _, _, cache = layer.forward(self.ops, self.p, self.x)
        layer.backward(ctx, self.p, cache, self.x, grads)
        return grads["W"]

    def error(self, found) -> float:
        """Relative to the self-normalizing gradient."""
        return float(np.linalg.norm(found - self.expected) / np.linalg.norm(self.expected))

    def noise(self, probes) -> float:
        """The root mean square of one step's error."""
        found = [self.error(self.gradient(Probe("forward", probes), k)) for k in range(_DRAWS)]
        return float(np.sqrt(np.mean(np.square(found))))


def variance():
    """Left: one step's error against the number of probes; right: that of a mean over steps."""
    figure, (noise, bias) = plt.subplots(1, 2, figsize=(9.0, 3.6))
    counts = 4 ** np.arange(5)
    small, look = _Layer(Dense(16), (16,)), {"linewidth": 1}
    for layer, color in ((small, BLUE), (_Layer(Dense(256), (256,)), ORANGE)):
        found, dimension = [layer.noise(int(count)) for count in counts], layer.map.features
        noise.plot(counts, found, "o", color=color, label=f"dense, D = {dimension}")
        noise.plot(counts, np.sqrt((dimension - 1) / counts), color=color, **look)
    for side, color in ((8, GREEN), (28, PURPLE)):
        layer = _Layer(Conv2d((3, 3), 1), (side, side, 1))
        found = [layer.noise(int(count)) for count in counts]
        noise.plot(counts, found, "o-", color=color, label=f"3×3, {side}×{side} pixels", **look)
    noise.set(xscale="log", yscale="log", xlabel="probes in a step", xticks=counts)
    noise.set_xticks(counts, [str(count) for count in counts])
    noise.minorticks_off()
    noise.set(ylabel="noise / gradient", ylim=(4e-3, 4e2), title="one step: noise")

    steps = 4096
    draws = np.array([small.gradient(Probe("forward", 1), k) for k in range(steps)])
    at = np.unique(np.geomspace(1, steps, 60).astype(int))
    sums = draws.cumsum(axis=0)
    bias.plot(at, [small.error(sums[k - 1] / k) for k in at], color=BLUE, label="dense, D = 16")
    bias.plot(at, np.sqrt(15 / at), color=INK, linestyle="--", label="√((D − 1)/steps)", **look)
    bias.set(xscale="log", yscale="log", xlabel="steps of one probe")
    bias.set_title("mean over steps: no bias")
    for axis, columns in ((noise, 2), (bias, 1)):
        axis.grid()
        axis.legend(loc="upper right", ncols=columns, fontsize=9, columnspacing=1)
    figure.tight_layout()
    return figure
