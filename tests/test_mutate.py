"""scripts/mutate.py: the mutants that it makes, and the tests that are to kill them."""

import ast
from pathlib import Path

import pytest
from mutants import mutants_of
from mutate import files, guards_of, main

ROOT = Path(__file__).resolve().parents[1]
SOURCE = '''"""1 + 1 of a docstring."""
ROWS = 2 * 3

def f(a: 3, b, out):
    """2 < 3"""
    if a > 2 and not b:
        raise ValueError(f"{a + 1}")
    out[...] = g(a, -b.T) @ a[1:]
    out += a * "ü".size
    return max(a, b).reshape(-1, 4) - b.copy()

def fast(a):
    return a + 1
'''
LAST = "return max(a, b).reshape(-1, 4) - b.copy()"


def changed(source, performance=()):
    """{(line, mutated line), …} of a source's mutants."""
    found = set()
    for mutant in mutants_of("x.py", source, set(performance)):
        text = mutant.apply(source)
        ast.parse(text)
        lines = zip(source.splitlines(), text.splitlines(), strict=True)
        ((old, new),) = [pair for pair in lines if pair[0] != pair[1]]
        assert mutant.mutated(source) == new.strip()
        assert source.splitlines()[mutant.line(source) - 1] == old
        found.add((old.strip(), new.strip()))
    return found


def test_mutants_of_a_line():
    (body,) = [[new for old, new in changed(SOURCE) if "@" in old]]
    values = ["(a[1:] @ g(a, -b.T))", "g(-b.T, a) @ a[1:]", "g(a, b.T) @ a[1:]", "g(a, -b) @ a[1:]"]
    values += [f"g(a, -b.T) @ a[{inside}]" for inside in (":", "2:", "0:")]
    values.append("(-(g(a, -b.T) @ a[1:]))")
    assert sorted(body) == sorted(["pass", *(f"out[...] = {value}" for value in values)])


@pytest.mark.parametrize(
    "old, news",
    [
        ("ROWS = 2 * 3", ["ROWS = (2 / 3)", "ROWS = 2 * 6"]),
        (
            "if a > 2 and not b:",
            ["if (a >= 2) and not b:", "if (a < 2) and not b:", "if (a > 2 or not b):"]
            + ["if a > 2 and b:"],
        ),
        ('out += a * "ü".size', ["pass", "out -= a * 'ü'.size", "out += (a / 'ü'.size)"]),
        (
            LAST,
            [
                "return (max(a, b).reshape(-1, 4) + b.copy())",
                "return (-(max(a, b).reshape(-1, 4) - b.copy()))",
                "return max(a, b).reshape(-1, 4) - b",
                "return max(a, b).reshape(4, -1) - b.copy()",
            ],
        ),
    ],
)
def test_every_kind_of_change_is_made(old, news):
    assert {(old, new) for new in news} <= changed(SOURCE)


def test_words_annotations_errors_and_performance_are_left_alone():
    mutants = changed(SOURCE, performance=("ROWS", "fast"))
    assert not any(old.startswith(("raise", '"""', "def", "ROWS")) for old, _ in mutants)
    assert "return a + 1" not in {old for old, _ in mutants}
    assert not any("reshape(-2" in new or "max(b, a)" in new for _, new in mutants)


def test_every_file_has_tests_that_exist():
    for path in files():
        names = guards_of(path)
        assert names and all((ROOT / f"tests/test_{name}.py").exists() for name in names), path


def test_the_list_of_mutants(capsys):
    lists = []
    for seed in "001":
        assert main(["--list", "--count", "3", "--only", "snfnp/rules", "--seed", seed]) == 0
        lists.append(capsys.readouterr().out.partition("\n")[2])  # the first line names the seed
    first, second, other = lists
    assert first == second != other and first.count("+++ mutant") == 3
