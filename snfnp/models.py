"""The models of the paper's tables as named presets, with the settings that they were trained at.

A preset is a builder and its training defaults (A.3). How a linear layer gets its gradient is one
field of `Choices`, never another model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from snfnp.errors import UsageError
from snfnp.flow import Flow
from snfnp.layers import (
    Linear,
    RationalQuadraticSpline,
    SmoothLeakyReLU,
    Squeeze,
    emerging_layers,
    exponential_layers,
)
from snfnp.maps import Conv2d, Dense
from snfnp.rules import Exact, Relative, Rule, SelfNormalizing

GRADIENTS = ("self-normalizing", "exact", "exact-dense", "relative")
INITS = ("paper", "identity")


@dataclass(frozen=True)
class Choices:
    """What a preset leaves open: the rule, the initialisation ("paper" or "identity"), how a
    convolution's exact determinant is found ("block" or "dense"), and the learned inverse's
    kernel size (None: the forward kernel's)."""

    rule: Rule = SelfNormalizing()
    init: str = "paper"
    exact: str = "block"
    inverse_kernel: int | None = None


@dataclass(frozen=True)
class Preset:
    """A model of the tables: build(choices, shape) and the paper's training settings.

    `shape` is an image's (H, W, C); `gradients` are the rules that the model can be trained with,
    the default first.
    """

    build: Callable[[Choices, tuple[int, ...]], Flow]
    gradients: tuple[str, ...]
    lr: float
    lam: float = 1.0
    warmup_epochs: float = 10
    batch_size: int = 100
    clip_norm: float | None = None


def make_rule(gradient: str, objective: str, relative_bias: str) -> Rule:
    """The rule behind a `--gradient` name."""
    if gradient == "self-normalizing":
        return SelfNormalizing(objective)
    if gradient in ("exact", "exact-dense"):
        return Exact()
    if gradient == "relative":
        return Relative(relative_bias)
    raise UsageError(f"gradient is {gradient!r}: choose one of {', '.join(GRADIENTS)}")


def fully_connected(choices: Choices, shape: tuple[int, ...]) -> Flow:
    """The 2-layer flow of Table 1: Dense D - smooth leaky ReLU(0.3) - Dense D, with biases."""
    dimension = shape[0] * shape[1] * shape[2]
    return Flow(
        shape=(dimension,),
        layers=(
            ("dense1", Linear(Dense(dimension), choices.rule, init_kind=choices.init)),
            ("activation1", SmoothLeakyReLU(0.3)),
            ("dense2", Linear(Dense(dimension), choices.rule, init_kind=choices.init)),
        ),
    )


def convolutional(choices: Choices, shape: tuple[int, ...]) -> Flow:
    """The 9-layer flow of Table 1, of 3×3 convolutions with bias."""
    larger = choices.inverse_kernel

    def layers(name, channels):
        linear = Linear(
            Conv2d((3, 3), channels, exact=choices.exact),
            choices.rule,
            init_kind=choices.init,
            inverse_map=Conv2d((larger, larger), channels) if larger else None,
        )
        return [(name, linear)]

    return _nine_layers(layers, shape)


def emerging(choices: Choices, shape: tuple[int, ...]) -> Flow:
    """The same flow of emerging convolutions (Hoogeboom et al. 2019): its gradient is exact."""
    return _nine_layers(partial(emerging_layers, gain=_gain(choices)), shape)


def exponential(choices: Choices, shape: tuple[int, ...]) -> Flow:
    """The same flow of convolution exponentials (Hoogeboom et al. 2020): its gradient is exact."""
    return _nine_layers(partial(exponential_layers, gain=_gain(choices)), shape)


def _nine_layers(convolution: Callable, shape: tuple[int, ...]) -> Flow:
    """3 blocks of 3 convolutions, a spline after every one but the last, squeezes between the
    blocks. `convolution(name, channels)` gives the (name, layer) pairs of one convolution."""
    layers, channels = [], shape[2]
    for block in (1, 2, 3):
        for index in (1, 2, 3):
            layers += convolution(f"conv{block}.{index}", channels)
            layers.append((f"spline{block}.{index}", RationalQuadraticSpline()))
        layers.append((f"squeeze{block}", Squeeze()))
        channels *= 4
    return Flow(shape, tuple(layers[:-2]))


def _gain(choices: Choices) -> float:
    return 0.01 if choices.init == "paper" else 0.0


PRESETS = {
    "fc": Preset(fully_connected, ("self-normalizing", "exact", "relative"), lr=1e-4),
    "conv": Preset(convolutional, ("self-normalizing", "exact", "exact-dense"), lr=1e-3),
    "emerging": Preset(emerging, ("exact",), lr=1e-3),
    "conv-exponential": Preset(exponential, ("exact",), lr=1e-3),
}
