"""Checking that an object has what its contract asks for, before anything is computed with it
(derivations/17-write-your-own-layer.md)."""

import inspect
from types import FunctionType
from typing import Any

from snfnp.errors import UsageError


def require(thing: Any, contract: type, advice: str = "") -> None:
    """Raises UsageError unless `thing` is an instance of a contract (`Layer`, `Map` or `Rule`) and
    has all members that it must have, with arguments in the contract's order."""
    kind = contract.__name__
    if not isinstance(thing, contract):
        raise UsageError(
            f"{str(thing)[:60]} is no {kind.lower()}: give an instance of a snfnp {kind}{advice}"
        )
    name = type(thing).__name__
    for member, declared in vars(contract).items():
        if member.startswith("_") or not isinstance(declared, (property, FunctionType)):
            continue
        if getattr(type(thing), member) is declared:
            function: Any = getattr(declared, "fget", declared)
            if "NotImplementedError" in function.__code__.co_names:
                raise UsageError(
                    f"{name} has no {member}: write it, as snfnp's {kind} describes"
                )
        elif not isinstance(declared, property) and not _fits(
            getattr(thing, member), declared
        ):
            expected = ", ".join(map(str, _arguments(declared)))
            raise UsageError(
                f"{name}.{member} takes {inspect.signature(getattr(thing, member))}: "
                f"let it take ({expected})"
            )


def _arguments(declared: Any) -> list[inspect.Parameter]:
    """The arguments of a contract's method but self, without their types."""
    _, *arguments = inspect.signature(declared).parameters.values()
    return [each.replace(annotation=each.empty) for each in arguments]


def _fits(method: Any, declared: Any) -> bool:
    """True if a method can be called as it is declared; *more is none or one."""
    positional = []
    named = {}
    calls = [positional]
    for each in _arguments(declared):
        if each.kind is each.VAR_POSITIONAL:
            calls.append([*positional, None])
        elif each.kind is each.KEYWORD_ONLY:
            named[each.name] = None
        elif each.default is each.empty:
            positional.append(None)
    for arguments in calls:
        try:
            inspect.signature(method).bind(*arguments, **named)
            return True
        except TypeError:
            continue
    return False
