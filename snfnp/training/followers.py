"""Followers: values other than parameters that change from step to step.

Derivation: derivations/20-lambda-controllers.md.
"""

from snfnp import registry


class Follower:
    """Values on the device that every step of a run updates, and figures computed from them.

    state_shapes: {name: {array: shape}} of the state, which is kept from step to step, in double
    precision and in checkpoints; sums: how many numbers slices of a batch add up in each step.
    """

    state_shapes: dict[str, dict[str, tuple[int, ...]]] = {}
    sums = 0

    def attach(self, states: dict, sums) -> None:
        """Keep the state in `states`, views of the trainer's buffer, from here on, with its first
        values, and what slices add up in `sums`, float64 (self.sums,)."""

    def start(self, trainer, images_of) -> None:
        """Set what all training images decide, before the first step (see `Trainer.renew`)."""

    def renew(self, trainer, images_of) -> None:
        """Find anew what activations decide, before a step (see `Trainer.renew`)."""

    def error_factors(self, samples: int) -> dict:
        """{layer: −2λ/N} of layers with a λ of their own; samples: N."""
        return {}

    def collect(self, measured: dict, share: float) -> None:
        """Put this slice's part into `sums`. measured: {layer: `Measured`}; share: the slice's part
        of the batch, the weight of averages over the slice."""

    def update(self, figures: tuple, samples: int, squares, failed) -> tuple:
        """Update the state after a step's update of the parameters, from what all slices added up;
        not if `failed` is not 0 or Σ g² (`squares`) not finite. figures: Σ_k of Eq. 3 and λ, as
        they would be logged; what is returned is logged instead."""
        return figures

    def figures(self) -> dict[str, float]:
        """Averages since the last call, for a line of metrics. Waits for the device."""
        return {}


def make_followers(ops, flow, config) -> tuple:
    """(the controllers of λ, the mean of Eq. 31, the numbers of `Whiten` layers, Adam's
    coordinates), None for what a run does not have."""
    multipliers = registry.find("multipliers")(ops, flow, config) if config.controller else None
    jacobian_mean = registry.find("jacobian-mean")(ops) if config.jvp_weight else None
    whitening = coordinates = None
    if config.coordinates == "white" or flow.layout.fixed < flow.layout.size:
        whitening, coordinates = registry.find("coordinates")(ops, flow, config)
    return multipliers, jacobian_mean, whitening, coordinates
