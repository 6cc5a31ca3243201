"""The progress that `FlowDensity.fit` shows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm.auto import tqdm  # a notebook's own bar, too

from snfnp.training.progress import compilations_shown, silent


@contextmanager
def shown(verbose: bool | None, ops, steps: int) -> Iterator[tuple[Callable, Callable]]:
    """A context with a bar over `steps`, as `verbose` of `FlowDensity` says: (a function that takes
    the number of more steps, one that takes a line)."""
    report = tqdm.write if verbose else silent
    hidden = None if verbose is None else not verbose
    bar = tqdm(total=steps, unit="step", disable=hidden, leave=False, dynamic_ncols=True)
    with bar, compilations_shown(ops, report if hidden is not None else lambda line: None):
        yield bar.update, report
