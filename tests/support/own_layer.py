"""The layer, the map, the rule and the optimiser that pages of the derivations write."""

from __future__ import annotations

import doctest
from functools import cache
from pathlib import Path

DERIVATIONS = Path(__file__).parents[2] / "derivations"
LAYERS = "17-write-your-own-layer.md"
RULES = "18-write-your-own-rule.md"


@cache
def own(name, page=LAYERS):
    """A class that a page defines."""
    text = (DERIVATIONS / page).read_text(encoding="utf-8")
    sources = [each.source for each in doctest.DocTestParser().get_examples(text)]
    used = "".join(
        each for each in sources if each.startswith(("import ", "from ", "def "))
    )
    for source in sources:
        if f"class {name}" in source:
            namespace: dict = {}
            exec(used + source, namespace)
            return namespace[name]
    raise LookupError(f"{page} defines no class {name}")
