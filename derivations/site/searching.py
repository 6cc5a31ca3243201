"""A Sphinx extension: the search page's index, and pages' descriptions.

Writes _static/index.js: the sections of every page, where each equation is derived, and where each
name of the package is in the reference. (Sphinx's own index knows whole words alone, and its
excerpts are fetched, which browsers forbid to a site that is opened as files.) Every page's
description is its first paragraph.
"""

import html
import json
import re

import sources
from docutils import nodes
from pages import INDEX

FILE = "index.js"
_LETTERS = {
    "lambda": "λ",
    "sigma": "σ",
    "Sigma": "Σ",
    "delta": "δ",
    "rho": "ρ",
    "mu": "μ",
    "eta": "η",
}


def spoken(latex: str) -> str:
    """A formula as one would type it: 1/8 for its fraction, λ for its letter, no other commands."""
    latex = re.sub(r"\\frac\{([^{}]*)\}\{([^{}]*)\}", r"\1/\2", latex)
    for name, letter in _LETTERS.items():
        latex = re.sub(rf"\\{name}\b", letter, latex)
    return re.sub(r"\\[A-Za-z]+|[{}&\\^]", " ", latex)


def sections(doctree) -> list[tuple[str, str, str]]:
    """(anchor, heading, text without its subsections) of every section of a page."""
    rows = []
    for section in doctree.findall(nodes.section):
        title = section.next_node(nodes.title).astext()
        parts = [n.astext() for n in section if not isinstance(n, (nodes.section, nodes.title))]
        text = " ".join(spoken(" ".join(parts)).replace(">>>", " ").split())
        rows.append((section["ids"][0], title, text))
    return rows


def equations(index: str) -> dict[int, dict[str, str]]:
    """Equation -> where the site derives it, and what it says (the text of the index)."""
    rows = re.findall(r"^\| (\d+) \| ([^|]*) \| \[\d\d\]\(([^)]+)\) \|", index, flags=re.M)
    return {int(n): {"page": sources.equation_target(int(n)), "what": what} for n, what, _ in rows}


def write_index(app, exception):
    if exception is not None or app.builder.format != "html":
        return
    pages = {
        f"{name}.html": sections(app.env.get_doctree(name)) for name in sorted(app.env.found_docs)
    }
    names = {}
    for name, entry in app.env.domains["py"].objects.items():
        names[name] = f"{entry.docname}.html#{entry.node_id}"
    found = equations(INDEX.read_text(encoding="utf-8"))
    content = json.dumps({"equations": found, "pages": pages, "names": names})
    (app.outdir / "_static" / FILE).write_text(f"window.INDEX = {content};\n", encoding="utf-8")


def describe(app, pagename, templatename, context, doctree):
    """A page's first paragraph as its description; the search page's scripts."""
    if pagename == "search":
        app.add_js_file(FILE)
        app.add_js_file("search.js", defer="defer")
    if doctree is not None:
        first = next(iter(doctree.findall(nodes.paragraph)), None)
        words = " ".join(first.astext().split())[:300] if first else ""
        tag = f'<meta name="description" content="{html.escape(words)}">'
        context["metatags"] = context.get("metatags", "") + tag


def setup(app):
    app.connect("html-page-context", describe)
    app.connect("build-finished", write_index)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
