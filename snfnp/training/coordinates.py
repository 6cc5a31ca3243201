"""White coordinates: input preconditioning, as by the A factor of K-FAC.

A dense layer learns behind a `Whiten` layer, whose statistics are estimated here (`Whitening`). A
kernel W, as a matrix (kH kW C, O), multiplies rows: its receptive fields. Adam ascends in V, W =
U V, for which these rows are white (`Coordinates`): it gets ∂𝓛/∂V = U ∂𝓛/∂W, and its step ΔV
becomes ΔW = U ΔV. W remains the parameter: a new U changes how it is learned, not the function.
Derivation: derivations/24-natural-coordinates.md.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from snfnp import threads
from snfnp.errors import UsageError
from snfnp.layers import AffineCoupling, Linear, Whiten
from snfnp.layers.baselines import CausalConv2d, ConvExponential
from snfnp.layers.whiten import inverse_root
from snfnp.likelihood import WHITENING_NOISE
from snfnp.maps import Conv2d
from snfnp.ops import RandomKey
from snfnp.training.update import TrainingState

_FLOOR = 1e-2  # times m: the least eigenvalue of M that counts, so that U's are at most 10
_IMAGES = 5  # a feature, of a renewal of a `Whiten` layer


def white_states(ops, flow, config, optimiser) -> tuple:
    """(the `Whitening`, the `Coordinates`) of a flow, None for what it has no layers for. Raises
    UsageError if white coordinates are asked for and it has neither, or if a `Whiten` layer cannot
    be renewed."""
    layers = [layer for _, layer in flow.layers]
    places = [place for place, layer in enumerate(layers) if isinstance(layer, Whiten)]
    for place in places:
        linear = layers[place + 1] if place + 1 < len(layers) else None
        if layers[place].renewed and not (isinstance(linear, Linear) and linear.bias):
            needs = "is renewed, and needs a Linear with a bias behind it"
            raise UsageError(f"the Whiten layer {flow.layers[place][0]} {needs}")
    white, kernels = config.coordinates == "white", any(map(inputs, layers))
    if white and not (places or kernels):
        found = "this flow has neither convolutions nor Whiten layers"
        raise UsageError(f"`coordinates` is white, but {found}: leave it out")
    coordinates = Coordinates(ops, flow, config, optimiser) if white and kernels else None
    return Whitening() if places else None, coordinates


def statistics(trainer, params, batches, place: int) -> dict:
    """The statistics of the place-th layer before the first step: of a `Whiten` layer that is not
    renewed from all images of the first epoch; {} of any other layer. O(D²) an image.

    The noise is not that of the steps, with which their inputs would be whiter than others.
    """
    layer = trainer.flow.layers[place][1]
    if not isinstance(layer, Whiten) or layer.renewed:
        return {}
    found = _estimate(trainer, params, batches, place, range(trainer.steps_per_epoch))
    return {k: value.astype(trainer.p.dtype) for k, value in found.items()}


def _estimate(trainer, params, batches, place: int, steps) -> dict[str, Any]:
    """The statistics of the place-th layer, a `Whiten`, for its input in these steps: float64,
    rounded to the run's precision."""
    layer, dtype = trainer.flow.layers[place][1], trainer.p.dtype
    sums, shift = _sums(trainer, params, batches, place, steps), 0.0
    if layer.needs_shift(*sums):
        count, total, _ = sums
        shift = total / count
        sums = _sums(trainer, params, batches, place, steps, shift)
    values = layer.from_sums(*sums, shift, trainer.ops.linalg)
    return {k: value.astype(dtype).astype(np.float64) for k, value in values.items()}


def _sums(trainer, params, batches, place: int, steps, shift: Any = 0.0) -> tuple:
    """The number of inputs x of the place-th layer in these steps, Σ (x − shift) and
    Σ (x − shift)(x − shift)ᵀ."""
    ops, flow, dtype = trainer.ops, trainer.flow, trainer.p.dtype
    layer, count = flow.layers[place][1], 0
    total, products = (ops.xp.zeros(layer.parameter_shapes(())[name]) for name in "bU")
    for step in steps:
        images = batches(step)
        part, _ = trainer.slice_of(len(images))
        key = RandomKey(trainer.config.seed, WHITENING_NOISE, step, part.first)
        x = flow.preprocessed(ops, images, key, dtype if place else np.float64)[0]
        for name, before in flow.layers[:place]:
            x = before.forward(ops, params[name], x)[0]
        x = x.astype(np.float64) - shift
        count += part.total
        total += x.sum(axis=0)
        ops.linalg.matmul_add(x.T, x, products)
    if trainer.world.size > 1:
        trainer.communicator.all_reduce(total, products)
    return count, total, products


class Whitening(TrainingState):
    """The statistics of `Whiten` layers: fixed parameters, and no array of its own."""

    def renew(self, trainer, batches) -> None:
        """Re-estimate those of renewed layers from images of the next steps, and change the linear
        layer behind to keep the function, but for rounding. O(D³)."""
        ops, flow, layout = trainer.ops, trainer.flow, trainer.layout.optimised
        for place, (name, layer) in enumerate(flow.layers):
            if not isinstance(layer, Whiten) or not layer.renewed:
                continue
            last = trainer.step + math.ceil(_IMAGES * layer.features / trainer.config.batch_size)
            new = _estimate(trainer, trainer.params, batches, place, range(trainer.step, last))
            behind = flow.layers[place + 1][0]
            moments = (layout.views(buffer)[behind] for buffer in (trainer.m, trainer.v))
            changed = (trainer.params[name], trainer.params[behind], *moments)
            wide = [{k: a.astype(np.float64) for k, a in own.items()} for own in changed]
            moved = change_coordinates(ops, new, *wide)
            for own, values in zip(changed, (new, *moved), strict=True):
                for parameter, value in values.items():
                    own[parameter][...] = value
            trainer.share(trainer.p, trainer.m, trainer.v)


def change_coordinates(ops, new: dict, old: dict, p: dict, m: dict, v: dict) -> tuple:
    """(p, m, v) of the linear layer behind a `Whiten`, whose statistics change from `old` to `new`.
    p, and Adam's m and v: float64 arrays by name. O(D³).

    With U'x + b_U' = T (U x + b_U) + t the function stays the same for W' = W T⁻¹, b' = b − W' t
    and R' = T R. m follows the chain rule, G_W' = G_W Tᵀ + G_b tᵀ and G_R' = T⁻ᵀ G_R, and v the
    same with all factors squared.
    """
    solve = ops.linalg.solve
    turn, back = solve(old["U"].T, new["U"]), solve(new["U"].T, old["U"])  # T and T⁻¹
    shift, w = new["b"] - turn @ old["b"], p["W"] @ back
    p, m, v = (
        {**p, "W": w, "b": p["b"] - w @ shift},
        {**m, "W": m["W"] @ turn.T + m["b"][:, None] * shift},
        {**v, "W": v["W"] @ turn.T**2 + v["b"][:, None] * shift**2},
    )
    for own, factor in ((p, turn), (m, back.T), (v, back.T**2)):
        if "R" in own:
            own["R"] = factor @ own["R"]
    return p, m, v


def inputs(layer) -> dict[str, Callable]:
    """{kernel: images(cache), its input} of a layer's kernels that get white coordinates."""
    if isinstance(layer, Linear):
        maps = zip("WR"[: 1 + layer.learns_inverse], layer.maps, ("x", "z0"), strict=False)
        return {
            name: lambda cache, images=images: cache[images]
            for name, f, images in maps
            if isinstance(f, Conv2d)
        }
    if isinstance(layer, AffineCoupling):  # the network's first: the others' inputs are wide
        return {"w1": lambda cache: cache["x"][..., : layer.channels // 2]}
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
    return inverse_root(second / mean, _FLOOR)


class Coordinates(TrainingState):
    """An optimiser in the coordinates of all kernels' U, which are its values."""

    key = "coordinates.U"

    def __init__(self, ops, flow, config, optimiser):
        self._ops, self._flow, self._optimiser = ops, flow, optimiser
        self._inputs = {name: inputs(layer) for name, layer in flow.layers}
        # of U by kernel; see `ops.step.apply_block_matrices`
        self._places, blocks, place = {}, [], 0
        for entry in flow.layout.optimised.entries:
            if entry.name in self._inputs[entry.layer]:
                size, outputs = int(np.prod(entry.shape[:-1])), entry.shape[-1]
                self._places[entry.layer, entry.name] = slice(place, place + size**2)
                blocks.append((entry.start, size, outputs, place))
                place += size**2
        self._blocks = tuple(blocks)
        self.values = ops.asarray(_flat([np.eye(size) for _, size, _, _ in blocks]))
        moved = flow.layout.fixed
        self._gradient, self._step = (ops.xp.zeros(moved, config.dtype) for _ in range(2))

    def renew(self, trainer, batches) -> None:
        """Estimate U from the images of the next step: one forward pass."""
        with threads.blas_limited(1):  # more threads slow such small matrices
            found = self._find(trainer, batches(trainer.step))
        found = trainer.world.broadcast(found)  # the same bits on all ranks
        self.values[...] = self._ops.asarray(_flat(found))

    def _find(self, trainer, images) -> list[np.ndarray]:
        """U of every kernel, on the host."""
        ops, seconds = self._ops, self._ops.xp.zeros_like(self.values)
        x, _ = trainer.encode(images, trainer.step, trainer.slice_of(len(images))[0])
        for name, layer in self._flow.layers:
            p = trainer.params[name]
            x, _, cache = layer.forward(ops, p, x)
            for kernel, input_of in self._inputs[name].items():
                seen = input_of(cache).astype(np.float64)
                rows = ops.conv.patches(seen, p[kernel].shape[:2])
                # a sum, not a mean: U does not depend on the scale of M
                seconds[self._places[name, kernel]] = ops.linalg.matmul(rows.T, rows).reshape(-1)
        if trainer.world.size > 1:
            trainer.communicator.all_reduce(seconds)
        found, places = ops.to_host(seconds), [(k, place) for _, k, _, place in self._blocks]
        return [whitening(found[place : place + k * k].reshape(k, k)) for k, place in places]

    def ascend(self, ops, gradient, *how, out):
        """The optimiser's `update`, with the step in V; the rest is unchanged."""
        p, m, v = out
        ops.step.apply_block_matrices(gradient, self.values, self._blocks, out=self._gradient)
        self._step[...] = 0
        squares = self._optimiser.update(ops, self._gradient, *how, out=(self._step, m, v))
        ops.step.apply_block_matrices(self._step, self.values, self._blocks, out=p, add=True)
        return squares


def _flat(matrices) -> np.ndarray:
    return np.concatenate([u.reshape(-1) for u in matrices])
