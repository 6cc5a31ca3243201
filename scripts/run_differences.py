"""What differs between two finished runs, number by number, for `compare_checkouts.py`.

A result is a folder with a run folder "run" and the reports on it, *.txt. Differences are 0.0 only
where every bit is the same; otherwise they are relative, and infinite where shapes, names or words
differ.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors import safe_open

COLUMNS = ("parameters", "Adam m", "Adam v", "metrics", "reports", "samples")
# Differences by what differs: an array's name, a metric's, a line of a report.
Differences = dict[str, float]

# "state": what controllers and running sums keep from step to step.
_ROLES = {"parameter": "parameters", "state": "parameters", "adam_m": "Adam m", "adam_v": "Adam v"}
_HEADER = ("step", "lam", "seed")
# What a clock has a part in.
_TIMED = {"seconds", "samples_per_second", "training_seconds", "milliseconds_per_step"}
_NUMBER = re.compile(r"[-+]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?")


def compare_runs(this: Path, other: Path, loose: bool = False) -> dict[str, Differences]:
    """What differs between two results, by column, with a 0.0 for everything that does not.

    loose: what was rounded when it was written may differ by one in its last digit.
    """
    found: dict[str, Differences] = {column: {} for column in COLUMNS}
    for name in ("best.safetensors", "last.safetensors"):
        ours, theirs = (_read_checkpoint(folder / "run" / name) for folder in (this, other))
        for key, value in compare_arrays(ours[1], theirs[1]).items():
            found[_ROLES[key.partition(".")[0]]][f"{name} {key}"] = value
        for key, value in compare_records(ours[0], theirs[0]).items():
            found["metrics"][f"{name} {key}"] = value
    for name in ("metrics.jsonl", "summary.json"):
        ours, theirs = (_read_records(folder / "run" / name) for folder in (this, other))
        found["metrics"] |= {f"{name} {k}": v for k, v in compare_records(ours, theirs).items()}
    for name in sorted({path.name for folder in (this, other) for path in folder.glob("*.txt")}):
        texts = (_read_text(folder / name) for folder in (this, other))
        found["reports"] |= {f"{name} {k}": v for k, v in compare_texts(*texts, loose).items()}
    pictures = {}
    for path in (this, other):
        with Image.open(path / "run" / "samples.png") as image:
            pictures[path] = np.asarray(image)
    value = difference(pictures[this], pictures[other])
    step = 1 / max(1, int(pictures[other].max()))  # one level of grey
    found["samples"]["samples.png"] = 0.0 if loose and value <= step else value
    return found


def difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    """max |ours - theirs| / max |theirs|; 0 only where every bit is the same.

    inf: other shapes or types, words, or a NaN or an infinity in one only. The smallest number
    there is: equal as numbers, in other bits (-0 and 0).
    """
    if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
        return math.inf
    if ours.tobytes() == theirs.tobytes():
        return 0.0
    if ours.dtype.kind not in "biuf":
        return math.inf
    ours, theirs = ours.astype(np.float64), theirs.astype(np.float64)
    same = (ours == theirs) | (np.isnan(ours) & np.isnan(theirs))
    if same.all():
        return math.ulp(0.0)
    largest = np.abs(ours[~same] - theirs[~same]).max()
    scale = np.abs(theirs).max()
    if not np.isfinite([largest, scale]).all() or scale == 0:
        return math.inf
    return max(float(largest / scale), math.ulp(0.0))


def compare_arrays(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> Differences:
    """By name; an array that only one of them has is infinitely different."""
    return {
        name: difference(ours[name], theirs[name]) if name in ours and name in theirs else math.inf
        for name in sorted(ours.keys() | theirs.keys())
    }


def compare_records(ours: dict, theirs: dict) -> Differences:
    """The same for numbers by name, without what a clock has a part in."""

    def arrays(record):
        return {
            name: np.array(value)
            for name, value in record.items()
            if name.rpartition(" ")[2] not in _TIMED
        }

    return compare_arrays(arrays(ours), arrays(theirs))


def compare_texts(ours: str, theirs: str, loose: bool = False) -> Differences:
    """The numbers in two texts, line by line; words that differ are infinitely different."""
    found = {}
    lines = ours.splitlines(), theirs.splitlines()
    for index in range(max(map(len, lines))):
        pair = [text[index] if index < len(text) else None for text in lines]
        name = f"line {index + 1}: {pair[0]}"
        if pair[0] == pair[1]:
            found[name] = 0.0
        elif None in pair or len({_NUMBER.sub("#", line).replace(" ", "") for line in pair}) > 1:
            found[name] = math.inf
        else:
            numbers = zip(*map(_NUMBER.findall, pair), strict=True)
            found[name] = max(_text_difference(*two, loose) for two in numbers)
    return found


def _text_difference(ours: str, theirs: str, loose: bool) -> float:
    """Relative difference of two printed numbers; `loose` forgives one in the last digit."""
    a, b = (float(text.replace(",", "")) for text in (ours, theirs))
    mantissa, _, exponent = theirs.partition("e")
    unit = 10.0 ** (int(exponent or 0) - len(mantissa.partition(".")[2]))
    if a == b or (loose and abs(a - b) <= 1.5 * unit):
        return 0.0
    return abs(a - b) / abs(b) if b else math.inf


def _read_checkpoint(path: Path) -> tuple[dict, dict[str, np.ndarray]]:
    """The header's numbers, and the arrays by role and name."""
    with safe_open(path, framework="numpy") as file:
        header = file.metadata()
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return {name: float(header[name]) for name in _HEADER}, arrays


def _read_records(path: Path) -> dict:
    """The numbers of a JSON file, or of JSON lines, by line and name."""
    text = path.read_text()
    records = [json.loads(text)] if path.suffix == ".json" else map(json.loads, text.splitlines())
    return {
        f"{i} {name}": value for i, record in enumerate(records) for name, value in flat(record)
    }


def flat(record: dict, above: str = ""):
    """(name, value) of everything in a record, also in records inside it: "layers dense1 rho"."""
    for name, value in record.items():
        if isinstance(value, dict):
            yield from flat(value, f"{above}{name} ")
        else:
            yield above + name, value


def _read_text(path: Path) -> str:
    return path.read_text() if path.exists() else ""
