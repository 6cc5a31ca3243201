"""The progress that `FlowDensity.fit` shows."""

from __future__ import annotations

from contextlib import ExitStack

import numpy as np
from tqdm.auto import tqdm  # a notebook's own bar, too

from snfnp.density.training import Candidate
from snfnp.training.progress import compilations_shown, silent


class Progress:
    """A context with a bar over `steps`, and lines if `verbose` is True; see `FlowDensity`."""

    def __init__(self, verbose: bool | None, ops, steps: int, folds: list[np.ndarray]):
        self._verbose, self._ops, self._steps, self._folds = verbose, ops, steps, folds
        self._held = ExitStack()

    def __enter__(self) -> Progress:
        hidden = None if self._verbose is None else not self._verbose
        report = silent if hidden else self._line if self._verbose else lambda line: None
        bar = tqdm(total=self._steps, unit="step", disable=hidden, leave=False, dynamic_ncols=True)
        self._bar = self._held.enter_context(bar)
        self._held.enter_context(compilations_shown(self._ops, report))
        return self

    def __exit__(self, *error) -> None:
        self._held.close()

    def advance(self, steps: int) -> None:
        """So many more steps are done."""
        self._bar.update(steps)

    def fitted(self, candidate: Candidate) -> None:
        """A candidate is fitted: a line with its name and its mean log-density of held-out rows."""
        if self._verbose:
            nats = candidate.scores[np.concatenate(self._folds)].mean()
            self._line(f"{candidate.name}: {nats:.3f} nats per row held out")

    def _line(self, line: str) -> None:
        tqdm.write(line)
