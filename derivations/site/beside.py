"""A Sphinx extension: the present source beside the prose that points at it.

* Where a page says `snfnp/flow.py: Flow.forward`, the class, function or method follows the
  paragraph, cut out by the syntax tree, with line numbers; wide screens show it beside the text
  (static/beside.js and beside.css). A pointer that points nowhere is a warning, and the build
  treats warnings as errors.
* Every source file of the package gets a page; "Eq. 15" and "04-dense.md" in code are links, and
  the heading under which an equation is derived lists the lines that cite it.
"""

from __future__ import annotations

import html
import re
from itertools import groupby

import sources
from docutils import nodes
from pages import (
    CITATION,
    CODE,
    INDEX,
    PAGE_NAME,
    README,
    ROOT,
    TEST,
    docstring,
    equation_pages,
    lines_of,
    numbered_pages,
    reading_of,
    reading_order,
)
from sphinx.util import logging

logger = logging.getLogger(__name__)
_MODULE = re.compile(r"snfnp(?:\.\w+)+")
_FILE = re.compile(r"(?:snfnp|tests|scripts)/[\w/]+\.(?:py|cu|cuh)")


# ---------------------------------------------------------------- pages -> code


class Html(nodes.General, nodes.Element):
    """A piece of a page that the search does not read: what it shows has a page of its own."""


def _visit_html(self, node):
    self.body.append(node["html"])
    raise nodes.SkipNode


class _Page:
    """One page in the making: which code it has shown already."""

    def __init__(self, name: str):
        self.name = name
        self.shown: dict[tuple[str, str], str] = {}  # (file, name) -> id of the block

    def link(self, target: str) -> str:
        return sources.relative(self.name, target)

    def block(self, file: str, name: str, lines: tuple[int, int]) -> Html:
        """The source of a name, folded, to stand after the paragraph that points at it."""
        block_id = self.shown[file, name] = f"code-{len(self.shown) + 1}"
        code = sources.code_html(file, *lines, top=sources.to_top(self.name), ids=f"{block_id}-L")
        whole = self.link(f"{sources.site_page(file)}.html#L{lines[0]}")
        summary = f"{html.escape(file)}: <b>{html.escape(name)}</b>"
        text = (
            f'<aside class="beside" id="{block_id}"><details><summary>{summary}</summary>'
            f'<p class="whole"><a href="{whole}">lines {lines[0]}–{lines[1]}</a></p>'
            f"{code}</details></aside>"
        )
        return Html(html=text)


def show_code(app, doctree, docname):
    """Link every pointer; after the paragraph where a page's first one stands, show the code."""
    page = _Page(docname)
    with_code = PAGE_NAME.fullmatch(f"{docname}.md") is not None
    _keep_together(doctree)
    for literal in list(doctree.findall(nodes.literal)):
        text = f"`{literal.astext()}`"
        pointer = CODE.fullmatch(text) or TEST.fullmatch(text)
        file = pointer[1] if pointer else literal.astext()
        if _MODULE.fullmatch(file):
            file = f"{file.replace('.', '/')}.py"
        if not pointer and not (_FILE.fullmatch(file) and sources.exists(file)):
            continue
        lines = lines_of(ROOT / file, pointer[2]) if pointer else (1, 1)
        if lines is None:
            logger.warning("%s points nowhere", text, location=literal, type="beside")
            continue
        target = page.link(f"{sources.site_page(file)}.html#L{lines[0]}")
        if pointer and with_code and CODE.fullmatch(text) and not _within(literal, nodes.table):
            if (file, pointer[2]) not in page.shown:
                paragraph = _paragraph(literal)
                paragraph.parent.insert(_after(paragraph), page.block(file, pointer[2], lines))
            target = f"#{page.shown[file, pointer[2]]}"
        literal.replace_self(nodes.reference("", "", literal.deepcopy(), refuri=target))
    link_equations(doctree, page)
    _mark_narrow(app, doctree)
    if with_code:
        _tell_the_reading(page, doctree)
        _list_citing_lines(page, doctree)
        _list_modules(page, doctree)


def link_equations(doctree, page: _Page) -> None:
    """Every "Eq. 15" of a page's prose is a link to where it is derived."""
    for line in doctree.findall(
        nodes.TextElement
    ):  # "Eqs.", the end of a line, "1, 2" are one text
        parts = groupby(line.children, lambda node: isinstance(node, nodes.Text))
        line[:] = [
            node
            for is_text, group in parts
            for node in ([nodes.Text("".join(group))] if is_text else group)
        ]
    for text in list(doctree.findall(nodes.Text)):
        skipped = nodes.literal | nodes.literal_block | nodes.reference | nodes.title | nodes.math
        if _within(text, skipped) or not CITATION.search(text):
            continue
        parts: list[nodes.Node] = []
        for part, linked in _citations(str(text)):
            target = linked and sources.equation_target(linked)
            parts.append(
                nodes.reference("", part, internal=True, refuri=page.link(target), classes=["eq"])
                if target
                else nodes.Text(part)
            )
        text.parent.replace(text, parts)


def _citations(text: str):
    """(part of a text, the equation that it is a link to, or None): "Eq. 3", and lists' numbers."""
    at = 0
    for match in CITATION.finditer(text):
        if match[1]:
            yield text[at : match.start()], None
            yield match[0], int(match[1])
        else:
            yield text[at : match.start(2)], None
            before = match.start(2)
            for number in re.finditer(r"\d+", text[before : match.end()]):
                yield text[before : match.start(2) + number.start()], None
                yield number[0], int(number[0])
                before = match.start(2) + number.end()
        at = match.end()
    yield text[at:], None


def _keep_together(doctree) -> None:
    """An option is not broken at its hyphens, nor "1032.0 ± 0.4" in a table, nor a formula before
    the comma that follows it; and a block of code ends with its last line."""
    for cell in doctree.findall(nodes.entry):
        if re.fullmatch(r"\S+ ± \S+", cell.astext()):
            cell["classes"].append("short")
    for literal in doctree.findall(nodes.literal):
        if len(literal.astext()) <= 28:
            literal["classes"].append("short")
    for formula in list(doctree.findall(nodes.math)):
        parent, index = formula.parent, formula.parent.index(formula) + 1
        after = parent[index] if index < len(parent) else None
        if isinstance(after, nodes.Text) and after[:1] in tuple(".,:;)"):
            parent.replace(after, nodes.Text(str(after)[1:]))
            parent.replace(formula, whole := nodes.inline(classes=["whole"]))
            whole += [formula, nodes.Text(after[:1])]
    for block in doctree.findall(nodes.literal_block):
        text = block.astext().rstrip("\n")
        block.rawsource = text
        block.children = [nodes.Text(text)]
        block.children[0].parent = block


def _mark_narrow(app, doctree) -> None:
    """The class of pictures that a phone shows whole, and of those whose letters would be too small
    even at the width at which it lets the others scroll."""
    for image in doctree.findall(nodes.image):
        path = app.srcdir / image["uri"]
        if path.suffix == ".svg" and path.is_file():
            width = re.search(r' width="([\d.]+)pt"', path.read_text(encoding="utf-8")[:500])
            if width and float(width[1]) <= 345:
                image["classes"].append("narrow")
            elif width and float(width[1]) > 590:
                image["classes"].append("wide")


def _within(node, kind) -> bool:
    while node is not None and not isinstance(node, kind):
        node = node.parent
    return node is not None


def _paragraph(node) -> nodes.Element:
    """The block that a literal stands in: the outermost list, or the paragraph."""
    while not isinstance(node.parent, nodes.section | nodes.document):
        node = node.parent
    return node


def _after(block) -> int:
    """Where a node goes that follows a block and the code that already follows it."""
    index = block.parent.index(block) + 1
    while index < len(block.parent) and isinstance(block.parent[index], Html):
        index += 1
    return index


def _tell_the_reading(page: _Page, doctree) -> None:
    """Under a page's title: how many minutes it takes, what it builds on, and its sections, which
    wide screens show instead of the contents beside the text."""
    index = README.read_text(encoding="utf-8")
    if f"{page.name}.md" not in reading_of(index):
        return
    minutes, on = reading_of(index)[f"{page.name}.md"]
    links = ", ".join(
        f'<a href="{page.link(name.replace(".md", ".html"))}">{text.splitlines()[0][2:]}</a>'
        for name, text in numbered_pages().items()
        if name[:2] in on
    )
    text = f"{minutes} minutes" + (f", builds on {links}" if links else "")
    section = next(iter(doctree.findall(nodes.section)))
    heads = [(own["ids"][0], own[0].astext()) for own in section.findall(nodes.section)]
    links = " · ".join(f'<a href="#{at}">{html.escape(head)}</a>' for at, head in heads[1:])
    contents = f'<p class="sections">On this page: {links}</p>' if links else ""
    section.insert(1, Html(html=f'<p class="reading">{text}</p>{contents}'))


def _list_citing_lines(page: _Page, doctree) -> None:
    """Under every heading that the equation index names: the lines of code that cite it."""
    of_page: dict[str, list[int]] = {}
    for n, target in equation_pages(INDEX.read_text(encoding="utf-8")).items():
        file, _, fragment = target.partition("#")
        if file == f"{page.name}.md":
            of_page.setdefault(fragment, []).append(n)
    for section in doctree.findall(nodes.section):
        names = (*section["ids"], section.get("slug"))
        rows = []
        for n in next((of_page[name] for name in names if name in of_page), []):
            links = [
                f'<a href="{page.link(sources.site_page(file) + ".html")}#L{line}">'
                f"{file.removeprefix('snfnp/')}:{line}</a>"
                for file in sources.files()
                for line in sources.citing_lines(file).get(n, [])
            ]
            if len(links) > 6:
                title = f"<summary>Eq. {n} in the code: {len(links)} lines</summary>"
                rows.append(f"<li><details>{title}{', '.join(links)}</details></li>")
            elif links:
                rows.append(f"<li>Eq. {n} in the code: {', '.join(links)}</li>")
        if rows:
            text = f'<ul class="citing">{"".join(rows)}</ul>'
            section.insert(1, Html(html=text))


def _list_modules(page: _Page, doctree) -> None:
    """At the end of a page: the modules whose docstrings name it."""
    links = [
        f'<a href="{page.link(sources.site_page(file) + ".html")}">{file}</a>'
        for file in sources.files()
        if file.endswith(".py") and f"{page.name}.md" in docstring(ROOT / file)
    ]
    if links:
        text = f'<p class="modules">Modules of this page: {", ".join(links)}</p>'
        next(iter(doctree.findall(nodes.section))).append(Html(html=text))


# ---------------------------------------------------------------- code -> pages


def source_pages(app):
    """One page for every source file of the package, and for every file that a page points at."""
    pointed = set()
    for page in sorted(app.srcdir.glob("*.md")):
        text = page.read_text(encoding="utf-8")
        found = {m[1] for pattern in (CODE, TEST) for m in pattern.finditer(text)}
        pointed |= found | set(_FILE.findall(text))
    for file in sorted({*sources.files(), *filter(sources.exists, pointed)}):
        name = sources.site_page(file)
        code = sources.code_html(file, top=sources.to_top(name), ids="L")
        title = html.escape(file)
        body = f'<section class="source"><h1>{title}</h1>{code}</section>'
        yield name, {"title": title, "body": body}, "page.html"


# ---------------------------------------------------------------- the site around them


def add_contents(app, docname, source):
    """The start page's hidden tables of contents: its groups, in the order in which to read them.

    Pages that its tables do not have come last, then the equation index, guides and the reference.
    """
    if docname != app.config.root_doc:
        return
    groups = reading_order(source[0])
    listed = {page for pages in groups.values() for page in pages}
    others = [p.name for p in app.srcdir.glob("*.md") if PAGE_NAME.fullmatch(p.name)]
    index = [INDEX.name] * (app.srcdir / INDEX.name).exists()
    *_, last = groups or {"Pages": []}
    groups[last] = [*groups.get(last, []), *sorted(set(others) - listed), *index]
    for name, pattern in (("Guides and notebooks", "guide-*.md"), ("Reference", "api*.md")):
        found = sorted((app.srcdir / "site").glob(pattern), key=lambda path: path.stem)
        groups[name] = [f"site/{path.name}" for path in found]
    for name, pages in groups.items():
        entries = "\n".join(page.removesuffix(".md") for page in pages)
        source[0] += f"\n\n```{{toctree}}\n:hidden:\n:caption: {name}\n\n{entries}\n```\n"


def start_page(app, exception):
    """index.html is the start page, whatever file that was made of."""
    if exception is None and app.builder.format == "html":
        first = (app.outdir / f"{app.config.root_doc}.html").read_text(encoding="utf-8")
        (app.outdir / "index.html").write_text(first, encoding="utf-8")


def setup(app):
    app.add_node(Html, html=(_visit_html, None))
    app.connect("source-read", add_contents)
    app.connect("doctree-resolved", show_code)
    app.connect("html-collect-pages", source_pages)
    app.connect("build-finished", start_page)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
