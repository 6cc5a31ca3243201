"""A table or figure of the paper: what all of them have in common."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from reproduction.rows import Row
from reproduction.runs import Command, Run

SMOKE = "These show that everything runs; their figures mean nothing."


class Target:
    """title: heads its table; suffix: of its picture; shows_paper: whether the picture has the
    paper's figures beside ours; made_of_record: whether it is drawn from the record alone; rows:
    those that it trains, none if it is measured.
    """

    title: str
    suffix = ".svg"
    shows_paper = False
    made_of_record = True
    rows: tuple[Row, ...] = ()

    def names(self, scale: str) -> list[str]:
        """The rows that can be wanted alone (`--rows`)."""
        return [row.at(scale).name for row in self.rows]

    def plan(self, command: Command) -> list[Run]:
        """The runs that it needs, of those whose images are there."""
        return []

    def collect(self, command: Command, outcomes: dict[Path, dict]) -> dict:
        """Its record in results.json, from the outcomes by the runs' folders."""
        raise NotImplementedError

    def show(self, record: dict) -> str:
        """Its table in Markdown."""
        raise NotImplementedError

    def draw(self, record: dict, path: Path) -> None:
        """Its picture, in the style of the derivations' figures, if there is something to draw."""
        raise NotImplementedError


def markdown(record: dict, table: Iterable[Iterable[str]], notes: Iterable[str]) -> str:
    """A titled table, whose first line has the heads, and notes below it."""
    heads, *rows = table
    cells = [heads, ["---"] * len(heads), *rows]
    lines = [f"**{record['title']}** (scale: {record['scale']})", ""]
    lines += [f"| {' | '.join(own)} |" for own in cells]
    return "\n".join([*lines, "", *(f"* {note}" for note in notes)])


def hardware(record: dict) -> str:
    """A line that says what a record's times were measured on."""
    made_with = record["made_with"]
    name = made_with["device"].get("name") or made_with["processor"]
    threads = f", threads: {made_with['threads']}" if not made_with["device"] else ""
    return f"Measured on {name}{threads}, {made_with['backend']} backend, in one run."


def digits(milliseconds: float) -> str:
    """Three digits, or all before the point."""
    return f"{milliseconds:.3g}" if milliseconds < 999.5 else f"{milliseconds:,.0f}"
