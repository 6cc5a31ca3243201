"""Monitors of the learned inverses, at every evaluation of a run.

Derivation: derivations/23-monitors-and-certificates.md and 22-stability.md.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import scipy.linalg

from snfnp.diagnostics import gradient_angles, has_inverse_likelihood
from snfnp.errors import DivergedError
from snfnp.flow import Params
from snfnp.likelihood import TRAINING_NOISE
from snfnp.maps import Conv2d, Map, contraction
from snfnp.ops import Array, Ops, RandomKey
from snfnp.step.trainer import Trainer

# the λσ²_min above which an update is stable near its optimum where R ascends a likelihood; without
# one, every update is
THRESHOLD = 1 / 8
_ENOUGH = 5  # rows per unknown
_FEWEST = 200  # images: pixels of one image are correlated
_DIRECTIONS = 8
_RHO_WARNING = 0.5  # ρ from which on a margin that is crossed is reported


@dataclass(eq=False)
class SmallestSecondMoment:
    """σ²_min, the smallest eigenvalue of E[r rᵀ], r what the weights of one output of a map see:
    samples of a dense map, receptive fields of a convolution.

    The smallest eigenvalue of a sample's own moments is biased far downwards. So 8 directions are
    found on one part of the images and measured on others: up to the sampling error of an 8 × 8
    matrix the result is not below σ²_min, and above it if the directions are not the best.

    images: their count. Each part has 5 rows per unknown, as long as 200 or half of the images are
    left to measure on; both are evenly spread over all images, which may be sorted. O(n D²) and
    once O(D³).
    """

    ops: Ops
    map: Map
    images: int
    # Images that find the directions, and images that measure them.
    counts: tuple[int, int] | None = None
    # Of each part: Σ r rᵀ on the host, and the number of rows.
    sums: list[tuple[Any, int]] = field(default_factory=lambda: [(0.0, 0)] * 2)

    def add(self, x: Array, first: int = 0) -> None:
        """Add inputs.

        Args:
            x: (N, ...), of the layer, on the device, in double precision.
            first: the index of the first one among all images.
        """
        if self.counts is None:
            per_image, unknowns = self._rows(x[:1]).shape
            enough = max(_FEWEST, math.ceil(_ENOUGH * unknowns / per_image))
            held_out = min(_FEWEST, self.images - self.images // 2)
            finding = min(enough, self.images - held_out)
            measuring = min(enough, self.images - finding) if finding else 0
            self.counts = finding, measuring
        finding, measuring = self.counts
        indices = first + np.arange(len(x))
        order, chosen = _spread(indices, finding + measuring, self.images)
        _, finds = _spread(order, finding, max(1, finding + measuring))
        for part, mask in enumerate((chosen & finds, chosen & ~finds)):
            if mask.any():
                rows = self._rows(x[self.ops.asarray(np.flatnonzero(mask))])
                product = self.ops.to_host(self.ops.linalg.matmul(rows.T, rows))
                moments, count = self.sums[part]
                self.sums[part] = moments + product, count + len(rows)

    @property
    def value(self) -> float | None:
        """σ²_min; NaN if inputs are not finite, None if there were no more rows than unknowns."""
        (finding, rows), (measuring, count) = self.sums
        if not count or rows <= len(finding):
            return None
        if not np.isfinite([finding, measuring]).all():
            return math.nan
        smallest = [0, min(_DIRECTIONS, len(finding)) - 1]
        _, directions = scipy.linalg.eigh(finding / rows, subset_by_index=smallest)
        moments = directions.T @ (measuring / count) @ directions
        return max(0.0, float(np.linalg.eigvalsh(moments)[0]))

    def _rows(self, x: Array) -> Array:
        """x (N, ...) as the rows that the weights of one output see."""
        f = self.map
        return self.ops.conv.patches(x, f.kernel) if isinstance(f, Conv2d) else x


def _spread(
    indices: np.ndarray, count: int, total: int
) -> tuple[np.ndarray, np.ndarray]:
    """The number before each of `indices`, and whether one is there, of `count` items that are
    evenly spread over `total` places."""
    before = indices * count // total
    return before, (indices + 1) * count // total > before


# What may be wrong: (a layer's figure, whether it shows that, words, the page that explains it).
_CAUSES = (
    (
        "rho",
        lambda rho, _: rho >= 1,
        "ρ = ‖I − RW‖₂ is at least 1",
        "23-monitors-and-certificates",
    ),
    (
        "margin",
        lambda rho, margin: margin <= THRESHOLD and rho >= _RHO_WARNING,
        "λσ²_min is not above 1/8, where the update is stable, and ρ is at least 1/2",
        "22-stability",
    ),
)


class Monitors:
    """The monitors of a run's linear layers that learn their inverse: `watch` before an evaluation,
    `figures` after it.

    Args:
        images_of: images_of(step): the batch of a step.
        track_angle: batches on which the angles of gradients are measured; 0: none are.
    """

    def __init__(
        self, trainer: Trainer, images_of: Callable[[int], Array], track_angle: int = 0
    ):
        self._trainer = trainer
        self._images_of = images_of
        self._track_angle = track_angle
        # compiling kernels for a CPU would take longer than they save
        self._ops: Ops = trainer.ops if trainer.ops.asynchronous else trainer.ops.host
        self._layers = trainer.flow.learned_inverses()
        self._moments: dict[str, SmallestSecondMoment] = {}
        self._warned: set[tuple[str, str]] = set()

    def watch(self, images: int) -> "Monitors | None":
        """Itself, for `Likelihood.evaluate` to call with every layer's input, or None if no layer
        needs it. images: their number."""
        self._moments = {
            name: SmallestSecondMoment(self._ops, layer.map, images)
            for name, (layer, shape) in self._layers.items()
            # of dense layers and convolutions, the rows that T(w) multiplies are known
            if has_inverse_likelihood(layer.rule)
            and (len(shape) == 1 or isinstance(layer.map, Conv2d))
        }
        return self if self._moments else None

    def __call__(self, name: str, x: Array, first: int) -> None:
        if name in self._moments:
            self._moments[name].add(x, first)

    def figures(self) -> dict[str, dict]:
        """The figures of every layer that learns its inverse, at the trainer's parameters, for a
        line of metrics.

        * rho: a lower bound for ‖I − R W‖₂ (`snfnp.maps.contraction.rho`).
        * margin: λσ²_min, plus μ of Eq. 31, which adds to it in every direction; of rules with a
          threshold of stability (`SmallestSecondMoment`).
        * angle, inverse_angle: degrees between the rule's and the exact gradient of W, and of R if
          it has one, on the next `track_angle` batches (`gradient_angles`).

        Returns:
            {"layers": {layer: its figures}}; {} if no layer learns an inverse.

        Raises:
            DivergedError: one of them is not finite.
        """
        if not self._layers:
            return {}
        ops = self._ops
        lam = self._trainer.multipliers.lam
        # the inputs are in double precision
        flat = self._trainer.p.astype(np.float64, copy=False)
        params = self._trainer.layout.views(flat)
        angles = self._angles(params, lam) if self._track_angle else {}
        layers = {}
        for name, (layer, shape) in self._layers.items():
            f, g = layer.maps
            # 42 products with 8 vectors, on the CPU: no copy from a GPU for each
            w = ops.to_host(params[name]["W"])
            r = ops.to_host(params[name]["R"])
            figures = {"rho": contraction.rho(ops.host, f, g, w, r, shape)}
            smallest = self._moments[name].value if name in self._moments else None
            if smallest is not None:
                figures["margin"] = (
                    lam[name] * smallest + self._trainer.config.jvp_weight
                )
            for key, value in angles.get(name, {}).items():
                if "angle" in key:
                    figures[key] = value
            for figure, value in figures.items():
                if not math.isfinite(value):
                    raise DivergedError(
                        f"layer {name}: {figure} of its weights is not finite"
                    )
            layers[name] = figures
        return {"layers": layers}

    def warnings(self, figures: dict[str, Any]) -> list[str]:
        """A line for each cause, once for each layer. A margin that is crossed is reported if ρ has
        grown to ½ as well: training on few images may cross it at its start and go well."""
        lines = []
        for figure, crossed, cause, page in _CAUSES:
            new = []
            for name, values in figures.get("layers", {}).items():
                is_crossed = crossed(values["rho"], values.get("margin", math.inf))
                if is_crossed and (name, figure) not in self._warned:
                    self._warned.add((name, figure))
                    new.append(f"{values[figure]:.3g} in {name}")
            if new:
                lines.append(
                    f"early warning, not a verdict: {cause}: {', '.join(new)}; if the likelihood "
                    f"suffers, raise `lam` (derivations/{page}.md)"
                )
        return lines

    def _angles(
        self, params: Params, lam: dict[str, float]
    ) -> dict[str, dict[str, float]]:
        """`gradient_angles` on the batches of the next steps."""
        trainer = self._trainer
        ops = self._ops
        seed = trainer.config.seed
        parts = []
        for step in range(trainer.step, trainer.step + self._track_angle):
            noise = RandomKey(seed, TRAINING_NOISE, step)
            x, _ = trainer.flow.preprocessed(
                ops, self._images_of(step), noise, np.float64
            )
            parts.append(x)
        x = ops.xp.concatenate(parts)
        key = RandomKey(seed, 0, trainer.step)
        return gradient_angles(ops, trainer.flow, params, x, lam, key)
