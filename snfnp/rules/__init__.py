"""How a linear layer learns: a rule per way of computing or replacing the inverse in a gradient."""

from snfnp.rules.base import Rule
from snfnp.rules.exact import Exact
from snfnp.rules.least_squares import LeastSquares
from snfnp.rules.newton import Newton
from snfnp.rules.probes import JacobianPenalty, Probe
from snfnp.rules.projection import Projection
from snfnp.rules.relative import Relative
from snfnp.rules.self_normalizing import SelfNormalizing
from snfnp.rules.variational import Variational

__all__ = [
    "Exact",
    "JacobianPenalty",
    "LeastSquares",
    "Newton",
    "Probe",
    "Projection",
    "Relative",
    "Rule",
    "SelfNormalizing",
    "Variational",
]
