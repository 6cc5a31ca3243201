"""A Sphinx extension: docstrings as the package writes them, in plain text, for the API page.

They are not reStructuredText: `x` is code, |x| a norm, x* a star. Everything that
reStructuredText would read in another way is escaped, and what is indented is shown as it stands.
"""

from __future__ import annotations

import re

_SPAN = re.compile(r"(``.+?``|`[^`]+`)")


def _inline(text: str) -> str:
    parts = _SPAN.split(text)
    parts[::2] = [re.sub(r"([\\*|_`<>])", r"\\\1", part) for part in parts[::2]]
    parts[1::2] = [f"``{part.strip('`')}``" for part in parts[1::2]]
    return "".join(parts)


def restructured(lines: list[str]) -> list[str]:
    """A docstring's lines as reStructuredText that shows them as they are meant."""
    out: list[str] = []
    for block in re.split(r"\n\s*\n", "\n".join(lines).strip("\n")):
        rows = block.splitlines()
        if block.startswith(" "):
            out += ["::", "", *(f"    {row}" for row in rows), ""]
            continue
        before = ""
        for row in rows:
            if row.startswith("* "):
                out += [] if before else [""]
                out.append(f"* {_inline(row[2:])}")
                before = "  "
            else:
                out.append(f"{before}{_inline(row.strip())}")
        out.append("")
    return out


def rewrite(app, what, name, obj, options, lines):
    lines[:] = restructured(lines)


def setup(app):
    app.connect("autodoc-process-docstring", rewrite)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
