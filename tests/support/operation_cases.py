"""One case per operation that a backend overrides: arguments, and what rounding can make of them.

A case is a function call_<group>_<operation>(rng, dtype, size) -> Call: arguments, and for each
result a bound on the difference that rounding can make. The bounds come from the arithmetic: a
number of roundings, times eps, times the size of what is rounded.
"""

from collections.abc import Callable

from support import operation_cases_convolutions, operation_cases_layers, operation_cases_steps
from support.operation_calls import Call

OVERRIDES: dict[str, Callable[..., Call]] = {
    name.removeprefix("call_").replace("_", ".", 1): case
    for module in (operation_cases_steps, operation_cases_layers, operation_cases_convolutions)
    for name, case in vars(module).items()
    if name.startswith("call_")
}
# No samples are not defined for these: rows of them, or their mean.
NEVER_EMPTY = {"images.preprocess", "linalg.residual"}
NEVER_EMPTY |= {"spline.evaluate", "step.log_density"}
