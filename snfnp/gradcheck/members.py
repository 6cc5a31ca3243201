"""Checking that an object has what its contract asks for, before anything is computed with it
(derivations/17-write-your-own-layer.md)."""

from typing import Any

from snfnp.errors import UsageError


def require(thing: Any, contract: type, advice: str = "") -> None:
    """Raises UsageError unless `thing` is an instance of a contract (`Layer`, `Map` or `Rule`) and
    has all members that it must have."""
    kind = contract.__name__
    if not isinstance(thing, contract):
        raise UsageError(
            f"{str(thing)[:60]} is no {kind.lower()}: give an instance of a snfnp {kind}{advice}"
        )
    for member, declared in vars(contract).items():
        code = getattr(getattr(declared, "fget", declared), "__code__", None)
        is_required = code is not None and "NotImplementedError" in code.co_names
        if is_required and getattr(type(thing), member) is declared:
            name = type(thing).__name__
            raise UsageError(
                f"{name} has no {member}: write it, as snfnp's {kind} describes"
            )
