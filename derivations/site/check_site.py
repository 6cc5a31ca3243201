"""Check the built site: `python derivations/site/check_site.py build/site`.

* Every link and every file that a page loads is there, headings and lines included, and nothing is
  loaded from elsewhere.
* Every formula of a page's Markdown is a formula of the page, and none is left as raw text.
* Every name that the package exports is in the reference, whose lists of arguments are lists, and
  which has no text of Python's own types.

Prints one line for each problem; the exit status is 1 where there is any.
"""

from __future__ import annotations

import re
import sys
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag

from pages import DERIVATIONS, formulas

_LOADS = {"script": "src", "img": "src", "source": "src", "iframe": "src", "video": "src"}
_ELSEWHERE = re.compile(r"(?:https?:)?//", re.IGNORECASE)
_FETCH = re.compile(r"url\(\s*['\"]?((?:https?:)?//[^)'\"]+)|@import\s+['\"]?((?:https?:)?//\S+)")


class Page(HTMLParser):
    """What a page has: ids, links, what it loads, its formulas, and text outside code."""

    def __init__(self, text: str):
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.text: list[str] = []
        self.displayed = self.inline = 0
        self.formula_text: list[str] = []
        self._within: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        about = dict(attributes)
        self.ids.update(about[name] for name in ("id", "name") if about.get(name))
        if tag == "a" and about.get("href"):
            self.links.append(about["href"])
        if tag in _LOADS and about.get(_LOADS[tag]):
            self.loads.append(about[_LOADS[tag]])
        if tag == "link" and about.get("href"):
            self.loads.append(about["href"])
        self.displayed += tag == "div" and about.get("class") == "formula"
        whole = tag == "math" and about.get("class") != "more"  # and no further piece of one
        self.inline += whole and about.get("display") == "inline"
        if tag in ("code", "pre", "script", "style", "math", "svg", "title"):
            self._within.append(tag)

    def handle_endtag(self, tag):
        if self._within and self._within[-1] == tag:
            self._within.pop()

    def handle_data(self, data):
        if not self._within:
            self.text.append(data)
        elif "math" in self._within:
            self.formula_text.append(data)


@cache
def read(path: Path) -> Page:
    return Page(path.read_text(encoding="utf-8"))


def link_problems(site: Path, path: Path) -> list[str]:
    """Links that lead nowhere, files that are not there, and files from elsewhere."""
    page, problems = read(path), []
    for target in page.loads:
        if _ELSEWHERE.match(target):
            problems.append(f"loads {target}")
    for target in (*page.loads, *page.links):
        if _ELSEWHERE.match(target) or target.startswith(("mailto:", "data:")):
            continue
        file, fragment = urldefrag(target)
        there = (path.parent / unquote(file.partition("?")[0])).resolve() if file else path
        if not there.is_file():
            problems.append(f"{target}: no such file")
        elif fragment and there.suffix == ".html" and unquote(fragment) not in read(there).ids:
            problems.append(f"{target}: no such place")
    return problems


def formula_problems(path: Path, markdown: str) -> list[str]:
    """Formulas that were lost on the way from the Markdown, or that are raw text."""
    page, problems = read(path), []
    display, inline, _ = formulas(markdown)
    for name, found, wanted in (
        ("displayed", page.displayed, len(display)),
        ("inline", page.inline, len(inline)),
    ):
        if found != wanted:
            problems.append(f"{found} {name} formulas of {wanted}")
    left = [text for text in page.formula_text if "\\" in text or "$" in text]
    left += re.findall(r"\$[^$\s][^$\n]*\$|\\[A-Za-z]{2,}", "\n".join(page.text))
    return problems + [f"raw text: {text.strip()}" for text in left]


def reference_problems(site: Path) -> list[str]:
    """Exported names that the reference lacks, and docstrings that it shows as raw text."""
    import snfnp

    pages = {path.name: read(path) for path in sorted((site / "site").glob("api*.html"))}
    ids = set().union(*(page.ids for page in pages.values()))
    names = [f"snfnp.{name}" for name in snfnp.__all__ if not name.startswith("_")]
    problems = [f"{name} is not in the reference" for name in names if name not in ids]
    for name, page in pages.items():
        for text in page.text:
            if re.match(r"\s*(Args|Returns|Raises):\s+\S|bool\(x\)|attrgetter\(", text):
                problems.append(f"{name}: {text.strip()[:60]}")
    return problems


def problems_of(site: Path) -> list[str]:
    found = reference_problems(site)
    for path in sorted(site.rglob("*.html")):
        found += [f"{path.relative_to(site)}: {problem}" for problem in link_problems(site, path)]
    for page in sorted(DERIVATIONS.glob("*.md")):
        path = site / f"{page.stem}.html"
        markdown = page.read_text(encoding="utf-8")
        found += [f"{path.name}: {problem}" for problem in formula_problems(path, markdown)]
    for path in sorted((*site.rglob("*.css"), *site.rglob("*.svg"))):
        text = path.read_text(encoding="utf-8")
        for urls in _FETCH.findall(text):
            found.append(f"{path.relative_to(site)}: loads {''.join(urls)}")
    return found


def main(site: Path) -> int:
    if not (site / "index.html").is_file():
        print(f"{site} is no built site")
        return 1
    problems = problems_of(site.resolve())
    print("\n".join(problems) or f"{len(list(site.rglob('*.html')))} pages, no problem")
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
