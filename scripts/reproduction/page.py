"""The derivations' page of the results, made from results.json."""

import re
import shutil
import statistics
import textwrap
from collections import defaultdict
from pathlib import Path

from reproduction import hours, results
from reproduction.facts import by_seed, facts
from reproduction.figures import Figure2, Figure3, Figure5
from reproduction.likelihoods import Ablation, LikelihoodTable, compared
from reproduction.results import committed, finished
from reproduction.rows import TABLES
from reproduction.target import Target
from reproduction.times import Figure4, Table3
from snfnp import files
from snfnp.errors import UsageError

TARGETS: dict[str, Target] = {
    **{name: LikelihoodTable(table) for name, table in TABLES.items()},
    "table3": Table3(),
    "white-parts": Ablation(),
    "figure2": Figure2(),
    "figure3": Figure3(),
    "figure4": Figure4(),
    "figure5": Figure5(),
}
TARGETS = dict(sorted(TARGETS.items(), key=lambda item: (item[0][0] == "f", item[0])))

NAME = "27-the-paper-reproduced.md"
_TEXT = Path(__file__).with_name("page.md")
# Rows of Table 1 that differ in their gradient only: the paper claims that they are alike.
_PAIRS = (
    ("FC 2-layer", "fc-snf", "fc-exact"),
    ("Conv. 9-layer", "conv-snf", "conv-exact"),
    ("Glow 2L-16K", "glow-lambda-100", "glow-exact"),
)


_WRAP = {"break_long_words": False, "break_on_hyphens": False}


def gaps(records: dict[str, dict]) -> dict[str, str]:
    """{model: NLL of SNF minus that of the exact gradient, on the test images, over the seeds of
    both; and the paper's}, of Table 1's pairs that were trained as long."""
    rows = {row["name"]: row for row in records.get("table1", {}).get("rows", [])}
    differences = {}
    for model, *names in _PAIRS:
        if not rows.keys() >= set(names):
            continue
        snf, exact = (rows[name] for name in names)
        nats = by_seed(snf, exact)
        epochs = {
            run["epochs"]
            for row in (snf, exact)
            for run in finished(row)
            if run["seed"] in nats
        }
        if len(epochs) == 1:
            seeds = ", ".join(map(str, nats))
            differences[model] = (
                f"{statistics.fmean(nats.values()):+.1f} nats (test, {epochs.pop():,} epochs, "
                f"seed{'s' * bool(nats.keys() - {min(nats)})} {seeds}); in the paper "
                f"{snf['paper'] - exact['paper']:+.1f} ({snf['paper_epochs']:,} epochs)"
            )
    return differences


def page(records: dict[str, dict]) -> str:
    """The text of the page: page.md, with facts of the records at its @names@."""
    figures = facts(records) | _head(records)
    for name in ("table3", "figure4"):
        figures[f"measured_{name}"] = measured_on(records.get(name))
    for name, target in TARGETS.items():
        figures[f"title_{name}"] = target.title
        figures[name] = _shown(name, records.get(name))
    return _filled(_TEXT.read_text(encoding="utf-8"), figures) + "\n"


def measured_on(record: dict | None) -> str:
    """The device of a target that measures times."""
    if record is None:
        return "nothing yet"
    (made_with,) = record["made_with"]
    where = made_with["device"].get("name")
    where = where or f"{made_with['processor']}, threads: {made_with['threads']}"
    return f"{where}, {made_with['backend']} backend"


def listing() -> str:
    """The targets, each with its rows and what they take."""
    records = committed()
    parts = []
    for name, target in TARGETS.items():
        seeds = getattr(target, "seeds", 1)
        times = f" ({seeds} seeds of each row)" if seeds > 1 else ""
        parts.append(f"{name}: {target.title}{times}")
        if target.rows:
            parts.append(f"\n{hours.table(hours.costs(target.rows, records))}\n")
    where = measured_on(records.get("table3"))
    parts.append(f"Times are of one seed, training steps alone: {where} (Table 3).")
    parts.append("Rows without epochs of ours are trained only if --rows names them.")
    return "\n".join(parts)


def commands(records: dict[str, dict]) -> str:
    """The commands that make the records' runs, under the titles of their tables and figures."""
    parts = (
        "\n".join([TARGETS[name].title, *_commands(name, record)])
        for name, record in records.items()
    )
    return "\n\n".join(parts)


def _filled(text: str, facts: dict[str, str]) -> str:
    """A text with the facts at their @names@, its paragraphs and list items wrapped anew."""
    paragraphs = []
    for paragraph in re.split(r"(\n{2,}|\n(?=\* ))", text):
        filled = re.sub(
            r"@([\w-]+)@", lambda match: facts.get(match[1], "not run"), paragraph
        )
        if re.match(r"\w|`[^`]|\* |\*\w", paragraph):
            indent = "  " if filled.startswith("* ") else ""
            filled = textwrap.fill(
                " ".join(filled.split()), 100, subsequent_indent=indent, **_WRAP
            )
        paragraphs.append(filled)
    return "".join(paragraphs)


def _head(records: dict[str, dict]) -> dict[str, str]:
    """The figures in the head of the page."""
    rows = records.get("table1", {}).get("rows", [])
    as_long = []
    for row in rows:
        nats, *_, paper, difference = compared(row)
        if re.fullmatch(r"[+-][\d.]+", difference):  # without a remark
            as_long.append(f"{row['cells'][0]} {nats} nats, the paper's {paper}")
    seeds = sorted({len(row["runs"]) for row in rows}) or [0]
    differences = gaps(records)
    return {
        "long": "; ".join(as_long) or "none",
        "count": f"{len(as_long)} of {len(rows)}",
        "seeds": f"{seeds[0]} to {seeds[-1]}",
        "gaps": "".join(
            f"\n{model}: SNF minus exact {gap}" for model, gap in differences.items()
        ),
        "fc_gap": differences.get("FC 2-layer", "not run"),
        "conv_gap": differences.get("Conv. 9-layer", "not run"),
    }


def _shown(name: str, record: dict | None) -> str:
    """A target's table."""
    target = TARGETS[name]
    if record is None:
        is_named = target.rows and not any(row.ours for row in target.rows)
        options = " --rows …" if is_named else ""
        return f"Not run here: `python scripts/reproduce.py {name}{options}` does it."
    shown = target.show(record)
    if name != "table1":  # whose curves stand for those of all
        shown = shown.partition("\n\nExact validation NLL")[0]
    return shown


def publish(folder: Path) -> list[Path]:
    """Merge the results of a --runs folder with those of the derivations, and write the page.

    Returns the files that it wrote. Raises UsageError if there is nothing to show.
    """
    source = folder / results.NAME
    new = results.read(source)
    known = committed()
    if not new:
        raise UsageError(
            f"there is no {source}: reproduce something first, or name its --runs"
        )
    for name in new:
        if name not in TARGETS:
            raise UsageError(
                f"{source} has a {name} that belongs to no page: name other --runs"
            )
        picture = folder / f"{name}{TARGETS[name].suffix}"
        if not (TARGETS[name].made_of_record or picture.exists()):
            raise UsageError(f"there is no {picture}: reproduce {name} again")
    written = [results.FOLDER / results.NAME, results.FOLDER / NAME]
    for name, record in new.items():
        target = TARGETS[name]
        path = results.FOLDER / "figures" / picture_of(name)
        new[name] = results.merged(target, known.get(name), record)
        if target.made_of_record:
            target.draw(new[name], path)
        else:
            shutil.copyfile(folder / f"{name}{target.suffix}", path)
        if path.exists():
            written.append(path)
    results.write(results.FOLDER / results.NAME, new, TARGETS)
    files.write_atomically(results.FOLDER / NAME, page(committed()).encode())
    return written


def _commands(name: str, record: dict) -> list[str]:
    """The commands that make a record's runs, one for all rows of the same length and seeds."""
    alike = defaultdict(list)
    for row in record["rows"] if TARGETS[name].rows else ():
        seeds_of = defaultdict(list)
        for run in row["runs"]:
            length = (run.get("eval_every", 1), run.get("asked") or run["epochs"])
            seeds_of[length].append(str(run["seed"]))
        for (every, epochs), seeds in seeds_of.items():
            alike[epochs, " ".join(seeds), every].append(row["name"])
    command = f"    python scripts/reproduce.py {name}"
    commands = []
    for (epochs, seeds, every), rows in sorted(alike.items()):
        options = f" --epochs {epochs}"
        if every > 1:
            options += f" --eval-every {every}"
        options += f" --seeds {seeds}"
        if len(rows) < len(TARGETS[name].rows):
            options += f" --rows {' '.join(rows)}"
        commands.append(command + options)
    return commands or [command]


def picture_of(name: str) -> str:
    return f"reproduced-{name}{TARGETS[name].suffix}"
