"""Rules by which linear layers learn: one for each way to compute or replace an inverse."""

from snfnp.rules.base import Rule
from snfnp.rules.exact import Exact, Relative
from snfnp.rules.self_normalizing import SelfNormalizing

__all__ = ["Exact", "Relative", "Rule", "SelfNormalizing"]
