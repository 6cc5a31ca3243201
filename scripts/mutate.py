"""Change the mathematics in small ways, one at a time, and see whether the tests notice.

A sample of mutants is drawn; each is written into a copy of the checkout, where tests run until one
fails. A mutant that survives is printed as a diff: a test is missing, or the change changes nothing
(equivalents.txt lists those that are known). Some seconds per mutant that dies.
"""

import argparse
import ast
import difflib
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
COPIED = ("snfnp", "tests", "scripts", "derivations", "pyproject.toml", "README.md")
TIMEOUT = 600  # seconds for the tests of one mutant: one that does not end is noticed, too
FILES = ("rules/*", "maps/*", "beyond/*", "ops/*/definition", "flow", "context", "layers/emerging")
FILES += ("layers/conv_exponential", "training/monitors", "training/coordinates")
FILES += ("training/multipliers", "training/second_moment")
# Tests of every mutant, the quickest first, after those that have the name of its file, or of the
# folder of a definition.
TESTS = ("rules", "maps", "layers", "flow", "gradcheck_linear", "conv", "block_tridiagonal")
TESTS += ("whole_step", "likelihood", "steps", "optim", "preprocess", "augment", "ops")
# Constants and functions that decide speed or memory alone, by the same name: not mutated.
PERFORMANCE = {
    "linalg": {"_BLOCK", "_ONE_THREAD", "chain_of_products", "_blas_libraries"},
    "conv": {"_MANY"},  # which of two equal ways to take
    "coupling": {"network_values", "keeps_first"},  # of the hidden layers, at once or at all
}
_BINARY = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.Pow: ast.Mult,
    ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
    ast.BitXor: ast.BitAnd, ast.RShift: ast.LShift, ast.LShift: ast.RShift,
}  # fmt: skip
_COMPARISONS = {
    ast.Lt: (ast.LtE, ast.Gt), ast.LtE: (ast.Lt, ast.GtE), ast.Gt: (ast.GtE, ast.Lt),
    ast.GtE: (ast.Gt, ast.LtE), ast.Eq: (ast.NotEq,), ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,), ast.IsNot: (ast.Is,), ast.In: (ast.NotIn,), ast.NotIn: (ast.In,),
}  # fmt: skip
# Functions whose first two arguments may be swapped, or in which that is no mathematics.
_COMMUTE = {"maximum", "minimum", "max", "min", "multiply", "add", "swapaxes", "slice", "clip"}
_COMMUTE |= {"isinstance", "getattr"}


class Mutant(NamedTuple):
    """A file, its source, and the source with one change."""

    path: str
    source: str
    text: str

    def diff(self) -> list[str]:
        lines = (text.splitlines() for text in (self.source, self.text))
        return list(difflib.unified_diff(*lines, self.path, "mutant", lineterm="", n=0))

    def lines(self) -> str:
        """The lines that change, as they become."""
        return " ".join(line[1:].strip() for line in self.diff()[2:] if line[0] == "+")


def mutants_of(path: str, source: str, left_out: set[str]) -> list[Mutant]:
    """Every mutant of a file but those of docstrings, annotations, errors that are raised, and of
    constants and functions whose names are in `left_out`."""
    raw = source.encode()
    starts = list(accumulate(map(len, raw.splitlines(keepends=True)), initial=0))
    texts = {}
    for node, replacement in _changes(ast.parse(source), left_out):
        first = starts[node.lineno - 1] + node.col_offset
        last = starts[node.end_lineno - 1] + node.end_col_offset
        texts[(raw[:first] + replacement.encode() + raw[last:]).decode()] = None
    return [Mutant(path, source, text) for text in texts if text != source]


def _changes(node, left_out: set[str]) -> Iterator[tuple[ast.AST, str]]:
    """(node, the source that takes its place) for every change of a tree."""
    if isinstance(node, ast.Raise | ast.Import | ast.ImportFrom | ast.JoinedStr):
        return
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):  # a docstring
        return
    if isinstance(node, ast.FunctionDef) and node.name in left_out:
        return
    if isinstance(node, ast.Assign | ast.AnnAssign | ast.Compare | ast.BoolOp):
        names = {getattr(each, "id", getattr(each, "attr", "")) for each in ast.walk(node)}
        if names & left_out:
            return
    yield from ((node, text) for text in _of_expression(node))
    yield from _of_statement(node)
    for name, value in ast.iter_fields(node):
        if name not in ("annotation", "returns", "decorator_list", "type_params"):
            for child in value if isinstance(value, list) else [value]:
                # the −1 of x.reshape(−1, …): any other negative number says the same
                reshape = isinstance(node, ast.Call) and _called(node) == "reshape"
                if isinstance(child, ast.AST) and not (reshape and isinstance(child, ast.UnaryOp)):
                    yield from _changes(child, left_out)


def _of_expression(node) -> Iterator[str]:
    match node:
        case ast.BinOp(op=ast.MatMult(), left=left, right=right):  # factors swapped
            yield _text(_with(node, left=right, right=left))
        case ast.BinOp(op=op, left=left, right=right):
            if not any(isinstance(side, ast.List | ast.Tuple) for side in (left, right)):
                yield _text(_with(node, op=_BINARY[type(op)]()))
        case ast.UnaryOp(op=ast.USub() | ast.Invert() | ast.Not()):  # sign or negation dropped
            yield _text(node.operand)
        case ast.Constant(value=bool(value)):
            yield str(not value)
        case ast.Constant(value=int() | float() as value):
            yield from (_text(ast.Constant(own)) for own in (value + 1, value - 1, 2 * value))
        case ast.Compare(ops=[op]):
            yield from (_text(_with(node, ops=[own()])) for own in _COMPARISONS[type(op)])
        case ast.BoolOp(op=op):
            yield _text(_with(node, op=ast.Or() if isinstance(op, ast.And) else ast.And()))
        case ast.Attribute(attr="T"):  # a transposition dropped
            yield _text(node.value)
        case ast.Call(args=[first, second, *rest]) if _called(node) not in _COMMUTE:
            yield ast.unparse(_with(node, args=[second, first, *rest]))
        case ast.Call(func=ast.Attribute(value=value, attr="copy" | "swapaxes")):
            yield _text(value)
        case ast.Slice():  # opened
            for side in ("lower", "upper", "step"):
                if getattr(node, side) is not None:
                    yield ast.unparse(_with(node, **{side: None}))


def _of_statement(node) -> Iterator[tuple[ast.AST, str]]:
    match node:
        case ast.AugAssign(op=op):
            yield node, "pass"
            if type(op) in _BINARY:
                yield node, ast.unparse(_with(node, op=_BINARY[type(op)]()))
        case ast.Assign(targets=[ast.Subscript()]) | ast.Expr(value=ast.Call()):
            yield node, "pass"
        case ast.IfExp(test=test) | ast.If(test=test) | ast.While(test=test):
            if not isinstance(test, ast.Compare):
                yield test, f"(not {_text(test)})"
    if isinstance(node, ast.Return | ast.Assign) and isinstance(node.value, ast.BinOp):
        yield node.value, f"(-({ast.unparse(node.value)}))"


def _called(node: ast.Call) -> str:
    return getattr(node.func, "attr", getattr(node.func, "id", ""))


def _with(node, **fields):
    """A copy of a node with other fields."""
    return type(node)(**{**dict(ast.iter_fields(node)), **fields})


def _text(node) -> str:
    """The source of an expression, safe beside any operator."""
    safe = ast.Name | ast.Constant | ast.Call | ast.Attribute | ast.Subscript
    text = ast.unparse(node)
    return text if isinstance(node, safe) and not text.startswith("-") else f"({text})"


def name_of(path: Path) -> str:
    """The name of a file, or of the folder of a definition."""
    return path.parent.name if path.stem == "definition" else path.stem


def everything() -> list[Mutant]:
    """All mutants of the files with the mathematics."""
    found = sorted(path for name in FILES for path in (ROOT / "snfnp").glob(f"{name}.py"))
    mutants = []
    for path in found:
        source, left_out = path.read_text(encoding="utf-8"), PERFORMANCE.get(name_of(path), set())
        mutants += mutants_of(str(path.relative_to(ROOT)), source, left_out)
    return mutants


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--count", type=int, default=100, help="mutants to draw (default: 100)")
    add("--seed", type=int, default=0, help="seed of the draw (default: 0)")
    add("--only", default="", metavar="TEXT", help="files with this in their path (default: all)")
    add("--list", action="store_true", help="print the mutants and run nothing")
    args = parser.parse_args(argv)
    known = [mutant for mutant in everything() if args.only in mutant.path]
    drawn = random.Random(args.seed).sample(known, min(args.count, len(known)))
    print(f"{len(drawn)} of {len(known)} mutants, seed {args.seed}")
    if args.list:
        print(*("\n".join(mutant.diff()) for mutant in drawn), sep="\n")
        return 0
    equivalent = Path(__file__).with_name("equivalents.txt").read_text(encoding="utf-8").split("\n")
    lived = 0
    with tempfile.TemporaryDirectory(prefix="snfnp-mutants-") as folder:
        for name in COPIED:  # with dates, so that compiled kernels stay valid
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy2
            copy(ROOT / name, Path(folder, name))
        if failed := first_failure(TESTS, Path(folder)):
            sys.exit(f"error: without any mutant, {failed}: repair that first")
        for mutant in drawn:
            path = Path(folder, mutant.path)
            path.write_text(mutant.text, encoding="utf-8")
            fate = first_failure((name_of(path), *TESTS), Path(folder))
            path.write_text(mutant.source, encoding="utf-8")
            if not fate:
                fate = "equivalent" if f"    {mutant.lines()}" in equivalent else "LIVES"
                lived += fate == "LIVES"
            print("\n".join(mutant.diff()[2:]), f"{mutant.path}: {fate}", sep="\n", flush=True)
    print(f"\n{lived} of {len(drawn)} mutants live unexplained")
    return 1 if lived else 0


def first_failure(names, folder: Path) -> str | None:
    """The first of these tests that fails in a copy of the checkout, or None."""
    files = (f"tests/test_{name}.py" for name in dict.fromkeys(names))
    tests = [file for file in files if (folder / file).exists()]
    # the definitions are what NumPy's backend computes with: no other test need run
    options = ["-x", "-q", "-n0", "-p", "no:cacheprovider", "-k", "not numba"]
    # dates of mutants are too close together for compiled files
    own = {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1", "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", *options, *tests]
    how = {"cwd": folder, "env": os.environ | own, "capture_output": True, "text": True}
    try:
        done = subprocess.run(command, timeout=TIMEOUT, **how)
    except subprocess.TimeoutExpired:
        return "no end"
    lines = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    said = lines[0].partition(" - ")[0] if lines else f"pytest ended with {done.returncode}"
    return said if done.returncode else None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
