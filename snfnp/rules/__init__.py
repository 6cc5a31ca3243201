"""How a linear layer learns: one rule per way of getting past the inverse."""

from snfnp.rules.base import Rule
from snfnp.rules.exact import Exact
from snfnp.rules.relative import Relative
from snfnp.rules.self_normalizing import SelfNormalizing

__all__ = ["Exact", "Relative", "Rule", "SelfNormalizing"]
