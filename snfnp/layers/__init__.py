"""Invertible layers. `Layer` (`snfnp.layers.base`) is their contract: write your own against it."""

from snfnp.layers.activation import SmoothLeakyReLU
from snfnp.layers.actnorm import ActNorm
from snfnp.layers.base import Layer
from snfnp.layers.conv_exponential import Bias, ConvExponential
from snfnp.layers.coupling import AffineCoupling
from snfnp.layers.emerging import CausalConv2d
from snfnp.layers.linear import Linear
from snfnp.layers.preprocess import Preprocess
from snfnp.layers.spline import RationalQuadraticSpline
from snfnp.layers.split import SplitPrior
from snfnp.layers.squeeze import Squeeze
from snfnp.layers.whiten import Whiten

__all__ = ["ActNorm", "AffineCoupling", "Bias", "CausalConv2d", "ConvExponential", "Layer"]
__all__ += ["Linear", "Preprocess", "RationalQuadraticSpline", "SmoothLeakyReLU", "SplitPrior"]
__all__ += ["Squeeze", "Whiten"]
