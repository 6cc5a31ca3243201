"""Measures of the learned inverses of a flow, at parameters that are given."""

from snfnp.diagnostics.angles import LayerGradients, gradient_angles
from snfnp.diagnostics.gradients import gradient_ratios
from snfnp.diagnostics.second_moment import SmallestSecondMoment

__all__ = [
    "LayerGradients",
    "SmallestSecondMoment",
    "gradient_angles",
    "gradient_ratios",
]
