"""The contract of a rule: what stands in for ∂ log|det T(w)| / ∂w, written once for all maps.

Gradients are of the objective that training ascends, averaged over the batch. A linear layer has
computed Z0 = T(W) X in its forward pass, without the bias. A rule's `backward` gets δ_z = ∂𝓛/∂z,
writes the gradients of W, R and b into `grads`, and returns δ_x = T(W)ᵀ δ_z; a rule with an R also
returns what it measured of it (`snfnp.context.Measured`):

    f, g: the maps (`snfnp.maps`) that W and R are weights of    dz: δ_z
    p, grads: the parameters and their gradients, by name        cache: X as "x", Z0 as "z0"
    ctx: the step's BackwardContext

`ctx.volume`, Σ_n ∂𝓛/∂ldj_n, is the weight of the log-determinant (1 in training). A batch may come
in slices, whose gradients are added: what does not depend on samples is computed by the slice that
leads (`ctx.leads`), unless it is a multiple of `ctx.volume`, which is 0 in the others.
Derivation: derivations/03-self-normalizing.md.
"""

from typing import ClassVar


class Rule:
    """The way in which a linear layer learns. A rule is a frozen dataclass of settings."""

    # Whether the layer has an R beside W, whose reconstruction error λ weighs.
    learns_inverse: ClassVar[bool] = False

    def check_maps(self, f, g) -> None:
        """Raises UsageError, in one line, if the rule is not for maps f and g."""

    def backward(self, ctx, *, f, g, p, cache, dz, grads):
        """δ_x, or with an R (δ_x, `Measured`); the gradients of W, R and b into `grads`."""
        raise NotImplementedError


def forward_gradient(ctx, *, f, term, x, dz, grads, multiple=None) -> None:
    """The gradients of W and b if W ascends log p^f alone: G_W = δ_z ⋆ X + v · term ⊙ m with
    `term` in place of the inverse, and G_b. multiple: m, None for the map's; term: None in slices
    that do not lead."""
    ops = ctx.ops
    if term is not None:
        multiple = f.multiple(x.shape[1:]) if multiple is None else multiple
        ops.linalg.scale_into(grads["W"], ctx.volume, term, multiple)
    f.weight_grad(ops, dz, x, out=grads["W"], add=term is not None)
    bias_gradient(ops, dz, grads)


def bias_gradient(ops, dz, grads) -> None:
    """G_b = Σ δ_z over samples and pixels, if the layer has a bias."""
    if "b" in grads:
        ops.channels.sum(dz, out=grads["b"])
