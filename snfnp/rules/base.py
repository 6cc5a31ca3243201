"""The contract of a rule. Derivation: derivations/18-write-your-own-rule.md."""

from typing import Any, ClassVar

from snfnp.context import BackwardContext
from snfnp.maps import Map
from snfnp.ops import Array

Params = dict[str, Array]  # one layer's parameters by name


class Rule:
    """The way in which a linear layer learns: how ∂ log|det T(w)| / ∂w is computed or replaced. A
    frozen dataclass of settings, which `snfnp.gradcheck.check_rule` checks."""

    # Whether the layer has an R beside W, whose reconstruction error λ weighs.
    learns_inverse: ClassVar[bool] = False
    # Whether a training step adds noise to the inputs of its layers.
    adds_noise: ClassVar[bool] = False

    def check_maps(self, f: Map, g: Map) -> None:
        """Raises UsageError, in one line, if the rule is not for maps f and g."""

    def backward(
        self,
        ctx: BackwardContext,
        maps: tuple[Map, Map],
        p: Params,
        cache: dict,
        dz: Array,
        grads: Params,
    ) -> Any:
        """Compute the gradients of W and R, of the objective that training ascends (Eq. 3). The
        layer computes b's.

        Args:
            ctx: the step; `ctx.log_det_weight` is the weight of log|det T(W)|, 1 in training.
            maps: (f, g), the maps of W and of R.
            p: the parameters, by name.
            cache: x as "x", and z = T(W) x, without the bias, as "z0".
            dz: δ_z (N, ...), which contains the 1/N of an average over the batch.
            grads: the arrays that take the gradients of the parameters.

        Returns:
            δ_x = T(W)ᵀ δ_z (N, ...); a rule that learns an inverse returns (δ_x, `Measured`).
        """
        raise NotImplementedError
