"""Fig. 5: validation likelihood over time and over epochs, learned against exact gradients."""

from __future__ import annotations

from pathlib import Path

from reproduction.curves import Curves, describe, notes, one_seed, thinned, trained
from reproduction.rows import FC_EPOCHS, Row
from reproduction.runs import Result, Run
from reproduction.setting import Setting
from reproduction.table3 import FAMILIES
from reproduction.tables import TABLES
from snfnp.training import plots
from snfnp.training.plots import COMPARED
from snfnp.training.runs.folder import RunFolder

_HOUR = 60
_RECIPE = Row(
    "fc-snf-recipe",
    ("SNF FC 2-Layer, --recipe least-squares (ours)",),
    {"model": "fc", "recipe": "least-squares"},
    "not the paper's",
    _HOUR,
    FC_EPOCHS,
)
# The paper's figure has the times of its Table 3: the share of the exact gradient's time.
_EXACT, _, _SNF = (row.batch[0] for row in FAMILIES[0])
_SHARES = {"fc-exact": 1.0, "fc-snf": _SNF / _EXACT}
_SHOWN = 5  # epochs


class Figure5(Curves):
    """A target of `reproduce.py` (see `reproduction.targets`)."""

    title = "Fig. 5: exact validation NLL in nats on MNIST, over time and over epochs"
    suffix = ".svg"
    shows_paper = False
    rows = (*(row for row in TABLES["table1"].rows if row.name in _SHARES), _RECIPE)

    def plan(self, setting: Setting) -> list[Run]:
        return one_seed(self.rows, setting, _HOUR)

    def collect(self, setting: Setting, results: dict[Path, Result]) -> dict:
        curves = []
        for run in self.plan(setting):
            lines = RunFolder(run.folder).read_metrics()
            curves.append(
                {
                    **describe(run, results[run.folder], setting),
                    "paper_share": _SHARES.get(run.row.name),
                    "points": thinned([[line[key] for key in COMPARED] for line in lines]),
                }
            )
        return {"title": self.title, "scale": setting.scale, "curves": curves}

    def show(self, record: dict) -> str:
        curves = record["curves"]
        epochs = _common(curves)
        heads = ["model", "epochs: ours / paper", *(f"NLL at {epoch}" for epoch in epochs)]
        heads += ["s / epoch", "time / exact's: ours", "paper", "difference in time"]
        cells = [heads, ["---"] * len(heads)]
        exact = [curve for curve in curves if curve["paper_share"] == 1]
        base = _seconds(exact[0]) if exact else None
        for curve in curves:
            nll = {epoch: value for epoch, _, value in curve["points"]}
            seconds = _seconds(curve)
            ours_alone = curve["paper_share"] is None
            own = [curve["model"], f"{curve['epochs']:,} / –" if ours_alone else trained(curve)]
            own += [f"{nll[epoch]:.1f}" if nll else "–" for epoch in epochs]
            share = seconds / base if seconds and base else None
            paper = curve["paper_share"]
            own += [
                f"{seconds:.3g}" if seconds else "diverged",
                "–" if share is None else f"{share:.2f}",
                "–" if paper is None else f"{paper:.2f}",
                "" if None in (share, paper) else f"{share - paper:+.2f}",
            ]
            cells.append(own)
        lines = [f"**{record['title']}** (scale: {record['scale']})", ""]
        lines += [f"| {' | '.join(own)} |" for own in cells]
        said = [
            "Seconds are of training steps alone. The paper's figure has no printed likelihoods; "
            "its times are Table 3's. It says that both converge to similar optima, and that SNF "
            "takes less than half the time.",
            "The recipe also starts biases from the first batch. Exact gradients with such biases "
            "are level with it, epoch by epoch (derivations/21-learning-the-inverse.md): what it "
            "is ahead of them here comes from the start.",
        ]
        if len({curve["made_with"]["processor"] for curve in curves}) > 1:
            said.append("The runs are from different machines: their seconds do not compare.")
        said += notes(record, curves)
        return "\n".join([*lines, "", *(f"* {note}" for note in said)])

    def draw(self, record: dict, path: Path, setting: Setting) -> None:
        lines = {
            curve["model"]: dict(zip(COMPARED, zip(*curve["points"], strict=True), strict=True))
            for curve in record["curves"]
            if curve["points"]
        }
        if lines:
            plots.save_comparison(path, lines, "exact validation NLL (nats)")


def _seconds(curve: dict) -> float | None:
    """Of an epoch."""
    if not curve["points"]:
        return None
    epoch, seconds, _ = curve["points"][-1]
    return seconds / epoch


def _common(curves: list[dict]) -> list[int]:
    """At most `_SHOWN` of the epochs that all curves have (but those without any), the last one
    among them."""
    epochs = [{point[0] for point in curve["points"]} for curve in curves if curve["points"]]
    common = sorted(set.intersection(*epochs)) if epochs else []
    count = min(_SHOWN, len(common))
    return [common[(i + 1) * len(common) // count - 1] for i in range(count)]
