"""Exact evaluations: of the validation data during a run, of the test data at its end; and monitors
of the learned inverses, at every evaluation.

Derivation: derivations/23-monitors-and-certificates.md and 22-stability.md.
"""

import math
import time
from collections.abc import Callable

import numpy as np
import scipy.linalg

from snfnp.data import Dataset
from snfnp.diagnostics import gradient_angles, has_inverse_likelihood
from snfnp.errors import DivergedError
from snfnp.images import evenly_spread
from snfnp.likelihood import TRAINING_NOISE, Evaluation, Likelihood
from snfnp.maps import Conv2d, contraction
from snfnp.ops import Communicator, RandomKey
from snfnp.rules import Rule
from snfnp.training.progress import Record
from snfnp.training.trainer import Trainer

# The noise of every evaluation during and after training, so that epochs and runs compare.
EVALUATION_SEED = 0
_BITS = "validation_bits_per_dimension"
_TOLERATED = 8.0  # bits per dimension, at least, above the worst of a run that learns
THRESHOLD = 1 / 8  # of λσ²_min, above which the update is stable near its optimum
_ENOUGH = 5  # rows per unknown
_FEWEST = 200  # images: pixels of one image are correlated
_DIRECTIONS = 8
_TIMED = 1000  # images, to find out how long an evaluation takes
_RHO_WARNING = 0.5  # ρ from which on a margin that is crossed is reported


def _limit(usual: float) -> float:
    """The bits per dimension of a run that has not exploded."""
    return usual + max(_TOLERATED, abs(usual))


class Evaluator:
    """Evaluates the parameters of a loop's trainer. warnings(figures): the monitors' lines."""

    def __init__(self, loop):
        self._loop, self._trainer, self._config = loop, loop.trainer, loop.trainer.config
        self._monitors = Monitors(loop.trainer, loop.batches.whole)
        self.warnings = self._monitors.warnings
        self._of_images = loop.trainer.flow.preprocess.of_images

    def validate(self, dataset: Dataset) -> dict:
        """The figures of an epoch: the exact validation likelihood, and averages of its steps; of
        rows also the likelihood of as many training rows, since the two together show overfitting.
        Raises DivergedError if any is not finite, or the likelihood has exploded.

        The ranks share the images; rank 0 alone looks at the layers' weights.
        """
        trainer, world = self._trainer, self._trainer.world
        likelihood, images = trainer.likelihood(), dataset.validation
        evaluation = self._evaluate(likelihood, images, self._monitors.watch(len(images)))
        metrics, (step, _, epoch, seconds) = trainer.averages(), self._loop.place
        speed = self._loop.steps_per_second * self._config.batch_size
        figures = {
            "epoch": epoch,
            "step": step,
            "seconds": round(seconds, 3),
            "validation_nll_nats": evaluation.nll,
            **({_BITS: evaluation.bits_per_dimension} if self._of_images else {}),
            **vars(metrics),
            "samples_per_second": round(speed, 1),
            **trainer.figures(),
        }
        for name, value in figures.items():
            if not math.isfinite(value):
                figure = name.removesuffix("_nats").replace("_", " ").replace("nll", "likelihood")
                raise DivergedError(f"the exact {figure} after epoch {epoch} is not finite")
        self._monitors.share(world)
        if world.rank == 0:
            figures |= self._monitors.figures(likelihood)
        if not self._of_images:
            seen = self._evaluate(likelihood, evenly_spread(dataset.train, len(images))).nll
            figures |= {"training_nll_nats": seen} if math.isfinite(seen) else {}
        figures = world.broadcast(figures)
        self._refuse_explosion(evaluation, epoch, images)
        return figures

    def _refuse_explosion(self, evaluation: Evaluation, epoch: int, images) -> None:
        """Raises DivergedError for a likelihood that is finite, but implausibly bad: above twice
        what the data take without a model (8 bits for pixels of 256 values) and twice the best
        evaluation so far, or the start's. 8 bits more are always allowed: rows in small units may
        take fewer than 0."""
        trainer, bits = self._trainer, evaluation.bits_per_dimension
        usual = trainer.flow.preprocess.usual_bits
        if best := self._loop.best:
            usual = max(usual, best.nll / (evaluation.dimension * math.log(2)))
        elif bits > _limit(usual):
            start = trainer.likelihood(trainer.start(self._loop.batches))
            usual = max(usual, self._evaluate(start, images).bits_per_dimension)
        if bits > (limit := _limit(usual)):
            unit, scale = ("bits/dim", 1.0) if self._of_images else ("nats/dim", math.log(2))
            found = f"the exact validation likelihood after epoch {epoch} has exploded"
            most = f"a run that learns has at most {limit * scale:.4g}"
            raise DivergedError(f"{found}: {bits * scale:.4g} {unit} ({most})")

    def warm_up(self, images) -> None:
        """Evaluate some images with the parameters as drawn, if that compiles something; on a GPU
        also the monitors."""
        trainer = self._trainer
        if trainer.ops.device.compiles:
            images = images[: self._config.batch_size]
            likelihood = trainer.likelihood(trainer.drawn())
            self._evaluate(likelihood, images, self._monitors.watch(len(images)))
            if trainer.ops.asynchronous and trainer.world.rank == 0:
                self._monitors.figures(likelihood)

    def seconds(self, images) -> float:
        """About what an evaluation takes, once everything is compiled: of some images with the
        parameters as drawn."""
        trainer, clock = self._trainer, time.perf_counter
        start, drawn = clock(), trainer.drawn()
        likelihood = trainer.likelihood(drawn)
        if trainer.world.rank == 0:
            self._monitors.figures(likelihood)
        once, few = clock() - start, evenly_spread(images, _TIMED)
        start = clock()
        self._evaluate(likelihood, few, self._monitors.watch(len(few)))
        return once + (clock() - start) * len(images) / len(few)

    def describe(self, record: Record) -> str:
        """A record in a line; the best one has a star."""
        bits = f"= {record.bits_per_dimension:.4f} bits/dim " if self._of_images else ""
        return (
            f"epoch {record.epoch:4d}/{self._config.epochs}  "
            f"exact validation NLL {record.nll:8.2f} nats {bits}{'*' if record.best else ' '} | "
            f"surrogate {record.surrogate:.1f}, reconstruction {record.reconstruction:.2e}, "
            f"|grad| {record.gradient_norm:.1f}, "
            f"{record.figures['samples_per_second']:.0f} samples/s"
        )

    def test(self, p, images) -> Evaluation:
        """The evaluation of test images at parameters p, a flat host array."""
        trainer = self._trainer
        evaluation = self._evaluate(trainer.likelihood(trainer.ops.asarray(p)), images)
        if not math.isfinite(evaluation.nll):
            raise DivergedError("the exact test likelihood at the best epoch is not finite")
        return evaluation

    def _evaluate(self, likelihood: Likelihood, images, watch=None) -> Evaluation:
        # Users low on memory make batches smaller: evaluation, in double precision but without
        # gradients, follows them.
        at_once, world = 10 * self._config.batch_size, self._trainer.world
        how = {"at_once": at_once, "watch": watch, "world": world}
        return likelihood.evaluate(images, EVALUATION_SEED, **how)


def stable_above(rule: Rule) -> float | None:
    """The λσ²_min above which a rule's update is stable near its optimum; None: it always is."""
    return THRESHOLD if has_inverse_likelihood(rule) else None


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

    def __init__(self, ops, f, images: int):
        self._ops, self._map, self._images = ops, f, images
        # of each part, the images that find the directions and those that measure them: their
        # count, Σ r rᵀ on the host, and the number of rows
        self._counts: tuple[int, int] | None = None
        self.sums: list[tuple] = [(0.0, 0), (0.0, 0)]

    def add(self, x, first: int = 0) -> None:
        """Inputs (N, ...) of the layer, on the device, in double precision; first: the place of
        the first one among all images."""
        if self._counts is None:
            unknowns, per_image = self._rows(x[:1]).shape[::-1]
            enough = max(_FEWEST, math.ceil(_ENOUGH * unknowns / per_image))
            held_out = min(_FEWEST, self._images - self._images // 2)
            finding = min(enough, self._images - held_out)
            self._counts = finding, min(enough, self._images - finding) if finding else 0
        finding, measuring = self._counts
        order, chosen = _spread(first + np.arange(len(x)), finding + measuring, self._images)
        _, finds = _spread(order, finding, max(1, finding + measuring))
        for part, which in enumerate((chosen & finds, chosen & ~finds)):
            if which.any():
                self._add(part, self._rows(x[self._ops.asarray(np.flatnonzero(which))]))

    @property
    def value(self) -> float | None:
        """σ²_min; NaN if inputs are not finite, None if there were no more rows than unknowns."""
        (found, rows), (measured, count) = self.sums
        if not count or rows <= len(found):
            return None
        if not (np.isfinite(found).all() and np.isfinite(measured).all()):
            return math.nan
        least = [0, min(_DIRECTIONS, len(found)) - 1]
        _, directions = scipy.linalg.eigh(found / rows, subset_by_index=least)
        moments = directions.T @ (measured / count) @ directions
        return max(0.0, float(np.linalg.eigvalsh(moments)[0]))

    def _add(self, part: int, rows) -> None:
        ops, (moments, count) = self._ops, self.sums[part]
        moments = moments + ops.to_host(ops.linalg.matmul(rows.T, rows))
        self.sums[part] = moments, count + len(rows)

    def _rows(self, x):
        """x (N, ...) as the rows that the weights of one output see."""
        f = self._map
        return self._ops.conv.patches(x, f.kernel) if isinstance(f, Conv2d) else x


def _spread(places, count: int, total: int) -> tuple[np.ndarray, np.ndarray]:
    """The number of `count` items, evenly spread over `total` places, that stand before each of
    `places`, and whether one stands there."""
    before = places * count // total
    return before, (places + 1) * count // total > before


# What may be wrong: (a layer's figure, whether it shows that, words, the page that explains it).
_CAUSES = (
    ("rho", lambda rho, _: rho >= 1, "ρ = ‖I − RW‖₂ is at least 1", "23-monitors-and-certificates"),
    (
        "margin",
        lambda rho, margin: margin <= THRESHOLD and rho >= _RHO_WARNING,
        "λσ²_min is not above 1/8, where the update is stable, and ρ is at least 1/2",
        "22-stability",
    ),
)


class Monitors:
    """The monitors of a run's linear layers that learn their inverse: `watch` before an evaluation,
    `share` and `figures` after it. images_of(step): of all ranks."""

    def __init__(self, trainer: Trainer, images_of: Callable):
        self._trainer, self._images_of, ops = trainer, images_of, trainer.ops
        # compiling kernels for a CPU would take longer than they save
        self._ops = ops if ops.asynchronous else ops.host
        self._layers = trainer.flow.learned_inverses()
        self._moments: dict[str, SmallestSecondMoment] = {}
        self._warned: set[tuple[str, str]] = set()

    def watch(self, images: int) -> Callable | None:
        """Itself, for `Likelihood.evaluate` to call with every layer's input, or None if no layer
        needs it. images: their number."""
        self._moments = {
            name: SmallestSecondMoment(self._ops, layer.map, images)
            for name, (layer, shape) in self._layers.items()
            if stable_above(layer.rule) is not None
            and (len(shape) == 1 or isinstance(layer.map, Conv2d))  # whose rows are known
        }
        return self if self._moments else None

    def __call__(self, name: str, x, first: int) -> None:
        if name in self._moments:
            self._moments[name].add(x, first)

    def share(self, world: Communicator) -> None:
        """Add the sums of all ranks, each of which has watched its images."""
        if world.size == 1:
            return
        for moments in self._moments.values():
            of_ranks = zip(*world.gather(moments.sums), strict=True)
            moments.sums = [tuple(map(sum, zip(*part, strict=True))) for part in of_ranks]

    def figures(self, likelihood: Likelihood) -> dict:
        """{"layers": {layer: its figures}} for a line of metrics; {} if no layer learns an inverse.

        * rho: a lower bound for ‖I − R W‖₂ (`snfnp.maps.contraction.rho`).
        * margin: λσ²_min, plus μ of Eq. 31, which adds to it in every direction; of rules with a
          threshold of stability (`SmallestSecondMoment`).
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
        batches = self._trainer.config.track_angle
        angles = gradient_angles(*self._on_batches(batches, params, lam)) if batches else {}
        host, layers = ops.host, {}
        for name, (layer, shape) in self._layers.items():
            f, g = layer.maps
            # 42 products with 8 vectors, on the CPU: no copy from a GPU for each
            w, r = (ops.to_host(params[name][key]) for key in ("W", "R"))
            figures = {"rho": contraction.rho(host, f, g, w, r, shape)}
            smallest = self._moments[name].value if name in self._moments else None
            if smallest is not None:
                figures["margin"] = lam[name] * smallest + self._trainer.config.jvp_weight
            figures |= {k: v for k, v in angles.get(name, {}).items() if "angle" in k}
            for figure, value in figures.items():
                if not math.isfinite(value):
                    raise DivergedError(f"layer {name}: {figure} of its weights is not finite")
            layers[name] = figures
        return {"layers": layers}

    def warnings(self, figures: dict) -> list[str]:
        """A line for each cause, once for each layer. A margin that is crossed is reported if ρ has
        grown to ½ as well: training on few images may cross it at its start and go well."""
        lines = []
        for figure, crossed, cause, page in _CAUSES:
            new = []
            for name, own in figures.get("layers", {}).items():
                found = crossed(own["rho"], own.get("margin", math.inf))
                if found and (name, figure) not in self._warned:
                    self._warned.add((name, figure))
                    new.append(f"{own[figure]:.3g} in {name}")
            if layers := ", ".join(new):
                do = f"if the likelihood suffers, raise `lam` (derivations/{page}.md)"
                lines.append(f"early warning, not a verdict: {cause}: {layers}; {do}")
        return lines

    def _on_batches(self, count: int, params, lam) -> tuple:
        """The arguments of `gradients` for the batches of the next steps."""
        trainer, ops, first = self._trainer, self._ops, self._trainer.step
        seed, parts = trainer.config.seed, []
        for step in range(first, first + count):
            noise = RandomKey(seed, TRAINING_NOISE, step)
            x, _ = trainer.flow.preprocessed(ops, self._images_of(step), noise, np.float64)
            parts.append(x)
        x, key = ops.xp.concatenate(parts), RandomKey(seed, 0, first)
        return ops, trainer.flow, params, x, lam, key
