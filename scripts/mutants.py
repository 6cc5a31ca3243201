"""Mutants of a Python file: one small change of its mathematics each."""

import ast
import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate

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
_COMMUTE = {"maximum", "minimum", "max", "min", "multiply", "add", "swapaxes", "slice"}
_COMMUTE |= {"clip", "isinstance", "getattr"}
_DROPPED_CALLS = {"copy", "swapaxes", "ascontiguousarray"}


@dataclass(frozen=True)
class Mutant:
    """source[start:stop] of a file (in bytes of UTF-8) replaced; what: the change in words."""

    path: str
    start: int
    stop: int
    replacement: str
    what: str

    def apply(self, source: str) -> str:
        raw = source.encode()
        return (raw[: self.start] + self.replacement.encode() + raw[self.stop :]).decode()

    def line(self, source: str) -> int:
        return source.encode()[: self.start].count(b"\n") + 1

    def mutated(self, source: str) -> str:
        """The lines that change, as they become."""
        lines = self.diff(source).splitlines()[2:]
        return " ".join(line[1:].strip() for line in lines if line[0] == "+")

    def diff(self, source: str) -> str:
        lines = (text.splitlines() for text in (source, self.apply(source)))
        return "\n".join(difflib.unified_diff(*lines, self.path, "mutant", lineterm="", n=0))


def mutants_of(path: str, source: str, performance: set[str]) -> list[Mutant]:
    """Every mutant of a file but those of docstrings, annotations, errors that are raised, and of
    the constants and functions whose names are in `performance`."""
    starts = list(accumulate(map(len, source.encode().splitlines(keepends=True)), initial=0))
    found, seen = [], {source}
    for node, replacement, what in _walk(ast.parse(source), performance):
        first = starts[node.lineno - 1] + node.col_offset
        last = starts[node.end_lineno - 1] + node.end_col_offset
        mutant = Mutant(path, first, last, replacement, what)
        text = mutant.apply(source)
        if text not in seen:
            seen.add(text)
            found.append(mutant)
    return found


def _walk(node, performance: set[str]) -> Iterator[tuple[ast.AST, str, str]]:
    """(node, the source that takes its place, what that is) of a tree's changes."""
    if _is_left_out(node, performance):
        return
    yield from _changes(node)
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list", "type_params"):
            continue
        for child in value if isinstance(value, list) else [value]:
            # the −1 of x.reshape(−1, …): any other negative number says the same
            reshape = isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "reshape"
            if not isinstance(child, ast.AST) or (reshape and isinstance(child, ast.UnaryOp)):
                continue
            if name == "slice":
                yield from _slices(child)
            yield from _walk(child, performance)


def _is_left_out(node, performance: set[str]) -> bool:
    match node:
        case ast.Raise() | ast.Import() | ast.ImportFrom() | ast.JoinedStr():
            return True
        case ast.Expr(value=ast.Constant()):  # a docstring
            return True
        case ast.FunctionDef(name=name):
            return name in performance
        case ast.Assign(targets=nodes):
            return any(_names(each) & performance for each in nodes)
        case ast.AnnAssign(target=each):
            return bool(_names(each) & performance)
        case ast.Compare() | ast.BoolOp():
            return bool(_names(node) & performance)
    return False


def _names(node) -> set[str]:
    found = (getattr(each, "id", getattr(each, "attr", None)) for each in ast.walk(node))
    return {name for name in found if name}


def _changes(node):
    match node:
        case ast.BinOp(op=ast.MatMult(), left=left, right=right):
            if ast.unparse(left) != ast.unparse(right):
                yield node, _text(_with(node, left=right, right=left)), "factors swapped"
        case ast.BinOp(left=left, right=right):
            if not any(isinstance(side, ast.List | ast.Tuple) for side in (left, right)):
                yield node, _text(_with(node, op=_BINARY[type(node.op)]())), "operator swapped"
        case ast.UnaryOp(op=ast.USub() | ast.Invert() | ast.Not()):
            yield node, _text(node.operand), "sign or negation dropped"
        case ast.Constant(value=bool(value)):
            yield node, str(not value), "flag flipped"
        case ast.Constant(value=int() | float() as value):
            for other in dict.fromkeys((value + 1, value - 1, 2 * value)):
                yield node, _text(ast.Constant(other)), "constant changed"
        case ast.Compare(ops=[operation]):
            for other in _COMPARISONS[type(operation)]:
                yield node, _text(_with(node, ops=[other()])), "comparison changed"
        case ast.BoolOp(op=operation):
            other = ast.Or() if isinstance(operation, ast.And) else ast.And()
            yield node, _text(_with(node, op=other)), "and ↔ or"
        case ast.Call():
            yield from _calls(node)
        case ast.Attribute(attr="T"):
            yield node, _text(node.value), ".T dropped"
        case ast.AugAssign():
            yield node, "pass", "statement dropped"
            if other := _BINARY.get(type(node.op)):
                yield node, ast.unparse(_with(node, op=other())), "operator swapped"
        case ast.Assign(targets=[ast.Subscript()]) | ast.Expr(value=ast.Call()):
            yield node, "pass", "statement dropped"
        case ast.IfExp(test=test) | ast.If(test=test) | ast.While(test=test):
            if not isinstance(test, ast.Compare):
                yield test, f"(not {_text(test)})", "condition negated"
    value = getattr(node, "value", None)
    if isinstance(node, ast.Return | ast.Assign) and isinstance(value, ast.BinOp):
        yield value, f"(-({ast.unparse(value)}))", "sign flipped"


def _calls(node):
    function = node.func.attr if isinstance(node.func, ast.Attribute) else ""
    if len(node.args) > 1 and (function or getattr(node.func, "id", "")) not in _COMMUTE:
        first, second, *rest = node.args
        if ast.unparse(first) != ast.unparse(second):
            swapped = _with(node, args=[second, first, *rest])
            yield node, ast.unparse(swapped), "arguments swapped"
    if function in _DROPPED_CALLS:
        kept = node.args[0] if function == "ascontiguousarray" else node.func.value
        yield node, _text(kept), f"{function} dropped"


def _slices(node):
    for part in ast.walk(node):
        for side in ("lower", "upper", "step") if isinstance(part, ast.Slice) else ():
            if getattr(part, side) is not None:
                yield part, ast.unparse(_with(part, **{side: None})), "slice opened"


def _with(node, **fields):
    """A copy of a node with other fields."""
    return type(node)(**{**dict(ast.iter_fields(node)), **fields})


def _text(node) -> str:
    """The source of an expression, safe beside any operator."""
    safe = ast.Name | ast.Constant | ast.Call | ast.Attribute | ast.Subscript
    text = ast.unparse(node)
    negative = isinstance(node, ast.Constant) and text.startswith("-")
    return text if isinstance(node, safe) and not negative else f"({text})"
