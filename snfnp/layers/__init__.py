"""Invertible layers. `Layer` (`snfnp.layers.base`) is their contract: write your own against it."""

from snfnp.layers.activation import SmoothLeakyReLU
from snfnp.layers.actnorm import ActNorm
from snfnp.layers.base import Layer, Parameterless
from snfnp.layers.coupling import AffineCoupling
from snfnp.layers.linear import Linear
from snfnp.layers.preprocess import Preprocess
from snfnp.layers.spline import RationalQuadraticSpline
from snfnp.layers.split import SplitPrior
from snfnp.layers.squeeze import Squeeze
from snfnp.layers.whiten import Whiten

__all__ = ["ActNorm", "AffineCoupling", "Layer", "Linear", "Parameterless", "Preprocess"]
__all__ += ["RationalQuadraticSpline", "SmoothLeakyReLU", "SplitPrior", "Squeeze", "Whiten"]
