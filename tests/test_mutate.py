"""scripts/mutate.py: the mutants that it makes, and the tests that are to kill them."""

import ast
from pathlib import Path

from mutate import ROOT, TESTS, everything, first_failure, main, mutants_of

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
BECOMES = {
    "ROWS = 2 * 3": "(2 / 3) | 3 * 3 | 1 * 3 | 4 * 3 | 2 * 4 | 2 * 2 | 2 * 6 | (-(2 * 3))",
    "if a > 2 and not b:": """if (a >= 2) and not b: | if (a < 2) and not b: | if a > 3 and not b:
        | if a > 1 and not b: | if a > 4 and not b: | if a > 2 and b: | if (a > 2 or not b):
        | if (not (a > 2 and (not b))):""",
    "out[...] = g(a, -b.T) @ a[1:]": """pass | (a[1:] @ g(a, -b.T)) | g(-b.T, a) @ a[1:]
        | g(a, b.T) @ a[1:] | g(a, -b) @ a[1:] | g(a, -b.T) @ a[:] | g(a, -b.T) @ a[2:]
        | g(a, -b.T) @ a[0:] | (-(g(a, -b.T) @ a[1:]))""",
    'out += a * "ü".size': "pass | out -= a * 'ü'.size | out += (a / 'ü'.size)",
    "return max(a, b).reshape(-1, 4) - b.copy()": """(max(a, b).reshape(-1, 4) + b.copy())
        | (-(max(a, b).reshape(-1, 4) - b.copy())) | max(a, b).reshape(-1, 4) - b
        | max(a, b).reshape(4, -1) - b.copy() | max(a, b).reshape(-1, 5) - b.copy()
        | max(a, b).reshape(-1, 3) - b.copy() | max(a, b).reshape(-1, 8) - b.copy()""",
}


def test_every_kind_of_change_is_made_and_nothing_else_is_changed():
    """Words, annotations, errors and performance are left alone."""
    found = {}
    for mutant in mutants_of("x.py", SOURCE, {"fast"}):
        ast.parse(mutant.text)
        lines = zip(SOURCE.splitlines(), mutant.text.splitlines(), strict=True)
        ((old, new),) = [pair for pair in lines if pair[0] != pair[1]]
        assert mutant.lines() == new.strip()
        found.setdefault(old.strip(), set()).add(new.strip())
    for old, becomes in BECOMES.items():
        start = next((old[: old.index(k) + len(k)] for k in ("= ", "return ") if k in old), "")
        whole = start if "+=" not in old else ""
        said = {" ".join(each.split()) for each in becomes.split("|")}
        assert found.pop(old) == {each if each == "pass" else whole + each for each in said}
    assert not found


def test_mutants_are_drawn_by_a_seed(capsys):
    lists = []
    for seed in "001":
        assert main(["--list", "--count", "3", "--only", "snfnp/rules", "--seed", seed]) == 0
        lists.append(capsys.readouterr().out.partition("\n")[2])  # the first line names the seed
    first, second, other = lists
    assert first == second != other and first.count("+++ mutant") == 3


def test_every_test_that_is_to_kill_mutants_exists_and_a_mutant_dies(tmp_path):
    assert all((ROOT / f"tests/test_{name}.py").exists() for name in TESTS)
    assert {"snfnp/rules/exact.py", "snfnp/ops/conv/definition.py"} < {m.path for m in everything()}
    (tmp_path / "tests").mkdir()
    file = Path(tmp_path, "tests/test_a.py")
    for right, said in ((True, None), (False, "FAILED tests/test_a.py::test_b")):
        file.write_text(f"def test_b():\n    assert {right}\n")
        assert first_failure(("absent", "a"), tmp_path) == said
