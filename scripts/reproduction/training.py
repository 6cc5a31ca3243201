"""All runs of a command: looked at first, then trained when a target needs them."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from reproduction.progress import Progress
from reproduction.runs import Result, Run, found, perform, united
from reproduction.setting import Setting


class Training:
    """The runs of a command. One that several targets need is trained once, as long as any says.

    All that is there is looked at here, so that nothing is trained before an error.
    """

    def __init__(self, runs: list[Run], setting: Setting):
        self._setting = setting
        runs = united(runs)
        self._runs = {run.folder: run for run in runs}
        self._done: dict[Path, Result] = {}
        steps = {}
        for run in runs:
            images = setting.dataset(run.row.data)
            result = setting.world.on_rank_zero(partial(found, run, images, setting.ops.name))
            if result is not None:
                self._done[run.folder] = result
                continue
            config = run.config(len(images.train), setting.ops.name)
            steps[run] = run.epochs * config.steps_per_epoch(len(images.train))
        self._progress = Progress(list(steps), steps, shown=setting.world.rank == 0)

    def results(self, runs: list[Run]) -> dict[Path, Result]:
        """{folder: what became of it} of these runs, trained where that is not known yet."""
        for planned in runs:
            if planned.folder not in self._done:
                self._train(self._runs[planned.folder])
        return {run.folder: self._done[run.folder] for run in runs}

    def _train(self, run: Run) -> None:
        setting, progress = self._setting, self._progress
        progress.start(run)
        images = setting.dataset(run.row.data)
        line = progress.line(run)
        result = perform(run, images, setting.ops, _silent, line, setting.world)
        progress.finish(run)
        self._done[run.folder] = result

    def clear_line(self) -> None:
        """Make room for a table."""
        self._progress.clear()

    def close(self) -> None:
        self._progress.close()


def _silent(text: str) -> None:
    """A run's own messages are not shown: what a monitor said before a run diverged is in its
    table."""
