"""The derivations' page of the results, and all that it shows, made of a results.json."""

import shutil
import statistics
import textwrap
from pathlib import Path

from reproduction import results
from reproduction.likelihoods import learning, nlls
from reproduction.results import finished
from reproduction.targets import TARGETS
from snfnp.errors import UsageError
from snfnp.training import files

FOLDER = Path(__file__).resolve().parents[2] / "derivations"
NAME = "26-the-paper-reproduced.md"
# Rows of Table 1 that differ in their gradient only: the claim of the paper is that they are alike.
_PAIRS = (
    ("FC 2-layer", "fc-snf", "fc-exact"),
    ("Conv. 9-layer", "conv-snf", "conv-exact"),
    ("Glow 2L-16K", "glow-lambda-100", "glow-exact"),
)

_HEAD = """\
# 26 The paper, reproduced

What came out where this code was run for the tables and figures of the paper, beside what is
printed there. `scripts/reproduce.py` trains the runs, measures the times, and writes this page
from `derivations/results.json`; a test fails where the two disagree. Each table gives our epochs
beside the paper's; with fewer, a difference says as much about training time as about the method.
Anything missing was not run. Below each picture are the commands that make its rows as they are.
Rows can come from several machines, and yours can join them:
`python scripts/reproduce.py page` takes a row into the file where it was trained longer than the
one that is there, or with other seeds. Where results and paper disagree, page
[17](17-from-the-paper-to-here.md#where-it-disagrees) says what is known of the reason.
"""
_FOOT = """\
## SNF against the exact gradient

The paper's claim is about pairs of rows of its Table 1: the learned inverse takes nothing away.
The same subtraction on both sides, of the pairs that were trained as long, or have an exact
validation likelihood at the same epoch (a longer table of these is above):

```pycon
>>> from reproduction.page import committed, gaps
>>> for model, ours, of, paper in gaps(committed()):
...     print(f"{model}: SNF minus exact {ours:+.1f} nats ({of}); in the paper {paper}")"""


def committed() -> dict[str, dict]:
    """The records behind the page."""
    return results.read(FOLDER / results.NAME)


def gaps(records: dict[str, dict]) -> list[tuple[str, float, str, str]]:
    """(model, ours, of what, the paper's) of Table 1: NLL of SNF minus that of the exact gradient.

    Of those pairs only that are both of the paper's model and of all images, and of the seeds that
    both have, which start alike. It is the test NLL if both were trained as long, else the
    validation NLL at the last epoch that both have.
    """
    rows = {row["name"]: row for row in records.get("table1", {}).get("rows", [])}
    found = []
    for model, *names in _PAIRS:
        pair = [rows.get(name) for name in names]
        if not all(pair) or any("runs" not in row or row["data"]["is_sample"] for row in pair):
            continue
        seeds = set.intersection(*({run["seed"] for run in row["runs"]} for row in pair))
        for i, row in enumerate(pair):
            pair[i] = row | {"runs": [run for run in row["runs"] if run["seed"] in seeds]}
        means, curves = [nlls(row) for row in pair], [learning(row) for row in pair]
        epochs = {run["epochs"] for row in pair for run in finished(row)}
        common = curves[0].keys() & curves[1].keys()
        if all(means) and len(epochs) == 1:
            snf, exact = map(statistics.fmean, means)
            of = f"test, {epochs.pop():,} epochs"
        elif common:
            snf, exact = (curve[max(common)] for curve in curves)
            of = f"validation, epoch {max(common):,}"
        else:
            continue
        of += f", seed{'s' * (len(seeds) > 1)} {', '.join(map(str, sorted(seeds)))}"
        paper = pair[0]["paper"] - pair[1]["paper"]
        found.append((model, snf - exact, of, f"{paper:+.1f} ({pair[0]['paper_epochs']:,} epochs)"))
    return found


def page(records: dict[str, dict]) -> str:
    """The text of the page."""
    parts = [_HEAD]
    for name, record in records.items():
        heading, _, _ = record["title"].partition(":")
        beside = "ours beside the paper's" if TARGETS[name].shows_paper else "ours alone"
        shown = TARGETS[name].show(record).splitlines()[2:]  # without the title
        parts += [f"## {record['title']}\n", *map(_wrapped, shown)]
        parts += [f"\n![{heading}: {beside}](figures/{picture_of(name)})\n"]
        parts += [f"*{heading}, {beside}.*\n", *_commands(name, record), ""]
    parts += ["## How they were made\n", *_origins(records), "", _FOOT]
    for model, ours, of, paper in gaps(records):
        parts.append(f"{model}: SNF minus exact {ours:+.1f} nats ({of}); in the paper {paper}")
    return "\n".join([*parts, "\n```\n"])


def publish(folder: Path) -> list[Path]:
    """Merge the results of a --runs folder with those of the derivations, and write the page.

    Returns the files that it wrote. Raises UsageError if there is nothing to show.
    """
    source = folder / results.NAME
    new, known = results.read(source), committed()
    if not new:
        raise UsageError(f"there is no {source}: reproduce something first, or name its --runs")
    for name, record in new.items():
        if name not in TARGETS or record["scale"] == "smoke":
            raise UsageError(f"{source} has a {name} that belongs on no page: name other --runs")
        picture = folder / f"{name}{TARGETS[name].suffix}"
        if not (TARGETS[name].made_of_record or picture.exists()):
            raise UsageError(f"there is no {picture}: reproduce {name} again")
    written = [FOLDER / results.NAME, FOLDER / NAME]
    for name, record in new.items():
        target, path = TARGETS[name], FOLDER / "figures" / picture_of(name)
        new[name] = results.merged(target, known.get(name), record)
        if target.made_of_record:
            target.draw(new[name], path)
        else:
            shutil.copyfile(folder / f"{name}{target.suffix}", path)
        written.append(path)
    results.write(FOLDER / results.NAME, new, list(TARGETS))
    files.write_atomically(FOLDER / NAME, page(committed()).encode())
    return written


def _commands(name: str, record: dict) -> list[str]:
    """The commands that make a record's runs as they are, one for all rows of the same length and
    seeds: each a block of code, continued if it is long."""
    usual = TARGETS[name].names("hour")
    alike: dict[tuple, list[str]] = {}
    for part in results.parts(record):
        if "name" in part and "missing" not in part:
            asked: dict[int, list[str]] = {}
            for run in part.get("runs", [part]):
                epochs = run.get("asked") or run["epochs"]
                asked.setdefault(epochs, []).append(str(run["seed"]))
            scale = "" if part["name"] in usual else " --scale paper"
            for epochs, seeds in asked.items():
                alike.setdefault((epochs, " ".join(seeds), scale), []).append(part["name"])
    command = f"    python scripts/reproduce.py {name}"
    found = [
        f"{command}{scale} --epochs {epochs} --seeds {seeds} --rows {' '.join(rows)}"
        for (epochs, seeds, scale), rows in sorted(alike.items())
    ]
    how = {"subsequent_indent": " " * 8, "break_on_hyphens": False}
    return [" \\\n".join(textwrap.wrap(own, 98, **how)) for own in found or [command]]


def picture_of(name: str) -> str:
    return f"reproduced-{name}{TARGETS[name].suffix}"


def _wrapped(line: str) -> str:
    """A line of prose in lines of at most 100 characters; one of a table as it is."""
    if not line.startswith("* "):
        return line
    return textwrap.fill(line, 100, subsequent_indent="  ", break_long_words=False)


def _origins(records: dict[str, dict]) -> list[str]:
    """A list item for every commit, machine and set of versions, with all that was made there."""
    made: dict[str, dict[str, list[str]]] = {}
    for name, record in records.items():
        for part in [record] if "made_with" in record else results.parts(record):
            label = ", ".join(part["cells"]) if "cells" in part else part.get("model", "")
            own = part.get("made_with", [])
            for each in own if isinstance(own, list) else [own]:
                made.setdefault(_words(each), {}).setdefault(name, []).append(label)
    lines = []
    for how, targets in made.items():
        what = []
        for name, labels in targets.items():
            several = sum(name in others for others in made.values()) > 1
            what.append(f"{name} ({'; '.join(labels)})" if several else name)
        lines.append(_wrapped(f"* {how}: {', '.join(what)}."))
    return lines


def _words(made_with: dict) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in made_with["versions"].items())
    where = made_with["device"].get("name") or made_with["processor"]
    platform, together = made_with["platform"].partition(",")[0], made_with.get("processes", 1)
    processes = f"{together} processes, " if together > 1 else ""
    return (
        f"Commit {made_with['commit']} on {where}, {platform}, {made_with['backend']} backend, "
        f"{processes}threads: {made_with['threads']}, {versions}"
    )
