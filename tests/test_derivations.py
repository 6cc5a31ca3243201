"""The derivations point at things that exist: equations, headings, code, tests, links.

The checks are functions that return a list of problems, so that they can be tried on broken text.
Whether the formulas hold is checked by the pages themselves: pytest runs their `>>>` blocks.
"""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DERIVATIONS = ROOT / "derivations"
PAGES = sorted(DERIVATIONS.glob("*.md"))
README = DERIVATIONS / "README.md"

EQUATIONS = range(1, 32)
# Equations that nothing implements yet, and what their rows say instead.
LATER = {31: "later: JVP penalty"}

LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
CODE = re.compile(r"`(snfnp/[\w/]+\.py): ([\w.]+)`")
TEST = re.compile(r"`(tests/\w+\.py)::(\w+)`")
# What a code host may treat as Markdown before it looks at the mathematics: escapes, emphasis
# (an underscore that no letter or digit precedes), the start of a tag, a link.
FRAGILE = re.compile(r"\\[^A-Za-z]|\*|(?<![A-Za-z0-9])_|<[A-Za-z/]|\]\(|\n\n")


def cited(text: str) -> set[int]:
    """The equations that a text cites: "Eq. 3", "Eqs. 8-11, 15" and "Eqs. 17, 19 and 20"."""
    numbers = {int(n) for n in re.findall(r"\bEq\.\s+(\d+)", text)}
    number = r"\d+(?:[-–]\d+)?"
    for several in re.findall(rf"\bEqs\.\s+({number}(?:(?:,| and)\s+{number})*)", text):
        for first, last in re.findall(r"(\d+)(?:[-–](\d+))?", several):
            numbers.update(range(int(first), int(last or first) + 1))
    return numbers


def prose(text: str) -> str:
    """A page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)


def sections(text: str) -> dict[str, str]:
    """Anchor -> heading and text up to the next heading of the same or a higher level."""
    text, found = prose(text), {}
    headings = list(re.finditer(r"^(#+) (.+)$", text, flags=re.M))
    for index, heading in enumerate(headings):
        level = len(heading[1])
        following = (h.start() for h in headings[index + 1 :] if len(h[1]) <= level)
        found[anchor(heading[2])] = text[heading.start() : next(following, len(text))]
    return found


def anchor(heading: str) -> str:
    """The anchor that a code host makes of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@cache
def source_of(path: Path, name: str) -> str | None:
    """The source text of a class, function or method, e.g. "SelfNormalizing.backward"."""
    if not path.is_file():
        return None
    text = path.read_text(encoding="utf-8")
    node = ast.parse(text)
    for part in name.split("."):
        kinds = (ast.ClassDef, ast.FunctionDef)
        node = next((n for n in node.body if isinstance(n, kinds) and n.name == part), None)
        if node is None:
            return None
    return ast.get_source_segment(text, node)


def link_problems(page: Path, text: str) -> list[str]:
    """Relative links of a page that lead nowhere."""
    problems = []
    for target in LINK.findall(re.sub(r"`[^`]*`", "", prose(text))):
        if target.startswith(("https://", "http://")):
            continue
        file, _, fragment = target.partition("#")
        path = page.parent / file if file else page
        if not path.exists():
            problems.append(f"{page.name}: {target}: no such file")
        elif fragment:
            there = text if path == page else path.read_text(encoding="utf-8")
            if fragment not in sections(there):
                problems.append(f"{page.name}: {target}: no such heading")
    return problems


def pointer_problems(page: Path, text: str) -> list[str]:
    """Code and test pointers of a page that name nothing."""
    pointers = [(path, name, ": ") for path, name in CODE.findall(text)]
    pointers += [(path, name, "::") for path, name in TEST.findall(text)]
    return [
        f"{page.name}: {path}{separator}{name}: not found"
        for path, name, separator in pointers
        if source_of(ROOT / path, name) is None
    ]


def math_problems(page: Path, text: str) -> list[str]:
    """Mathematics that a code host may not render."""
    text = re.sub(r"`[^`\n]*`", "", prose(text))
    display = re.findall(r"\$\$(.+?)\$\$", text, flags=re.S)
    rest = re.sub(r"\$\$.+?\$\$", "", text, flags=re.S)
    inline = re.findall(r"\$([^$\n]+)\$", rest)
    problems = [f"{page.name}: {m}: fragile" for m in display + inline if FRAGILE.search(m)]
    problems += [f"{page.name}: {m}: space inside" for m in inline if m != m.strip()]
    if "$" in re.sub(r"\$[^$\n]+\$", "", rest):
        problems.append(f"{page.name}: a dollar sign without a partner on its line")
    return problems


def index_problems(text: str) -> list[str]:
    """What is wrong with an equation index (the text of README.md)."""
    rows: dict[int, list[list[str]]] = {n: [] for n in EQUATIONS}
    problems = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if line.startswith("|") and cells[0].isdigit():
            if int(cells[0]) not in rows or len(cells) != 5:
                problems.append(f"Eq. {cells[0]}: not a row of five cells about Eqs. 1-31")
            else:
                rows[int(cells[0])].append(cells[2:])
    for n, found in rows.items():
        if len(found) != 1:
            problems.append(f"Eq. {n}: {len(found)} rows")
        elif n in LATER:
            if found[0] != [LATER[n]] * 3:
                problems.append(f"Eq. {n}: expected {LATER[n]!r} three times")
        else:
            problems += [f"Eq. {n}: {problem}" for problem in _row_problems(n, *found[0])]
    return problems


def _row_problems(n: int, page: str, code: str, test: str):
    link = LINK.fullmatch(page)
    file, _, fragment = link[1].partition("#") if link else ("", "", "")
    if not (file and (DERIVATIONS / file).is_file()):
        yield f"no such page: {page}"
    else:
        section = sections((DERIVATIONS / file).read_text(encoding="utf-8")).get(fragment)
        if section is None:
            yield f"no such heading: {page}"
        elif n not in cited(section):
            yield f"the section does not mention it: {page}"
    pointer = CODE.fullmatch(code)
    source = source_of(ROOT / pointer[1], pointer[2]) if pointer else None
    if source is None:
        yield f"no such code: {code}"
    elif n not in cited(source):
        yield f"the code does not cite it: {code}"
    pointer = TEST.fullmatch(test)
    source = source_of(ROOT / pointer[1], pointer[2]) if pointer else None
    if source is None or not pointer[2].startswith("test_"):
        yield f"no such test: {test}"


# ---------------------------------------------------------------- the derivations


def test_index_has_every_equation_and_points_at_things_that_exist():
    assert index_problems(README.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_page(page):
    text = page.read_text(encoding="utf-8")
    assert link_problems(page, text) == []
    assert pointer_problems(page, text) == []
    assert math_problems(page, text) == []
    assert re.search(r"^>>> ", text, flags=re.M), "no executable check"


def test_every_page_is_in_the_reading_order():
    linked = set(LINK.findall(README.read_text(encoding="utf-8")))
    assert {page.name for page in PAGES} - {"README.md"} <= linked


# ---------------------------------------------------------------- the guard itself


@pytest.mark.parametrize(
    ("pattern", "replacement", "problem"),
    [
        (r"^\| 7 \|.*\n", "", "Eq. 7: 0 rows"),
        (r"^(\| 7 \|.*\n)", r"\1\1", "Eq. 7: 2 rows"),
        (r"^\| 7 \|", "| 32 |", "Eq. 32: not a row"),
        (r"^\| 13 \|.*\n", "", "Eq. 13: 0 rows"),
        (r"^(\| 31 \|.*)JVP penalty", r"\1convolutions", "Eq. 31: expected 'later: JVP penalty'"),
        (r"^(\| 9 \|.*)\(04-dense.md", r"\1(04-gone.md", "Eq. 9: no such page"),
        (r"^(\| 9 \|.*)#eq-9", r"\1#eq-90", "Eq. 9: no such heading"),
        (r"^\| 1 \|(.*)", r"| 8 |\1", "Eq. 8: 2 rows"),
        (r"^(\| 6 \|.*)#eq-6-layers-add-up", r"\1#preprocessing-counts", "Eq. 6: the section does"),
        (r"^(\| 6 \|.*)snfnp/flow.py", r"\1snfnp/flows.py", "Eq. 6: no such code"),
        (r"^(\| 6 \|.*)Flow.forward", r"\1Flow.foreword", "Eq. 6: no such code"),
        (r"^(\| 6 \|.*)Flow.forward", r"\1Flow.init", "Eq. 6: the code does not cite it"),
        (r"^(\| 6 \|.*)tests/test_likelihood.py", r"\1tests/test_gone.py", "Eq. 6: no such test"),
        (r"^(\| 6 \|.*)::test_ledger", r"\1::test_leger", "Eq. 6: no such test"),
        (r"^(\| 6 \|.*)`snfnp.*?`", r"\1later: convolutions", "Eq. 6: no such code"),
    ],
)
def test_guard_finds_a_broken_index(pattern, replacement, problem):
    text, count = re.subn(pattern, replacement, README.read_text(encoding="utf-8"), flags=re.M)
    assert count == 1
    assert any(found.startswith(problem) for found in index_problems(text)), index_problems(text)


def test_guard_finds_an_empty_index():
    assert len(index_problems("")) == 31


@pytest.mark.parametrize(
    ("check", "text"),
    [
        (link_problems, "[there](gone.md)"),
        (link_problems, "[there](04-dense.md#gone)"),
        (link_problems, "# Title\n\n[here](#titel)"),
        (pointer_problems, "`snfnp/gone.py: Flow`"),
        (pointer_problems, "`snfnp/flow.py: Flow.gone`"),
        (pointer_problems, "`tests/test_derivations.py::test_gone`"),
        (math_problems, r"$a \, b$"),
        (math_problems, r"$$a \\ b$$"),
        (math_problems, r"$\bar{x}_n$"),
        (math_problems, r"$ x$"),
        (math_problems, "only $x"),
    ],
)
def test_guard_finds_a_broken_page(check, text):
    assert len(check(README, text)) == 1


@pytest.mark.parametrize(
    ("check", "text"),
    [
        (link_problems, "[there](04-dense.md#the-bias) [web](https://example.org) `[a](gone.md)`"),
        (link_problems, "# A title: $x$, `y`\n\n[here](#a-title-x-y)\n\n```\n[a](gone.md)\n```\n"),
        (pointer_problems, "`snfnp/flow.py: Flow.forward` `tests/test_derivations.py::test_page`"),
        (math_problems, r"$\bar x_n$ and $$\sum_{n} x_n^\ast$$ and `$`"),
    ],
)
def test_guard_lets_a_good_page_pass(check, text):
    assert check(README, text) == []


def test_cited_reads_numbers_lists_and_ranges():
    assert cited("Eq. 3") == {3}
    assert cited("Eqs. 4, 5, 8-11, 15") == {4, 5, 8, 9, 10, 11, 15}
    assert cited("Eqs. 17, 19 and 20, and then 3 more") == {17, 19, 20}
    assert cited("Eq. 9 and Eq. 18, 2 of them") == {9, 18}
    assert cited("Eq. 12") != {1}
    assert cited("equation 7, Eq 7, sEq. 7") == set()
