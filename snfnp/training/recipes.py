"""The options of how R is found, and recipes: the settings of several options under one name.

What a recipe sets is the default of those options: what is given beside it holds. The settings
are the preset's (`snfnp.models.Preset.recipe`).
Derivation: derivations/21-learning-the-inverse.md.
"""

from __future__ import annotations

from dataclasses import dataclass

from snfnp.errors import UsageError
from snfnp.models import INVERSE_UPDATES
from snfnp.training.options import SELF_NORMALIZING, option

RECIPES = ("paper", "least-squares")


def by_recipe(name: str, otherwise=None):
    """What fills an option: the recipe's setting, where it has one."""
    return lambda config: config.recipe_settings.get(name, otherwise)


@dataclass(frozen=True)
class RecipeOptions:
    """The part of a configuration (`TrainConfig`) that says how R is found."""

    recipe: str = option(
        "paper",
        "defaults for --inverse-update, --inverse-kernel and --bias-init: the paper's, or those "
        "with which no λ is to be tuned and training keeps up with the exact gradient "
        "(least-squares: fc by projection, conv by least squares with 5x5 inverses, both with "
        "biases from data; glow by least squares)",
        choices=RECIPES,
        effect=(SELF_NORMALIZING,),
    )
    inverse_update: str | None = option(
        None,
        "self-normalizing only: how R is found: it climbs its gradient (gradient, Eqs. 11, 16), or "
        "without λ, and W by the forward density alone: projected on every batch (projection, "
        "fc), or the best one for W of its kernel size (least-squares, conv and glow; with "
        "1x1 kernels that is the exact gradient) (default: the recipe's)",
        choices=INVERSE_UPDATES,
        fill=by_recipe("inverse_update", "gradient"),
        effect=(SELF_NORMALIZING,),
    )

    @property
    def recipe_settings(self) -> dict:
        """{option: value} of what the recipe sets."""
        return {} if self.recipe == "paper" else self.preset.recipe

    def check_recipe(self) -> None:
        """Raises UsageError where R of the model cannot be found in the way that was chosen."""
        own, chosen = self.preset.inverse_updates, self.inverse_update
        if chosen != "gradient" and chosen not in own:
            raise UsageError(
                f"--model {self.model} cannot be trained with --inverse-update {chosen}: choose "
                f"{' or '.join(own)}"
            )
