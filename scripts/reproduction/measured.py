"""What is measured and not trained: done once for a scale and a backend, all in one go."""

from __future__ import annotations

from collections.abc import Callable

from reproduction import provenance, results
from reproduction.setting import Setting


def measured(setting: Setting, target: str, measure: Callable[[], dict]) -> dict:
    """The record of a target: that in results.json where it is of this scale and backend, else a
    new one."""
    known = results.read(setting.folder / results.NAME).get(target)
    if known and not setting.again:
        of = (known.get("scale"), known.get("made_with", {}).get("backend"))
        if of == (setting.scale, setting.ops.name):
            return known
    record = measure()
    return record | {"scale": setting.scale, "made_with": provenance.of_now(setting.ops)}


def hardware(record: dict) -> str:
    """Where a record's times were measured, in a line."""
    made_with = record["made_with"]
    name = made_with["device"].get("name") or made_with["processor"]
    threads = f", threads: {made_with['threads']}" if not made_with["device"] else ""
    return f"Measured on {name}{threads}, {made_with['backend']} backend, in one run."


def digits(milliseconds: float) -> str:
    """Three digits, or all before the point."""
    return f"{milliseconds:.3g}" if milliseconds < 999.5 else f"{milliseconds:,.0f}"
