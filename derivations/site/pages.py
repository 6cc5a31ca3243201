"""What the derivations' Markdown says: links, pointers at code and tests, equations, formulas.

The tests of the pages and the site that is built of them read it with the same expressions.
Nothing but the standard library is needed.
"""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
DERIVATIONS = ROOT / "derivations"
README = DERIVATIONS / "README.md"
INDEX = DERIVATIONS / "equations.md"

LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
CODE = re.compile(r"`((?:snfnp|scripts)/[\w/]+\.py): ([\w.]+)`")
TEST = re.compile(r"`(tests/\w+\.py)::(\w+)`")
PAGE_NAME = re.compile(r"\b\d\d-[a-z0-9-]+\.md\b")
# "Eq. 3", and of "Eqs. 8-11, 15 and 17" the list of numbers.
_ONE = r"\bEq\.\s+(\d+)"
_NUMBER = r"\d+(?:[-–]\d+)?"
_SEVERAL = rf"\bEqs\.\s+({_NUMBER}(?:(?:,| and)\s+{_NUMBER})*)"
CITATION = re.compile(f"{_ONE}|{_SEVERAL}")


def cited(text: str) -> set[int]:
    """The equations that a text cites: "Eq. 3", "Eqs. 8-11, 15" and "Eqs. 17, 19 and 20"."""
    numbers = set()
    for one, several in CITATION.findall(text):
        for first, last in re.findall(r"(\d+)(?:[-–](\d+))?", one or several):
            numbers.update(range(int(first), int(last or first) + 1))
    return numbers


def prose(text: str) -> str:
    """A page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)


def formulas(text: str) -> tuple[list[str], list[str], str]:
    """The displayed formulas of a page, those within lines, and the text without the former."""
    text = re.sub(r"`[^`\n]*`", "", prose(text))
    rest = re.sub(r"\$\$.+?\$\$", "", text, flags=re.S)
    display = re.findall(r"\$\$(.+?)\$\$", text, flags=re.S)
    return display, re.findall(r"\$([^$\n]+)\$", rest), rest


def anchor(heading: str) -> str:
    """The anchor that a code host makes of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def sections(text: str) -> dict[str, str]:
    """Anchor -> heading and text up to the next heading of the same or a higher level."""
    text, found = prose(text), {}
    headings = list(re.finditer(r"^(#+) (.+)$", text, flags=re.M))
    for index, heading in enumerate(headings):
        level = len(heading[1])
        following = (h.start() for h in headings[index + 1 :] if len(h[1]) <= level)
        found[anchor(heading[2])] = text[heading.start() : next(following, len(text))]
    return found


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def lines_of(path: Path, name: str) -> tuple[int, int] | None:
    """The first and the last line of a class, function or method, decorators included.

    name: for example "SelfNormalizing.backward". None where the file or the name does not exist.
    """
    node = _tree(path) if path.is_file() else None
    for part in name.split("."):
        kinds = (ast.ClassDef, ast.FunctionDef)
        body = getattr(node, "body", [])
        node = next((n for n in body if isinstance(n, kinds) and n.name == part), None)
    if node is None:
        return None
    return min([node.lineno, *(d.lineno for d in node.decorator_list)]), node.end_lineno


def source_of(path: Path, name: str) -> str | None:
    """The source text of what `lines_of` finds."""
    lines = lines_of(path, name)
    if lines is None:
        return None
    text = path.read_text(encoding="utf-8").splitlines()
    return "\n".join(text[lines[0] - 1 : lines[1]])


@cache
def docstring(path: Path) -> str:
    """A module's docstring, or nothing."""
    return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""


def equation_pages(index: str) -> dict[int, str]:
    """Equation -> "page.md#heading", as the equation index (its text) has it."""
    rows = re.findall(r"^\| (\d+) \|[^|]*\| \[\d\d\]\(([^)]+)\) \|", index, flags=re.M)
    return {int(n): target for n, target in rows}


def reading_order(index: str) -> dict[str, list[str]]:
    """Group -> names of pages ("04-dense.md"), as the tables of README.md (its text) have them."""
    groups: dict[str, list[str]] = {}
    for text in re.split(r"^### ", index, flags=re.M)[1:]:
        found = re.findall(r"^\| \[\d\d [^|]*\]\(([^)]+)\) \|", text, flags=re.M)
        groups |= {text.splitlines()[0]: found} if found else {}
    return groups


def reading_of(index: str) -> dict[str, tuple[int, list[str]]]:
    """Page -> the minutes that it takes and the numbers of what it builds on (README.md's text)."""
    row = r"^\| \[\d\d [^|]*\]\(([^)]+)\) \|[^|]*\| (\d+) \|([^|]*)\|$"
    found = re.findall(row, index, flags=re.M)
    return {page: (int(minutes), re.findall(r"\d\d", on)) for page, minutes, on in found}


def numbered_pages() -> dict[str, str]:
    """Name -> text of every page but README.md."""
    files = sorted(DERIVATIONS.glob("*.md"))
    return {f.name: f.read_text(encoding="utf-8") for f in files if PAGE_NAME.match(f.name)}
