"""Records of one target from several commands or machines as one record: part by part, the one that
says most.

A part is a row of a table, or a curve. Of two of the same model the one counts that was trained on
all images, that is the paper's model and not a stand-in, and that was trained for more epochs (to
where it diverged, if it did), in that order. Rows that are alike in all this are joined seed by
seed: so several people make the paper's three seeds.

A target whose picture is made of its runs (`made_of_runs`) is one part: of its records one counts,
and the new one only where it has every row of the other, each as good.
"""

from __future__ import annotations

from pathlib import Path

from reproduction import provenance
from reproduction.likelihoods import finished


def joined(target, known: dict | None, new: dict) -> dict:
    """The record of a target with the parts of both: its other words are those of the new one.

    known: None where there is none. A target without parts is what it is in the new record, whose
    figures are measured in one run, or made of runs and as good: else it is `known` itself.
    """
    if known is None:
        return new
    if target.parts is None:
        return known if target.made_of_runs and not _as_good(target, known, new) else new
    parts = {target.identity(part): part for part in known[target.parts]}
    for part in new[target.parts]:
        identity = target.identity(part)
        parts[identity] = _better(parts[identity], part) if identity in parts else part
    order = target.identities()
    last = len(order)
    ordered = sorted(parts, key=lambda own: order.index(own) if own in order else last)
    return new | {target.parts: [parts[identity] for identity in ordered]}


def kept(name: str, known: dict, new: dict, where: Path) -> str:
    """Why the record of a target that is made of runs is the known one, which is in `where`."""
    before, now = (_rows_in_words(record) for record in (known, new))
    return f"{name} stays as it is in {where} ({before}): not every row is as good in ({now})"


def _rows_in_words(record: dict) -> str:
    rows = [
        f"{row['model']}, {row['data']}{' (a sample)' * row['is_sample']}, epochs: {row['epochs']}"
        for row in record["rows"]
    ]
    return "; ".join(rows)


def _as_good(target, known: dict, new: dict) -> bool:
    """Whether the new record has each row of the known one, by its data, or one that says more."""
    before, now = (_ranks(target, record) for record in (known, new))
    return all(data in now and now[data] >= rank for data, rank in before.items())


def _ranks(target, record: dict) -> dict[str, tuple]:
    models = target.names("paper")  # any other one is a stand-in
    return {
        row["data"]: _rank(row | {"stand_in": row["name"] not in models}) for row in record["rows"]
    }


def _better(known: dict, new: dict) -> dict:
    if _alike(known, new):
        return _united(known, new)
    return known if _rank(known) > _rank(new) else new


def _alike(known: dict, new: dict) -> bool:
    """Whether these are rows of one configuration that were trained as long."""
    if not ("runs" in known and "runs" in new):
        return False
    (least, most), (low, high) = _span(known), _span(new)
    same = all(known.get(key) == new.get(key) for key in ("name", "config", "data"))
    return same and least <= high and low <= most


def _span(row: dict) -> tuple[int, int]:
    """The least and the most epochs for which it says what comes of them: where all runs diverged,
    from there to those that they were to be trained."""
    runs = finished(row) or row["runs"]
    asked = max(run.get("asked") or run["epochs"] for run in runs)
    return max(run["epochs"] for run in runs), asked


def _rank(part: dict) -> tuple:
    if part.get("missing"):
        return (-1,)
    sample = part["is_sample"] if "is_sample" in part else part["data"]["is_sample"]
    runs = finished(part) or part.get("runs", [part])  # a curve is of one run
    epochs = max((run["epochs"] for run in runs), default=0)
    return 0, not sample, not part.get("stand_in"), epochs


def _united(known: dict, new: dict) -> dict:
    """A row with the seeds of both; of a seed that both have, the new run, but none that diverged
    for one that did not."""
    last = sorted((*known["runs"], *new["runs"]), key=lambda run: "value" in run)
    runs = {run["seed"]: run for run in last}
    for row in (new, known):
        if all(run in row["runs"] for run in runs.values()):
            return row
    return new | {
        "runs": [runs[seed] for seed in sorted(runs)],
        "made_with": provenance.distinct([*known["made_with"], *new["made_with"]]),
    }
