"""results.json: what was run for each target, in a form that tables and pages are made of."""

from __future__ import annotations

import json
from pathlib import Path

from snfnp.errors import SnfnpError
from snfnp.training import files

NAME = "results.json"
_FORMAT = 1


def read(path: Path) -> dict[str, dict]:
    """{target: its record}; {} where there is no file. Raises SnfnpError where it is damaged."""
    if not path.exists():
        return {}
    try:
        content = files.parse_json(files.read_bytes(path, SnfnpError, f"{path} is gone"))
        if content.get("format") != _FORMAT or not isinstance(content.get("targets"), dict):
            raise ValueError(f"not of format {_FORMAT}")
    except ValueError as error:
        raise damaged(path, str(error)) from None
    return content["targets"]


def damaged(path: Path, why: str) -> SnfnpError:
    return SnfnpError(
        f"{path} is damaged ({why[:80]}): restore it, or delete it and give the command again"
    )


def parts(record: dict) -> list[dict]:
    """The rows, curves or layers of a record: there is nothing to show where there are none."""
    return [*record.get("rows", []), *record.get("curves", []), *record.get("layers", [])]


def write(path: Path, records: dict[str, dict], order: list[str]) -> None:
    """Put records in the place of older ones of the same targets. order: of all targets."""
    known = read(path) | records
    content = {"format": _FORMAT, "targets": {name: known[name] for name in order if name in known}}
    files.write_atomically(
        path, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()
    )
