"""Methods beyond the paper's main experiments, by name: the only way from the paper to them.

`snfnp.beyond` is imported when a name is asked for, and not before.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

INVERSE_UPDATES = ("projection", "least-squares")  # rules that find R without a gradient
WHOLE_BATCH = ("projection",)  # those of them that cannot learn from a slice of a batch
SMALLEST_SIGMA, LARGEST_SIGMA = 1e-6, 1e6  # λ = 1/(2σ²) stays far from what a float can hold

# name: the place of its factory, in `snfnp.beyond`
_FACTORIES = {
    # rules
    "projection": "projection:Projection",
    "least-squares": "least_squares:LeastSquares",
    "probe": "probes:Probe",
    "jacobian-penalty": "probes:JacobianPenalty",
    "variational": "variational:Variational",
    # the map of an inverse of several layers
    "chain": "chain:Chain",
    # what a training step adds to a layer's output
    "noise": "variational:Noise",
    # what is followed from step to step (`snfnp.training.followers.Follower`)
    "multipliers": "followers:Multipliers",
    "jacobian-mean": "followers:JacobianMean",
    "controlled-lambda": "followers:controlled_lambda",
    # what is watched, proved and checked
    "monitors": "monitors:Inspection",
    "certificates": "certificates:certificates",
    "checks": "checks:checks",
}


def find(name: str) -> Callable:
    """The class or function that makes what `name` stands for."""
    module, _, attribute = _FACTORIES[name].partition(":")
    return getattr(import_module(f"snfnp.beyond.{module}"), attribute)
