"""Adam in coordinates in which the inputs of a convolution's weights are white.

A kernel W as a matrix (kH kW C, O) multiplies rows r, what it sees of an image from one pixel. With
their second moments M = E[rᵀ r], m the mean of M's eigenvalues and U = (M/m)^{-1/2}, Adam ascends
in V, W = U V, whose rows r U have second moments m I: ∂𝓛/∂V = U ∂𝓛/∂W goes into Adam, and its step
ΔV becomes ΔW = U ΔV. W stays the parameter, so a new U changes how it is learned, and not the
function. Derivation: derivations/06-adam.md.
"""

from collections.abc import Callable

import numpy as np

from snfnp.beyond.conv_exponential import ConvExponential
from snfnp.beyond.emerging import CausalConv2d
from snfnp.layers import AffineCoupling, Linear, SplitPrior
from snfnp.maps import Conv2d
from snfnp.training.followers import Follower
from snfnp.training.whitening import due

_FLOOR = 1e-2  # times m: smaller eigenvalues count as this, and U's are at most 10
_STATE = "coordinates"  # what the state is called in checkpoints


def inputs(layer) -> dict[str, Callable]:
    """{name of a kernel: images(cache), what it is correlated with} of a layer's kernels."""
    if isinstance(layer, Linear):
        maps = zip("WR"[: 1 + layer.learns_inverse], layer.maps, ("x", "z0"), strict=False)
        return {
            name: lambda cache, images=images: cache[images]
            for name, f, images in maps
            if isinstance(f, Conv2d)
        }
    if isinstance(layer, AffineCoupling):  # the network's first: the others' inputs are wide
        return {"w1": lambda cache: cache["x"][..., : layer.channels // 2]}
    if isinstance(layer, SplitPrior):
        own = inputs(layer.coupling)
        return {name: lambda cache, of=of: of(cache["coupling"]) for name, of in own.items()}
    if isinstance(layer, CausalConv2d):
        return {"W": lambda cache: cache["x"][:, ::-1, ::-1] if layer.reverse else cache["x"]}
    if isinstance(layer, ConvExponential):
        return {"W": lambda cache: cache["powers"][0]}
    return {}


def whitening(second: np.ndarray) -> np.ndarray:
    """U = (M/m)^{-1/2}, symmetric, of second moments M (K, K) whose eigenvalues have the mean m and
    count as at least m/100. If M is 0 or not finite, the identity. O(K³)."""
    mean = np.trace(second) / len(second)
    if not (np.isfinite(second).all() and mean > 0):
        return np.eye(len(second))
    values, vectors = np.linalg.eigh(second / mean)
    return (vectors * np.maximum(values, _FLOOR) ** -0.5) @ vectors.T


class Coordinates(Follower):
    """The U of all kernels of a flow, which are its state, and what Adam gets instead of W's."""

    def __init__(self, ops, flow, config):
        self._ops, self._flow = ops, flow
        self._images = {name: inputs(layer) for name, layer in flow.layers}
        self._places, blocks, place = {}, [], 0  # of U by kernel; see `ops.step.turn`
        for entry in flow.layout.optimised.entries:
            if entry.name in self._images[entry.layer]:
                size, outputs = int(np.prod(entry.shape[:-1])), entry.shape[-1]
                self._places[entry.layer, entry.name] = slice(place, place + size**2)
                blocks.append((entry.start, size, outputs, place))
                place += size**2
        self._blocks, self.state_shapes = tuple(blocks), {_STATE: {"U": (place,)}}
        moved = flow.layout.fixed
        self._gradient, self._step = (ops.xp.zeros(moved, config.dtype) for _ in range(2))

    def attach(self, states, sums) -> None:
        self._u = states[_STATE]["U"]
        self._set([np.eye(size) for _, size, _, _ in self._blocks])

    def _set(self, matrices) -> None:
        self._u[...] = self._ops.asarray(np.concatenate([u.reshape(-1) for u in matrices]))

    def renew(self, trainer, images) -> None:
        """Find U, if it is time to, for a step that is to come, from this rank's images of it: one
        forward pass, outside of a recorded step. The host waits for the device."""
        if due(trainer.step):  # steps 0, 20, 100 and every 500th
            with self._ops.linalg.chain_of_products(1):  # so small that threads only wait
                found = self._find(trainer, images)
            self._set(trainer.world.broadcast(found))  # the same bits, even if machines differ

    def _find(self, trainer, images) -> list[np.ndarray]:
        """U of every kernel from this batch, on the host."""
        ops, seconds = self._ops, self._ops.xp.zeros_like(self._u)
        x, _ = trainer.encode(images, trainer.step, trainer.slice_of(len(images))[0])
        for layer, definition in self._flow.layers:
            p = trainer.params[layer]
            x, _, cache = definition.forward(ops, p, x)
            for name, images_of in self._images[layer].items():
                seen = images_of(cache).astype(np.float64)
                rows = ops.conv.patches(seen, p[name].shape[:2])
                # a sum, not a mean: U does not depend on the scale of M
                seconds[self._places[layer, name]] = ops.linalg.matmul(rows.T, rows).reshape(-1)
        if trainer.world.size > 1:
            trainer.communicator.all_reduce(seconds)
        found, places = ops.to_host(seconds), [(k, place) for _, k, _, place in self._blocks]
        return [whitening(found[place : place + k * k].reshape(k, k)) for k, place in places]

    def enter(self, gradient):
        """From the gradient with respect to W, flat, the one with respect to V; and where Adam is
        to add its step in V. What has no U is as it was."""
        self._ops.step.turn(gradient, self._u, self._blocks, out=self._gradient)
        self._step[...] = 0
        return self._gradient, self._step

    def leave(self, p) -> None:
        """Take Adam's step: p += ΔW."""
        self._ops.step.turn(self._step, self._u, self._blocks, out=p, add=True)
