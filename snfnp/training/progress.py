"""The progress of a training, records for callbacks, compilations, and a progress bar."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any

from tqdm.auto import tqdm  # a notebook's own bar, too

from snfnp.errors import Report
from snfnp.files import Json
from snfnp.flow import Flow
from snfnp.layers import Linear
from snfnp.likelihood import Likelihood
from snfnp.ops import Ops
from snfnp.step.trainer import Trainer
from snfnp.training.options import TrainConfig

_SHOW_EVERY = 0.25  # seconds between updates of the figures
_LINE_EVERY = 60.0  # the same where there is no bar: lines of a log file
_REPORTED_FROM = 0.5  # seconds of compilation
_COMPILING_EVERY = 15.0  # the same between lines


@dataclass(frozen=True)
class Record:
    """The state of a run in training, for callbacks: at an exact evaluation, or between two.

    Attributes:
        step, epoch: done; steps: in all; seconds: spent on them.
        surrogate, reconstruction, gradient_norm: as in `StepMetrics`; at an evaluation averages of
            the steps since the one before, between evaluations the figures of the last step.
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
    figures: Json = field(default_factory=dict, repr=False)
    likelihood: Likelihood | None = field(default=None, repr=False)

    @classmethod
    def of(cls, line: Json, steps: int) -> "Record":
        """The record of an evaluation, from its line of metrics.jsonl."""
        known = {
            entry.name: line[entry.name] for entry in fields(cls) if entry.name in line
        }
        return cls(
            steps=steps,
            **known,
            nll=line["validation_nll_nats"],
            bits_per_dimension=line.get("validation_bits_per_dimension"),
            figures=line,
        )


Callbacks = Iterable[Callable[[Record], Any]] | None


@dataclass
class Progress:
    """The progress of a run, which its loop changes, and its checkpoints where it is resumed.

    Attributes:
        steps, steps_per_epoch: of the whole run.
        step: steps done; seconds: spent on them.
        best: the record of the best evaluation, or None; worse: the evaluations since.
        timed_from: step and seconds at the last evaluation.
    """

    steps: int
    steps_per_epoch: int
    step: int = 0
    seconds: float = 0.0
    best: Record | None = None
    worse: int = 0
    timed_from: tuple[int, float] = (0, 0.0)

    @property
    def epoch(self) -> int:
        """Whole epochs done."""
        return self.step // self.steps_per_epoch

    @property
    def steps_per_second(self) -> float:
        """The speed of the steps since the last evaluation."""
        step, seconds = self.timed_from
        # no division by 0 where the clock did not advance
        return (self.step - step) / max(self.seconds - seconds, 1e-9)


def silent(line: str) -> None:
    """Report nothing."""


def progress_bar(disable: bool | None, **options: Any) -> tqdm:
    """A progress bar on standard error, as wide as the terminal; none if that is closed, as without
    a console. options: of `tqdm`."""
    closed = sys.stderr is None or getattr(sys.stderr, "closed", False)
    return tqdm(disable=closed or disable, dynamic_ncols=True, **options)


@contextmanager
def compilations_shown(ops: Ops, report: Report) -> Iterator[None]:
    """A context that reports the kernels that are compiled in it, if that takes more than half a
    second: a line then, one every 15 seconds, and one at the end."""
    kernels = 0
    seconds = begun = 0.0
    reported_at: float | None = None  # seconds at the last line

    def on_start():
        nonlocal begun
        begun = time.perf_counter()

    def on_end(count):
        nonlocal kernels, seconds, reported_at
        kernels += count
        seconds += time.perf_counter() - begun
        if reported_at is None and seconds > _REPORTED_FROM:
            reported_at = 0.0
            report("compiling kernels (cached for later runs; safe to interrupt)")
        if reported_at is not None and seconds - reported_at > _COMPILING_EVERY:
            reported_at = seconds
            report(
                f"compiling: {kernels} kernel{'s' * (kernels > 1)}, {seconds:.0f} s so far"
            )

    with ops.device.compilations(on_start, on_end):
        yield
    if reported_at is not None:
        report(f"compiled {kernels} kernel{'s' * (kernels > 1)} in {seconds:.0f} s")


def decimals(of_images: bool) -> int:
    """The decimals with which a run's lines show an NLL in nats: more for rows of numbers, whose
    NLL is small."""
    return 2 if of_images else 4


def gradient_of(config: TrainConfig, flow: Flow) -> str:
    """The gradient of a flow's linear layers in words: that of the options, if a layer has it or
    none is linear, and the other rules of layers, which a user's own flow may have."""
    usual = repr(config.rule)
    rules = {repr(layer.rule) for _, layer in flow.layers if isinstance(layer, Linear)}
    words = [f"gradient by {rule[:60]}" for rule in sorted(rules - {usual})]
    if usual in rules or not words:
        learns = config.rule.learns_inverse
        detail = f" ({config.objective}, λ = {config.lam:g})" if learns else ""
        words.insert(0, f"{config.gradient} gradient{detail}")
    return ", ".join(words)


class ProgressLine:
    """A run's progress bar, in samples, with the last step's figures. Where the output is neither a
    terminal nor a notebook, `report` gets a line every minute instead."""

    def __init__(self, trainer: Trainer, progress: Progress, report: Report):
        self._trainer = trainer
        self._report = report
        self.bar = progress_bar(
            total=progress.steps * trainer.config.batch_size,
            initial=progress.step * trainer.config.batch_size,
            unit="img" if trainer.flow.preprocess.of_images else "row",
            unit_scale=True,
            # None: no bar if the output is not a terminal
            disable=report is silent or None,
        )
        self._shown = time.perf_counter()  # the time of the last figures

    def due(self) -> bool:
        """True if it is time to show the figures of a step: that waits for the device."""
        every = _LINE_EVERY if self.bar.disable else _SHOW_EVERY
        return time.perf_counter() - self._shown >= every

    def clear(self) -> None:
        """Make room for another line."""
        self.bar.clear()
        self._shown = time.perf_counter()

    def show(self, progress: Progress) -> Record:
        """Show the figures of the last step and return them. The caller has waited for the step."""
        trainer = self._trainer
        self._shown = time.perf_counter()
        metrics = trainer.metrics()
        lam = ""
        if trainer.config.controller:
            values = trainer.multipliers.lam.values()
            lam = f"λ {min(values):.2g} to {max(values):.2g}, "
        error = metrics.reconstruction
        figures = f"error {error:.1e}, " if error else ""
        figures += f"{lam}gradient norm {metrics.gradient_norm:.1f}"
        self.bar.set_postfix_str(figures)
        if self.bar.disable:
            speed = progress.steps_per_second
            minutes = (progress.steps - progress.step) / speed / 60
            self._report(
                f"step {progress.step} of {progress.steps}, {minutes:.1f} minutes left at "
                f"{speed:.3g} steps/s: {figures}"
            )
        return Record(
            progress.step,
            progress.steps,
            progress.epoch,
            progress.seconds,
            **metrics._asdict(),
        )
