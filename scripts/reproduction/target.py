"""The base classes of the paper's tables and figures."""

from collections.abc import Iterable
from pathlib import Path

from reproduction import provenance
from reproduction.results import distinct
from reproduction.rows import Row
from reproduction.runs import Command, Run
from snfnp.training.runs.folder import RunFolder

# Options that do not change what a run computes, or that a run's entry has itself.
_OF_A_RUN = {
    "seed",
    "epochs",
    "eval_every",
    "checkpoint_every",
    "track_angle",
    "out",
    "data_dir",
    "backend",
    "threads",
    "graph",
    "recompute",
    "eval_dtype",
}


class Target:
    """title: heads its table; suffix: of its picture; made_of_record: whether it is drawn from the
    record alone; rows: those that it trains, none if it is measured. A subclass defines:

        collect(command, runs, outcomes)    its record, {"rows": [...], ...}
        show(record)                        its table in Markdown

    A figure also defines `draw`.
    """

    title: str
    suffix = ".svg"
    made_of_record = True
    rows: tuple[Row, ...] = ()

    def plan(self, command: Command) -> list[Run]:
        """The runs that it needs and whose images are there."""
        return []

    def draw(self, record: dict, path: Path) -> None:
        """Write its picture, in the derivations' style, if there is anything to draw."""


class Trained(Target):
    """A target that is made of runs. measure(run): the figures of one, beside its outcome."""

    seeds = 1  # if none are given

    def plan(self, command: Command) -> list[Run]:
        return command.plan(self.rows, self.seeds)

    def collect(
        self, command: Command, runs: list[Run], outcomes: dict[Path, dict]
    ) -> dict:
        records = []
        for row in dict.fromkeys(run.row for run in runs):
            runs_of_row = [run for run in runs if run.row == row]
            config = RunFolder(runs_of_row[0].folder).config().as_dict().items()
            record = {
                "name": row.name,
                "cells": list(row.cells),
                "unit": row.unit,
                "paper": row.paper,
                "paper_spread": row.spread,
                "paper_epochs": row.epochs,
                "paper_epochs_given": row.epochs_given,
                "config": {
                    k: v for k, v in config if v is not None and k not in _OF_A_RUN
                },
                "data": row.data,
                "runs": [
                    {"seed": run.seed} | outcomes[run.folder] | self.measure(run)
                    for run in runs_of_row
                ],
                "made_with": distinct(
                    [provenance.of_run(run.folder) for run in runs_of_row]
                ),
            }
            records.append(record)
        return {"rows": records}


SHORTER = "†"  # the mark of fewer epochs than the paper's, which the page explains


def grid(table: Iterable[Iterable[str]]) -> str:
    """A Markdown table; its first row has the heads."""
    heads, *rows = table
    return "\n".join(
        f"| {' | '.join(row)} |" for row in (heads, ["---"] * len(heads), *rows)
    )


def trained(row: dict) -> str:
    """The epochs of a row's first run / of the paper; if ours are fewer, a mark or the reason."""
    ours = row["runs"][0]["epochs"]
    paper = row["paper_epochs"]
    why = " (diverged there)" if "diverged_at" in row["runs"][0] else SHORTER
    return f"{ours:,} / {paper:,}{'' if ours >= paper else why}"
