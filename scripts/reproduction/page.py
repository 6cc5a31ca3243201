"""The derivations' page of the results, made from results.json."""

import re
import shutil
import statistics
import textwrap
from collections.abc import Iterator
from pathlib import Path

from reproduction import results
from reproduction.facts import facts
from reproduction.figures import Figure2, Figure3, Figure5
from reproduction.likelihoods import Ablation, LikelihoodTable, compared, learning, nlls
from reproduction.results import finished
from reproduction.rows import TABLES
from reproduction.target import Target
from reproduction.times import Figure4, Table3
from snfnp import files
from snfnp.errors import UsageError
from snfnp.training.options import TrainConfig

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

FOLDER = Path(__file__).resolve().parents[2] / "derivations"
NAME = "27-the-paper-reproduced.md"
_TEXT = Path(__file__).with_name("page.md")
# Rows of Table 1 that differ in their gradient only: the paper claims that they are alike.
_PAIRS = (
    ("FC 2-layer", "fc-snf", "fc-exact"),
    ("Conv. 9-layer", "conv-snf", "conv-exact"),
    ("Glow 2L-16K", "glow-lambda-100", "glow-exact"),
)


_WRAP = {"break_long_words": False, "break_on_hyphens": False}


def committed() -> dict[str, dict]:
    """The records behind the page."""
    return results.read(FOLDER / results.NAME)


def gaps(records: dict[str, dict]) -> list[tuple[str, float, str, str]]:
    """(model, ours, of what, the paper's) of Table 1: NLL of SNF minus that of the exact gradient,
    over the seeds of both: of the test images if both were trained as long, else of the validation
    images at the last epoch that both have."""
    rows = {row["name"]: row for row in records.get("table1", {}).get("rows", [])}
    found = []
    for model, *names in _PAIRS:
        pair = [rows.get(name) for name in names]
        if not all(pair):
            continue
        seeds = set.intersection(
            *({run["seed"] for run in row["runs"]} for row in pair)
        )
        for i, row in enumerate(pair):
            pair[i] = row | {
                "runs": [run for run in row["runs"] if run["seed"] in seeds]
            }
        means = [nlls(row) for row in pair]
        curves = [learning(row) for row in pair]
        epochs = {run["epochs"] for row in pair for run in finished(row)}
        if all(means) and len(epochs) == 1:
            snf, exact = map(statistics.fmean, means)
            of = f"test, {epochs.pop():,} epochs"
        elif common := curves[0].keys() & curves[1].keys():
            snf, exact = (curve[max(common)] for curve in curves)
            of = f"validation, epoch {max(common):,}"
        else:
            continue
        of += f", seed{'s' * (len(seeds) > 1)} {', '.join(map(str, sorted(seeds)))}"
        paper = pair[0]["paper"] - pair[1]["paper"]
        found.append(
            (
                model,
                snf - exact,
                of,
                f"{paper:+.1f} ({pair[0]['paper_epochs']:,} epochs)",
            )
        )
    return found


def page(records: dict[str, dict]) -> str:
    """The text of the page: page.md, with facts of the records at its @names@."""
    head, *others = re.split(
        r"^%% ([\w-]+)\n", _TEXT.read_text(encoding="utf-8"), flags=re.M
    )
    texts = dict(zip(others[::2], others[1::2], strict=True))
    figures = facts(records)
    parts = [_filled(head, figures | _head(records))]
    for name, target in TARGETS.items():
        parts.append(f"## {target.title}\n\n")
        if name in records:
            parts.append(_filled(texts[name], figures | _shown(name, records[name])))
        else:
            rows = (
                ""
                if any(row.ours for row in target.rows) or not target.rows
                else " --rows …"
            )
            parts.append(
                f"Not run here: `python scripts/reproduce.py {name}{rows}` does it.\n\n"
            )
    return "".join([*parts, texts["end"]])


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
            r"@(\w+)@", lambda found: facts.get(found[1], "not run"), paragraph
        )
        changed = (
            filled != paragraph or max(map(len, filled.splitlines()), default=0) > 100
        )
        if changed and re.match(r"\w|`[^`]|\* |\*\w", paragraph):
            indent = "  " if filled.startswith("* ") else ""
            filled = textwrap.fill(
                " ".join(filled.split()), 100, subsequent_indent=indent, **_WRAP
            )
        paragraphs.append(filled)
    return "".join(paragraphs)


def _head(records: dict[str, dict]) -> dict[str, str]:
    """The figures in the head of the page."""
    rows = records.get("table1", {}).get("rows", [])
    facts = {"gaps": ""}
    as_long = []
    for row in rows:
        nats, *_, paper, difference = compared(row)
        if re.fullmatch(r"[+-][\d.]+", difference):  # without a remark
            as_long.append(f"{row['cells'][0]} {nats} nats, the paper's {paper}")
    seeds = sorted({len(row["runs"]) for row in rows}) or [0]
    facts |= {
        "long": "; ".join(as_long) or "none",
        "count": f"{len(as_long)} of {len(rows)}",
    }
    facts["seeds"] = f"{seeds[0]} to {seeds[-1]}"
    for model, nats, of, paper in gaps(records):
        facts[model[:2].lower()] = f"{nats:+.1f} nats ({of}), in the paper {paper}"
        facts["gaps"] += (
            f"\n{model}: SNF minus exact {nats:+.1f} nats ({of}); in the paper {paper}"
        )
    for row in records.get("table3", {}).get("rows", []):
        if row["label"] == "Self Normalizing FC 2-Layer":
            ours = row["batch"]["of_exact"]
            paper = row["batch"]["paper_of_exact"]
            facts["share"] = (
                f"{ours:.2f} of the exact gradient's time, in the paper {paper:.2f}"
            )
    return facts


def _shown(name: str, record: dict) -> dict[str, str]:
    """The facts of a target's section: its table, its picture, and how they were made."""
    shown = TARGETS[name].show(record)
    if name != "table1":  # whose curves stand for those of all
        shown = shown.partition("\n\nExact validation NLL")[0]
    table = "\n\n".join([shown, *_otherwise(TARGETS[name], record)])
    facts = {"table": table, "picture": picture_of(name)}
    if name == "white":
        configs = [row["config"] for row in record["rows"] if row["config"]["lam"]]
        lams = {config["model"]: config["lam"] for config in configs}
        facts["lams"] = ", ".join(
            f"{lam:g} for `{model}`" for model, lam in lams.items()
        )
    if "made_with" in record:
        (made_with,) = record["made_with"]
        where = made_with["device"].get("name")
        where = where or f"{made_with['processor']}, threads: {made_with['threads']}"
        facts["measured"] = f"{where}, {made_with['backend']} backend"
    return facts


def _otherwise(target: Target, record: dict) -> Iterator[str]:
    """A note on every row whose options have changed: its command makes another run."""
    options = {row.name: row.options for row in target.rows}
    for row in record["rows"] if options else ():
        now = TrainConfig(**options[row["name"]]).resolve(50_000).as_dict()
        then = [
            (name, own)
            for name, own in row["config"].items()
            if now.get(name, own) != own
        ]
        if then:
            said = " and ".join(
                f"`{name}` {own} (now {now[name]})" for name, own in then
            )
            yield f"* {', '.join(row['cells'])}: trained with {said}."


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
    written = [FOLDER / results.NAME, FOLDER / NAME]
    for name, record in new.items():
        target = TARGETS[name]
        path = FOLDER / "figures" / picture_of(name)
        new[name] = results.merged(target, known.get(name), record)
        if target.made_of_record:
            target.draw(new[name], path)
        else:
            shutil.copyfile(folder / f"{name}{target.suffix}", path)
        written.append(path)
    results.write(FOLDER / results.NAME, new, TARGETS)
    files.write_atomically(FOLDER / NAME, page(committed()).encode())
    return written


def _commands(name: str, record: dict) -> list[str]:
    """The commands that make a record's runs, one for all rows of the same length and seeds: each a
    block of code, on several lines if it is long."""
    alike: dict[tuple, list[str]] = {}
    for row in record["rows"] if TARGETS[name].rows else ():
        asked: dict[tuple, list[str]] = {}
        for run in row["runs"]:
            often = run.get("eval_every", 1), run.get("asked") or run["epochs"]
            asked.setdefault(often, []).append(str(run["seed"]))
        for (every, epochs), seeds in asked.items():
            alike.setdefault((epochs, " ".join(seeds), every), []).append(row["name"])
    command = f"    python scripts/reproduce.py {name}"
    found = []
    for (epochs, seeds, every), rows in sorted(alike.items()):
        often = f" --eval-every {every}" * (every > 1)
        which = f" --rows {' '.join(rows)}" * (len(rows) < len(TARGETS[name].rows))
        found.append(f"{command} --epochs {epochs}{often} --seeds {seeds}{which}")
    how = {"subsequent_indent": " " * 8, "break_on_hyphens": False}
    return [" \\\n".join(textwrap.wrap(own, 98, **how)) for own in found or [command]]


def picture_of(name: str) -> str:
    return f"reproduced-{name}{TARGETS[name].suffix}"
