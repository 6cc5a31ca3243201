"""From data to a flow's input, and back. All of it counts in the likelihood of the data as given.

Images: dequantise, scale, logit (Dinh et al. 2016; A.3), or without the logit. Rows of numbers:
standardise, or nothing. On MNIST the log-Jacobians sum to about 272.7 nats (A.3), with α = 1e-6 as
in the authors' code. Derivation: derivations/03-change-of-variables.md.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from snfnp.errors import UsageError, require_real, require_whole
from snfnp.ops import Array, Ops, RandomKey, Shape


class _OfImages:
    """Values in [0, levels) on the way in, uint8 on the way back."""

    noun = "images"
    of_images = True
    levels: int

    def __post_init__(self):
        require_whole(self, 1, levels=self.levels)
        if not 2 <= self.levels <= 256:
            raise UsageError(f"levels is {self.levels}: images have bytes, so 2 to 256")

    @property
    def baseline_bits(self) -> float:
        """Bits per dimension of uniform data."""
        return math.log2(self.levels)

    def _integers(self, ops: Ops, noisy: Array) -> Array:
        """The floor, which removes the noise."""
        return ops.xp.clip(ops.xp.floor(noisy), 0, self.levels - 1).astype(ops.xp.uint8)


@dataclass(frozen=True)
class Preprocess(_OfImages):
    """v = (image + u)/levels, u ~ U[0, 1);  s = α + (1-2α) v;  x = logit(s). O(N D).

    Images (N, ...) hold values in [0, levels). The noise u is a function of `key`.
    """

    alpha: float = 1e-6
    levels: int = 256

    def __post_init__(self):
        super().__post_init__()
        require_real(self, 0, 0.5, alpha=self.alpha)

    def forward(
        self, ops: Ops, images: Array, key: RandomKey, dtype: Any
    ) -> tuple[Array, Array]:
        """images (N, ...) -> x (N, ...) of `dtype`, ldj (N,)."""
        return ops.images.preprocess(images, key, self.alpha, self.levels, dtype)

    def inverse(self, ops: Ops, x: Array) -> Array:
        """The floor of levels · (σ(x) - α)/(1-2α), uint8."""
        x = x.astype(ops.xp.float64)
        e = ops.xp.exp(-abs(x))
        s = ops.xp.where(x >= 0, 1, e) / (1 + e)
        return self._integers(
            ops, self.levels * (s - self.alpha) / (1 - 2 * self.alpha)
        )

    def terms(self, ldj: float, dimension: int) -> dict:
        """Each step's part of ldj, a mean over samples. Adding noise changes no volume."""
        scale = dimension * (math.log1p(-2 * self.alpha) - math.log(self.levels))
        return {"dequantisation": 0.0, "scale": scale, "logit": ldj - scale}


@dataclass(frozen=True)
class Scale(_OfImages):
    """x = (image + u)/levels − 1/2, u ~ U[0, 1) from `key`, as in `Preprocess`. O(N D)."""

    levels: int = 256

    def forward(
        self, ops: Ops, images: Array, key: RandomKey, dtype: Any
    ) -> tuple[Array, Array]:
        noisy = images + ops.random.uniform(key, images.shape, np.float64)
        ldj = -math.prod(images.shape[1:]) * math.log(self.levels)
        return (noisy / self.levels - 0.5).astype(dtype), ops.xp.full(
            len(images), ldj, dtype
        )

    def inverse(self, ops: Ops, x: Array) -> Array:
        return self._integers(ops, self.levels * (x.astype(ops.xp.float64) + 0.5))

    def terms(self, ldj: float, dimension: int) -> dict:
        return {"dequantisation": 0.0, "scale": ldj}


@dataclass(frozen=True)
class Standardise:
    """x = (row + step (u − 1/2) − mean)/spread, u ~ U[0, 1), column by column. O(N D).

    mean, spread: (D,). step: the spacing of columns whose values lie on a lattice; 0 for columns of
    real numbers, which get no noise; () if there are only these. origin: a value of each lattice;
    unit: 10^d if the values of a lattice have d decimals, else 0; least, greatest: the numbers of
    steps from the origin to the ends of each lattice, () if it has none.
    """

    mean: tuple[float, ...] = field(repr=False)
    spread: tuple[float, ...] = field(repr=False)
    step: tuple[float, ...] = ()
    origin: tuple[float, ...] = field(default=(), repr=False)
    unit: tuple[float, ...] = field(default=(), repr=False)
    least: tuple[float, ...] = field(default=(), repr=False)
    greatest: tuple[float, ...] = field(default=(), repr=False)
    noun = "rows"
    of_images = False
    levels = None

    @property
    def moments(self) -> tuple[tuple[float, ...], ...]:
        """The constructor's arguments, without those that stand for none."""
        fields = self.mean, self.spread, self.step, self.origin, self.unit
        return (*fields, self.least, self.greatest)[
            : 7 if self.least else 5 if self.step else 2
        ]

    @property
    def baseline_bits(self) -> float:
        """Bits per dimension of independent Gaussians with these spreads."""
        return (
            float(np.mean(np.log2(self.spread))) + math.log2(2 * math.pi * math.e) / 2
        )

    def forward(
        self, ops: Ops, rows: Array, key: RandomKey, dtype: Any
    ) -> tuple[Array, Array]:
        mean, spread = self._constants(ops, self.mean, self.spread)
        if self.step:
            noise = ops.random.uniform(key, rows.shape, np.float64) - 0.5
            rows = rows + ops.constant(np.array(self.step)) * noise
        ldj = -float(np.log(self.spread).sum())
        return ((rows - mean) / spread).astype(dtype), ops.xp.full(
            len(rows), ldj, dtype
        )

    def inverse(self, ops: Ops, x: Array) -> Array:
        """Rows (N, D), float64; in columns with a step, the nearest value of the lattice between
        its ends."""
        mean, spread = self._constants(ops, self.mean, self.spread)
        return self.rounded(ops, x.astype(ops.xp.float64) * spread + mean)[0]

    def rounded(self, ops: Ops, rows: Array) -> tuple[Array, Array]:
        """Rows (N, D) as `inverse` has them, and whether each was within the lattices' ends, with
        half a step beyond them: (N,)."""
        xp = ops.xp
        within = ops.xp.ones(len(rows), bool)
        if not self.step:
            return rows, within
        step, origin, unit = self._constants(ops, self.step, self.origin, self.unit)
        steps = xp.rint((rows - origin) / xp.where(step > 0, step, 1))
        if self.least:
            ends = self._constants(ops, self.least, self.greatest)
            within = ((steps == xp.clip(steps, *ends)) | (step == 0)).all(axis=1)
            steps = xp.clip(steps, *ends)
        nearest = origin + step * steps
        # 5.1, not 5.1…01
        decimal = xp.rint(nearest * unit) / xp.where(unit > 0, unit, 1)
        return xp.where(step > 0, xp.where(unit > 0, decimal, nearest), rows), within

    def terms(self, ldj: float, dimension: int) -> dict:
        return {**({"dequantisation": 0.0} if self.step else {}), "scale": ldj}

    @staticmethod
    def _constants(ops: Ops, *arrays: tuple[float, ...]) -> list[Array]:
        return [ops.constant(np.array(array)) for array in arrays]


WAYS = ("logit", "scale", "standardise", "none")


def preprocess_by_name(
    name: str | None, shape: Shape, moments: Any = None
) -> Preprocess | Scale | Standardise:
    """The preprocessing of this name, or the default for data of this shape (None).

    moments: the fields of `Standardise` for the training rows.
    """
    of_images = len(shape) == 3
    name = name or ("logit" if of_images else "standardise")
    ways = WAYS[:2] if of_images else WAYS[2:]
    if name not in ways:
        data = "images" if of_images else "rows of numbers"
        raise UsageError(
            f"`preprocess={name}` is not for {data}: choose {' or '.join(ways)}"
        )
    if of_images:
        return Preprocess() if name == "logit" else Scale()
    if name == "none":
        moments = (
            np.zeros(shape),
            np.ones(shape),
            *(() if moments is None else moments[2:]),
        )
    elif moments is None:
        raise UsageError(
            "standardised rows need the mean and spread of the training rows: moments"
        )
    return Standardise(*(tuple(map(float, each)) for each in moments))
