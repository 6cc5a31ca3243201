"""The progress of a training: records for callbacks, compilations, a progress bar."""

import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass, field, fields
from typing import Any

from tqdm.auto import tqdm  # a notebook's own bar, too

_SHOW_EVERY = 0.25  # seconds between updates of the figures
_LINE_EVERY = 60.0  # the same where there is no bar: lines of a log file
_REPORTED_FROM = 0.5  # seconds of compilation


@dataclass(frozen=True)
class Record:
    """The state of a run in training, for callbacks: at an exact evaluation, or between two.

    Attributes:
        step, epoch: done; steps: in all; seconds: spent on them.
        surrogate, reconstruction, gradient_norm: as `StepMetrics`: averages since the last
            evaluation, or between evaluations those of the last step.
        nll: the exact validation NLL in nats per sample; None between evaluations.
        bits_per_dimension: the same in bits, of images; else None.
        best: whether no evaluation before was better.
        figures: all that was evaluated: the line of metrics.jsonl.
        likelihood: the flow as it is (`snfnp.Likelihood`); None between evaluations.
    """

    step: int
    steps: int
    epoch: int
    seconds: float
    surrogate: float
    reconstruction: float
    gradient_norm: float
    nll: float | None = None
    bits_per_dimension: float | None = None
    best: bool = False
    figures: dict = field(default_factory=dict, repr=False)
    likelihood: Any = field(default=None, repr=False)

    @classmethod
    def of(cls, line: dict, steps: int):
        """The record of an evaluation, from its line of metrics.jsonl."""
        known = {entry.name: line[entry.name] for entry in fields(cls) if entry.name in line}
        bits = line.get("validation_bits_per_dimension")
        exact = {"nll": line["validation_nll_nats"], "bits_per_dimension": bits}
        return cls(steps=steps, **known, **exact, figures=line)


Callbacks = Iterable[Callable[[Record], Any]] | None


def silent(what) -> None:
    """Report nothing."""


def progress_bar(disable: bool | None, **options) -> tqdm:
    """A progress bar on standard error, as wide as the terminal; none if that is closed, as without
    a console. options: of `tqdm`."""
    closed = sys.stderr is None or getattr(sys.stderr, "closed", False)
    return tqdm(disable=closed or disable, dynamic_ncols=True, **options)


@contextmanager
def compilations_shown(ops, report: Callable[[str], None] = lambda line: None) -> Iterator[None]:
    """A context that reports the kernels compiled in it: a line before and one after, and in a
    terminal a moving one between."""
    kernels, seconds, begun = 0, 0.0, 0.0
    line: tqdm | None = None

    def begins() -> None:
        nonlocal begun
        begun = time.perf_counter()

    def ends(count: int) -> None:
        nonlocal kernels, seconds, line
        kernels, seconds = kernels + count, seconds + time.perf_counter() - begun
        if line is None and seconds > _REPORTED_FROM:
            report("compiling kernels, which later runs find ready; Ctrl-C loses nothing")
            hidden = report is silent or None
            line = progress_bar(bar_format="{desc}", disable=hidden, leave=False)
        if line is not None:
            line.set_description_str(f"{kernels} kernels, {seconds:.0f} s")

    with ops.device.compilations(begins, ends):
        yield
    if line is not None:
        line.close()
        report(f"compiled {kernels} kernels in {seconds:.0f} s")


class ProgressLine:
    """A run's progress bar, in samples, with the last step's figures, on rank 0 alone. Where the
    output is neither a terminal nor a notebook, `report` gets a line every minute instead."""

    def __init__(self, loop, report: Callable[[str], None]):
        self._loop, self._report, trainer = loop, report, loop.trainer
        self.bar = progress_bar(
            total=loop.steps * trainer.config.batch_size,
            initial=trainer.step * trainer.config.batch_size,
            unit="img" if trainer.flow.preprocess.of_images else "row",
            unit_scale=True,
            disable=report is silent or None,  # None: no bar if the output is not a terminal
        )
        self._shown = math.inf if trainer.world.rank else time.perf_counter()

    def due(self) -> bool:
        """True if it is time to show the figures of a step: that waits for the device."""
        every = _LINE_EVERY if self.bar.disable else _SHOW_EVERY
        return time.perf_counter() - self._shown >= every

    def clear(self) -> None:
        """Make room for another line."""
        self.bar.clear()
        self._shown = max(self._shown, time.perf_counter())

    def show(self) -> Record | None:
        """Show the figures of the last step, and return them; None on other ranks, which wait for
        it, too. Raises DivergedError if it failed."""
        loop, trainer = self._loop, self._loop.trainer
        loop.synchronise()
        if trainer.world.rank:
            return None
        self._shown = time.perf_counter()
        metrics, lam = trainer.metrics(), ""
        if trainer.config.controller:
            lams = trainer.multipliers.lam.values()
            lam = f"λ {min(lams):.2g} to {max(lams):.2g}, "
        figures = f"surrogate {metrics.surrogate:.1f}, recon {metrics.reconstruction:.2e}, "
        figures += f"{lam}|grad| {metrics.gradient_norm:.1f}"
        self.bar.set_postfix_str(figures)
        if self.bar.disable:
            speed = loop.steps_per_second
            left = f"{(loop.steps - trainer.step) / speed / 60:.1f} minutes of steps left"
            at = f"step {trainer.step} of {loop.steps}, {left} at {speed:.3g} a second"
            self._report(f"{at}: {figures}")
        return Record(*loop.place, *astuple(metrics))
