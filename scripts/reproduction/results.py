"""results.json: the results of each target, from which tables and pages are made."""

from collections.abc import Iterable
from pathlib import Path

from snfnp import files

FOLDER = Path(__file__).resolve().parents[2] / "derivations"
NAME = "results.json"
_FORMAT = 1


def committed() -> dict[str, dict]:
    """The records behind the page."""
    return read(FOLDER / NAME)


def read(path: Path) -> dict[str, dict]:
    """{target: its record}; {} if there is no file. Raises SnfnpError if it is damaged."""

    def records(content: dict) -> dict[str, dict]:
        if content["format"] != _FORMAT:
            raise ValueError(f"not of format {_FORMAT}")
        targets = content["targets"]
        return {
            name: record | {"rows": record["rows"]} for name, record in targets.items()
        }

    return files.read_json(path, records, "restore it, or delete it") or {}


def write(path: Path, records: dict[str, dict], order: Iterable[str]) -> None:
    """Replace the records of these targets. order: of all targets."""
    known = read(path) | records
    content = {
        "format": _FORMAT,
        "targets": {name: known[name] for name in order if name in known},
    }
    files.write_json(path, content, indent=1, ensure_ascii=False)


def distinct(origins: list[dict]) -> list[dict]:
    """The distinct ones, in their order."""
    return [each for i, each in enumerate(origins) if each not in origins[:i]]


def finished(row: dict) -> list[dict]:
    """The runs of a row that did not diverge."""
    return [run for run in row["runs"] if "value" in run]


def merged(target, known: dict | None, new: dict) -> dict:
    """The record of a target with the rows of both.

    Of two rows with the same cells, the one that was trained longer counts; rows that were trained
    equally long are joined seed by seed. A measured target, or one not drawn from its record, is
    replaced as a whole.
    """
    if known is None or not target.rows or not target.made_of_record:
        return new
    rows = {tuple(row["cells"]): row for row in known["rows"]}
    for row in new["rows"]:
        cells = tuple(row["cells"])
        before = rows.get(cells, row)
        if _length(row) > _length(before) or cells not in rows:
            rows[cells] = row
        elif _length(row) == _length(before):
            rows[cells] = _joined(before, row)
    order = {row.cells: index for index, row in enumerate(target.rows)}
    in_order = sorted(rows, key=lambda cells: order.get(cells, 99))
    return new | {"rows": [rows[cells] for cells in in_order]}


def _length(row: dict) -> int:
    """The epochs of a row's longest run; for one that diverged, those that were planned."""
    return max(run.get("asked") or run["epochs"] for run in row["runs"])


def _joined(known: dict, new: dict) -> dict:
    """A row with the seeds of both. For a common seed the new run counts, unless it diverged and
    the known one did not."""
    ordered = sorted((*known["runs"], *new["runs"]), key=lambda run: "value" in run)
    runs = {run["seed"]: run for run in ordered}
    origins = [
        origin
        for row in (known, new)
        if any(run in row["runs"] for run in runs.values())
        for origin in row["made_with"]
    ]
    made_with = distinct(origins)
    return new | {"runs": [runs[seed] for seed in sorted(runs)], "made_with": made_with}
