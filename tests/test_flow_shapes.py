"""What a flow, its layers and its maps refuse when they are made: shapes, names and settings."""

from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest
from support.messages import one_line

from snfnp import layers
from snfnp.errors import UsageError
from snfnp.flow import Flow
from snfnp.layers.preprocess import Standardise
from snfnp.maps import Conv2d, Dense
from snfnp.rules import Exact

D = 5


@pytest.mark.parametrize(
    "name", ["a", "preprocess", "scale", "logit", "base density", "z"]
)
def test_a_name_that_is_taken_cannot_name_a_layer(name):
    with one_line(
        UsageError, f"a layer is called {name!r}, as another or a term of the"
    ):
        Flow((D,), tuple((each, layers.SmoothLeakyReLU()) for each in ("a", name)))


@dataclass(frozen=True)
class Half(layers.Layer):
    """Half of the features, and no word of the others."""

    def output_shape(self, shape):
        return (shape[0] // 2,)


@dataclass(frozen=True)
class Pixels(layers.Layer):
    """A layer of images alone, which does not look at its input's shape."""

    def parameter_shapes(self, shape):
        height, width, channels = shape
        return {"w": (channels,)}


@dataclass(frozen=True)
class Declared(layers.Layer):
    """A layer with these declarations."""

    parameter: object = (2,)
    output: object = (4,)
    latent: object = None

    def parameter_shapes(self, shape):
        return {"w": self.parameter}

    def output_shape(self, shape):
        return self.output

    def latent_shape(self, shape):
        return self.latent


LEARNS = type(
    "Learns", (layers.SmoothLeakyReLU,), {"learns_inverse": True}
)  # without an R
RELU = layers.SmoothLeakyReLU()
SQUEEZE = layers.Squeeze()
COUPLING = layers.AffineCoupling
CONV1 = partial(Conv2d, (1, 1))


def in_flow(*chain, shape=(4, 4, 4), **settings):
    """The flow of these layers, with the names a, b, …"""
    return Flow(shape, tuple(zip("abcd", chain, strict=False)), **settings)


def linear(*arguments, **settings):
    return layers.Linear(*arguments, **settings)


def spline(**settings):
    return layers.RationalQuadraticSpline(**settings)


IMAGE = "image_shape (4, 4, 1) has 16 values, but shape (8,) has 8: give shapes of the same samples"
MISFITS = {
    # the ends
    "fewer values than pixels": (
        lambda: in_flow(RELU, shape=(8,), image_shape=(4, 4, 1)),
        IMAGE,
    ),
    "more values than pixels": (
        lambda: in_flow(RELU, shape=(32,), image_shape=(4, 4, 1)),
        "image_shape (4, 4, 1) has 16 values, but shape (32,) has 32",
    ),
    "a number for a shape": (
        lambda: in_flow(RELU, shape=4),
        "shape is 4: give a tuple of whole",
    ),
    "a list for a shape": (
        lambda: in_flow(RELU, shape=[4]),
        "shape is [4]: give a tuple of whole",
    ),
    "no rows": (
        lambda: in_flow(RELU, shape=(0,)),
        "shape is (0,): give a tuple of whole numbers",
    ),
    "part of a pixel": (
        lambda: in_flow(RELU, shape=(4, 2.5, 1)),
        "shape is (4, 2.5, 1): give a",
    ),
    "an image_shape in text": (
        lambda: in_flow(RELU, shape=(16,), image_shape="4x4"),
        "image_shape is '4x4': give a tuple of whole numbers of at least 1",
    ),
    "columns": (
        lambda: in_flow(RELU, shape=(3,), preprocess=Standardise((0.0,), (1.0,))),
        "preprocess is for 1 columns, but shape is (3,): give it moments of each",
    ),
    "a class of preprocessing": (
        lambda: in_flow(RELU, preprocess=layers.Preprocess),
        "preprocess is the class Preprocess: give an instance of Preprocess or Scale or Stand",
    ),
    # the chain
    "a dict": (
        lambda: Flow((4,), {"a": RELU}),
        "layers is of type dict, or empty: give a tuple",
    ),
    "a zip": (
        lambda: Flow((4,), zip("a", [RELU], strict=True)),
        "layers is of type zip, or empty",
    ),
    "no layers": (
        lambda: in_flow(),
        "layers is of type tuple, or empty: give a tuple of (name, l",
    ),
    "no names": (
        lambda: Flow((4,), (RELU,)),
        "SmoothLeakyReLU(alpha=0.3) is among the layers: g",
    ),
    "a number for a name": (
        lambda: Flow((4,), ((1, RELU),)),
        "is among the layers: give a (name,",
    ),
    "a class": (
        lambda: in_flow(RELU, layers.SmoothLeakyReLU),
        "layer b is the class SmoothLeakyReLU: give an instance of Layer",
    ),
    "a map": (
        lambda: in_flow(CONV1(4)),
        "layer a is Conv2d(kernel=(1, 1), channels=4",
        "Layer",
    ),
    "R without a rule": (
        lambda: in_flow(LEARNS()),
        "layer a: it learns an inverse: make it a snfnp.layers.Linear with a rule",
    ),
    # one layer and the next
    "rows of another length": (
        lambda: in_flow(RELU, linear(Dense(5)), shape=(4,)),
        "layer b: a dense map of 5 features cannot take (4,): give it rows of 5 numbers",
    ),
    "a dense layer of images": (
        lambda: in_flow(linear(Dense(64))),
        "layer a: a dense map of 64 fe",
    ),
    "another number of channels": (
        lambda: in_flow(linear(CONV1(4)), SQUEEZE, linear(CONV1(4))),
        "layer c: a convolution of 4 channels cannot take (2, 2, 16): give it images (H, W, 4)",
    ),
    "a convolution of rows": (
        lambda: in_flow(linear(CONV1(4)), shape=(4,)),
        "layer a: a conv",
        "4",
    ),
    "a coupling": (
        lambda: in_flow(SQUEEZE, COUPLING(4, 8)),
        "layer b: a coupling of 4 channels cannot take (2, 2, 16): give it images (H, W, 4)",
    ),
    "a squeeze of rows": (
        lambda: in_flow(SQUEEZE, shape=(4,)),
        "layer a: a squeeze cannot take (4,): give it images (H, W, C)",
    ),
    "an odd squeeze": (
        lambda: in_flow(SQUEEZE, SQUEEZE, SQUEEZE),
        "layer c: a squeeze needs an even height and width, found 1 × 1",
    ),
    "an odd split": (
        lambda: in_flow(layers.Split(), shape=(2, 2, 3)),
        "layer a: a split halves the channels: 3 is an odd number",
    ),
    "whitening": (
        lambda: in_flow(layers.Whiten(3), shape=(4,)),
        "layer a: a dense map of 3 features cannot take (4,): give it rows of 3 numbers",
    ),
    "a causal convolution": (
        lambda: in_flow(RELU, layers.CausalConv2d(3)),
        "layer b: a convolution of 3 channels cannot take (4, 4, 4)",
    ),
    "an exponential": (
        lambda: in_flow(layers.ConvExponential(3)),
        "layer a: a convolution of 3 channels cannot take (4, 4, 4)",
    ),
    "fewer channels": (
        lambda: in_flow(linear(CONV1(4, 3), Exact())),
        "layer a: it makes 48 values, latents included, of 64: let it keep their number, or it is",
    ),
    "more channels": (
        lambda: in_flow(linear(CONV1(4, 5))),
        "layer a: it makes 80 values, latents included, of 64: let",
    ),
    "R of other channels": (
        lambda: in_flow(linear(CONV1(4), inverse_map=CONV1(2))),
        "layer a: a convolution of 2 channels cannot take (4, 4, 4)",
    ),
    "R back to other channels": (
        lambda: in_flow(linear(CONV1(4), inverse_map=CONV1(4, 2))),
        "layer a: inverse_map leads from (4, 4, 4) to (4, 4, 2): let it lead back to (4, 4, 4)",
    ),
    # layers of one's own
    "own, half of the values": (
        lambda: in_flow(RELU, Half(), shape=(4,)),
        "layer b: it makes 2 values, latents included, of 4: let it keep their number, or it is",
    ),
    "own, of images": (
        lambda: in_flow(Pixels(), shape=(4,)),
        "layer a: its shapes for samples of (4,) fail (ValueError: not enough values to unpack",
        "give it samples that it takes, or mend it",
    ),
    "own, a number for an output": (
        lambda: in_flow(Declared(output=4), shape=(4,)),
        "layer a: output_shape of Declared is 4: give a tuple of whole numbers of at least 1",
    ),
    "own, no latent": (
        lambda: in_flow(Declared(output=(2,), latent=()), shape=(4,)),
        "layer a: it makes 3 values, latents included, of 4",
    ),
    "own, a number for a parameter": (
        lambda: in_flow(Declared(parameter=2), shape=(4,)),
        "layer a: its shapes for samples of (4,) fail (TypeError: 'int' object is not iterable)",
    ),
    "own, a negative parameter": (
        lambda: in_flow(Declared(parameter=(2, -1)), shape=(4,)),
        "layer a: shape of w of Declared is (2, -1): give a tuple of whole numbers of at least 0",
    ),
    # settings
    "no features": (
        lambda: Dense(0),
        "features of Dense is 0: give a whole number from 1 to 2**63",
    ),
    "negative features": (
        lambda: Dense(-3),
        "features of Dense is -3: give a whole number from 1",
    ),
    "half a feature": (
        lambda: Dense(2.5),
        "features of Dense is 2.5: give a whole number from 1 t",
    ),
    "features in text": (
        lambda: Dense("3"),
        "features of Dense is '3': give a whole number from 1",
    ),
    "True features": (
        lambda: Dense(True),
        "features of Dense is True: give a whole number from 1",
    ),
    "no channels": (
        lambda: CONV1(0),
        "channels of Conv2d is 0: give a whole number from 1 to 2**63",
    ),
    "half a channel": (
        lambda: CONV1(1.5),
        "channels of Conv2d is 1.5: give a whole number from 1",
    ),
    "no outputs": (
        lambda: CONV1(2, 0),
        "out_channels of Conv2d is 0: give a whole number from 1",
    ),
    "a number for a kernel": (
        lambda: Conv2d(3, 4),
        "kernel of Conv2d is 3: give a tuple of 2 whole numbers of at least 0",
    ),
    "a list for a kernel": (
        lambda: Conv2d([1, 1], 4),
        "kernel of Conv2d is [1, 1]: give a tuple of",
    ),
    "a kernel of 3.0": (
        lambda: Conv2d((3.0, 3), 4),
        "kernel of Conv2d is (3.0, 3): give a tuple of",
    ),
    "a kernel of three": (
        lambda: Conv2d((3, 3, 3), 4),
        "kernel of Conv2d is (3, 3, 3): give a tup",
    ),
    "half a bin": (
        lambda: spline(bins=2.5),
        "bins of RationalQuadraticSpline is 2.5: give a whole number from 2 to 2**63 - 1",
    ),
    "a bound in text": (
        lambda: spline(bound="4"),
        "bound of RationalQuadraticSpline is '4': it must be in (0, inf)",
    ),
    "a negative gain": (
        lambda: spline(gain=-0.1),
        "gain of RationalQuadraticSpline is -0.1: it must be in (0, inf) or 0",
    ),
    "alpha in text": (
        lambda: layers.SmoothLeakyReLU("0.3"),
        "alpha of SmoothLeakyReLU is '0.3': it must be in (0, 1)",
    ),
    "half a width": (
        lambda: COUPLING(4, 2.5),
        "width of AffineCoupling is 2.5: give a whole number",
    ),
    "channels in text": (
        lambda: COUPLING("4"),
        "channels of AffineCoupling is '4': give a whole n",
    ),
    "a class of maps": (
        lambda: linear(Dense),
        "map of Linear is the class Dense: give an instance",
    ),
    "a layer for a map": (
        lambda: linear(RELU),
        "map of Linear is SmoothLeakyReLU(alpha=0.3): give",
    ),
    "a class of rules": (
        lambda: linear(Dense(2), Exact),
        "rule of Linear is the class Exact: give an instance of Rule",
    ),
    "a number for R": (
        lambda: linear(Dense(2), inverse_map=3),
        "inverse_map of Linear is 3: give an instance of Map",
    ),
    "NaN for a gain": (
        lambda: linear(Dense(2), gain=np.nan),
        "gain of Linear is nan: it must be in (0, inf) or 0",
    ),
    "no whitening": (
        lambda: layers.Whiten(0),
        "features of Whiten is 0: give a whole number from 1",
    ),
    "no causal channels": (
        lambda: layers.CausalConv2d(0),
        "channels of CausalConv2d is 0: give a w",
    ),
    "no exponential channels": (
        lambda: layers.ConvExponential(0),
        "channels of Conv2d is 0: give a",
    ),
    "half a term": (
        lambda: layers.ConvExponential(2, terms=(6.5, 13)),
        "terms of ConvExponential is (6.5, 13): give a tuple of 2 whole numbers of at least 1",
    ),
    "half a level": (
        lambda: layers.Preprocess(levels=2.5),
        "levels of Preprocess is 2.5: give a wh",
    ),
}


@pytest.mark.parametrize("case", MISFITS)
def test_what_does_not_fit_is_one_line_when_it_is_made(case):
    make, *parts = MISFITS[case]
    with one_line(UsageError, *parts):
        make()


def test_what_fits_is_made_whatever_the_integers_are():
    """Sizes as arrays give them, lists, and parameters without axes or without values."""
    size = np.int64(4)
    layers_of_own = (
        Declared(output=(2,), latent=(2,), parameter=()),
        Declared([0, 3], (1,), (1,)),
    )
    flow = Flow(
        (size,),
        [("dense", linear(Dense(size))), *zip("ab", layers_of_own, strict=True)],
    )
    assert flow.dimension == 4 and flow.layout.count == 2 * 16 + 4 + 1
    assert flow.latent_shapes == {"a": (2,), "b": (1,), "z": (1,)}
    spatial = linear(
        Conv2d((np.int32(3), 3), np.int64(4)), inverse_map=Conv2d((5, 5), 4)
    )
    assert in_flow(spatial).latent_shapes == {"z": (4, 4, 4)}
