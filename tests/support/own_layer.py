"""The layer and the map that derivations/16-write-your-own-layer.md writes, taken from the page."""

from __future__ import annotations

import doctest
from functools import cache
from pathlib import Path

PAGE = Path(__file__).parents[2] / "derivations" / "16-write-your-own-layer.md"


@cache
def own(name: str):
    """A class that the page defines."""
    for example in doctest.DocTestParser().get_examples(PAGE.read_text()):
        if f"class {name}" in example.source:
            namespace: dict = {}
            exec(_imports() + example.source, namespace)
            return namespace[name]
    raise LookupError(f"{PAGE.name} defines no class {name}")


def _imports() -> str:
    """All imports of the page."""
    sources = (each.source for each in doctest.DocTestParser().get_examples(PAGE.read_text()))
    return "".join(source for source in sources if source.startswith(("import ", "from ")))
