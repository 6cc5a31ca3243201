"""How a linear layer learns: a rule per way of computing or replacing the inverse in a gradient."""

from snfnp.rules.base import Rule
from snfnp.rules.exact import Exact
from snfnp.rules.relative import Relative
from snfnp.rules.self_normalizing import SelfNormalizing

__all__ = [
    "Exact",
    "Relative",
    "Rule",
    "SelfNormalizing",
]
