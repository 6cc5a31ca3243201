"""What is looked at in every evaluation beside the likelihood: how the learned inverses are.

Derivation: derivations/23-monitors-and-certificates.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np

from snfnp.diagnostics import SmallestSecondMoment, gradient_angles, gradient_ratios
from snfnp.errors import DivergedError
from snfnp.likelihood import TRAINING_NOISE, Likelihood
from snfnp.maps import contraction
from snfnp.ops import RandomKey
from snfnp.training.trainer import Trainer

_GROWN = 0.5  # ρ from which on a margin that is crossed is reported


class _Watch:
    """Shows layers' inputs to those of {layer: SmallestSecondMoment}."""

    def __init__(self, moments: dict[str, SmallestSecondMoment]):
        self._moments = moments

    def __call__(self, name: str, x) -> None:
        if name in self._moments:
            self._moments[name].add(x)

    def wants_more(self) -> bool:
        return any(each.wants_more for each in self._moments.values())


class Inspection:
    """The monitors of a run's linear layers that learn their inverse.

    `watch` before an evaluation, `figures` after it. images_of(step): see `Clock`.
    """

    def __init__(self, trainer: Trainer, images_of: Callable):
        self._trainer, self._images_of = trainer, images_of
        self._layers = trainer.flow.learned_inverses()
        self._moments: dict[str, SmallestSecondMoment] = {}
        self._warned: set[tuple[str, str]] = set()

    def watch(self, images: int) -> Callable | None:
        """What `Likelihood.evaluate` reports of every layer's input; images: how many it gets."""
        self._moments = {
            name: SmallestSecondMoment(self._trainer.ops, layer.map, images)
            for name, (layer, _) in self._layers.items()
            if layer.rule.stable_above is not None
        }

        return _Watch(self._moments) if self._moments else None

    def figures(self, likelihood: Likelihood) -> dict:
        """{"layers": {layer: its figures}} for a line of metrics; {} where nothing is learned.

        rho: ‖I − R W‖₂ or less, an estimate from below (`contraction.rho`). margin: λσ²_min, and
        what else holds R (`Rule.pull`), where the rule is stable above some value of it
        (`SmallestSecondMoment`). gradient_ratio: that of the gradient of −λE to
        the likelihood's, of W, on the batch of the step that follows (`gradient_ratios`), where λ
        is not 0. angle, inverse_angle: degrees between the rule's and the exact gradient of W, and
        of R where it has one, on as many of the batches that follow as `--track-angle` says
        (`gradient_angles`). Raises DivergedError where one of them is not finite.
        """
        if not self._layers:
            return {}
        ops, params, lam = self._trainer.ops, likelihood.params, self._lam()
        ratios = self._ratios(params, lam)
        angles = self._angles(params, lam)
        found = {}
        for name, (layer, shape) in self._layers.items():
            f, g = layer.maps
            p = params[name]
            own = {"rho": contraction.rho(ops, f, g, p["W"], p["R"], shape)}
            smallest = self._moments[name].value if name in self._moments else None
            if smallest is not None:
                own["margin"] = lam[name] * smallest + layer.rule.pull
            if lam[name]:
                own["gradient_ratio"] = ratios[name]
            own |= angles.get(name, {})
            for figure, value in own.items():
                if not math.isfinite(value):
                    raise DivergedError(f"layer {name}: {figure} of its weights is not finite")
            found[name] = own
        return {"layers": found}

    def warnings(self, record: dict) -> list[str]:
        """A line for each cause that there is to worry about, once for each layer, with what can be
        done about it and the page that says why.

        A margin that is crossed is reported where ρ has grown to ½ as well: it says that errors of
        R may grow, and training on few images may cross it at its start and go well.
        """
        lines = []
        for cause, page, crossed in (
            ("ρ = ‖I − RW‖₂ is at least 1", "23-monitors-and-certificates.md", self._far),
            (
                "λσ²_min is not above {}, where the update is stable, and ρ is at least 1/2",
                "24-stability.md",
                self._unstable,
            ),
        ):
            new = {}
            for name, figures in record.get("layers", {}).items():
                found = crossed(name, figures)
                if found is not None and (name, cause) not in self._warned:
                    self._warned.add((name, cause))
                    new[name] = found
            if new:
                rules = [self._layers[name][0].rule for name in new]
                limits = {rule.stable_above for rule in rules}
                what = cause.format(", ".join(str(Fraction(limit)) for limit in limits if limit))
                where = ", ".join(f"{value:.3g} in {name}" for name, value in new.items())
                weighed = any(rule.has_lambda for rule in rules)
                do = "raise --lambda" if weighed else "sample with --inverse exact"
                lines.append(
                    f"early warning, not a verdict: {what}: {where}; "
                    f"if the likelihood suffers, {do} (derivations/{page})"
                )
        return lines

    def _far(self, name: str, figures: dict) -> float | None:
        return figures["rho"] if figures["rho"] >= 1 else None

    def _unstable(self, name: str, figures: dict) -> float | None:
        limit, margin = self._layers[name][0].rule.stable_above, figures.get("margin")
        crossed = margin is not None and margin <= limit and figures["rho"] >= _GROWN
        return margin if crossed else None

    def _lam(self) -> dict[str, float]:
        trainer = self._trainer
        if trainer.multipliers:
            return {layer: float(lam) for layer, lam in trainer.multipliers.lam.items()}
        return dict.fromkeys(self._layers, float(trainer.lam))

    def _ratios(self, params, lam: dict[str, float]) -> dict[str, float]:
        if not any(lam.values()):
            return {}
        return gradient_ratios(*self._on_batches(1, params, lam))

    def _angles(self, params, lam: dict[str, float]) -> dict[str, dict[str, float]]:
        batches = self._trainer.config.track_angle
        if batches is None:
            return {}
        found = gradient_angles(*self._on_batches(batches, params, lam))
        names = ("angle", "inverse_angle")
        return {
            own.layer: {
                name: getattr(own, name) for name in names if getattr(own, name) is not None
            }
            for own in found
        }

    def _on_batches(self, count: int, params, lam) -> tuple:
        """The arguments of `gradients` for the batches of the next steps, with their noise."""
        trainer, first = self._trainer, self._trainer.step
        seed, parts = trainer.config.seed, []
        for step in range(first, first + count):
            noise = RandomKey(seed, TRAINING_NOISE, step)
            x, _ = trainer.flow.encode(trainer.ops, self._images_of(step), noise, np.float64)
            parts.append(x)
        x, key = trainer.ops.xp.concatenate(parts), RandomKey(seed, 0, first)
        return trainer.ops, trainer.flow, params, x, lam, trainer.states, key
