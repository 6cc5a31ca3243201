"""A Sphinx extension: what the search page needs beside Sphinx's index, and pages' descriptions.

Writes _static/excerpts.js: the text of every page, for the excerpts of results (Sphinx would fetch
the pages, which browsers forbid to a site that is opened as files), and where each equation is
derived. Every page's description is its first paragraph.
"""

import html
import json
import re

import sources
from docutils import nodes
from pages import INDEX, PAGE_NAME

FILE = "excerpts.js"
_LETTERS = {
    "lambda": "λ",
    "sigma": "σ",
    "Sigma": "Σ",
    "delta": "δ",
    "rho": "ρ",
    "mu": "μ",
    "eta": "η",
}


def _spoken(latex: str) -> str:
    """A formula as one would type it: 1/8 for its fraction, λ for its letter, no other commands."""
    latex = re.sub(r"\\frac\{([^{}]*)\}\{([^{}]*)\}", r"\1/\2", latex)
    for name, letter in _LETTERS.items():
        latex = re.sub(rf"\\{name}\b", letter, latex)
    return re.sub(r"\\[A-Za-z]+|[{}&\\^]", " ", latex)


def text_of(markdown: str) -> str:
    """A page's words and formulas, one line, without the marks of Markdown."""
    text = re.sub(r"^(```|\|? ?---).*$|</?\w+>", "", markdown, flags=re.M)
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)
    text = re.sub(r"\$\$.*?\$\$|\$[^$\n]*\$", lambda found: _spoken(found[0]), text, flags=re.S)
    return " ".join(re.sub(r"[`*#|$]|^>>> ", " ", text, flags=re.M).split())


def equations(index: str) -> dict[int, dict[str, str]]:
    """Equation -> where the site derives it, and what it says (the text of the index)."""
    rows = re.findall(r"^\| (\d+) \| ([^|]*) \| \[\d\d\]\(([^)]+)\) \|", index, flags=re.M)
    return {int(n): {"page": sources.equation_target(int(n)), "what": what} for n, what, _ in rows}


def write_excerpts(app, exception):
    if exception is not None or app.builder.format != "html":
        return
    texts = {}
    for path in sorted(app.srcdir.glob("*.md")):
        if PAGE_NAME.fullmatch(path.name) or path.stem == app.config.root_doc:
            texts[f"{path.stem}.html"] = text_of(path.read_text(encoding="utf-8"))
    found = equations(INDEX.read_text(encoding="utf-8"))
    script = f"window.EXCERPTS = {json.dumps({'equations': found, 'texts': texts})};\n"
    (app.outdir / "_static" / FILE).write_text(script, encoding="utf-8")


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
    app.connect("build-finished", write_excerpts)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
