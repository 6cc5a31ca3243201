"""The derivations keep their word: equations, headings, code, tests and links that they point at.

The checks are functions that return a list of problems, so that they can be tried on broken text.
Whether the formulas hold is checked by the pages themselves: pytest runs their `>>>` blocks.
"""

import re
from importlib import import_module
from itertools import takewhile
from pathlib import Path

import pytest
from method import NOTEBOOKS
from pages import (
    CODE,
    DERIVATIONS,
    INDEX,
    LINK,
    PAGE_NAME,
    README,
    ROOT,
    TEST,
    cited,
    docstring,
    formulas,
    numbered_pages,
    prose,
    sections,
    source_of,
)

PAGES = sorted(DERIVATIONS.glob("*.md"))

EQUATIONS = range(1, 32)
# Equations that nothing needs to compute, and what their rows say in the place of code.
STEPS = {18, 19}
STEP = "a step of the derivation: computed nowhere"

# What a code host may treat as Markdown before it looks at the mathematics: escapes, emphasis
# (an underscore that no letter or digit precedes), the start of a tag, a link.
FRAGILE = re.compile(r"\\[^A-Za-z]|\*|(?<![A-Za-z0-9])_|<[A-Za-z/]|\]\(|\n\n")


def names(text: str, n: int) -> bool:
    """Whether a text has the literal "Eq. n": in a list or a range nobody finds it by searching."""
    return re.search(rf"\bEq\. {n}(?![\d]|[-–]\d)", text) is not None


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
            there = text if path == page else path.read_text("utf-8")
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
    display, inline, rest = formulas(text)
    problems = [
        f"{page.name}: {m}: fragile" for m in display + inline if FRAGILE.search(m)
    ]
    problems += [f"{page.name}: {m}: space inside" for m in inline if m != m.strip()]
    if "$" in re.sub(r"\$[^$\n]+\$", "", rest):
        problems.append(f"{page.name}: a dollar sign without a partner on its line")
    return problems


def index_problems(text: str) -> list[str]:
    """What is wrong with an equation index (its text)."""
    rows: dict[int, list[list[str]]] = {n: [] for n in EQUATIONS}
    problems = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if line.startswith("|") and cells[0].isdigit():
            if int(cells[0]) not in rows or len(cells) != 5:
                problems.append(
                    f"Eq. {cells[0]}: not a row of five cells about Eqs. 1-31"
                )
            else:
                rows[int(cells[0])].append(cells[2:])
    for n, found in rows.items():
        if len(found) != 1:
            problems.append(f"Eq. {n}: {len(found)} rows")
        else:
            problems += [
                f"Eq. {n}: {problem}" for problem in _row_problems(n, *found[0])
            ]
    return problems


def _row_problems(n: int, page: str, code: str, test: str):
    link = LINK.fullmatch(page)
    file, _, fragment = link[1].partition("#") if link else ("", "", "")
    if not (file and (DERIVATIONS / file).is_file()):
        yield f"no such page: {page}"
    else:
        section = sections((DERIVATIONS / file).read_text("utf-8")).get(fragment)
        if section is None:
            yield f"no such heading: {page}"
        elif n not in cited(section):
            yield f"the section does not mention it: {page}"
    if n in STEPS:
        if code != STEP:
            yield f"expected {STEP!r} in the place of {code}"
    else:
        pointer = CODE.fullmatch(code)
        source = source_of(ROOT / pointer[1], pointer[2]) if pointer else None
        if source is None:
            yield f"no such code: {code}"
        elif not names(source, n):
            yield f"the code does not name it literally: {code}"
    pointer = TEST.fullmatch(test)
    source = source_of(ROOT / pointer[1], pointer[2]) if pointer else None
    if source is None or not pointer[2].startswith("test_"):
        yield f"no such test: {test}"


def order_problems(text: str, pages: dict[str, str]) -> list[str]:
    """What the reading order (in the text of README.md) says wrongly about titles and links.

    pages: name -> text. A page may link to earlier pages that it builds on, directly or through
    others, and to later ones, by number or in the order.
    """
    builds_on: dict[str, set[str]] = {}
    for row in re.findall(r"(?m)^\| \[\d\d .+\|$", text):
        page, *_, on = (cell.strip() for cell in row.strip("|").split("|"))
        builds_on[LINK.search(page)[1][:2]] = set(re.findall(r"\d\d", on))
    problems = [
        f"{page} is not in the reading order"
        for page in pages
        if page[:2] not in builds_on
    ]
    order = list(builds_on)
    if order != [f"{place:02}" for place in range(len(order))]:
        problems.append("the numbers of the pages are not the reading order")
    for place, (number, direct) in enumerate(builds_on.items()):
        later = direct.difference(order[:place])
        problems += [f"{number} builds on {other}: later" for other in sorted(later)]
    for page, page_text in pages.items():
        number = page[:2]
        if (
            f"[{page_text.partition(chr(10))[0].removeprefix('# ')}]({page})"
            not in text
        ):
            problems.append(f"{page} has another title in the reading order")
        known = set()
        new = {number}
        while new:
            known |= new
            new = set().union(*(builds_on.get(n, set()) for n in new)) - known
        used = {
            link[:2] for link in LINK.findall(prose(page_text)) if PAGE_NAME.match(link)
        }
        used &= set(takewhile(number.__ne__, order))
        problems += [
            f"{page} uses {other}: the reading order does not say so"
            for other in sorted(used - known)
        ]
    return problems


def module_problems(root: Path, pages: dict[str, str]) -> list[str]:
    """Modules that do not name their derivation, and names of derivations that lead nowhere.

    * A module that a page points at names, in its docstring, one of the pages that point at it.
    * A page that a module names exists and points at it, or at the definition in its room.
    * The overrides of an operation's definition name a page that the definition names.
    """
    problems = []
    pointing: dict[str, set[str]] = {}
    for page, text in pages.items():
        for module, _ in CODE.findall(text):
            pointing.setdefault(module, set()).add(page)
    naming = {
        path.relative_to(root).as_posix(): set(PAGE_NAME.findall(docstring(path)))
        for path in sorted((root / "snfnp").rglob("*.py"))
    }
    for module, by in sorted(pointing.items()):
        if module in naming and not naming[module] & by:
            problems.append(
                f"{module}: the docstring names none of {', '.join(sorted(by))}"
            )
    for module, named in naming.items():
        definition = f"{module.rpartition('/')[0]}/definition.py"
        for page in sorted(named):
            if page not in pages:
                problems.append(f"{module}: names {page}: no such page")
            elif page not in pointing.get(module, set()) | pointing.get(
                definition, set()
            ):
                problems.append(f"{module}: names {page}, which does not point at it")
        overrides = module.startswith("snfnp/ops/") and module.endswith(
            ("/cpu.py", "/gpu.py")
        )
        if overrides and naming.get(definition) and not named & naming[definition]:
            by = ", ".join(sorted(naming[definition]))
            problems.append(f"{module}: the docstring names none of {by}")
    return list(dict.fromkeys(problems))


def early_problems(root: Path, pages: dict[str, str]) -> list[str]:
    """What a page's checks import of the package that only a later page introduces. A page
    introduces the modules that it points at, and those whose docstrings name it."""
    first: dict[str, str] = {}
    for page, text in sorted(pages.items(), reverse=True):
        first |= dict.fromkeys((module for module, _ in CODE.findall(text)), page)
    for path in (root / "snfnp").rglob("*.py"):
        module = path.relative_to(root).as_posix()
        named = PAGE_NAME.findall(docstring(path))
        if named:
            first[module] = min(named + [first.get(module, named[0])])
    problems = []
    for page, text in sorted(pages.items()):
        code = "\n".join(re.findall(r"(?m)^(?:>>>|\.\.\.) (.*)$", text))
        for package, names_of in re.findall(
            r"^from (snfnp[\w.]*) import (.+)$", code, flags=re.M
        ):
            for name in re.findall(r"\w+", names_of):
                found = getattr(import_module(package), name, None)
                module = (
                    getattr(found, "__module__", getattr(found, "__name__", None))
                    or package
                )
                there = first.get(f"{module.replace('.', '/')}.py", page)
                if there > page:
                    problems.append(f"{page} uses {name}, which {there} introduces")
    return problems


def test_index_has_every_equation_and_points_at_things_that_exist():
    assert index_problems(INDEX.read_text("utf-8")) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_page_has_sound_links_pointers_and_formulas(page):
    text = page.read_text("utf-8")
    assert link_problems(page, text) == []
    assert pointer_problems(page, text) == []
    assert math_problems(page, text) == []
    assert page == INDEX or re.search(r"(?m)^>>> ", text), "no executable check"


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *NOTEBOOKS], ids=lambda page: page.name
)
def test_the_links_of_the_repositorys_readme_and_the_notebooks(page):
    assert link_problems(page, page.read_text("utf-8")) == []


def test_the_first_thing_to_read_is_page_00_and_it_is_told_in_plain_words():
    for page in (ROOT / "README.md", README):
        before, link = re.search(
            r"(.*?)" + LINK.pattern, page.read_text("utf-8"), re.S
        ).groups()
        assert Path(link).name == "00-the-method.md"
        assert math_problems(page, before) == formulas(before)[1] == [], (
            "formulas come later"
        )


def test_the_repositorys_readme_is_short_and_begins_with_code():
    text = (ROOT / "README.md").read_text("utf-8")
    assert len(text.split()) <= 1300
    assert text.splitlines().index("```python") < 25


def test_the_reading_order_tells_what_the_pages_use():
    assert order_problems(README.read_text("utf-8"), numbered_pages()) == []


def test_no_page_uses_what_a_later_page_introduces():
    pages = numbered_pages()
    assert early_problems(ROOT, pages) == []
    pages["03-change-of-variables.md"] += "\n>>> from snfnp.maps import Conv2d\n"
    (problem,) = early_problems(ROOT, pages)
    assert (
        problem
        == "03-change-of-variables.md uses Conv2d, which 07-convolutions.md introduces"
    )


@pytest.mark.parametrize(
    ("pattern", "replacement", "problem"),
    [
        (r"^(\| \[06 .*\n)(\| \[07 .*\n)", r"\2\1", "the numbers of the pages are not"),
        (r"^\| \[06 .*\n", "", "the numbers of the pages are not"),
        (r"^(\| \[03 .*\|) [\d, ]+ \|$", r"\1 00, 02, 04 |", "03 builds on 04: later"),
        (
            r"^(\| \[08 .*\|) [\d, ]+ \|$",
            r"\1 03 |",
            "08-asymmetric-kernels.md uses 04",
        ),
    ],
)
def test_guard_finds_a_wrong_order(pattern, replacement, problem):
    text, count = re.subn(pattern, replacement, README.read_text("utf-8"), flags=re.M)
    assert count == 1
    assert any(
        found.startswith(problem) for found in order_problems(text, numbered_pages())
    )


def test_every_module_names_its_derivation_and_every_derivation_its_modules():
    assert module_problems(ROOT, numbered_pages()) == []


@pytest.mark.parametrize(
    ("pattern", "replacement", "problem"),
    [
        (r"^\| 7 \|.*\n", "", "Eq. 7: 0 rows"),
        (r"^(\| 7 \|.*\n)", r"\1\1", "Eq. 7: 2 rows"),
        (r"^\| 7 \|", "| 32 |", "Eq. 32: not a row"),
        (r"^(\| 9 \|.*)\(04-dense.md", r"\1(04-gone.md", "Eq. 9: no such page"),
        (r"^(\| 9 \|.*)#eq-9", r"\1#eq-90", "Eq. 9: no such heading"),
        (
            r"^(\| 6 \|.*)#eq-6-layers-add-up",
            r"\1#preprocessing-counts",
            "Eq. 6: the section does",
        ),
        (r"^(\| 6 \|.*)snfnp/flow.py", r"\1snfnp/flows.py", "Eq. 6: no such code"),
        (r"^(\| 6 \|.*)Flow.forward", r"\1Flow.foreword", "Eq. 6: no such code"),
        (
            r"^(\| 6 \|.*)Flow.forward",
            r"\1Flow.init",
            "Eq. 6: the code does not name it",
        ),
        (
            r"^(\| 19 \|.*)a .*?nowhere",
            r"\1`snfnp/rules/exact.py: Exact`",
            "Eq. 19: expected '",
        ),
        (
            r"^(\| 8 \|.*)`snfnp.*?`",
            r"\1a step of the derivation: computed nowhere",
            "Eq. 8: no s",
        ),
        (
            r"^(\| 1 \|.*)tests/test_likelihood.py",
            r"\1tests/test_gone.py",
            "Eq. 1: no such test",
        ),
        (r"^(\| 1 \|.*)::test_log_prob", r"\1::test_log_probe", "Eq. 1: no such test"),
    ],
)
def test_guard_finds_a_broken_index(pattern, replacement, problem):
    text, count = re.subn(pattern, replacement, INDEX.read_text("utf-8"), flags=re.M)
    assert count == 1
    assert any(found.startswith(problem) for found in index_problems(text)), (
        index_problems(text)
    )


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


def test_only_a_literal_names_an_equation():
    for text in ("Eq. 15", "(Eq. 14; Eq. 15)", "Eq. 15, with Eq. 3", "Eq. 15."):
        assert names(text, 15), text
    others = (
        "Eqs. 14, 15 and 21",
        "Eqs. 15-20",
        "Eqs. 8-11, 15",
        "Eq. 15-20",
        "Eq. 15–20",
    )
    for text in (*others, "Eq. 1", "Eq. 150", "sEq. 15", "Eq 15"):
        assert not names(text, 15), text


def test_cited_reads_numbers_lists_and_ranges():
    assert cited("Eq. 3") == {3}
    assert cited("Eqs. 4, 5, 8-11, 15") == {4, 5, 8, 9, 10, 11, 15}
    assert cited("Eqs. 17, 19 and 20, and then 3 more") == {17, 19, 20}
    assert cited("Eq. 9 and Eq. 18, 2 of them") == {9, 18}
    assert cited("equation 7, Eq 7, sEq. 7") == set()
