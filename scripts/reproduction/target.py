"""A table or figure of the paper: what all of them have in common."""

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
    suffix, shows_paper, made_of_record = ".svg", False, True
    rows: tuple[Row, ...] = ()

    def names(self, scale: str) -> list[str]:
        """The rows that can be wanted alone (`--rows`)."""
        return [row.at(scale).name for row in self.rows]

    def plan(self, command: Command) -> list[Run]:
        """The runs that it needs, of those whose images are there."""
        return []

    def record(self, command: Command, **parts) -> dict:
        """The head of its record in results.json, and its parts."""
        return {"title": self.title, "scale": command.scale, **parts}

    def collect(self, command: Command, outcomes: dict[Path, dict]) -> dict:
        """Its record, from the outcomes by the runs' folders."""
        raise NotImplementedError

    def show(self, record: dict) -> str:
        """Its table in Markdown."""
        raise NotImplementedError

    def draw(self, record: dict, path: Path) -> None:
        """Its picture, in the style of the derivations' figures, if there is something to draw."""
        raise NotImplementedError


def grid(table: Iterable[Iterable[str]]) -> str:
    """A table in Markdown, whose first line has the heads."""
    heads, *rows = table
    return "\n".join(f"| {' | '.join(own)} |" for own in (heads, ["---"] * len(heads), *rows))


def markdown(record: dict, table: Iterable[Iterable[str]], notes: Iterable[str]) -> str:
    """A titled table and notes below it."""
    title = f"**{record['title']}** (scale: {record['scale']})"
    return "\n".join([title, "", grid(table), "", *(f"* {note}" for note in notes)])
