"""From data to a flow's input, and back. All of it counts in the likelihood of the data as given.

Images: dequantise, scale, logit (Dinh et al. 2016; A.3). Rows of numbers: standardise, or nothing.
On MNIST the log-Jacobians sum to about 272.7 nats (A.3), with α = 1e-6 as in the authors' code.
Derivation: derivations/03-change-of-variables.md.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from snfnp.errors import UsageError, require_real, require_whole
from snfnp.ops import Array, Ops, RandomKey, Shape


@dataclass(frozen=True)
class Preprocess:
    """v = (image + u)/levels, u ~ U[0, 1);  s = α + (1-2α) v;  x = logit(s). O(N D).

    Images (N, ...) hold values in [0, levels). The noise u is a function of `key`.
    """

    alpha: float = 1e-6
    levels: int = 256
    noun = "images"
    of_images = True

    def __post_init__(self):
        require_whole(self, 1, levels=self.levels)
        if not 2 <= self.levels <= 256:
            raise UsageError(f"levels is {self.levels}: images have bytes, so 2 to 256")
        require_real(self, 0.5, alpha=self.alpha)

    @property
    def baseline_bits(self) -> float:
        """Bits per dimension of uniform data."""
        return math.log2(self.levels)

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
        noisy = self.levels * (s - self.alpha) / (1 - 2 * self.alpha)
        floor = ops.xp.clip(ops.xp.floor(noisy), 0, self.levels - 1)
        return floor.astype(ops.xp.uint8)

    def terms(self, ldj: float, dimension: int) -> dict:
        """Each step's part of ldj, a mean over samples. Adding noise changes no volume."""
        scale = dimension * (math.log1p(-2 * self.alpha) - math.log(self.levels))
        return {"dequantisation": 0.0, "scale": scale, "logit": ldj - scale}


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
        return tuple(vars(self).values())[: 7 if self.least else 5 if self.step else 2]

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
        within = xp.ones(len(rows), bool)
        if not self.step:
            return rows, within
        step, origin, unit = self._constants(ops, self.step, self.origin, self.unit)
        steps = xp.rint((rows - origin) / xp.where(step > 0, step, 1))
        if self.least:
            ends = self._constants(ops, self.least, self.greatest)
            clipped = xp.clip(steps, *ends)
            within = ((steps == clipped) | (step == 0)).all(axis=1)
            steps = clipped
        nearest = origin + step * steps
        # 5.1, not 5.1…01
        decimal = xp.rint(nearest * unit) / xp.where(unit > 0, unit, 1)
        return xp.where(step > 0, xp.where(unit > 0, decimal, nearest), rows), within

    def terms(self, ldj: float, dimension: int) -> dict:
        return {**({"dequantisation": 0.0} if self.step else {}), "scale": ldj}

    @staticmethod
    def _constants(ops: Ops, *arrays: tuple[float, ...]) -> list[Array]:
        return [ops.constant(np.array(array)) for array in arrays]


WAYS = ("logit", "standardise", "none")


def preprocess_by_name(
    name: str | None, shape: Shape, moments: Any = None
) -> Preprocess | Standardise:
    """The preprocessing of this name, or the default for data of this shape (None).

    moments: the fields of `Standardise` for the training rows.
    """
    of_images = len(shape) == 3
    if name is not None and (name == "logit") != of_images:
        data = "images" if of_images else "rows of numbers"
        raise UsageError(f"`preprocess={name}` is not for {data}: leave it out")
    if of_images:
        return Preprocess()
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
