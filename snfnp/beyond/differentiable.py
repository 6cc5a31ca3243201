"""Products with the Jacobian J = ∂z/∂x of a layer, and their gradients, with second derivatives.

Eq. 31 of a whole chain of layers, non-linear ones among them, needs them, and so does
`snfnp.beyond.variational_bound`. Training does not: it has Eq. 31 of each linear layer by itself
(`snfnp.beyond.probes.JacobianPenalty`).
Derivation: derivations/18-jacobian-vector-products.md.
"""

from dataclasses import replace

from snfnp.context import BackwardContext
from snfnp.errors import UsageError
from snfnp.flow import Flow
from snfnp.layers import ActNorm, Layer, Linear, RationalQuadraticSpline, SmoothLeakyReLU, Squeeze
from snfnp.rules import SelfNormalizing


class Derivatives:
    """The Jacobian of one layer. Arguments are those of `Layer`; cache: `forward`'s."""

    def __init__(self, layer: Layer):
        self.layer = layer

    def jvp(self, ops, p, cache, dx):
        """J ẋ (N, ...) for the directions dx = ẋ (N, ...), one per sample, at the x of `cache`."""
        raise NotImplementedError

    def jvp_backward(self, ops, p, cache, dx, delta, grads):
        """The gradient of ⟨δ, J ẋ⟩, δ (N, ...) shaped like z: (that of x, with second derivatives,
        or the number 0 if J does not depend on x; that of ẋ, Jᵀ δ). The gradients of parameters
        are *added* to the arrays of `grads`, here and below."""
        raise NotImplementedError

    def jvp_solve(self, ops, p, cache, dz, transposed: bool = False):
        """J⁻¹ ż (N, ...) or, transposed, J⁻ᵀ ẋ. If `inverse` is exact, it is its Jacobian."""
        raise UsageError(f"{type(self.layer).__name__} has no inverse Jacobian-vector products")

    def inverse_backward(self, ctx, p, x, z, delta, grads):
        """The gradient of ⟨δ, x⟩ with x = `inverse`(z), δ (N, ...) shaped like x: that of z.

        For an exact inverse, J⁻ᵀ δ; and as f(x, θ) = z does not move, dx/dθ = −J⁻¹ ∂f/∂θ.
        ctx: one whose dldj is 0. Costs a forward and a backward pass.
        """
        _, _, cache = self.layer.forward(ctx.ops, p, x)
        of_z = self.jvp_solve(ctx.ops, p, cache, delta, transposed=True)
        self.backward_more(ctx, p, cache, -of_z, grads)
        return of_z

    def backward_more(self, ctx, p, cache, dz, grads):
        """`Layer.backward`, with a learned inverse by the rule of the forward objective."""
        own, layer = {n: ctx.ops.xp.empty_like(a) for n, a in grads.items()}, self.layer
        if layer.learns_inverse:
            dx, _ = replace(layer, rule=SelfNormalizing("forward")).backward(ctx, p, cache, dz, own)
        else:
            dx = layer.backward(ctx, p, cache, dz, own)
        for name, array in own.items():
            grads[name] += array
        return dx


class _OfLinear(Derivatives):
    """The Jacobian of a linear map is its matrix; its inverse is the learned one, T(R)."""

    def jvp(self, ops, p, cache, dx):
        return self.layer.map.apply(ops, p["W"], dx)

    def jvp_backward(self, ops, p, cache, dx, delta, grads):
        """0 and T(W)ᵀ δ; G_W gains δ ⋆ ẋ."""
        self.layer.map.weight_grad(ops, delta, dx, out=grads["W"], add=True)
        return 0, self.layer.map.adjoint(ops, p["W"], delta)

    def inverse_backward(self, ctx, p, x, z, delta, grads):
        """T(R)ᵀ δ; G_R gains δ ⋆ (z − b) and G_b loses Σ T(R)ᵀ δ."""
        ops, (f, g) = ctx.ops, self.layer.maps
        z = z - p["b"] if self.layer.bias else z
        for part in g.gradients(ops, f, p["W"], p["R"], delta, z, 0.0, grads["R"]):
            f.weight_grad(ops, part.delta, part.x, out=part.out, add=True)
        of_z = g.adjoint(ops, p["R"], delta)
        if self.layer.bias:
            grads["b"] -= ops.channels.sum(of_z)
        return of_z


class _OfLeakyReLU(Derivatives):
    """f' = α + (1-α)σ and f'' = (1-α)σ(1-σ)."""

    def jvp(self, ops, p, cache, dx):
        return dx * self._slope(cache)

    def jvp_backward(self, ops, p, cache, dx, delta, grads):
        """δ f'' ẋ and δ f'."""
        sigma = cache["sigma"]
        curvature = (1 - self.layer.alpha) * sigma * (1 - sigma)
        return delta * dx * curvature, delta * self._slope(cache)

    def jvp_solve(self, ops, p, cache, dz, transposed=False):
        return dz / self._slope(cache)

    def _slope(self, cache):
        return self.layer.alpha + (1 - self.layer.alpha) * cache["sigma"]


class _OfActNorm(Derivatives):
    """e^{−s} in every channel."""

    def jvp(self, ops, p, cache, dx):
        return dx * ops.xp.exp(-p["s"])

    def jvp_backward(self, ops, p, cache, dx, delta, grads):
        """0 and δ e^{−s}; G_s loses Σ δ e^{−s} ẋ."""
        of_dx = delta * ops.xp.exp(-p["s"])
        grads["s"] -= ops.channels.sum(of_dx * dx)
        return 0, of_dx

    def jvp_solve(self, ops, p, cache, dz, transposed=False):
        return dz * ops.xp.exp(p["s"])


class _OfSpline(Derivatives):
    """dy/dx of every value."""

    def jvp(self, ops, p, cache, dx):
        return dx * ops.spline.slope(cache["x"], cache["knots"])

    def jvp_backward(self, ops, p, cache, dx, delta, grads):
        """δ ẋ times the derivatives of dy/dx by x and all three parameters; and δ dy/dx."""
        x, knots, names = cache["x"], cache["knots"], ("widths", "heights", "slopes")
        added = tuple(ops.xp.empty_like(grads[name]) for name in names)
        settings = (cache["factors"], self.layer.bound, self.layer.eps)
        of_x = ops.spline.slope_backward(x, knots, *settings, delta * dx, added)
        for name, gradient in zip(names, added, strict=True):
            grads[name] += gradient
        return of_x, delta * ops.spline.slope(x, knots)

    def jvp_solve(self, ops, p, cache, dz, transposed=False):
        return dz / ops.spline.slope(cache["x"], cache["knots"])


class _OfSqueeze(Derivatives):
    """A permutation of the values."""

    def jvp(self, ops, p, cache, dx):
        return ops.channels.squeeze(dx)

    def jvp_backward(self, ops, p, cache, dx, delta, grads):
        return 0, ops.channels.unsqueeze(delta)

    def jvp_solve(self, ops, p, cache, dz, transposed=False):
        """The inverse permutation; transposed, the permutation itself."""
        channels = ops.channels
        return channels.squeeze(dz) if transposed else channels.unsqueeze(dz)


# The Jacobian of each kind of layer: add a class for a layer of your own.
DERIVATIVES: dict[type[Layer], type[Derivatives]] = {
    Linear: _OfLinear,
    SmoothLeakyReLU: _OfLeakyReLU,
    ActNorm: _OfActNorm,
    RationalQuadraticSpline: _OfSpline,
    Squeeze: _OfSqueeze,
}


def derivatives(layer: Layer) -> Derivatives:
    """The `Derivatives` of a layer. Raises UsageError if it has none."""
    for kind in type(layer).__mro__:
        if kind in DERIVATIVES:
            return DERIVATIVES[kind](layer)
    raise UsageError(f"{type(layer).__name__} has no Jacobian-vector products")


def start(flow, grads) -> None:
    """Sums of gradients at 0, if there are any. Raises UsageError, in one line, for a flow that
    did not learn all its inverses, or has split priors."""
    if flow.latent_names != ("z",) or not flow.has_learned_inverse:
        raise UsageError("Jacobians of a flow need learned inverses, and no split priors")
    for named in (grads or {}).values():
        for array in named.values():
            array[...] = 0


def forward(ops, flow, params, x, directions) -> tuple:
    """z, J_f ẋ, ldj, and what `backward` needs, at x (N, *flow.shape) with directions ẋ."""
    passes, ldj = [], 0.0
    for name, layer in flow.layers:
        z, own, cache = layer.forward(ops, params[name], x)
        passes.append((cache, directions))
        x, directions = z, derivatives(layer).jvp(ops, params[name], cache, directions)
        ldj = ldj + own
    return x, directions, ldj, passes


def backward(ctx, flow, params, passes, delta, moved, grads):
    """The gradient by x of a scalar whose gradients by z and J_f ẋ are `delta` and `moved`, with
    second derivatives of f. The gradients of parameters are *added* to the arrays of `grads`."""
    for (name, layer), (cache, directions) in zip(flow.layers[::-1], passes[::-1], strict=True):
        p, named, of = params[name], grads[name], derivatives(layer)
        second, before = of.jvp_backward(ctx.ops, p, cache, directions, moved, named)
        delta, moved = of.backward_more(ctx, p, cache, delta, named) + second, before
    return delta


def jacobian_penalty(ops, flow: Flow, params, x, probes, grads=None):
    """‖J_g J_f ν − ν‖² of each sample (N,): J_f at x (N, *flow.shape), J_g at z = f(x).

    probes: ν, shaped like x, one for each sample. Layers need `derivatives`; couplings and split
    priors have none.
    grads, arrays {layer: {name: array}} shaped like params: the gradient of the mean over x is
    written there, and (penalties, the gradient of x) is returned. To be subtracted μ times from
    what training ascends. About four passes forward and five backward. Raises UsageError if a
    layer has no learned inverse.
    """
    start(flow, grads)
    h, direction, _, passes = forward(ops, flow, params, x, probes)
    returns = []
    for name, layer in reversed(flow.layers):
        p, before = params[name], (h, direction)
        h = layer.inverse(ops, p, h)
        if layer.learns_inverse:
            cache, direction = None, _of_directions(layer).inverse(ops, p, direction)
        else:
            _, _, cache = layer.forward(ops, p, h)
            direction = derivatives(layer).jvp_solve(ops, p, cache, direction)
        returns.append((*before, h, direction, cache))
    error = direction - probes  # e of Eq. 31
    penalties = (error * error).reshape(len(x), -1).sum(axis=1)
    if grads is None:
        return penalties

    silent = BackwardContext.of(ops, ops.xp.zeros(len(x), x.dtype))
    # of the penalty by a point, and by the direction there: first back through g, then through f
    delta, moved = 0 * error, error * (2 / len(x))
    for (name, layer), back in zip(flow.layers, reversed(returns), strict=True):
        z, dz, x_, dx, cache = back
        p, named, of = params[name], grads[name], derivatives(layer)
        if layer.learns_inverse:
            of_directions = derivatives(_of_directions(layer))
            moved = of_directions.inverse_backward(silent, p, dx, dz, moved, named)
        else:
            # ẋ = J⁻¹ ż: if x and θ move, so does −J⁻¹ (dJ) ẋ
            moved = of.jvp_solve(ops, p, cache, moved, transposed=True)
            delta = delta + of.jvp_backward(ops, p, cache, dx, -moved, named)[0]
        delta = of.inverse_backward(silent, p, x_, z, delta, named)
    # with dldj = 0 and λ = 0, the gradients of z = T(W) x + b alone
    return penalties, backward(silent, flow, params, passes, delta, moved, grads)


def _of_directions(layer):
    """A linear layer that moves directions instead of points: without its bias."""
    return replace(layer, bias=False, bias_init="zero")
