"""The convolution z = w ⋆ x as a linear map T(w) (paper, sections 4.2 and A.2).

A kernel is stored (kH, kW, I, O), with I channels of the input and O of the output: w[h, w, i, o]
is the paper's k[o, i, h, w]. Images are channels-last (H, W, C). The stride is 1, kernels are odd,
and "same" zero padding makes T(w) square for I = O.
Derivation: derivations/07-convolutions.md and 08-asymmetric-kernels.md.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np

from snfnp.errors import UsageError, require_sizes, require_whole
from snfnp.maps.base import Map, Shape
from snfnp.maps.block_tridiagonal import BlockLU
from snfnp.maps.explicit import Explicit
from snfnp.ops import Array, Ops
from snfnp.ops.conv.definition import flip
from snfnp.ops.group import flat


@dataclass(frozen=True)
class Conv2d(Map):
    """Images (N, H, W, channels) -> (N, H, W, out_channels), T(w) x = w ⋆ x (Eq. 12).

    Args:
        kernel: (kH, kW), both odd.
        channels: I, of the input.
        out_channels: O; None means I.
        exact: how the exact log-determinant, its gradient and T(w)⁻¹ z are computed: by "block"
            recursion over image rows, or from the "dense" matrix T(w) of the paper's baseline. A
            1×1 kernel needs neither.
    """

    kernel: tuple[int, int]
    channels: int
    out_channels: int | None = None
    exact: str = "block"

    def __post_init__(self):
        # a size of 0 is refused below, as it is even
        require_sizes(self, 2, 0, kernel=self.kernel)
        # weight_shape[3] is out_channels, or channels once more
        require_whole(
            self, 1, channels=self.channels, out_channels=self.weight_shape[3]
        )
        kh, kw = self.kernel
        if kh % 2 == 0 or kw % 2 == 0:
            raise UsageError(f"kernel is {kh}x{kw}: height and width must be odd")
        if self.exact not in ("block", "dense"):
            raise UsageError(f"exact is {self.exact!r}: choose block or dense")

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        outputs = self.channels if self.out_channels is None else self.out_channels
        return (*self.kernel, self.channels, outputs)

    def output_shape(self, shape: Shape) -> Shape:
        if len(shape) != 3 or shape[2] != self.channels:
            raise UsageError(
                f"a convolution of {self.channels} channels cannot take {shape}: "
                f"give it images (H, W, {self.channels})"
            )
        return (*shape[:2], self.weight_shape[3])

    def identity(self) -> np.ndarray:
        """The Dirac kernel: 1 at the centre, from each channel to itself."""
        w = np.zeros(self.weight_shape)
        w[self.kernel[0] // 2, self.kernel[1] // 2] = np.eye(*self.weight_shape[2:])
        return w

    def apply(self, ops: Ops, w: Array, x: Array) -> Array:
        """w ⋆ x (Eq. 12). O(N H W kH kW I O)."""
        return ops.conv.correlate(x, w)

    def adjoint(self, ops: Ops, w: Array, dz: Array) -> Array:
        """flip(w) ⋆ δ (Eq. 26). O(N H W kH kW I O)."""
        return ops.conv.correlate(dz, self.flip(w))

    def weight_grad(
        self, ops: Ops, delta: Array, x: Array, out: Array, add: bool = False
    ) -> Array:
        """δ ⋆ x: the first term of Eq. 13, of Eq. 15 and (with −δ_x and z) of Eq. 16."""
        return ops.conv.weight_grad(delta, x, out, add)

    @staticmethod
    def flip(w: Array) -> Array:
        """Channels swapped, height and width mirrored (Eq. 26 with indices from 1): a view."""
        return flip(w)

    def multiplicity(self, shape: Shape) -> np.ndarray:
        """m (kH, kW, 1, 1) of Eq. 24, by Eq. 27 in closed form: the number of output pixels for
        which a tap is inside the image."""
        return _multiplicity(self.kernel, shape[:2])

    def pad_or_crop(self, w: Array) -> Array:
        """P of Eq. 30: a kernel zero-padded about its centre, which leaves T(w) as it is, or
        cropped about it."""
        if w.shape[:2] == tuple(self.kernel):
            return w
        fitted = np.zeros_like(w, order="C", shape=(*self.kernel, *w.shape[2:]))
        # the height and the width that both kernels have
        common = [min(sizes) for sizes in zip(self.kernel, w.shape, strict=False)]
        _centre(fitted, common)[...] = _centre(w, common)
        return fitted

    def log_det(self, ops: Ops, w: Array, shape: Shape) -> float:
        """log|det T(w)| for images (H, W, channels); for a 1×1 kernel, H W log|det w|. Raises
        UsageError for a shape or a kernel in another order, as that of other libraries."""
        self.output_shape(shape)  # raises for another shape
        if w.shape != self.weight_shape:
            raise UsageError(
                f"the kernel has the shape {w.shape}: "
                f"give it as (kH, kW, I, O), {self.weight_shape}"
            )
        if self.inverse_is_same_map:
            return shape[0] * shape[1] * ops.linalg.log_abs_det(w[0, 0])
        return self._exact_matrix(ops, w, shape).log_det

    def log_det_grad(self, ops: Ops, w: Array, shape: Shape) -> Array:
        """The second term of Eq. 13. For 1×1 kernels: H W w⁻ᵀ."""
        if self.inverse_is_same_map:
            return (shape[0] * shape[1] * ops.linalg.inverse(w[0, 0]).T)[None, None]
        gradient = self._exact_matrix(ops, w, shape).log_det_grad()
        return gradient.astype(w.dtype, order="C")

    def solve(self, ops: Ops, w: Array, z: Array) -> Array:
        if self.inverse_is_same_map:
            return ops.linalg.solve(w[0, 0].T, z.reshape(-1, z.shape[-1])).reshape(
                z.shape
            )
        rows = flat(z).astype(np.float64)
        x = self._exact_matrix(ops, w, z.shape[1:]).solve(rows)
        return x.reshape(z.shape).astype(z.dtype)

    def _exact_matrix(self, ops: Ops, w: Array, shape: Shape) -> BlockLU | Explicit:
        """T(w) for images of this shape, factored by blocks if it is accurate."""
        block = BlockLU.of(ops, w, shape) if self.exact == "block" else None
        return block or Explicit(ops, w, shape)

    @property
    def inverse_is_same_map(self) -> bool:
        """True for a 1×1 kernel: T(w)⁻¹ is then T of w⁻¹."""
        return self.kernel == (1, 1)


@cache
def _multiplicity(kernel: Shape, size: Shape) -> np.ndarray:
    """max(H − |Δh|, 0) · max(W − |Δw|, 0) with the offsets (Δh, Δw) from the kernel's centre."""
    rows, columns = (
        np.maximum(length - np.abs(np.arange(taps) - taps // 2), 0.0)
        for taps, length in zip(kernel, size, strict=True)
    )
    m = np.outer(rows, columns)[:, :, None, None]
    m.flags.writeable = False
    return m


def _centre(array: Array, size: list[int]) -> Array:
    """A view of an array, the central h × w of its first two axes. size: (h, w), odd like these."""
    top, left = ((n - m) // 2 for n, m in zip(array.shape, size, strict=False))
    return array[top : top + size[0], left : left + size[1]]
