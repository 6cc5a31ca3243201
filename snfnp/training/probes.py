"""The options of rules that look at layers along random directions, and what their steps tell.

Derivation: derivations/18-jacobian-vector-products.md.
"""

from __future__ import annotations

from dataclasses import dataclass

from snfnp.training.options import (
    AT_LEAST_1,
    HAS_LAMBDA,
    NOT_NEGATIVE,
    SELF_NORMALIZING,
    option,
)

STATE = "jacobian"  # what the tally is called among what layers keep


@dataclass(frozen=True)
class ProbeOptions:
    """The part of a configuration (`TrainConfig`) about probes, the random directions."""

    jvp_weight: float = option(
        0.0,
        "self-normalizing only: μ, the weight of Eq. 31, ‖J_g J_f ν − ν‖² of every linear layer "
        "(0: off)",
        must=NOT_NEGATIVE,
        effect=(
            SELF_NORMALIZING,
            *HAS_LAMBDA,
            (lambda c: c.objective != "variational", "--objective mixture or forward"),
        ),
    )
    jvp_probes: int = option(
        4,
        "--jvp-weight only: how many directions ν a step looks along",
        must=AT_LEAST_1,
        effect=((lambda config: config.jvp_weight > 0, "a positive --jvp-weight"),),
    )
    probes: int = option(
        1,
        "--gradient probe only: how many directions stand in for flip(R) ⊙ m; its variance falls "
        "as one over this number",
        must=AT_LEAST_1,
        effect=((lambda config: config.gradient == "probe", "--gradient probe"),),
    )


class Tally:
    """The average of Eq. 31 over steps, in two numbers on the device: their sum and their number.

    state_shapes: among what layers keep from step to step; `attach` gives it its place.
    """

    state_shapes = {STATE: {"sum_and_count": (2,)}}

    def attach(self, states: dict) -> None:
        self._found = states[STATE]["sum_and_count"]

    @property
    def sum(self):
        """Of shape (), on the device: what a step adds its own to."""
        return self._found[0, ...]

    def add(self, total) -> None:
        """A step's sum, which began at `sum`."""
        self._found[0, ...] = total
        self._found[1, ...] += 1

    def figures(self, ops) -> dict[str, float]:
        """The average since this was last asked, for a line of metrics. Waits for the device."""
        total, count = ops.to_host(self._found).tolist()
        self._found[...] = 0
        return {"jacobian_error": total / count if count else 0.0}
