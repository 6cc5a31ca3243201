"""Invertible layers: frozen configuration, parameters passed in, caches and gradients out.

Every layer has these members, in this order (write your own the same way, and check it with
`snfnp.gradcheck.check_layer`):

    init(rng, shape) -> params                     float64 host arrays by name
    output_shape(shape) -> shape                   per sample, without N
    forward(ops, p, x) -> (z, ldj, cache)          ldj (N,): data-dependent log|det J|, or 0
    inverse(ops, p, z) -> x                        the learned inverse where there is one
    backward(ops, p, cache, dz, dldj, g, recon=None) -> dx
                                                   writes every parameter's gradient into g[name]

Gradients are of an objective to climb. dldj (N,) is ∂objective/∂ldj. `recon`
(`snfnp.rules.Reconstruction`) concerns layers that learn their inverse. Linear layers have two
more members, `log_det(ops, p, shape)` and `exact_inverse(ops, p, z)`: exact and expensive.

Some layers have more, which a `Flow` asks for:

    cheap_exact_inverse = True                     `inverse` is exact to rounding and costs about as
                                                   much as `forward`, of which it needs z alone: the
                                                   backward pass may compute x and the cache again
    init_from_data(ops, p, x) -> params            what p should be if x is the first batch
    latent_shape(shape) -> shape                   a part of x leaves the flow here: `SplitPrior`
"""

from snfnp.layers.activation import SmoothLeakyReLU
from snfnp.layers.actnorm import ActNorm
from snfnp.layers.conv_exponential import Bias, ConvExponential, exponential_layers
from snfnp.layers.coupling import AffineCoupling
from snfnp.layers.emerging import CausalConv2d, SpatialFlip, emerging_layers
from snfnp.layers.linear import Linear
from snfnp.layers.preprocess import Preprocess
from snfnp.layers.spline import RationalQuadraticSpline
from snfnp.layers.split import SplitPrior
from snfnp.layers.squeeze import Squeeze

__all__ = [
    "ActNorm",
    "AffineCoupling",
    "Bias",
    "CausalConv2d",
    "ConvExponential",
    "Linear",
    "Preprocess",
    "RationalQuadraticSpline",
    "SmoothLeakyReLU",
    "SpatialFlip",
    "SplitPrior",
    "Squeeze",
    "emerging_layers",
    "exponential_layers",
]
