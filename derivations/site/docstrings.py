"""A Sphinx extension: docstrings as the package writes them, in plain text, for the API pages.

They are not reStructuredText: `x` is code, |x| a norm, x* a star. Everything that
reStructuredText would read in another way is escaped, and what is indented is shown as it stands,
but for the sections Args, Returns and Raises, which become lists. `TrainConfig` gets its options.
"""

from __future__ import annotations

import re
from dataclasses import is_dataclass

_SPAN = re.compile(r"(``.+?``|`[^`]+`)")
_SECTION = re.compile(r"(Args|Returns|Raises):")
_ENTRY = re.compile(r"(\*{0,2}\w+(?:, \*{0,2}\w+)*): (.*)")


def _inline(text: str) -> str:
    parts = _SPAN.split(text)
    parts[::2] = [re.sub(r"([\\*|_`<>])", r"\\\1", part) for part in parts[::2]]
    parts[1::2] = [f"``{part.strip('`')}``" for part in parts[1::2]]
    return "".join(parts)


def _definitions(entries: dict[str, str], indent: str) -> list[str]:
    """{names: text} as a list of definitions."""
    out = []  # an escaped space: "D." would begin an enumeration
    for names, text in entries.items():
        code = ", ".join(f"``{name}``" for name in names.split(", "))
        out += [
            f"{indent}{code}",
            f"{indent}    \\ {_inline(text)}",
            "",
        ]
    return out


def _section(title: str, rows: list[str]) -> list[str]:
    """A section of a docstring, its rows indented, as a field with a list of definitions, or with
    text where it names nothing."""
    entries: dict[str, str] = {}
    name = ""
    for row in rows:
        entry = _ENTRY.fullmatch(row[4:])
        if entry:
            name = entry[1]
            entries[name] = entry[2]
        else:
            entries[name] = f"{entries.get(name, '')} {row.strip()}".strip()
    if list(entries) == [""]:
        return [f":{title}: {_inline(entries[''])}", ""]
    return [f":{title}:", *_definitions(entries, "    ")]


def restructured(lines: list[str]) -> list[str]:
    """A docstring's lines as reStructuredText that shows them as they are meant."""
    out: list[str] = []
    for block in re.split(r"\n\s*\n", "\n".join(lines).strip("\n")):
        rows = block.splitlines()
        section = _SECTION.fullmatch(rows[0]) if rows else None
        if section and all(row.startswith("    ") for row in rows[1:]):
            out += _section(section[1], rows[1:])
            continue
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


def _options() -> list[str]:
    """The options of `TrainConfig`, by groups, with their defaults."""
    from snfnp.training.options import TrainConfig
    from snfnp.training.options.config import help_of
    from snfnp.training.options.groups import options_in

    out = []
    for group in filter(is_dataclass, reversed(TrainConfig.__bases__)):
        entries = {}
        for name, option in options_in(group).items():
            choices = f"; one of {', '.join(option.choices)}" if option.choices else ""
            entries[name] = help_of(option, option.default) + choices
        out += [f"**{(group.__doc__ or '').rstrip('.')}**", "", *_definitions(entries, "")]
    return out


def _is_of_its_type(what: str, value, lines: list[str]) -> bool:
    """Find out if an attribute has no text of its own: Python then finds that of a type."""
    if what not in ("attribute", "property", "data") or not lines:
        return False
    kinds = [type(value), type(getattr(value, "fget", None)), bool]
    texts = [kind.__doc__ for kind in kinds if isinstance(kind.__doc__, str)]
    return bool(lines[0]) and any(text.strip().startswith(lines[0]) for text in texts)


def rewrite(app, what, name, obj, options, lines):
    if _is_of_its_type(what, obj, lines):
        lines.clear()
    lines[:] = restructured(lines)
    if name == "snfnp.TrainConfig":
        lines += _options()


def setup(app):
    app.connect("autodoc-process-docstring", rewrite)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
