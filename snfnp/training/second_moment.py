"""The smallest second moment of a layer's input, which decides whether its update is stable.

Derivation: derivations/23-monitors-and-certificates.md and 24-stability.md.
"""

import math

import numpy as np
import scipy.linalg

from snfnp.diagnostics import has_inverse_likelihood
from snfnp.maps import Conv2d
from snfnp.rules import Rule

THRESHOLD = 1 / 8  # of λσ²_min, above which the update is stable near its optimum
_ENOUGH = 5  # rows per unknown
_FEWEST = 200  # images: pixels of one image are alike
_DIRECTIONS = 8


def stable_above(rule: Rule) -> float | None:
    """The λσ²_min that a rule's update needs to be stable near its optimum, with σ²_min the
    smallest second moment of the layer's input; None: it needs none."""
    return THRESHOLD if has_inverse_likelihood(rule) else None


class SmallestSecondMoment:
    """σ²_min, the smallest eigenvalue of E[r rᵀ], r what the weights of one output of a map see,
    means included: samples of a dense map, receptive fields of a convolution.

    The smallest eigenvalue of a sample's own moments is biased far downwards. So 8 directions are
    found on one part of the images and measured on others: up to the sampling error of an 8 × 8
    matrix the result is not below σ²_min, and above it if the directions are not the best.

    images: their expected count. `add` costs O(n D²) for the first n of them, which find the
    directions: those with 5 rows per unknown, as long as 200 or half of the images are left to
    measure them on, at O(n D); `value` and the change between the two cost O(D³), once each.
    """

    def __init__(self, ops, f, images: int):
        self._ops, self._map, self._images = ops, f, images
        self._to_fit: int | None = None
        self._to_hold = 0
        self._fitted: tuple = (0.0, 0)  # Σ r rᵀ, rows
        self._held: tuple = (0.0, 0)
        self._directions = None

    def add(self, x) -> None:
        """More inputs (N, ...) of the layer, on the device, in double precision."""
        if self._to_fit is None:
            unknowns, per_image = self._rows(x[:1]).shape[::-1]
            enough = max(_FEWEST, math.ceil(_ENOUGH * unknowns / per_image))
            left = min(_FEWEST, self._images - self._images // 2)
            self._to_fit = min(enough, self._images - left)
            self._to_hold = min(enough, self._images - self._to_fit) if self._to_fit else 0
        if self._to_fit:
            part, x = x[: self._to_fit], x[self._to_fit :]
            self._to_fit -= len(part)
            self._fitted = self._added(self._fitted, self._rows(part))
        if not self._to_fit and self._to_hold and len(x):
            if self._directions is None:
                self._directions = self._smallest()
            part = x[: self._to_hold]
            self._to_hold -= len(part)
            along = self._ops.linalg.matmul(self._rows(part), self._directions)
            self._held = self._added(self._held, along)

    @property
    def wants_more(self) -> bool:
        """True if more inputs would be looked at."""
        return self._to_fit is None or self._to_fit + self._to_hold > 0

    @property
    def value(self) -> float | None:
        """σ²_min; NaN if inputs are not finite, None if too few came: it is not identifiable from
        no more rows than unknowns."""
        if not self._held[1] or self._fitted[1] <= len(self._fitted[0]):
            return None
        moments = self._held[0] / self._held[1]
        if not np.isfinite(moments).all():
            return math.nan
        return max(0.0, float(np.linalg.eigvalsh(moments)[0]))

    def _added(self, sums, rows) -> tuple:
        """Σ r rᵀ on the host, and how many rows r it is of, with these rows added."""
        moments = self._ops.to_host(self._ops.linalg.matmul(rows.T, rows))
        return sums[0] + moments, sums[1] + len(rows)

    def _rows(self, x):
        """x (N, ...) as the rows that the weights of one output see."""
        f = self._map
        return self._ops.conv.patches(x, f.kernel) if isinstance(f, Conv2d) else x

    def _smallest(self):
        moments = self._fitted[0] / self._fitted[1]
        count = min(_DIRECTIONS, len(moments))
        if np.isfinite(moments).all():
            _, found = scipy.linalg.eigh(moments, subset_by_index=[0, count - 1])
        else:
            found = np.full((len(moments), count), math.nan)
        return self._ops.asarray(np.ascontiguousarray(found))
