"""The progress that training prints, and the time that its steps take."""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass, field, fields
from typing import Any

from tqdm.auto import tqdm  # a notebook's own bar, too

from snfnp.training.trainer import Trainer

_SHOW_EVERY = 0.25  # seconds between updates of the figures
_LINE_EVERY = 60.0  # the same where there is no bar: lines of a log file
_MOMENT = 0.5  # seconds of compilation that are not worth a word


@dataclass(frozen=True)
class Record:
    """A look at a run in training, for callbacks: an exact evaluation, or a step between two.

    step, epoch: done, of `steps`; seconds: spent on them; surrogate: nats, no likelihood;
    reconstruction: Σ_k of Eq. 3; gradient_norm: before clipping; these three of the last step, or
    averages since the last evaluation. Of an evaluation alone: nats, the exact validation NLL per
    sample; bits_per_dimension: the same, of images; best: whether none was better; figures: its
    line of metrics.jsonl; likelihood: the flow as it is (`snfnp.Likelihood`).
    """

    step: int
    steps: int
    epoch: int
    seconds: float
    surrogate: float
    reconstruction: float
    gradient_norm: float
    nats: float | None = None
    bits_per_dimension: float | None = None
    best: bool = False
    figures: dict = field(default_factory=dict, repr=False)
    likelihood: Any = field(default=None, repr=False)

    @classmethod
    def of(cls, line: dict, steps: int, best: bool):
        """The record of an evaluation, from its line of metrics.jsonl."""
        known = {entry.name: line[entry.name] for entry in fields(cls) if entry.name in line}
        bits = line.get("validation_bits_per_dimension")
        exact = {"nats": line["validation_nll_nats"], "bits_per_dimension": bits}
        return cls(steps=steps, best=best, **known, **exact, figures=dict(line))


Callbacks = Iterable[Callable[[Record], Any]]


def silent(what) -> None:
    """Drop a line that is not asked for, or a record that rank 0 reports already."""


@contextmanager
def compilations_shown(ops, report: Callable[[str], None] = lambda line: None) -> Iterator[None]:
    """A context that says so if kernels are compiled in it, on a line that moves if the output is a
    terminal: no step of training takes that time. report: gets a line before and one after."""
    kernels, seconds, begun = 0, 0.0, 0.0
    line: tqdm | None = None

    def begins() -> None:
        nonlocal begun
        begun = time.perf_counter()

    def ends(count: int) -> None:
        nonlocal kernels, seconds, line
        kernels, seconds = kernels + count, seconds + time.perf_counter() - begun
        if line is None and seconds > _MOMENT:
            report("compiling kernels, which later runs find ready; Ctrl-C loses nothing")
            hidden = report is silent or None
            line = tqdm(bar_format="{desc}", disable=hidden, dynamic_ncols=True, leave=False)
        if line is not None:
            line.set_description_str(f"{kernels} kernels, {seconds:.0f} s")

    with ops.device.compilations(begins, ends):
        yield
    if line is not None:
        line.close()
        report(f"compiled {kernels} kernels in {seconds:.0f} s")


class Clock:
    """Seconds spent on training steps alone, of a trainer with these batches, from `start` on."""

    def __init__(self, trainer: Trainer, batches):
        self.seconds = 0.0
        self._trainer, self._batches = trainer, batches
        self._counted: float | None = None  # up to when `seconds` is, while the clock runs
        self._since = (0, 0.0)  # step and seconds at the start

    def start(self) -> None:
        self._counted = time.perf_counter()
        self._since = (self._trainer.step, self.seconds)

    def settle(self) -> None:
        """Wait for all steps and count their time. Raises DivergedError if one failed."""
        self._trainer.check(self._batches)
        if self._counted is not None:
            now = time.perf_counter()
            self.seconds += now - self._counted
            self._counted = now

    @contextmanager
    def paused(self) -> Iterator[None]:
        """A context whose time does not count."""
        self.settle()
        running, self._counted = self._counted is not None, None
        yield
        if running:
            self._counted = time.perf_counter()

    @property
    def steps_per_second(self) -> float:
        """The speed of the steps that were counted since the start."""
        step, seconds = self._since
        resolution = time.get_clock_info("perf_counter").resolution  # a clock may stand still
        return (self._trainer.step - step) / max(self.seconds - seconds, resolution)


class ProgressLine:
    """The progress bar, in units of images, with the last step's figures: on rank 0 alone. Where
    the output is neither a terminal nor a notebook, a line of them every minute: report gets it.
    If that is `silent`, nothing is shown."""

    def __init__(self, trainer: Trainer, clock: Clock, steps: int, report):
        self._trainer, self._clock, self._steps, self._report = trainer, clock, steps, report
        self.bar = tqdm(
            total=steps * trainer.config.batch_size,
            initial=trainer.step * trainer.config.batch_size,
            unit="img" if trainer.flow.preprocess.of_images else "row",
            unit_scale=True,
            disable=report is silent or None,  # None: no bar if the output is not a terminal
            dynamic_ncols=True,
        )
        self._shown = math.inf if trainer.world.rank else time.perf_counter()

    def due(self) -> bool:
        """Say whether it is time to show the figures of a step: a look waits for the device."""
        every = _LINE_EVERY if self.bar.disable else _SHOW_EVERY
        return time.perf_counter() - self._shown >= every

    def clear(self) -> None:
        """Make room for another line: the next one of a log file is a minute off."""
        self.bar.clear()
        self._shown = max(self._shown, time.perf_counter())

    def show(self, place: tuple) -> Record | None:
        """Show the figures of the last step, and return them; None on other ranks. All of them wait
        for it; raises DivergedError if it failed. place: see `Loop.place`."""
        self._clock.settle()
        if self._trainer.world.rank:
            return None
        self._shown = time.perf_counter()
        metrics, lam = self._trainer.metrics(), ""
        if self._trainer.config.controller:
            lams = self._trainer.multipliers.lam.values()
            lam = f"λ {min(lams):.2g} to {max(lams):.2g}, "
        figures = f"surrogate {metrics.surrogate:.1f}, recon {metrics.reconstruction:.2e}, "
        figures += f"{lam}|grad| {metrics.gradient_norm:.1f}"
        self.bar.set_postfix_str(figures)
        if self.bar.disable:
            step, speed = self._trainer.step, self._clock.steps_per_second
            left = f"{(self._steps - step) / speed / 60:.1f} minutes of steps left"
            self._report(f"step {step} of {self._steps}, {left} at {speed:.3g} a second: {figures}")
        return Record(*place[:3], self._clock.seconds, *astuple(metrics))
