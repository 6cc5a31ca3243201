"""Invertible layers. `Layer` (`snfnp.layers.base`) is their contract: write your own against it."""

from snfnp.layers.base import Layer
from snfnp.layers.baselines import Bias, CausalConv2d, ConvExponential
from snfnp.layers.elementwise import RationalQuadraticSpline, SmoothLeakyReLU
from snfnp.layers.glow import ActNorm, AffineCoupling, Split, Squeeze
from snfnp.layers.linear import Linear
from snfnp.layers.preprocess import Preprocess
from snfnp.layers.whiten import Whiten

__all__ = [
    "ActNorm",
    "AffineCoupling",
    "Bias",
    "CausalConv2d",
    "ConvExponential",
    "Layer",
    "Linear",
    "Preprocess",
    "RationalQuadraticSpline",
    "SmoothLeakyReLU",
    "Split",
    "Squeeze",
    "Whiten",
]
