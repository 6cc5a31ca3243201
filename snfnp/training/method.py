"""The options of what is trained and how it learns: the model, its rule, λ, the initialisation."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from snfnp.data import DATA_SETS
from snfnp.models import BIAS_INITS, GRADIENTS, INITS, PRESETS, Preset, make_rule
from snfnp.registry import LARGEST_SIGMA, SMALLEST_SIGMA
from snfnp.rules import Rule
from snfnp.training.options import (
    AT_LEAST_1,
    FREE_LAMBDA,
    HAS_LAMBDA,
    LEARNS,
    NOT_NEGATIVE,
    SELF_NORMALIZING,
    by_preset,
    needs_preset,
    odd,
    option,
    preset_option,
    presets_with,
    size_option,
)
from snfnp.training.probes import ProbeOptions
from snfnp.training.recipes import by_recipe

VARIATIONAL = (lambda config: config.objective == "variational", "--objective variational")
# What a rule is made of.
_RULE = (
    *("gradient", "objective", "relative_bias", "inverse_update", "sigma", "noise_vectors"),
    *(entry.name for entry in fields(ProbeOptions)),
)


def _where_variational(value):
    """What fills an option of the variational objective."""
    return lambda config: value(config) if VARIATIONAL[0](config) else None


def _usual_lam(config) -> float:
    """The preset's λ, for the objective that has it, or σ's; 0 where there is no λ."""
    preset, rule = config.preset, config.rule
    if not rule.has_lambda:
        return 0.0
    if VARIATIONAL[0](config):
        return rule.lam
    forward = rule.objective == "forward" and preset.lam_forward is not None
    return preset.lam_forward if forward else preset.lam


@dataclass(frozen=True)
class MethodOptions:
    """The part of a configuration (`TrainConfig`) that makes the flow and its gradients."""

    model: str = option(
        "fc",
        f"the model: {'; '.join(f'{name}, {p.summary}' for name, p in PRESETS.items())}",
        choices=tuple(PRESETS),
    )
    data: str = option("mnist", "the images to model", choices=DATA_SETS)
    gradient: str | None = option(
        None,
        "where the gradient of log|det W| comes from: the learned inverse (self-normalizing, "
        "Eqs. 10, 11, 15, 16; the default), the same by random probes (probe), an exact inverse "
        "(exact, Eq. 2; for convolutions by block recursion, or exact-dense through the whole "
        "matrix, the paper's baseline), or the relative gradient of Gresele et al. 2020 (relative, "
        f"{presets_with(lambda preset: 'relative' in preset.gradients)} only)",
        choices=GRADIENTS,
        fill=lambda config: config.preset.gradients[0],
    )
    objective: str = option(
        "mixture",
        "self-normalizing only: the paper's mixture of both densities (Eq. 3), or the forward "
        "density alone, where R learns from the reconstruction error only, or the variational "
        "bound of A.4, where x and its code are a --sigma apart",
        choices=("mixture", "forward", "variational"),
        effect=HAS_LAMBDA,
    )
    sigma: float | None = option(
        None,
        "variational only: σ, the noise of encoder and decoder in every linear layer; λ is "
        "1/(2σ²) (default: the σ whose λ is the preset's)",
        must=(
            lambda value: SMALLEST_SIGMA <= value <= LARGEST_SIGMA,
            f"from {SMALLEST_SIGMA:g} to {LARGEST_SIGMA:g}",
        ),
        fill=_where_variational(lambda config: 1 / math.sqrt(2 * config.preset.lam)),
        effect=(VARIATIONAL,),
    )
    noise_vectors: int | None = option(
        None,
        "variational only: how many noise vectors a layer draws in a step; the images of a batch "
        "share them (default: 8)",
        must=AT_LEAST_1,
        fill=_where_variational(lambda config: 8),
        effect=(VARIATIONAL,),
    )
    relative_bias: str = option(
        "plain",
        "relative gradient only: treat the bias on its own (plain), inside an augmented matrix "
        "(full), or as in Gresele's code (gresele)",
        choices=("plain", "gresele", "full"),
        effect=((lambda config: config.gradient == "relative", "--gradient relative"),),
    )
    inverse_kernel: int | None = option(
        None,
        "self-normalizing convolutions only: kernel size of the learned inverse, 3 or larger "
        "(Eqs. 28-30; default: the forward kernel's, 3; 5 with --recipe least-squares)",
        must=odd(3),
        fill=by_recipe("inverse_kernel"),
        effect=(needs_preset(lambda preset: preset.has_inverse_kernel), LEARNS),
    )
    inverse_depth: int = option(
        1,
        "self-normalizing convolutions only: how many convolutions the learned inverse has one "
        "after the other (A.4; 1 to 3: two of 3x3 reach as far as one of 5x5)",
        must=(lambda value: 1 <= value <= 3, "1, 2 or 3"),
        effect=(
            needs_preset(lambda preset: preset.has_inverse_kernel),
            SELF_NORMALIZING,
            *HAS_LAMBDA,
        ),
    )
    levels: int | None = size_option("levels", "L, blocks between squeezes", AT_LEAST_1)
    depth: int | None = size_option("depth", "K, steps of flow per block", AT_LEAST_1)
    width: int | None = size_option("width", "channels inside the couplings' networks", AT_LEAST_1)
    kernel: int | None = size_option(
        "kernel", "size of the mixing convolutions, odd (1 in Glow, 5 in Table 5)", odd(1)
    )
    lam: float | None = preset_option(
        "lam",
        "λ of Eq. 3, the weight of the reconstruction error (self-normalizing only; --objective "
        f"forward has its own default where it was measured: {by_preset('lam_forward', none='')})",
        flag="--lambda",
        must=NOT_NEGATIVE,
        fill=_usual_lam,
        effect=FREE_LAMBDA,
        changeable=True,
    )
    init: str = option(
        "paper",
        "where weights start. paper, as in A.3: the identity plus Xavier noise of gain 0.01, in "
        "Glow a random orthogonal matrix of the channels (with that noise where --kernel is above "
        "1). authors, as in their code, which differs in two places: fc starts at exactly the "
        "identity, and Glow with a --kernel above 1 at the identity plus noise. identity: every "
        "weight starts at exactly the identity, the authors' start for fc and no other model's",
        choices=INITS,
        effect=(
            (
                lambda config: (
                    config.init != "authors"
                    or config.model == "fc"
                    or config.chosen("kernel") not in (None, 1)
                ),
                "--model fc or a --kernel above 1, where authors is not the same as paper",
            ),
        ),
    )
    bias_init: str | None = option(
        None,
        "biases start at 0 (zero), or where every layer's first batch comes out with mean 0 (data) "
        "(default: zero; data with --recipe least-squares)",
        choices=BIAS_INITS,
        fill=by_recipe("bias_init", "zero"),
        effect=(needs_preset(lambda preset: preset.has_bias_init),),
    )

    # ---------------------------------------------------------------- what follows from it

    @property
    def preset(self) -> Preset:
        return PRESETS[self.model]

    @property
    def rule(self) -> Rule:
        return make_rule(**{name: self.chosen(name) for name in _RULE})

    def chosen(self, name: str):
        """An option's value, also where nobody gave one."""
        value = getattr(self, name)
        if value is None:
            (entry,) = (entry for entry in fields(self) if entry.name == name)
            value = entry.metadata["option"].fill(self)
        return value
