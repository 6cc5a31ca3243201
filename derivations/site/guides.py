"""A Sphinx extension: pages of files that lie elsewhere in the repository.

The page site/guide-NAME.md holds a comment with the path of its file: Markdown, or a notebook with
its outputs. Links lead to the site's own page of a file where it has one.
"""

from __future__ import annotations

import json
import os
import re
from functools import cache
from pathlib import Path

from pages import DERIVATIONS, ROOT

_FILE = re.compile(r"<!-- (\S+)( for users)? -->")
_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")
_CODE = re.compile(r"(^```.*?^```$)", re.M | re.S)
_DEVELOPERS = re.compile(r"^---\s+# For developers.*", re.M | re.S)


@cache
def guides() -> dict[Path, Path]:
    """{the file: the page that holds its path}."""
    pages = sorted((DERIVATIONS / "site").glob("guide-*.md"))
    files = (_FILE.search(page.read_text(encoding="utf-8")) for page in pages)
    return {ROOT / file[1]: page for file, page in zip(files, pages, strict=True) if file}


def _output(output: dict) -> str:
    """An output of a cell as Markdown: its picture, or its text."""
    data = output.get("data", {})
    if "image/png" in data:
        return f'<img alt="what the cell draws" src="data:image/png;base64,{data["image/png"]}">'
    text = "".join(output.get("text", data.get("text/plain", ())))
    return f"```text\n{text.rstrip()}\n```"


def _notebook(text: str) -> str:
    """A notebook as Markdown."""
    parts = []
    for cell in json.loads(text)["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "code":
            parts.append(f"```python\n{source}\n```")
            parts += map(_output, cell["outputs"])
        else:
            parts.append(source)
    return "\n\n".join(parts)


def relinked(text: str, file: Path, page: Path) -> str:
    """A file's Markdown with the links that lead to the same places from the page."""
    own_pages = guides()

    def link(match):
        picture, label, target = match.groups()
        path, _, heading = target.partition("#")
        if not path or ":" in path:
            return match[0]
        there = (file.parent / path).resolve()
        there = own_pages.get(there, there)
        if not there.is_relative_to(DERIVATIONS):
            return f"{label} (`{os.path.relpath(there, ROOT)}`)"
        way = os.path.relpath(there, page.parent).replace(os.sep, "/")
        return f"{picture}[{label}]({way}{'#' + heading if heading else ''})"

    parts = _CODE.split(text)
    parts[::2] = [_LINK.sub(link, part) for part in parts[::2]]
    return "".join(parts)


def fill(app, docname, source):
    """The text of a guide's file in the guide's place; other pages get links to guides."""
    page = DERIVATIONS / f"{docname}.md"
    match = _FILE.search(source[0]) if docname.startswith("site/guide-") else None
    if match is None:
        source[0] = relinked(source[0], page, page)
        return
    file = ROOT / match[1]
    app.env.note_dependency(str(file))
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".ipynb":
        text = _notebook(text)
    if match[2]:
        text = _DEVELOPERS.sub("", text)
    source[0] = relinked(text, file, page)


def setup(app):
    app.connect("source-read", fill)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
