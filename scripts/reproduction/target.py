"""A table or figure of the paper: what all of them have in common."""

from collections.abc import Iterable

from reproduction.rows import Row
from reproduction.runs import Command, Run

SMOKE = "These show that everything runs; their figures mean nothing."


class Target:
    """title: heads its table; suffix: of its picture; made_of_record: whether it is drawn from the
    record alone; rows: those that it trains, none if it is measured. Members of its own:

        collect(command, outcomes)    its record, from the outcomes by the runs' folders
        show(record)                  its table in Markdown
        draw(record, path)            its picture in the derivations' style, if there is one
    """

    title: str
    suffix, made_of_record = ".svg", True
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


def grid(table: Iterable[Iterable[str]]) -> str:
    """A table in Markdown, whose first line has the heads."""
    heads, *rows = table
    return "\n".join(f"| {' | '.join(own)} |" for own in (heads, ["---"] * len(heads), *rows))


def markdown(record: dict, table: Iterable[Iterable[str]], notes: Iterable[str]) -> str:
    """A titled table and notes below it."""
    title = f"**{record['title']}** (scale: {record['scale']})"
    return "\n".join([title, "", grid(table), "", *(f"* {note}" for note in notes)])
