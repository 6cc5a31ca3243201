"""One line for all runs of a command: what is trained, how many runs are left, and the time."""

from __future__ import annotations

import sys
import time
from functools import partial

from tqdm import tqdm

from reproduction.runs import Run
from snfnp.models import PRESETS
from snfnp.training.options import TrainConfig

_SHOW_EVERY = 0.25  # seconds
# About how long a step takes, beside a self-normalizing one of the fully connected flow: the time
# that is left is the time so far, in proportion to the work that is left in these units.
_COSTS = {"fc": 1, "conv-exponential": 4, "glow-2l-4k": 8, "glow": 250}
_COSTS |= {"glow-3l-32k": 1000, "glow-3l-48k": 1500}
_USUAL = 1.5
_EXACT_FC = 4.5


class Progress:
    """The runs that are left, in the order in which they are trained."""

    def __init__(self, left: list[Run], steps_of: dict[Run, int], shown: bool = True):
        """steps_of: the steps of each run, from its start; shown: or kept for another process."""
        self._left = len(left)
        self._steps = steps_of
        self._work = {run: steps_of[run] * _cost(run) for run in left}
        self._ahead = sum(self._work.values())  # work of all that is not done
        self._done, self._start = 0.0, time.monotonic()
        self._shown, hidden = shown, None if shown else True  # None: where there is a terminal
        self._bar = tqdm(bar_format="{desc}", disable=hidden, leave=False, dynamic_ncols=True)

    def start(self, run: Run) -> None:
        """The next one. Where there is no terminal, this is all that is said of it."""
        text = self._text(run)
        if self._bar.disable and self._shown:
            print(text, file=sys.stderr, flush=True)
        self._bar.set_description_str(text)

    def line(self, run: Run):
        """What `train` makes its progress line with."""
        return partial(_Line, self, run)

    def finish(self, run: Run) -> None:
        """All of it is done, or will not be."""
        self._left -= 1
        self._ahead -= self._work.pop(run)

    def close(self) -> None:
        self._bar.close()

    def skip(self, run: Run, steps: int) -> None:
        """So many steps were done before."""
        self._take(run, steps * _cost(run))

    def advance(self, run: Run) -> None:
        cost = _cost(run)
        self._take(run, cost)
        self._done += cost

    def show(self, run: Run, step: int) -> None:
        share = step / self._steps[run]
        self._bar.set_description_str(f"{self._text(run)}; this one: {share:.0%}")

    def clear(self) -> None:
        self._bar.clear()

    def _take(self, run: Run, work: float) -> None:
        self._ahead -= work
        self._work[run] -= work

    def _text(self, run: Run) -> str:
        text = f"{run.folder.name}, to epoch {run.epochs}; runs left: {self._left}"
        if not self._done:
            return text
        seconds = self._ahead * (time.monotonic() - self._start) / self._done
        return f"{text}; time left: about {tqdm.format_interval(seconds)}"


class _Line:
    """A `ProgressLine` that tells the whole command's."""

    def __init__(self, progress: Progress, run: Run, config: TrainConfig, trainer, clock, steps):
        self._progress, self._run, self._trainer, self._clock = progress, run, trainer, clock
        self._shown = time.monotonic()
        progress.skip(run, trainer.step)

    def __enter__(self):
        return self

    def __exit__(self, *error) -> None:
        self.clear()

    def advance(self) -> None:
        self._progress.advance(self._run)

    def due(self) -> bool:
        return time.monotonic() - self._shown >= _SHOW_EVERY

    def show(self) -> None:
        self._clock.settle()  # a failed step is not to be found at the end of its epoch only
        self._shown = time.monotonic()
        self._progress.show(self._run, self._trainer.step)

    def clear(self) -> None:
        self._progress.clear()


def _cost(run: Run) -> float:
    options = run.row.options
    cost = _COSTS.get(options["model"], _USUAL)
    size = PRESETS[options["model"]].size
    if "depth" in options:  # of a smaller one with as many levels
        width = options.get("width", size.width)
        cost *= options["depth"] / size.depth * (width / size.width) ** 2
    exact = options.get("gradient") == "exact" and options["model"] == "fc"
    return cost * _EXACT_FC if exact else cost
