"""What a flow, its layers, maps and rules refuse when they are made: shapes, names, settings."""

import math
from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest
from support.messages import cases, one_line

import snfnp.beyond.rules
import snfnp.layers.preprocess
from snfnp import layers, maps, rules
from snfnp.errors import UsageError
from snfnp.flow import Flow
from snfnp.layers import Layer, Linear, SmoothLeakyReLU
from snfnp.maps import Conv2d, Dense
from snfnp.ops import get_ops

D = 5
OPS = get_ops("numpy")


@pytest.mark.parametrize(
    "name",
    ["a", "preprocess", "scale", "logit", "base density", "a base density", "z"],
)
def test_a_name_that_is_taken_cannot_name_a_layer(name):
    with one_line(
        UsageError, f"a layer is called {name!r}, as another or a term of the"
    ):
        Flow((D,), tuple((each, SmoothLeakyReLU()) for each in ("a", name)))


@dataclass(frozen=True)
class Half(Layer):
    """Half of the features, and no word of the others."""

    def output_shape(self, shape):
        return (shape[0] // 2,)


@dataclass(frozen=True)
class Pixels(Layer):
    """A layer of images alone, which does not look at its input's shape."""

    def parameter_shapes(self, shape):
        height, width, channels = shape
        return {"w": (channels,)}


@dataclass(frozen=True)
class Declared(Layer):
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


Learns = type("Learns", (SmoothLeakyReLU,), {"learns_inverse": True})  # without an R
RELU = SmoothLeakyReLU()
Conv1 = partial(Conv2d, (1, 1))


def in_flow(*chain, shape=(4, 4, 4), **settings):
    """The flow of these layers, with the names a, b, …"""
    return Flow(shape, tuple(zip("abcd", chain, strict=False)), **settings)


MODULES = (math, layers, maps, rules, snfnp.layers.preprocess, snfnp.beyond.rules)
NAMES = {name: value for module in MODULES for name, value in vars(module).items()}
NAMES |= globals()
# An expression, and what is said of it: parts of one line.
MISFITS = cases("""
in_flow(RELU, shape=(8,), image_shape=(4, 4, 1)) | image_shape (4, 4, 1) has 16 values, but shape
  (8,) has 8: give shapes of the same samples
in_flow(RELU, shape=(32,), image_shape=(4, 4, 1)) | has 16 values, but shape (32,) has 32
in_flow(RELU, shape=4) | shape is 4: give a tuple of whole
in_flow(RELU, shape=[4]) | shape is [4]: give a tuple of whole
in_flow(RELU, shape=(0,)) | shape is (0,): give a tuple of whole numbers
in_flow(RELU, shape=(4, 2.5, 1)) | shape is (4, 2.5, 1): give a
in_flow(RELU, shape=(16,), image_shape='4x4') | image_shape is '4x4': give a tuple of whole
  numbers of at least 1
in_flow(RELU, shape=(3,), preprocess=Standardise((0.0,), (1.0,))) | preprocess is for 1 columns,
  but shape is (3,): give it moments of each
in_flow(RELU, preprocess=Preprocess) | preprocess is the class Preprocess: give an instance of
  Preprocess or Standardise
Flow((4,), {'a': RELU}) | layers is of type dict, or empty: give a tuple
Flow((4,), zip('a', [RELU], strict=True)) | layers is of type zip, or empty
in_flow() | layers is of type tuple, or empty: give a tuple of (name, l
Flow((4,), (RELU,)) | SmoothLeakyReLU(alpha=0.3) is among the layers: g
Flow((4,), ((1, RELU),)) | is among the layers: give a (name,
in_flow(RELU, SmoothLeakyReLU) | layer b is the class SmoothLeakyReLU: give an instance of Layer
in_flow(Conv1(4)) | layer a is Conv2d(kernel=(1, 1), channels=4 … Layer
in_flow(Learns()) | layer a: it learns an inverse: make it a snfnp.layers.Linear with a rule
in_flow(RELU, Linear(Dense(5)), shape=(4,)) | layer b: a dense map of 5 features cannot take (4,):
  give it rows of 5 numbers
in_flow(Linear(Dense(64))) | layer a: a dense map of 64 fe
in_flow(Linear(Conv1(4)), Squeeze(), Linear(Conv1(4))) | layer c: a convolution of 4 channels
  cannot take (2, 2, 16): give it images (H, W, 4)
in_flow(Linear(Conv1(4)), shape=(4,)) | layer a: a conv … 4
in_flow(Squeeze(), AffineCoupling(4, 8)) | layer b: a coupling of 4 channels cannot take (2, 2,
  16): give it images (H, W, 4)
in_flow(Squeeze(), shape=(4,)) | layer a: a squeeze cannot take (4,): give it images (H, W, C)
in_flow(Squeeze(), Squeeze(), Squeeze()) | layer c: a squeeze needs an even height and width,
  found 1 × 1
in_flow(Squeeze(), shape=(7, 8, 16)) | an even height and width, found 7 × 8
in_flow(Squeeze(), shape=(4, 5, 1)) | an even height and width, found 4 × 5
Squeeze().forward(OPS, {}, np.zeros((1, 3, 2, 1))) | found 3 × 2
in_flow(Split(), shape=(2, 2, 3)) | layer a: a split halves the channels: 3 is an odd number
in_flow(Whiten(3), shape=(4,)) | layer a: a dense map of 3 features cannot take (4,): give it rows
  of 3 numbers
in_flow(RELU, CausalConv2d(3)) | layer b: a convolution of 3 channels cannot take (4, 4, 4)
in_flow(ConvExponential(3)) | layer a: a convolution of 3 channels cannot take (4, 4, 4)
in_flow(Linear(Conv1(4, 3), Exact())) | layer a: it makes 48 values, latents included, of 64: let
  it keep their number, or it is
in_flow(Linear(Conv1(4, 5))) | layer a: it makes 80 values, latents included, of 64: let
in_flow(Linear(Conv1(4), inverse_map=Conv1(2))) | layer a: a convolution of 2 channels cannot take
  (4, 4, 4)
in_flow(Linear(Conv1(4), inverse_map=Conv1(4, 2))) | layer a: inverse_map leads from (4, 4, 4) to
  (4, 4, 2): let it lead back to (4, 4, 4)
in_flow(RELU, Half(), shape=(4,)) | layer b: it makes 2 values, latents included, of 4: let it
  keep their number, or it is
in_flow(Pixels(), shape=(4,)) | layer a: its shapes for samples of (4,) fail (ValueError: not
  enough values to unpack … give it samples that it takes, or mend it
in_flow(Declared(output=4), shape=(4,)) | layer a: output_shape of Declared is 4: give a tuple of
  whole numbers of at least 1
in_flow(Declared(output=(2,), latent=()), shape=(4,)) | layer a: it makes 3 values, latents
  included, of 4
in_flow(Declared(parameter=2), shape=(4,)) | layer a: its shapes for samples of (4,) fail
  (TypeError: 'int' object is not iterable)
in_flow(Declared(parameter=(2, -1)), shape=(4,)) | layer a: shape of w of Declared is (2, -1):
  give a tuple of whole numbers of at least 0
Dense(0) | features of Dense is 0: give a whole number from 1 to 2**63
Dense(-3) | features of Dense is -3: give a whole number from 1
Dense(2.5) | features of Dense is 2.5: give a whole number from 1 t
Dense('3') | features of Dense is '3': give a whole number from 1
Dense(True) | features of Dense is True: give a whole number from 1
Dense(5).output_shape((4,)) | 5 features cannot take (4,)
Conv1(0) | channels of Conv2d is 0: give a whole number from 1 to 2**63
Conv1(1.5) | channels of Conv2d is 1.5: give a whole number from 1
Conv1(2, 0) | out_channels of Conv2d is 0: give a whole number from 1
Conv1(2).output_shape((4, 4)) | 2 channels cannot take
Conv1(2).output_shape((4, 4, 3)) | 2 channels cannot take
Conv1(2).output_shape((16,)) | 2 channels cannot take
Conv2d(3, 4) | kernel of Conv2d is 3: give a tuple of 2 whole numbers of at least 0
Conv2d([1, 1], 4) | kernel of Conv2d is [1, 1]: give a tuple of
Conv2d((3.0, 3), 4) | kernel of Conv2d is (3.0, 3): give a tuple of
Conv2d((3, 3, 3), 4) | kernel of Conv2d is (3, 3, 3): give a tup
Conv2d((2, 3), 1) | kernel is 2x3: height and width must be odd
Conv2d((3, 4), 1) | kernel is 3x4: height and width must be odd
Conv2d((0, 3), 1) | kernel is 0x3: height and width must be odd
Conv2d((3, 3), 1, exact='lu') | exact is 'lu': choose block or dense
Linear(Dense) | map of Linear is the class Dense: give an instance
Linear(RELU) | map of Linear is SmoothLeakyReLU(alpha=0.3): give
Linear(Dense(2), Exact) | rule of Linear is the class Exact: give an instance of Rule
Linear(Dense(2), inverse_map=3) | inverse_map of Linear is 3: give an instance of Map
Linear(Dense(2), Exact(), inverse_map=Dense(2)) | a rule that learns an inverse
Linear(Dense(2), gain=nan) | gain of Linear is nan: it must be in (0, inf) or 0
Linear(Dense(3), init_kind='papr') | 'papr' … paper … identity … orthogonal
Linear(Dense(3), bias_init='mean') | choose zero or data
Linear(Dense(3), bias=False, bias_init='data') | has no bias
Linear(Conv2d((3, 3), 2), Relative()) | the relative gradient needs a dense layer
SelfNormalizing('both') | 'both' … choose
JacobianPenalty('all') | 'all' … choose
JacobianPenalty(weight=-1) | weight of JacobianPenalty is -1: it must be in
JacobianPenalty(probes=0) | probes of JacobianPenalty is 0: give a whole n
RationalQuadraticSpline(bins=1) | bins of RationalQuadraticSpline is 1: give … from 2
RationalQuadraticSpline(bins=2.5) | is 2.5: give a whole number from 2 to 2**63 - 1
RationalQuadraticSpline(bound='4') | bound of RationalQuadraticSpline is '4': it must be in (0,
  inf)
RationalQuadraticSpline(bound=0.0) | is 0.0: it must be in (0, inf)
RationalQuadraticSpline(bound=nan) | bound of RationalQuadraticSpline is nan: it must be
RationalQuadraticSpline(bound=inf) | bound of RationalQuadraticSpline is inf: it must be
RationalQuadraticSpline(eps=0.0) | is 0.0: it must be in (0, 0.2)
RationalQuadraticSpline(eps=0.2) | eps of RationalQuadraticSpline is 0.2: it must be in (0, 0.2)
RationalQuadraticSpline(gain=-0.1) | is -0.1: it must be in (0, inf) or 0
SmoothLeakyReLU('0.3') | alpha of SmoothLeakyReLU is '0.3': it must be in (0, 1)
SmoothLeakyReLU(0.0) | must be in (0, 1)
SmoothLeakyReLU(1.0) | must be in (0, 1)
SmoothLeakyReLU(-0.3) | must be in (0, 1)
SmoothLeakyReLU(nan) | must be in (0, 1)
AffineCoupling(4, 2.5) | width of AffineCoupling is 2.5: give a whole number
AffineCoupling(4, 0) | width of AffineCoupling is 0: give a whole number from 1
AffineCoupling('4') | channels of AffineCoupling is '4': give a whole n
AffineCoupling(1) | channels of AffineCoupling is 1: give … number from 2
AffineCoupling(0) | channels of AffineCoupling is 0: give … number from 2
AffineCoupling(-2) | channels of AffineCoupling is -2: give … number from 2
AffineCoupling(3) | 3 channels … cannot split
Whiten(0) | features of Whiten is 0: give a whole number from 1
CausalConv2d(0) | channels of CausalConv2d is 0: give a w
ConvExponential(0) | channels of Conv2d is 0: give a
ConvExponential(2, norm=0.0) | norm … 0.0: it must be in (0, inf)
ConvExponential(2, norm=nan) | norm of ConvExponential is nan: it must
ConvExponential(2, iterations=0) | iterations of ConvExponential is 0: give a whole
ConvExponential(2, terms=(0, 13)) | is (0, 13): give a tuple of 2 whole … least 1
ConvExponential(2, terms=(6.5, 13)) | terms of ConvExponential is (6.5, 13): give a tuple of 2
  whole numbers of at least 1
ConvExponential(2, kernel=(2, 3)) | 2x3: height and width must be odd
in_flow(Linear(Dense(4)), shape=(4,)).layout.pack({"a": {}}, float) | no W of shape (4, 4)
Flow((2, 2, 1), (), Standardise(*[(1.0,) * 4] * 2), (4,)) | moments of each, and a shape (D,)
Preprocess(levels=2.5) | levels of Preprocess is 2.5: give a wh
Preprocess(levels=1) | levels is 1: images have bytes, so 2 to 256
Preprocess(levels=257) | levels is 257: images have bytes, so 2 to 256
Preprocess(alpha=0.0) | must be in (0, 0.5)
Preprocess(alpha=0.5) | must be in (0, 0.5)
Preprocess(alpha=-1e-6) | must be in (0, 0.5)
Preprocess(alpha=nan) | must be in (0, 0.5)
""")


@pytest.mark.parametrize("expression", MISFITS)
def test_what_does_not_fit_is_one_line_when_it_is_made(expression):
    with one_line(UsageError, *MISFITS[expression].split(" … ")):
        eval(expression, NAMES)


def test_what_fits_is_made_whatever_the_integers_are():
    """Sizes as arrays give them, lists, and parameters without axes or without values."""
    size = np.int64(4)
    layers_of_own = (
        Declared(output=(2,), latent=(2,), parameter=()),
        Declared([0, 3], (1,), (1,)),
    )
    flow = Flow(
        (size,),
        [("dense", Linear(Dense(size))), *zip("ab", layers_of_own, strict=True)],
    )
    assert flow.dimension == 4 and flow.layout.count == 2 * 16 + 4 + 1
    assert flow.layout.optimised.entries == flow.layout.entries
    assert flow.latent_shapes == {"a": (2,), "b": (1,), "z": (1,)}
    spatial = Linear(
        Conv2d((np.int32(3), 3), np.int64(4)), inverse_map=Conv2d((5, 5), 4)
    )
    assert in_flow(spatial).latent_shapes == {"z": (4, 4, 4)}
