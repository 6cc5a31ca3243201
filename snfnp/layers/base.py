"""The contract of a layer. Derivation: derivations/17-write-your-own-layer.md."""

from typing import Any, ClassVar

import numpy as np

from snfnp.context import BackwardContext
from snfnp.ops import Array, Ops, Shape

Params = dict[str, Array]  # one layer's parameters by name
Forward = tuple[Array, Any, dict]  # z, ldj and the cache: see `Layer.forward`


class Layer:
    """An invertible map of one sample's values, with every gradient written by hand.

    A layer is a frozen dataclass of settings; it stores no parameters, caches or gradients. Three
    members are required (`forward`, `inverse`, `backward`); the others have defaults for a layer
    that has no parameters, keeps the shape, learns no inverse and treats every sample on its own.
    `snfnp.gradcheck.check_layer` checks one.

    In every signature `ops` is the backend, `p` this layer's parameters by name, x and z (N, ...)
    are batches of inputs and outputs, and `shape` is one sample's. Gradients are of the objective
    that training ascends (Eq. 3): dz contains its 1/N, and layers sum over samples.

    The same code runs on every backend and inside a recorded training step, if

    * arrays are used through their operators and methods, `ops.xp` (the array namespace) and the
      groups of ops; matrix products through `ops.linalg.matmul`, never `@`: a CUDA graph cannot
      record it;
    * `forward` and `backward` read no value back to the host: no `float()`, `bool()`, `if` or
      iteration on arrays;
    * a matrix R and its gradient, which are stored in Fortran order, are indexed: `reshape` would
      copy them;
    * results have the dtype of x: constants are Python numbers, which do not widen float32;
    * `forward` and inverses change no argument, and `backward` neither dz nor the cache (another
      layer may hold the same array). It writes every element of the arrays in `grads`;
    * a NaN in a parameter or an input reaches the outputs.
    """

    # Whether the parameters include a learned inverse R. In a flow only a `Linear` has one.
    learns_inverse: ClassVar[bool] = False
    # Whether `inverse` is exact to rounding and costs about as much as `forward`: the backward
    # pass may then recompute x from z instead of keeping it.
    cheap_exact_inverse: ClassVar[bool] = False

    def parameter_shapes(self, shape: Shape) -> dict[str, Shape]:
        """The shape of every parameter by name, in the order of `init`'s."""
        return {}

    def init(self, rng: np.random.Generator, shape: Shape) -> dict[str, np.ndarray]:
        """Initial parameters by name: float64 arrays on the host, by default zero."""
        return {
            name: np.zeros(size) for name, size in self.parameter_shapes(shape).items()
        }

    def init_from_data(self, ops: Ops, p: Params, x: Array) -> Params:
        """New values of those parameters that depend on x, the first batch."""
        return {}

    def output_shape(self, shape: Shape) -> Shape:
        """The shape of z for one sample: it has as many values as `shape`, less those of a latent.
        Raises UsageError for a shape that the layer does not take."""
        return shape

    def latent_shape(self, shape: Shape) -> Shape | None:
        """The shape of the part of z that leaves the flow at this layer, or None.

        The cache then holds that part as "latent", and `inverse` takes it, `backward` its gradient,
        as the last argument.
        """
        return None

    def forward(self, ops: Ops, p: Params, x: Array) -> Forward:
        """Map x to z.

        Returns:
            z; the log|det ∂z/∂x| that depends on the data, (N,) in nats, or 0; and a dict of what
            `backward` needs, the cache.
        """
        raise NotImplementedError

    def inverse(self, ops: Ops, p: Params, z: Array, *latent: Array) -> Array:
        """Map z back to x, by the learned inverse if there is one, else exactly."""
        raise NotImplementedError

    def exact_inverse(self, ops: Ops, p: Params, z: Array, *latent: Array) -> Array:
        """Map z back to x exactly, at any cost."""
        return self.inverse(ops, p, z, *latent)

    def log_det(self, ops: Ops, p: Params, shape: Shape) -> float | None:
        """The log|det ∂z/∂x| in nats that is the same for all x and not in ldj, exact, at any cost;
        None if there is none."""
        return None

    def backward(
        self,
        ctx: BackwardContext,
        p: Params,
        cache: dict,
        dz: Array,
        grads: Params,
        *dlatent: Any,
    ) -> Any:
        """Compute δ_x, and the gradients of all parameters.

        Args:
            ctx: the step: `ctx.ops`; `ctx.dldj` (N,), the gradient of ldj, and its sum
                `ctx.log_det_weight`; and what layers with a learned inverse need.
            p: the parameters.
            cache: what `forward` returned.
            dz: δ_z (N, ...).
            grads: the arrays that take the gradients of the parameters.
            dlatent: the gradient of a latent that leaves the flow here.

        Returns:
            δ_x (N, ...); a layer that learns its inverse returns (δ_x, `snfnp.context.Measured`).
        """
        raise NotImplementedError
