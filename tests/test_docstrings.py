"""Docstrings open with a noun or a verb: they say what something is or does."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
OPENINGS = re.compile(r"(What|Where|Whether|How|The same|As|Of|Those|That|Who|Which|When|If)\b")
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef)


def problems(text: str) -> list[str]:
    """The openings that are refused, of the docstrings of a module, its classes and functions."""
    nodes = (node for node in ast.walk(ast.parse(text)) if isinstance(node, DOCUMENTED))
    openings = ((ast.get_docstring(node) or "")[:40] for node in nodes)
    return [opening for opening in openings if OPENINGS.match(opening)]


@pytest.mark.parametrize("folder", ["snfnp", "scripts"])
def test_docstrings_open_with_a_noun_or_a_verb(folder):
    found = {file: problems(file.read_text()) for file in (ROOT / folder).rglob("*.py")}
    assert found and not {str(file): bad for file, bad in found.items() if bad}


@pytest.mark.parametrize("opening", ["What is known", "Of every layer", "The same, in turn", "If"])
@pytest.mark.parametrize("code", ['"""{}."""', 'class A:\n    def f(self):\n        """{}."""'])
def test_a_flaw_would_be_found(code, opening):
    assert problems(code.format(opening)) == [f"{opening}."]
    assert not problems(code.format("Whatever is left: a list"))
