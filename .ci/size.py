"""Print the lines of Python by room, and fail if the package, scripts or tests exceed their budget.

A reference implementation is read: growth is seen when it happens. Usage: size.py [CHECKOUT]
"""

import subprocess
import sys
from collections import Counter
from pathlib import Path, PurePosixPath

BUDGET = {"snfnp": 16_500, "scripts": 3_600, "tests": 20_500}


def lines_by_room(checkout: Path) -> Counter:
    """{folder: lines} of the tracked Python files under the folders that have a budget."""
    listed = ["git", "-C", str(checkout), "ls-files", *(f"{top}/*.py" for top in BUDGET)]
    rooms = Counter()
    for name in subprocess.run(listed, capture_output=True, text=True, check=True).stdout.split():
        top, *rest = PurePosixPath(name).parent.parts
        room = top if top != "snfnp" or not rest else f"{top}/{rest[0]}"
        rooms[room] += len((checkout / name).read_text(encoding="utf-8").splitlines())
    return rooms


def excess(rooms: Counter) -> list[str]:
    """One line for every budget that is exceeded."""
    found = []
    for top, most in BUDGET.items():
        total = sum(lines for room, lines in rooms.items() if room.split("/")[0] == top)
        if total > most:
            found.append(f"{top} has {total:,} lines of Python: its budget is {most:,}")
    return found


if __name__ == "__main__":
    rooms = lines_by_room(Path(sys.argv[1] if len(sys.argv) > 1 else "."))
    for room, lines in sorted(rooms.items()):
        print(f"{lines:7,} {room}")
    print(f"{rooms.total():7,} in all")
    sys.exit("\n".join(excess(rooms)) or None)
