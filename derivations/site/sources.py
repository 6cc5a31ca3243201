"""Source files as HTML: line numbers, and links from the equations and pages that they name."""

from __future__ import annotations

import posixpath
import re
from functools import cache

from pages import CITATION, DERIVATIONS, INDEX, PAGE_NAME, ROOT, cited, equation_pages
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import CppLexer, PythonLexer

FOLDER = "source"  # of the site: the page of snfnp/flow.py is source/snfnp/flow.py.html


def site_page(file: str) -> str:
    """The name of a source file's page on the site, without ".html"."""
    return f"{FOLDER}/{file}"


def files() -> list[str]:
    """Every source file of the package that gets a page: Python, CUDA C++."""
    suffixes = {".py", ".cu", ".cuh"}
    found = sorted(path for path in (ROOT / "snfnp").rglob("*") if path.suffix in suffixes)
    return [path.relative_to(ROOT).as_posix() for path in found]


@cache
def _equation_pages() -> dict[int, str]:
    return equation_pages(INDEX.read_text(encoding="utf-8"))


def equation_target(n: int) -> str | None:
    """Where the site derives Eq. n: "04-dense.html#eq-8-…", from the site's top."""
    page = _equation_pages().get(n)
    return page and page.replace(".md", ".html", 1)


@cache
def citing_lines(file: str) -> dict[int, list[int]]:
    """Equation -> the lines of a file that cite it."""
    found: dict[int, list[int]] = {}
    text = (ROOT / file).read_text(encoding="utf-8")
    for number, line in enumerate(text.splitlines(), start=1):
        for n in cited(line):
            found.setdefault(n, []).append(number)
    return found


@cache
def _highlighted(file: str) -> list[str]:
    """A file's lines as HTML. Every line closes the elements that it opens."""
    path = ROOT / file
    lexer = PythonLexer(stripnl=False) if path.suffix == ".py" else CppLexer(stripnl=False)
    text = path.read_text(encoding="utf-8")
    return highlight(text, lexer, HtmlFormatter(nowrap=True)).splitlines()


def _linked(line: str, top: str) -> str:
    """A highlighted line with links from "Eq. 15" and "04-dense.md". top: the way to the top."""

    def equation(match):
        def link(number):
            target = equation_target(int(number[0]))
            return f'<a class="eq" href="{top}{target}">{number[0]}</a>' if target else number[0]

        return re.sub(r"\d+", link, match[0])

    def page(match):
        if not (DERIVATIONS / match[0]).is_file():
            return match[0]
        return f'<a class="eq" href="{top}{match[0].replace(".md", ".html")}">{match[0]}</a>'

    return PAGE_NAME.sub(page, CITATION.sub(equation, line))


def code_html(file: str, first: int = 1, last: int | None = None, *, top: str, ids: str) -> str:
    """Lines first..last of a file as a block of HTML.

    top: the relative way from the page to the site's top ("" or "../"); ids: what stands before a
    line's number in its id.
    """
    lines = _highlighted(file)[first - 1 : last]
    indent = min(
        (len(text) - len(text.lstrip()) for text in _plain(file, first, last) if text.strip()),
        default=0,
    )
    rows = [
        f'<span class="line" id="{ids}{n}"><a class="ln" href="#{ids}{n}">{n}</a>'
        f"{_linked(_dedent(line, indent), top)}\n</span>"
        for n, line in enumerate(lines, start=first)
    ]
    return f'<div class="highlight"><pre>{"".join(rows)}</pre></div>'


def _plain(file: str, first: int, last: int | None) -> list[str]:
    return (ROOT / file).read_text(encoding="utf-8").splitlines()[first - 1 : last]


def _dedent(line: str, indent: int) -> str:
    """A highlighted line without the first `indent` spaces of its text."""
    return re.sub(rf"^((?:<[^>]*>)*) {{{indent}}}", r"\1", line) if indent else line


def relative(page: str, target: str) -> str:
    """The way from one page of the site to another ("source/x.html#L3"), both from its top."""
    return posixpath.relpath(target, posixpath.dirname(page) or ".")


def to_top(page: str) -> str:
    return "../" * page.count("/")


def exists(file: str) -> bool:
    return (ROOT / file).is_file()
