"""Tables of likelihoods, in Markdown and as a picture; the parts of `--recipe white` in all
combinations."""

import statistics
from itertools import product
from math import nan
from pathlib import Path

from drawings.style import BLUE, GREEN, laid_out, plt, save

from reproduction import pictures
from reproduction.results import finished
from reproduction.rows import DIVERGED, NOT_GIVEN, Row, Table
from reproduction.runs import Run, lost
from reproduction.target import SHORTER, Trained, grid
from snfnp.training.runs.folder import RunFolder

# The epochs whose validation likelihood is kept, and those that are shown.
_EPOCHS = {digit * scale for digit in range(1, 10) for scale in (10, 100, 1000)}
_SHOWN_EPOCHS = (10, 30, 60, 100, 200, 300, 500, 1000, 2000, 6000)


class LikelihoodTable(Trained):
    """One of the tables of `reproduction.rows`."""

    def __init__(self, table: Table):
        self.title, self.heads, self.rows, self.seeds = table

    def measure(self, run: Run) -> dict:
        unit = "nll_nats" if run.row.unit == "nats" else "bits_per_dimension"
        lines = RunFolder(run.folder).read_metrics()
        key = f"validation_{unit}"
        kept = [
            [line["epoch"], line[key]] for line in lines if line["epoch"] in _EPOCHS
        ]
        return {"validation": kept, "lost": lost(lines)}

    def show(self, record: dict) -> str:
        heads = (
            *self.heads,
            "ours",
            "seeds",
            "epochs: ours / paper",
            "paper",
            "difference",
        )
        table = [heads, *((*row["cells"], *compared(row)) for row in record["rows"])]
        return grid(table) + self._learning(record["rows"])

    def _learning(self, rows: list[dict]) -> str:
        """A second table: the likelihood over the epochs, for rows with several evaluations."""
        curves = [(row, curve) for row in rows if len(curve := learning(row)) > 1]
        if not curves:
            return ""
        epochs = [
            epoch
            for epoch in _SHOWN_EPOCHS
            if any(epoch in curve for _, curve in curves)
        ]
        table = [(*self.heads, *(f"epoch {epoch:,}" for epoch in epochs))]
        for row, curve in curves:
            own = (
                _number(row, curve[epoch]) if epoch in curve else "" for epoch in epochs
            )
            table.append((*row["cells"], *own))
        said = f"Exact validation NLL in {rows[0]['unit']} while training (mean over the seeds):"
        return f"\n\n{said}\n\n{grid(table)}"

    def draw(self, record: dict, path: Path) -> None:
        lines = map(self._in_picture, record["rows"])
        labels, ours, papers = map(list, zip(*lines, strict=True))
        unit = record["rows"][0]["unit"]
        figures = {"ours": ours, "the paper's": papers}
        pictures.save_beside(path, labels, figures, f"test NLL ({unit})")

    def _in_picture(self, row: dict) -> tuple:
        """(label, ours, the paper's) of a row in a picture. The label says how long both were
        trained, and whether ours was lost later."""
        named = zip(self.heads, row["cells"], strict=True)
        label = ", ".join(
            f"λ = {cell}" if head == "λ" else cell for head, cell in named
        )
        lost = ", then lost" * any(run.get("lost") for run in row["runs"])
        given = row.get("paper_epochs_given", True)
        epochs = (
            f" of {_paper_epochs(row)} epochs"
            if given
            else " epochs, the paper's not given"
        )
        paper = (
            None if isinstance(row["paper"], str) else row["paper"],
            row["paper_spread"],
        )
        return f"{label}\n{_epochs(row)}{epochs}{lost}", _mean(nlls(row)), paper


def learning(row: dict) -> dict[int, float]:
    """{epoch: validation NLL}, the mean over the seeds, at the epochs that all of them have."""
    found = [dict(run.get("validation", [])) for run in row["runs"]]
    common = set.intersection(*map(set, found)) if found else set()
    return {
        epoch: statistics.fmean(own[epoch] for own in found) for epoch in sorted(common)
    }


def nlls(row: dict) -> list[float]:
    """The test NLLs of the runs that did not diverge."""
    return [run["value"] for run in finished(row)]


def _epochs(row: dict) -> str:
    """The epochs of the runs that did not diverge, or, if all did, of these."""
    epochs = sorted({run["epochs"] for run in finished(row) or row["runs"]})
    return "–".join(f"{count:,}" for count in dict.fromkeys((epochs[0], epochs[-1])))


def _paper_epochs(row: dict) -> str:
    return (
        f"{row['paper_epochs']:,}" if row.get("paper_epochs_given", True) else NOT_GIVEN
    )


def _mean(values: list[float]) -> tuple[float | None, float | None]:
    """Mean and standard deviation, or None for too few values."""
    mean = statistics.fmean(values) if values else None
    return mean, statistics.stdev(values) if values[1:] else None


def compared(row: dict) -> tuple[str, ...]:
    """The cells of a row beside its labels: ours, seeds, epochs, the paper's, difference."""
    paper = row["paper"]
    values = nlls(row)
    runs = row["runs"]
    lost_runs = []
    if not isinstance(paper, str):
        paper = _number(row, paper, row["paper_spread"])
    ours = [_number(row, *_mean(values))] if values else []
    for run in runs:
        seed = f"seed {run['seed']}" if runs[1:] else ""
        if "value" not in run:
            said = f"diverged at step {run['diverged_at'] or 'unknown'}"
            ours.append(
                _with_monitors(said + (f" ({seed})" if seed else ""), run["before"])
            )
        elif run.get("lost"):
            said = f"best at epoch {run['best_epoch']}, lost from step {run['lost']['step']} on"
            said = f"{seed}: {said}" if seed else said
            lost_runs.append(_with_monitors(said, run["lost"]["before"]))
    seeds = ", ".join(str(run["seed"]) for run in runs)
    epochs = _epochs(row)
    said = "; ".join([" and ".join(ours), *lost_runs])
    return (
        said,
        seeds,
        f"{epochs} / {_paper_epochs(row)}",
        paper,
        _difference(row, values),
    )


def _difference(row: dict, values: list[float]) -> str:
    """Ours minus the paper's if they compare, or else the reason."""
    if row["paper"] == DIVERGED and all(
        "value" not in r or r.get("lost") for r in row["runs"]
    ):
        return "diverges here as well"
    said = []
    paper = None if isinstance(row["paper"], str) else row["paper"]
    if values and paper is not None:
        said.append(_number(row, statistics.fmean(values) - paper, sign="+"))
    given = row.get("paper_epochs_given", True)
    if (
        values
        and given
        and min(run["epochs"] for run in finished(row)) < row["paper_epochs"]
    ):
        said.append(SHORTER)
    return "".join(said)


def _with_monitors(said: str, before: dict) -> str:
    found = (
        f", after epoch {before['epoch']}: ρ ≥ {before['rho']:.3g}"
        if "rho" in before
        else ""
    )
    return said + found


def _number(row: dict, mean: float, spread: float | None = None, sign: str = "") -> str:
    form = f".{1 if row['unit'] == 'nats' else 3}f"
    return f"{mean:{sign}{form}}" + ("" if spread is None else f" ± {spread:{form}}")


_PARTS = {
    "coordinates": ("plain", "white"),
    "objective": ("mixture", "forward"),
    "lr_schedule": ("constant", "cosine"),
}
_MODELS = {"fc": "FC 2-Layer", "conv": "Conv. 9-Layer"}
_PART_EPOCHS = 10


def _part_rows():
    for model, values in product(_MODELS, product(*_PARTS.values())):
        # the recipe, with some of its parts as they are without it
        options = {"model": model, "recipe": "white"} | dict(
            zip(_PARTS, values, strict=True)
        )
        name = "-".join(("ablation", model, *values))
        cells = (_MODELS[model], *values)
        yield Row(
            name,
            cells,
            options,
            NOT_GIVEN,
            _PART_EPOCHS,
            ours=_PART_EPOCHS,
            epochs_given=False,
        )


class Ablation(LikelihoodTable):
    """Test likelihoods after ten epochs for every combination of the recipe's parts."""

    def __init__(self):
        title = f"Parts of --recipe white: test NLL in nats on MNIST after {_PART_EPOCHS} epochs"
        super().__init__(Table(title, ("model", *_PARTS), tuple(_part_rows())))

    def show(self, record: dict) -> str:
        rows = {tuple(row["cells"]): row for row in record["rows"]}
        table = [(*_PARTS, *_MODELS.values())]
        for values in product(*_PARTS.values()):
            found = (rows.get((model, *values)) for model in _MODELS.values())
            table.append(
                (*values, *(compared(row)[0] if row else "not run" for row in found))
            )
        return grid(table)

    def draw(self, record: dict, path: Path) -> None:
        figure, axes = plt.subplots(1, len(_MODELS), figsize=(9.5, 3.6), squeeze=False)
        looks = {
            ("plain", "mixture"): (BLUE, "o", "--"),
            ("plain", "forward"): (BLUE, "s", "-"),
        }
        looks |= {
            ("white", own): (GREEN, *look[1:]) for (_, own), look in looks.items()
        }
        found = {
            tuple(row["cells"]): own[0] for row in record["rows"] if (own := nlls(row))
        }
        for axis, model in zip(axes[0], _MODELS.values(), strict=True):
            for which, (color, marker, line) in looks.items():
                points = [
                    found.get((model, *which, own), nan)
                    for own in _PARTS["lr_schedule"]
                ]
                axis.plot(
                    _PARTS["lr_schedule"],
                    points,
                    label=", ".join(which),
                    color=color,
                    marker=marker,
                    linestyle=line,
                )
            axis.set(title=model, xlabel="learning rate")
            axis.margins(x=0.2)
        axes[0, 0].set_ylabel("test NLL (nats)")
        save(laid_out(figure, *axes[0]), path)
