"""Print the size of the Python code by room, and fail if a part of it exceeds its budget.

A reference implementation is read: growth is seen when it happens. The budget counts tokens (names,
operators, numbers and strings; no docstrings and no comments), so that spreading a statement over
more lines costs nothing and packing several into one saves nothing. Usage: size.py [CHECKOUT]
"""

import ast
import io
import subprocess
import sys
import tokenize
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

# Not to grow; the package is to fall to 115,000 as the text is rewritten.
BUDGET = {"snfnp": 120_130, "scripts": 34_480, "tests": 181_810}
COUNTED = (tokenize.NAME, tokenize.OP, tokenize.NUMBER, tokenize.STRING)


@dataclass
class Size:
    """lines: all; code: those with a token; tuples: assignments to a tuple."""

    lines: int = 0
    code: int = 0
    tokens: int = 0
    assignments: int = 0
    tuples: int = 0

    def __iadd__(self, other: "Size") -> "Size":
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)
        return self

    def __str__(self) -> str:
        density = self.tokens / max(self.code, 1)
        share = self.tuples / max(self.assignments, 1)
        return f"{self.tokens:9,} {self.lines:8,} {density:13.1f} {share:8.0%}"


def size(text: str) -> Size:
    """The size of the source of one file."""
    tree = ast.parse(text)
    docstrings: set[int] = set()
    for node in ast.walk(tree):
        documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
        if (
            isinstance(node, documented)
            and ast.get_docstring(node, clean=False) is not None
        ):
            docstrings.update(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    starts = [token.start[0] for token in tokens if token.type in COUNTED]
    starts = [line for line in starts if line not in docstrings]
    assignments = [node for node in ast.walk(tree) if isinstance(node, ast.Assign)]
    packed = [
        node
        for node in assignments
        if any(isinstance(each, ast.Tuple) for each in node.targets)
    ]
    lines = len(text.splitlines())
    return Size(lines, len(set(starts)), len(starts), len(assignments), len(packed))


def size_by_room(checkout: Path) -> dict[str, Size]:
    """The sizes of the tracked Python files, by folder, where there is a budget."""
    command = [
        "git",
        "-C",
        str(checkout),
        "ls-files",
        *(f"{top}/*.py" for top in BUDGET),
    ]
    files = subprocess.run(
        command, capture_output=True, text=True, check=True
    ).stdout.split()
    rooms: dict[str, Size] = {}
    for name in files:
        top, *rest = PurePosixPath(name).parent.parts
        room = f"{top}/{rest[0]}" if top == "snfnp" and rest else top
        rooms.setdefault(room, Size())
        rooms[room] += size((checkout / name).read_text(encoding="utf-8"))
    return rooms


def excess(rooms: dict[str, Size]) -> list[str]:
    """One line for every budget that is exceeded."""
    messages = []
    for top, most in BUDGET.items():
        total = sum(
            each.tokens for room, each in rooms.items() if room.split("/")[0] == top
        )
        if total > most:
            messages.append(
                f"{top} has {total:,} tokens of Python: its budget is {most:,}"
            )
    return messages


if __name__ == "__main__":
    rooms = size_by_room(Path(sys.argv[1] if len(sys.argv) > 1 else "."))
    print(f"{'tokens':>9} {'lines':>8} {'tokens a line':>13} {'tuples':>8}")
    for top in BUDGET:
        total = Size()
        parts = [room for room in sorted(rooms) if room.split("/")[0] == top]
        for room in parts:
            total += rooms[room]
            if len(parts) > 1:
                print(f"{rooms[room]} {room}")
        print(f"{total} {top} in all")
    sys.exit("\n".join(excess(rooms)) or None)
