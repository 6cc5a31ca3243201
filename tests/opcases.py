"""One case per operation that a backend overrides: arguments, and what rounding can make of them.

A case is a function call_<operation>(rng, dtype, size) -> Call: arguments, and for each result a
bound on the difference that rounding can make. The bounds come from the arithmetic: a number of
roundings, times eps, times the size of what is rounded.
"""

from collections.abc import Callable

import opcases_layers
import opcases_steps
from opcalls import Call

OVERRIDES: dict[str, Callable[..., Call]] = {
    name.removeprefix("call_"): case
    for module in (opcases_steps, opcases_layers)
    for name, case in vars(module).items()
    if name.startswith("call_")
}
# No samples are not defined for these: rows of them, or their mean.
NEVER_EMPTY = {"preprocess", "residual", "spline", "watch"}
