"""The models of the paper's tables as named presets, with their training settings.

A preset is a builder and its training defaults (A.3). The rule for the gradient of linear layers is
a field of `Choices`, not another model.
Derivation: derivations/27-the-paper-reproduced.md.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from snfnp.flow import Flow, Shape
from snfnp.layers import (
    ActNorm,
    AffineCoupling,
    Linear,
    RationalQuadraticSpline,
    SmoothLeakyReLU,
    Split,
    Squeeze,
    Whiten,
)
from snfnp.layers.baselines import emerging_layers, exponential_layers
from snfnp.maps import Conv2d, Dense
from snfnp.rules import Exact, Relative, Rule, SelfNormalizing

GRADIENTS = ("self-normalizing", "exact", "exact-dense", "relative")
INITS = ("paper", "authors", "identity")
BIAS_INITS = ("zero", "data")
ACTIVATIONS = ("spline", "smooth-leaky-relu")
# of recipe="white", for every preset
WHITE = {
    "coordinates": "white",
    "objective": "forward",
    "lr_schedule": "cosine",
    "warmup_epochs": 1,
}
# for 5×5 kernels: derivations/16-adam.md
_CLIPPED = WHITE | {"lr": 2e-2, "clip_norm": 1000}


@dataclass(frozen=True)
class Choices:
    """The choices that a preset leaves open."""

    rule: Rule = SelfNormalizing()
    # exact determinants of convolutions by "block" or "dense" matrices
    exact: str = "block"
    init: str = "paper"  # one of INITS
    bias_init: str = "zero"  # one of BIAS_INITS
    coordinates: str = "plain"  # otherwise Whiten layers stand before dense layers
    # of the learned inverse; None: the forward kernel's size
    inverse_kernel: int | None = None
    levels: int = 2  # L of Glow: blocks, each after a squeeze
    # K of Glow: steps of flow per block; hidden dense layers of `vector`
    depth: int = 4
    width: int = 512  # channels in the networks of Glow's couplings
    kernel: int = 1  # size of Glow's mixing convolutions: 1, or 5 in Table 5
    bins: int = 8  # of the splines of `vector`
    activation: str = "spline"  # elementwise maps of `vector`, one of ACTIVATIONS


@dataclass(frozen=True)
class Preset:
    """A model and its training settings, the paper's (A.3) for the models of its tables."""

    # for images (H, W, C) or rows (D,)
    build: Callable[[Choices, Shape], Flow]
    summary: str  # a phrase, for help
    gradients: tuple[str, ...]  # the gradients for its training, the default first
    lr: float = 1e-3
    lam: float = 1.0
    warmup_epochs: float = 10
    lr_schedule: str = "constant"
    batch_size: int = 100
    clip_norm: float | None = None
    clip_exact: bool = True  # clip_norm is also a default for the exact gradient
    steps: int = 5000  # about, of a run without `epochs`
    paper_epochs: int | None = None
    size: dict[str, int] = field(default_factory=dict)  # defaults of levels, depth, …
    has_recomputable_layers: bool = True  # recompute saves memory
    has_inverse_kernel: bool = False  # R may have a larger kernel (Eqs. 28-30)
    has_bias_init: bool = False  # biases may start from data
    has_coordinates: bool = True  # white coordinates change its training
    takes_rows: bool = False
    takes_choices: bool = True  # build takes a `Choices`
    white: dict = field(default_factory=WHITE.copy)  # settings of recipe="white"
    whole_rate: int = 200  # steps from which on the recipe has its whole rate
    lam_forward: float | None = None  # λ of the forward objective
    # Options, and `steps`, that depend on the shape and the number of the training data.
    fits: Callable[[Shape, int], dict] = lambda shape, count: {}


def make_rule(option: Callable[[str], Any]) -> Rule:
    """The rule for options of `TrainConfig`; option(name): the value of one."""
    gradient = option("gradient")
    objective = option("objective")
    if gradient in ("exact", "exact-dense"):
        return Exact()
    if gradient == "relative":
        return Relative()
    if objective == "variational":
        from snfnp.beyond.rules import Variational

        sigma = 1 / math.sqrt(2 * option("lam"))
        return Variational(sigma, option("noise_vectors"))
    if option("jvp_weight") > 0:
        from snfnp.beyond.rules import JacobianPenalty

        return JacobianPenalty(objective, option("jvp_weight"), option("jvp_probes"))
    return SelfNormalizing(objective)


def fully_connected(choices: Choices, shape: Shape) -> Flow:
    """The 2-layer flow of Table 1: Dense D - smooth leaky ReLU(0.3) - Dense D, with biases."""
    dimension = math.prod(shape)
    kind = "identity" if choices.init == "authors" else choices.init
    dense = Linear(
        Dense(dimension), choices.rule, init_kind=kind, bias_init=choices.bias_init
    )
    layers = []
    for index in (1, 2):
        if choices.coordinates != "plain":
            whiten = Whiten(
                dimension, diagonal=choices.coordinates == "scaled", renewed=index == 2
            )
            layers.append((f"whiten{index}", whiten))
        layers += [
            (f"dense{index}", dense),
            (f"activation{index}", SmoothLeakyReLU(0.3)),
        ]
    return Flow((dimension,), tuple(layers[:-1]), image_shape=shape)


def vector(choices: Choices, shape: Shape) -> Flow:
    """A flow for rows of numbers: an elementwise map, whitening, and dense layers with elementwise
    maps between them. Splines are the identity beyond 4 standard deviations.

    The first map can make each column Gaussian, and whitening then models a Gaussian copula. The
    first dense layer starts at the identity, the others at random rotations.
    """
    dimension = math.prod(shape)
    activation = RationalQuadraticSpline(choices.bins, bound=4.0)
    if choices.activation == "smooth-leaky-relu":
        activation = SmoothLeakyReLU(0.3)
    other = "identity" if choices.init == "identity" else "orthogonal"
    kinds = ["identity", *[other] * choices.depth]
    layers = [("activation0", activation), ("whiten", Whiten(dimension, shrink=True))]
    for index, kind in enumerate(kinds, start=1):
        dense = Linear(Dense(dimension), choices.rule, init_kind=kind)
        layers += [(f"dense{index}", dense), (f"activation{index}", activation)]
    return Flow((dimension,), tuple(layers[:-1]), image_shape=shape)


def _fitting_vector(shape: Shape, rows: int) -> dict:
    """Fewer layers and a smaller rate for many columns, as a step changes D weights of each output;
    fewer layers, bins and steps for few rows."""
    root = math.sqrt(16 / math.prod(shape))
    few = rows <= 2000
    return {
        "depth": max(1, min(3 if few else 6, round(4 * root))),
        "bins": 5 if few else 8,
        "lr": 0.01 * min(1.0, root),
        "batch_size": min(rows, max(16, min(500, rows // 8))),
        "steps": max(800, min(2000, rows), min(8000, rows // 8)),
    }


def convolutional(
    choices: Choices, shape: Shape, other: Callable | None = None
) -> Flow:
    """The 9-layer flow of Table 1: 3 blocks of 3 convolutions, 3×3 with bias, splines between
    convolutions, and squeezes between blocks.

    other(name, channels, gain) returns the (name, layer) pairs of another paper's convolution, with
    exact gradients: `emerging_layers` or `exponential_layers` (Hoogeboom et al. 2019, 2020).
    """
    layers = []
    channels = shape[2]
    kernel = choices.inverse_kernel
    kind = "identity" if choices.init == "identity" else "paper"
    for block in (1, 2, 3):
        for index in (1, 2, 3):
            name = f"conv{block}.{index}"
            if other:
                layers += other(
                    name, channels, gain=0.0 if kind == "identity" else 0.01
                )
            else:
                f = Conv2d((3, 3), channels, exact=choices.exact)
                g = Conv2d((kernel, kernel), channels) if kernel else None  # Eqs. 28-30
                layer = Linear(
                    f,
                    choices.rule,
                    init_kind=kind,
                    inverse_map=g,
                    bias_init=choices.bias_init,
                )
                layers.append((name, layer))
            layers.append((f"spline{block}.{index}", RationalQuadraticSpline()))
        layers.append((f"squeeze{block}", Squeeze()))
        channels *= 4
    return Flow(shape, tuple(layers[:-2]))


def glow(choices: Choices, shape: Shape) -> Flow:
    """Glow (Kingma & Dhariwal 2018): L blocks of a squeeze and K steps of [actnorm, mixing
    convolution, affine coupling], with a coupling and a split between blocks.

    The rule is that of the mixing convolutions, 1×1, with a bias unless the gradient is exact (as
    in the authors' code). They start at random orthogonal matrices of the channels; larger kernels
    at these plus noise (the paper) or at the identity plus noise (the authors' code).
    """
    kernel = (choices.kernel, choices.kernel)
    channels = shape[2]
    kind = "identity" if choices.init == "identity" else "orthogonal"
    if choices.init == "authors" and choices.kernel > 1:
        kind = "paper"
    layers = []
    for block in range(1, choices.levels + 1):
        layers.append((f"squeeze{block}", Squeeze()))
        channels *= 4
        for step in range(1, choices.depth + 1):
            mix = Conv2d(kernel, channels, exact=choices.exact)
            mixing = Linear(
                mix, choices.rule, bias=choices.rule.learns_inverse, init_kind=kind
            )
            layers += [
                (f"actnorm{block}.{step}", ActNorm()),
                (f"mix{block}.{step}", mixing),
                (f"coupling{block}.{step}", AffineCoupling(channels, choices.width)),
            ]
        if block < choices.levels:
            # the coupling gives the half that leaves its mean and variance
            layers += [
                (f"split{block}", AffineCoupling(channels, choices.width)),
                (f"latent{block}", Split()),
            ]
            channels //= 2
    return Flow(shape, tuple(layers))


def _other(convolution: Callable, summary: str) -> Preset:
    build = partial(convolutional, other=convolution)
    return Preset(build, summary, ("exact",), white=WHITE | {"lr": 1e-2})


def _glow(
    summary: str,
    levels: int,
    depth: int,
    width: int = 512,
    lam: float = 100,
    **settings: Any,
) -> Preset:
    size = {"levels": levels, "depth": depth, "width": width, "kernel": 1}
    return Preset(
        glow, summary, ("self-normalizing", "exact"), lam=lam, size=size, **settings
    )


_large = partial(_glow, lam=1000, clip_norm=10_000, steps=400)

PRESETS = {
    "fc": Preset(
        fully_connected,
        "the 2-layer fully connected flow",
        ("self-normalizing", "exact", "relative"),
        lr=1e-4,
        steps=3000,
        paper_epochs=6000,
        has_recomputable_layers=False,
        has_bias_init=True,
        takes_rows=True,
        white=WHITE | {"lr": 4e-3, "bias_init": "data"},
        whole_rate=1000,  # fewer images than features: derivations/24-natural-coordinates.md
        lam_forward=0.1,
    ),
    "vector": Preset(
        vector,
        "dense layers between splines, for rows of numbers",
        ("self-normalizing", "exact", "relative"),
        lr=0.01,
        warmup_epochs=1,
        lr_schedule="cosine",
        steps=2000,
        size={"depth": 6, "bins": 8},
        has_coordinates=False,  # its dense layers are behind a layer that whitens
        takes_rows=True,
        white={name: value for name, value in WHITE.items() if name != "coordinates"},
        fits=_fitting_vector,
    ),
    "conv": Preset(
        convolutional,
        "the 9-layer convolutional flow with splines",
        ("self-normalizing", "exact", "exact-dense"),
        paper_epochs=1000,
        has_inverse_kernel=True,
        has_bias_init=True,
        white=WHITE | {"lr": 1e-2, "bias_init": "data"},
        lam_forward=1.0,
    ),
    "emerging": _other(emerging_layers, "conv with emerging convolutions (Table 1)"),
    "conv-exponential": _other(
        exponential_layers, "conv with convolution exponentials (Table 1)"
    ),
    "glow": _glow(
        "Glow with L = 2 levels of K = 16 steps", 2, 16, steps=500, paper_epochs=250
    ),
    "glow-2l-4k": _glow(
        "L = 2, K = 4, width 16", 2, 4, 16, steps=2500, white=_CLIPPED, lam_forward=10
    ),
    "glow-3l-32k": _large("L = 3, K = 32 (for CIFAR-10)", 3, 32, clip_exact=False),
    "glow-3l-48k": _large(
        "L = 3, K = 48 (for ImageNet32)", 3, 48, warmup_epochs=0, batch_size=64
    ),
}
