"""The monitors of the learned inverses, at every evaluation.

Derivation: derivations/23-monitors-and-certificates.md.
"""

import math
from collections.abc import Callable

import numpy as np

from snfnp.diagnostics import gradient_angles, gradients
from snfnp.errors import DivergedError
from snfnp.flow import Flow
from snfnp.likelihood import TRAINING_NOISE, Likelihood
from snfnp.maps import contraction
from snfnp.ops import RandomKey
from snfnp.training.second_moment import THRESHOLD, SmallestSecondMoment, stable_above
from snfnp.training.trainer import Trainer

_RHO_WARNING = 0.5  # ρ from which on a margin that is crossed is reported


def gradient_ratios(ops, flow: Flow, params, x, lam, key=None) -> dict[str, float]:
    """{layer: ‖gradient of −λE‖ / ‖gradient of the likelihood‖}, both of W, on inputs x.

    Of every layer that learns its inverse; 0 if λ is 0. The arguments are those of `gradients`.
    Costs two backward passes: O(N D²) for dense layers.
    """
    without, whole = gradients(ops, flow, params, x, (None, lam), key)
    ratios = {}
    for name in flow.learned_inverses():
        likelihood, both = without[name]["W"], whole[name]["W"]
        of_error, of_likelihood = ops.linalg.norms(both - likelihood, likelihood)
        ratios[name] = of_error / of_likelihood if of_likelihood else math.inf
    return ratios


def _far(figures: dict) -> float | None:
    return figures["rho"] if figures["rho"] >= 1 else None


def _unstable(figures: dict) -> float | None:
    margin = figures.get("margin", math.inf)
    return margin if margin <= THRESHOLD and figures["rho"] >= _RHO_WARNING else None


# (what is wrong, the page that explains it, the figure that shows it in a layer's)
_CAUSES = (
    ("ρ = ‖I − RW‖₂ is at least 1", "23-monitors-and-certificates.md", _far),
    (
        "λσ²_min is not above 1/8, where the update is stable, and ρ is at least 1/2",
        "24-stability.md",
        _unstable,
    ),
)


class Monitors:
    """The monitors of a run's linear layers that learn their inverse.

    `watch` before an evaluation, `figures` after it. images_of(step): of all ranks.
    """

    def __init__(self, trainer: Trainer, images_of: Callable):
        self._trainer, self._images_of, self._ops = trainer, images_of, trainer.ops.definitions
        self._layers = trainer.flow.learned_inverses()
        self._moments: dict[str, SmallestSecondMoment] = {}
        self._warned: set[tuple[str, str]] = set()

    def watch(self, images: int) -> Callable | None:
        """Itself, for `Likelihood.evaluate` to call with every layer's input, or None if no layer
        asks for it. images: the number that it will get."""
        self._moments = {
            name: SmallestSecondMoment(self._ops, layer.map, images)
            for name, (layer, _) in self._layers.items()
            if stable_above(layer.rule) is not None
        }
        return self if self._moments else None

    def __call__(self, name: str, x) -> None:
        if name in self._moments:
            self._moments[name].add(x)

    def wants_more(self) -> bool:
        """True if more inputs would be looked at."""
        return any(each.wants_more for each in self._moments.values())

    def figures(self, likelihood: Likelihood) -> dict:
        """{"layers": {layer: its figures}} for a line of metrics; {} if no layer learns an inverse.

        * rho: ‖I − R W‖₂ or less, an estimate from below (`snfnp.maps.contraction.rho`).
        * margin: λσ²_min, plus μ of Eq. 31, which adds to it in every direction; of rules with a
          threshold of stability (`SmallestSecondMoment`).
        * gradient_ratio: the gradient of −λE to the likelihood's, of W, on the next step's batch
          (`gradient_ratios`), if λ is not 0.
        * angle, inverse_angle: degrees between the rule's and the exact gradient of W, and of R if
          it has one, on the next `track_angle` batches (`gradient_angles`).

        Raises DivergedError if one of them is not finite.
        """
        if not self._layers:
            return {}
        ops, lam = self._ops, self._trainer.multipliers.lam
        params = {  # in double precision, as the inputs
            name: {k: value.astype(np.float64, copy=False) for k, value in own.items()}
            for name, own in likelihood.params.items()
        }
        ratios = gradient_ratios(*self._on_batches(1, params, lam)) if any(lam.values()) else {}
        angles = self._angles(params, lam)
        layers = {}
        for name, (layer, shape) in self._layers.items():
            f, g = layer.maps
            p = params[name]
            figures = {"rho": contraction.rho(ops, f, g, p["W"], p["R"], shape)}
            smallest = self._moments[name].value if name in self._moments else None
            if smallest is not None:
                figures["margin"] = lam[name] * smallest + self._trainer.config.jvp_weight
            if lam[name]:
                figures["gradient_ratio"] = ratios[name]
            figures |= angles.get(name, {})
            for figure, value in figures.items():
                if not math.isfinite(value):
                    raise DivergedError(f"layer {name}: {figure} of its weights is not finite")
            layers[name] = figures
        return {"layers": layers}

    def warnings(self, figures: dict) -> list[str]:
        """A line for each cause, once for each layer, with a remedy and the page that explains it.

        A margin that is crossed is reported if ρ has grown to ½ as well: it says that errors of
        R may grow, and training on few images may cross it at its start and go well.
        """
        lines = []
        for cause, page, crossed in _CAUSES:
            found = {name: crossed(own) for name, own in figures.get("layers", {}).items()}
            new = {
                k: v for k, v in found.items() if v is not None and (k, cause) not in self._warned
            }
            self._warned.update((name, cause) for name in new)
            if new:
                layers = ", ".join(f"{value:.3g} in {name}" for name, value in new.items())
                do = f"if the likelihood suffers, raise `lam` (derivations/{page})"
                lines.append(f"early warning, not a verdict: {cause}: {layers}; {do}")
        return lines

    def _angles(self, params, lam: dict[str, float]) -> dict[str, dict[str, float]]:
        batches = self._trainer.config.track_angle
        if batches is None:
            return {}
        return {
            row.layer: {"angle": row.angle}
            | ({} if row.inverse_angle is None else {"inverse_angle": row.inverse_angle})
            for row in gradient_angles(*self._on_batches(batches, params, lam))
        }

    def _on_batches(self, count: int, params, lam) -> tuple:
        """The arguments of `gradients` for the batches of the next steps, with their noise."""
        trainer, ops, first = self._trainer, self._ops, self._trainer.step
        seed, parts = trainer.config.seed, []
        for step in range(first, first + count):
            noise = RandomKey(seed, TRAINING_NOISE, step)
            x, _ = trainer.flow.preprocessed(ops, self._images_of(step), noise, np.float64)
            parts.append(x)
        x, key = ops.xp.concatenate(parts), RandomKey(seed, 0, first)
        return ops, trainer.flow, params, x, lam, key
