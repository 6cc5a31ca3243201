"""results.json: what was run for each target, in a form that tables and pages are made of."""

import json
from pathlib import Path

from snfnp.training import files

NAME = "results.json"
_FORMAT = 1


def read(path: Path) -> dict[str, dict]:
    """{target: its record}; {} if there is no file. Raises SnfnpError if it is damaged."""
    advice = "restore it, or delete it and give the command again"
    return files.read_json(path, _targets, advice) or {}


def _targets(content: dict) -> dict[str, dict]:
    """The records in a file. Raises any exception if no page could be made of them."""
    from reproduction.page import TARGETS, page  # here: that one imports this module

    if content["format"] != _FORMAT:
        raise ValueError(f"not of format {_FORMAT}")
    known = {name: own for name, own in content["targets"].items() if name in TARGETS}
    shown = {name: merged(TARGETS[name], own, own) for name, own in known.items()}
    (page(shown) + json.dumps(content, ensure_ascii=False)).encode()
    return content["targets"]


def write(path: Path, records: dict[str, dict], order: list[str]) -> None:
    """Put records in the place of older ones of the same targets. order: of all targets."""
    known = read(path) | records
    content = {"format": _FORMAT, "targets": {name: known[name] for name in order if name in known}}
    files.write_json(path, content, indent=1, ensure_ascii=False)


def distinct(origins: list[dict]) -> list[dict]:
    """Each of them once, in their order."""
    return [own for i, own in enumerate(origins) if own not in origins[:i]]


def parts(record: dict) -> list[dict]:
    """The rows, curves or layers of a record."""
    return [*record.get("rows", []), *record.get("curves", []), *record.get("layers", [])]


def finished(row: dict) -> list[dict]:
    """The runs of a row that did not diverge."""
    return [run for run in row.get("runs", []) if "value" in run]


def merged(target, known: dict | None, new: dict) -> dict:
    """The record of a target with the rows, or curves, of both.

    Of two of the same model the one counts that was trained on all images, that is the paper's
    model and not a stand-in, and that was trained longer; rows that are alike in all this are
    joined seed by seed, and of curves the new one counts. What is measured, and what is not drawn
    from its record, is what it is in the new one.
    """
    if known is None or not target.rows or not target.made_of_record:
        return new
    name = "curves" if "curves" in new else "rows"
    found = {_model(part): part for part in known[name]}
    for part in new[name]:
        before = found.get(_model(part), {"missing": True})
        if _rank(part) >= _rank(before):
            alike = "runs" in part and _rank(part) == _rank(before)
            found[_model(part)] = _united(before, part) if alike else part
    order = [row.cells for row in target.rows]
    place = {model: order.index(model) if model in order else len(order) for model in found}
    return new | {name: [found[model] for model in sorted(found, key=place.get)]}


def _model(part: dict) -> tuple[str, ...]:
    """The cells of a row, the same for its stand-in."""
    return tuple(part.get("cells") or [part["model"]])


def _rank(part: dict) -> tuple:
    """Tells which of two parts says more; a run that diverged counts as long as it was to be."""
    if part.get("missing"):
        return (-1,)
    sample = part["is_sample"] if "is_sample" in part else part["data"]["is_sample"]
    runs = part.get("runs", [part])
    epochs = max((run.get("asked") or run["epochs"] for run in runs), default=0)
    return 0, not sample, not part.get("stand_in"), epochs


def _united(known: dict, new: dict) -> dict:
    """A row with the seeds of both; of a seed that both have, the new run, but none that diverged
    for one that did not."""
    ordered = sorted((*known["runs"], *new["runs"]), key=lambda run: "value" in run)
    runs = {run["seed"]: run for run in ordered}
    made_with = distinct([*known["made_with"], *new["made_with"]])
    return new | {"runs": [runs[seed] for seed in sorted(runs, key=int)], "made_with": made_with}
