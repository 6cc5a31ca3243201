"""The contract of a rule: what stands in for ∂ log|det T(w)| / ∂w, written once for all maps.

Gradients are of the objective that training ascends, averaged over the batch. A linear layer has
computed Z0 = T(W) X in its forward pass, without the bias. A rule's `backward` gets δ_z = ∂𝓛/∂z,
writes the gradients of W, R and b into `grads`, and returns δ_x = T(W)ᵀ δ_z:

    f, g: the maps (`snfnp.maps`) that W and R are weights of    x, z0, dz: X, Z0 and δ_z
    p, grads: the parameters and their gradients, by name        ctx: the step's BackwardContext

`ctx.volume`, Σ_n ∂𝓛/∂ldj_n, is the weight of the log-determinant (1 in training). A batch may come
in slices, whose gradients are added: what does not depend on samples belongs to the one that leads
(`ctx.leads`), where it would be more than a multiple of `ctx.volume`.
Derivation: derivations/03-self-normalizing.md.
"""

from __future__ import annotations

from typing import ClassVar


class Rule:
    """How a linear layer learns. A rule is a frozen dataclass of settings."""

    # Whether the layer has an R beside W.
    learns_inverse: ClassVar[bool] = False
    # Whether R climbs a likelihood of its own, that of g⁻¹, and not its reconstruction error alone.
    inverse_climbs: bool = False
    # The λσ²_min that the update needs to be stable near its optimum, with σ²_min the smallest
    # second moment of the layer's input; None: it needs none.
    stable_above: float | None = None
    # What the rule adds to λσ²_min in every direction: μ of Eq. 31.
    pull: float = 0.0

    # Whether it is R's reconstruction error that λ weighs, in W's gradient and in R's.
    has_lambda: ClassVar[bool] = False
    # The parameters that the rule finds by itself: `backward` writes their next values where the
    # gradients of the others go, and the optimiser leaves them alone.
    assigns: ClassVar[tuple[str, ...]] = ()
    # Whether `backward` needs all samples of a step at once, so that no batch can be cut.
    needs_whole_batch: ClassVar[bool] = False

    def refuse(self, f, g) -> None:
        """Raises UsageError, in one line, where the rule is not for maps f and g."""

    def state_shapes(self, f, g, shape) -> dict[str, tuple[int, ...]]:
        """What the rule keeps from step to step beside parameters, by name: double precision, zeros
        at the start, in checkpoints. `backward` finds it in `ctx.state` and overwrites it."""
        return {}

    def perturb(self, ops, *, f, p, x, z, key, first=0):
        """What a training step passes on in place of z = T(W) x + b (by default z), and the noise
        in it, which `backward` then gets as `noise` (None: there is none). key: the seed and step
        of the random numbers, `snfnp.ops.RandomKey`; first: the place of x[0] in the batch that
        x is a part of."""
        return z, None

    def backward(self, ctx, *, f, g, p, x, z0, dz, grads):
        """δ_x; the gradients of W, R and b (next values of `assigns`) into `grads`."""
        raise NotImplementedError


def forward_gradient(ctx, *, f, term, x, dz, grads, multiple=None) -> None:
    """The gradients of W and b where W climbs log p^f alone: G_W = δ_z ⋆ X + v · term ⊙ m with
    `term` in place of the inverse, and G_b. multiple: m, where it is not the map's; term: None in
    slices that do not lead."""
    ops = ctx.ops
    if term is not None:
        multiple = f.multiple(x.shape[1:]) if multiple is None else multiple
        ops.linalg.scale_into(grads["W"], 1.0, term, multiple, ctx.volume)
    f.weight_grad(ops, dz, x, out=grads["W"], add=term is not None)
    bias_gradient(ops, dz, grads)


def bias_gradient(ops, dz, grads) -> None:
    """G_b = Σ δ_z over samples and pixels, where the layer has a bias."""
    if "b" in grads:
        ops.channels.sum(dz, out=grads["b"])
