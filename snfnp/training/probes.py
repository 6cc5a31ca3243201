"""The options of rules that look at layers along random directions.

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
