"""Input preconditioning ("white coordinates"), as by the A factor of K-FAC.

A dense layer learns behind a `Whiten` layer, whose statistics are estimated here (`Whitening`).

A kernel W, as a matrix (kH kW C, O), multiplies patches, the rows of a matrix X. For W = U V this
is X W = (X U) V, and a symmetric U makes the rows of X U white (`Coordinates`). Adam ascends in V:
it gets ∂𝓛/∂V = U ∂𝓛/∂W, and its step ΔV becomes ΔW = U ΔV. W remains the parameter: a new U
changes how it is learned, not the function.

Derivation: derivations/24-natural-coordinates.md.
"""

import math
from collections.abc import Callable, Iterable
from operator import itemgetter
from typing import Any

import numpy as np

from snfnp import threads
from snfnp.errors import UsageError
from snfnp.flow import Flow, Params
from snfnp.layers import AffineCoupling, Layer, Linear, Whiten
from snfnp.layers.baselines import CausalConv2d, ConvExponential, turned
from snfnp.layers.whiten import inverse_root
from snfnp.likelihood import WHITENING_NOISE
from snfnp.maps import Conv2d, Dense
from snfnp.ops import Array, Ops, RandomKey
from snfnp.ops.step.definition import Buffers
from snfnp.step.batches import BatchSource, batch_of
from snfnp.step.settings import Settings
from snfnp.step.update import Optimiser, TrainingState

Trainer = Any  # that of `trainer.py`, which imports this file
Arrays = dict[str, Array]  # of a layer, by name
_FLOOR = 1e-2  # eigenvalue floor, relative to the mean: U's eigenvalues are at most 10
_IMAGES = 5  # images per feature for re-estimating a `Whiten` layer


def white_states(
    ops: Ops, flow: Flow, config: Settings, optimiser: Optimiser
) -> "tuple[Whitening | None, Coordinates | None]":
    """The states that a flow needs for `coordinates`; None: it has no layers for that state.

    Raises:
        UsageError: coordinates other than plain ones are asked for, and the flow has no layer for
            them, or a `Whiten` layer cannot be renewed.
    """
    layers = [layer for _, layer in flow.layers]
    for (name, layer), following in zip(flow.layers, [*layers[1:], None], strict=True):
        takes_over = (
            isinstance(following, Linear)
            and following.bias
            and isinstance(following.map, Dense)
        )
        if isinstance(layer, Whiten) and layer.renewed and not takes_over:
            raise UsageError(
                f"the Whiten layer {name} is renewed: it needs a dense Linear with a bias behind it"
            )
    whitens = any(isinstance(layer, Whiten) for layer in layers)
    has_kernels = any(map(kernel_inputs, layers))
    coordinates = None
    if config.coordinates != "plain":
        if not (whitens or has_kernels):
            raise UsageError(
                f"`coordinates` is {config.coordinates}, but this flow has neither convolutions "
                "nor Whiten layers: leave it out"
            )
        if has_kernels:
            coordinates = Coordinates(ops, flow, config, optimiser)
    return Whitening() if whitens else None, coordinates


def statistics(
    trainer: Trainer, params: Params, batches: BatchSource, index: int
) -> dict:
    """The statistics of a `Whiten` layer that is never renewed, from all images of the first epoch,
    before the first step; {} for any other layer. O(D²) an image.

    The noise differs from that of the training steps: with the same noise, the inputs in training
    would be whiter than others.
    """
    _, layer = trainer.flow.layers[index]
    if not isinstance(layer, Whiten) or layer.renewed:
        return {}
    return _estimate(trainer, params, batches, index, range(trainer.steps_per_epoch))


def _estimate(
    trainer: Trainer,
    params: Params,
    batches: BatchSource,
    index: int,
    steps: Iterable[int],
) -> dict[str, Array]:
    """The statistics of a `Whiten` layer for its input in these steps: float64, rounded to the
    run's precision."""
    ops = trainer.ops
    flow = trainer.flow
    whiten: Any = flow.layers[index][1]
    # Layers before this one compute in the run's precision; if there are none, x stays in double.
    dtype = trainer.p.dtype if index else np.float64

    def sums(shift):
        """The number of inputs x, Σ (x − shift) and Σ (x − shift)(x − shift)ᵀ."""
        count = 0
        total = ops.xp.zeros(whiten.features)
        products = ops.xp.zeros((whiten.features, whiten.features))
        for step in steps:
            images = batch_of(batches, step)
            key = RandomKey(trainer.config.seed, WHITENING_NOISE, step)
            x, _ = flow.preprocessed(ops, images, key, dtype)
            for name, layer in flow.layers[:index]:
                x = layer.forward(ops, params[name], x)[0]
            x = x.astype(np.float64) - shift
            count += len(images)
            total += x.sum(axis=0)
            ops.linalg.matmul_add(x.T, x, products)
        return count, total, products

    shift = 0.0
    count, total, products = sums(shift)
    if whiten.needs_shift(count, total, products):
        shift = total / count
        count, total, products = sums(shift)
    values = whiten.from_sums(count, total, products, shift, ops.linalg.inverse_root)
    return {
        name: value.astype(trainer.p.dtype).astype(np.float64)
        for name, value in values.items()
    }


class Whitening(TrainingState):
    """The statistics of `Whiten` layers: fixed parameters, and no array of its own."""

    def renew(self, trainer, batches):
        """Re-estimate those of renewed layers from images of the next steps, and change the linear
        layer behind to keep the function, but for rounding. O(D³)."""
        layout = trainer.layout.optimised
        for index, (name, layer) in enumerate(trainer.flow.layers):
            if not isinstance(layer, Whiten) or not layer.renewed:
                continue
            count = math.ceil(_IMAGES * layer.features / trainer.config.batch_size)
            steps = range(trainer.step, trainer.step + count)
            new = _estimate(trainer, trainer.params, batches, index, steps)
            linear, _ = trainer.flow.layers[index + 1]
            # the statistics, and the linear layer's parameters, m and v
            current = [trainer.params[name], trainer.params[linear]]
            current += [
                layout.views(buffer)[linear] for buffer in (trainer.m, trainer.v)
            ]
            in_double = [
                {key: a.astype(np.float64) for key, a in arrays.items()}
                for arrays in current
            ]
            changed = new, *change_coordinates(trainer.ops, new, *in_double)
            for arrays, values in zip(current, changed, strict=True):
                for key, value in values.items():
                    arrays[key][...] = value


def change_coordinates(
    ops: Ops, new: Arrays, old: Arrays, p: Arrays, m: Arrays, v: Arrays
) -> tuple[Arrays, Arrays, Arrays]:
    """(p, m, v) of the linear layer behind a `Whiten`, whose statistics change from `old` to `new`.
    p, and Adam's m and v: float64 arrays by name. O(D³).

    With U'x + b_U' = T (U x + b_U) + t the function stays the same for W' = W T⁻¹, b' = b − W' t
    and R' = T R. m follows the chain rule, G_W' = G_W Tᵀ + G_b tᵀ and G_R' = T⁻ᵀ G_R, and v the
    same with all factors squared.
    """
    matrix = ops.linalg.solve(old["U"].T, new["U"])  # T = U' U⁻¹
    inverse = ops.linalg.solve(new["U"].T, old["U"])
    t = new["b"] - matrix @ old["b"]
    w = p["W"] @ inverse
    p = {**p, "W": w, "b": p["b"] - w @ t}
    m = {**m, "W": m["W"] @ matrix.T + m["b"][:, None] * t}
    v = {**v, "W": v["W"] @ matrix.T**2 + v["b"][:, None] * t**2}
    if "R" in p:
        p["R"] = matrix @ p["R"]
        m["R"] = inverse.T @ m["R"]
        v["R"] = inverse.T**2 @ v["R"]
    return p, m, v


def kernel_inputs(layer: Layer) -> dict[str, Callable[[dict], Array]]:
    """The kernels of a layer that get white coordinates: {name: a function that returns the images
    which the kernel multiplies, from the cache of a forward pass}."""
    if isinstance(layer, Linear):
        f, g = layer.maps
        inputs = {}
        if isinstance(f, Conv2d):
            inputs["W"] = itemgetter("x")
        if isinstance(g, Conv2d) and layer.learns_inverse:
            inputs["R"] = itemgetter("z0")
        return inputs
    # of a coupling's network the first kernel only: the inputs of the others have many channels
    if isinstance(layer, AffineCoupling):
        return {"w1": lambda cache: cache["x"][..., : layer.channels // 2]}
    if isinstance(layer, CausalConv2d):
        return {"W": lambda cache: turned(cache["x"], layer.reverse)}
    if isinstance(layer, ConvExponential):
        return {"W": lambda cache: cache["terms"][0]}
    return {}


def whitening(moments: np.ndarray, diagonal: bool = False) -> np.ndarray:
    """U = (M/m)^{-1/2}, symmetric, of second moments M (K, K), where m is the mean of M's
    eigenvalues, and those below m/100 are raised to it. diagonal: of M's diagonal alone. If M is 0
    or not finite, the identity. O(K³)."""
    if diagonal:
        moments = np.diag(np.diag(moments))
    mean = np.trace(moments) / len(moments)
    if not (np.isfinite(moments).all() and mean > 0):
        return np.eye(len(moments))
    return inverse_root(moments / mean, _FLOOR)


class Coordinates(TrainingState):
    """An optimiser that steps in V, where each kernel is W = U V; `values` holds every U."""

    key = "coordinates.U"

    def __init__(self, ops: Ops, flow: Flow, config: Settings, optimiser: Optimiser):
        self._optimiser = optimiser
        self._diagonal = config.coordinates == "scaled"
        self._inputs = {name: kernel_inputs(layer) for name, layer in flow.layers}
        # (layer, kernel): the part of `values` that is its U
        self._slices = {}
        blocks = []  # see `ops.step.apply_block_matrices`
        start = 0
        for entry in flow.layout.optimised.entries:
            if entry.name in self._inputs[entry.layer]:
                *rows, outputs = entry.shape
                size = math.prod(rows)
                self._slices[entry.layer, entry.name] = slice(start, start + size**2)
                blocks.append((entry.start, size, outputs, start))
                start += size**2
        self._blocks = tuple(blocks)
        self.values = ops.asarray(
            np.concatenate([np.eye(size).ravel() for _, size, _, _ in blocks])
        )
        self._gradient = ops.xp.zeros(flow.layout.fixed, config.dtype)
        self._step = ops.xp.zeros_like(self._gradient)

    def renew(self, trainer, batches):
        """Estimate U from the images of the next step: one forward pass."""
        ops = trainer.ops
        images = batch_of(batches, trainer.step)
        with threads.blas_limited(1):  # more threads slow such small matrices
            x, _ = trainer.encode(images, trainer.step)
            for name, layer in trainer.flow.layers:
                p = trainer.params[name]
                x, _, cache = layer.forward(ops, p, x)
                for kernel, input_of in self._inputs[name].items():
                    h = input_of(cache).astype(np.float64)
                    rows = ops.conv.patches(h, p[kernel].shape[:2])
                    # a sum, not a mean: U does not depend on the scale of M
                    moments = ops.to_host(ops.linalg.matmul(rows.T, rows))
                    u = whitening(moments, self._diagonal)
                    self.values[self._slices[name, kernel]] = ops.asarray(u.ravel())

    def ascend(
        self,
        ops: Ops,
        gradient: Array,
        *settings: Any,
        out: Buffers,
    ) -> Any:
        """The optimiser's `update`, with the step in V; settings: its other arguments."""
        p, m, v = out
        ops.step.apply_block_matrices(
            gradient, self.values, self._blocks, out=self._gradient
        )
        self._step[...] = 0
        squares = self._optimiser.update(
            ops, self._gradient, *settings, out=(self._step, m, v)
        )
        ops.step.apply_block_matrices(
            self._step, self.values, self._blocks, out=p, add=True
        )
        return squares
