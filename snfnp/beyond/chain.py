"""Convolutions one after the other: an inverse of several layers (paper, sections 5.1 and A.4).

Derivation: derivations/22-inverse-of-several-layers.md.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np

from snfnp.errors import UsageError
from snfnp.maps.base import Map
from snfnp.maps.conv import Conv2d
from snfnp.ops.epilogue import WeightGradient


@dataclass(frozen=True)
class Chain(Map):
    """T(r) = T(r_d) ⋯ T(r_1) of d convolutions of the same kind: the map of a learned inverse.

    r (d, kH, kW, C, C) holds r_1 first. T is linear in every r_i and not in r: a chain has the
    members of a `Map` that a learned inverse needs, and no others.
    """

    map: Conv2d
    layers: int

    def __post_init__(self):
        if self.layers < 1:
            raise UsageError(f"layers is {self.layers}: a chain needs at least 1")

    @property
    def weight_shape(self) -> tuple[int, ...]:
        return (self.layers, *self.map.weight_shape)

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return self.map.output_shape(shape)

    def identity(self) -> np.ndarray:
        """The r with T(r) = id whose convolutions are all the identity."""
        return np.stack([self.map.identity()] * self.layers)

    def start(self, f, w):
        """r_1 starts as a single convolution does, at flip(w), the others at the identity."""
        r = self.identity()
        r[0] = self.map.start(f, w)
        return r

    def apply(self, ops, w, x):
        """T(r_d) ⋯ T(r_1) x. O(d N H W kH kW C²)."""
        return self._through(ops, self._kernels(w), x)[-1]

    def adjoint(self, ops, w, dz):
        """T(r_1)ᵀ ⋯ T(r_d)ᵀ δ. O(d N H W kH kW C²)."""
        for kernel in reversed(self._kernels(w)):
            dz = self.map.adjoint(ops, kernel, dz)
        return dz

    def apply_then(self, ops, w, x, epilogue):
        *others, last = self._kernels(w)
        return self.map.apply_then(ops, last, self._through(ops, others, x)[-1], epilogue)

    def adjoint_then(self, ops, w, dz, epilogue):
        first, *others = self._kernels(w)
        for kernel in reversed(others):
            dz = self.map.adjoint(ops, kernel, dz)
        return self.map.adjoint_then(ops, first, dz, epilogue)

    def stand_in(self, ops, f, r, shape):
        """The sum of the entries of T(r)ᵀ over the positions of each of w's weights: ∂S/∂w of
        S = tr T(w) T(r_d) ⋯ T(r_1). (See `_trace_gradient`.)"""
        return _trace_gradient(ops, f, self._kernels(r)[::-1], shape), 1

    def gradients(self, ops, f, w, r, delta, z, scale, out) -> tuple[WeightGradient, ...]:
        """For r_i, with T(r) = L T(r_i) U: Lᵀ δ ⋆ U z, and ∂S/∂r_i of the same S, since T(w) in
        place of T(r)⁻¹ makes T(r_i)⁻¹ = U T(r)⁻¹ L what U T(w) L is."""
        parts, kernels = [], self._kernels(r)
        inputs = self._through(ops, kernels[:-1], z)
        for i in reversed(range(self.layers)):
            around = (*kernels[:i][::-1], w, *kernels[i + 1 :][::-1])
            term = _trace_gradient(ops, self.map, around, z.shape[1:])
            parts.append(WeightGradient(delta, inputs[i], scale, term, 1, out[i]))
            if i > 0:
                delta = self.map.adjoint(ops, kernels[i], delta)
        return tuple(parts)

    def _kernels(self, r) -> list:
        """r_1, …, r_d: views."""
        return [r[i] for i in range(self.layers)]

    def _through(self, ops, kernels, x) -> list:
        """x, T(r_1) x, T(r_2) T(r_1) x, …"""
        found = [x]
        for kernel in kernels:
            found.append(self.map.apply(ops, kernel, found[-1]))
        return found


def _trace_gradient(ops, first, others, shape):
    """∂/∂k of tr T(k) T(k_1) ⋯ T(k_n), which is linear in k: the sum of the entries of
    (T(k_1) ⋯ T(k_n))ᵀ over the positions of each element of k. (kH, kW, C, C), a view.

    first: k's map; others: k_1, …, k_n (kH, kW, C, C) of any odd sizes; shape: an image's.
    The trace is a sum over closed walks u → u + a → u + a + a_1 → ⋯ → u inside the image, one tap's
    offset for a step: Σ m(a, a_1, …) tr(k[a]ᵀ k_1[a_1]ᵀ ⋯ k_n[a_n]ᵀ), where m counts the u from
    which a walk stays inside. O(Π taps · C²(C + taps of k)).
    """
    xp, channels = ops.xp, shape[2]
    *earlier, last = others
    products = xp.ascontiguousarray(last).reshape(-1, channels)
    for kernel in reversed(earlier):
        taps = xp.ascontiguousarray(kernel.reshape(-1, channels, channels).transpose(1, 0, 2))
        products = ops.linalg.matmul(products, taps.reshape(channels, -1))
        products = products.reshape(-1, channels, taps.shape[1], channels)
        products = xp.ascontiguousarray(products.transpose(0, 2, 1, 3)).reshape(-1, channels)
    sizes = tuple(kernel.shape[:2] for kernel in others)
    walks = _closed_walks(first.kernel, sizes, shape[:2])
    gradient = ops.linalg.combine(walks, products.reshape(walks.shape[1], -1))
    return gradient.reshape(*first.kernel, channels, channels).swapaxes(2, 3)


@cache
def _closed_walks(first, others, size) -> np.ndarray:
    """m: (taps of k, all combinations of taps of k_n, …, k_1), in the order of stored kernels: a
    product, as the image is, of rows and columns."""
    along = [
        _closed_walks_along([kernel[axis] for kernel in (first, *reversed(others))], size[axis])
        for axis in (0, 1)
    ]
    count = len(others) + 1
    rows, columns = range(0, 2 * count, 2), range(1, 2 * count, 2)
    both = np.einsum(along[0], list(rows), along[1], list(columns), list(range(2 * count)))
    both = both.reshape(first[0] * first[1], -1)
    both.flags.writeable = False
    return both


def _closed_walks_along(taps, length) -> np.ndarray:
    """The number of places, of `length`, from which a walk stays on them and is closed:
    k's offset, then those of k_1, …, k_n. taps: of k, k_n, …, k_1."""
    offsets = np.ix_(*(np.arange(each) - each // 2 for each in taps))
    place = highest = lowest = 0
    for step in (offsets[0], *reversed(offsets[1:])):
        place = place + step
        highest, lowest = np.maximum(highest, place), np.minimum(lowest, place)
    return np.where(place == 0, np.maximum(length - (highest - lowest), 0.0), 0.0)
