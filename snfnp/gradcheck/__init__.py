"""Finite-difference checks, public: check a layer of your own with `check_layer`.

    from snfnp.gradcheck import check_layer
    print(check_layer(MyLayer(), shape=(6,)))

Every check of a gradient has negative controls: the same gradient times 1.01, and zeroed, must be
caught. `check_map` and `check_rule` check linear maps, and rules by which linear layers learn.
"""

from snfnp.gradcheck.case import Report, as_matrix
from snfnp.gradcheck.differences import (
    GradientError,
    central_difference,
    check_gradient,
    relative_error,
    slopes,
)
from snfnp.gradcheck.layers import check_layer, stop_gradient_objective
from snfnp.gradcheck.linear import check_map, check_rule

__all__ = [
    "GradientError",
    "Report",
    "as_matrix",
    "central_difference",
    "check_gradient",
    "check_layer",
    "check_map",
    "check_rule",
    "relative_error",
    "slopes",
    "stop_gradient_objective",
]
