"""Tables of likelihoods in Markdown; the parts of `--recipe white` in all combinations."""

import statistics
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from reproduction import hours, pictures, results
from reproduction.results import finished
from reproduction.rows import DIVERGED, NOT_GIVEN, Row, Table
from reproduction.runs import Run, lost
from reproduction.target import SHORTER, Trained, grid
from snfnp.training.runs.folder import RunFolder

# The epochs whose validation likelihood is kept, and those that are shown.
_EPOCHS = {digit * scale for digit in range(1, 10) for scale in (10, 100, 1000)}
_SHOWN_EPOCHS = (10, 30, 60, 100, 200, 300, 500, 1000, 2000, 6000)
_MINUTES = 500 / 60_000  # of an epoch, for each millisecond of a step


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
        heads = ("ours", "seeds", "epochs: ours / paper", "paper", "difference")
        table = [(*self.heads, *heads)]
        table += [(*row["cells"], *compared(row)) for row in record["rows"]]
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
            cells = [
                _number(row, curve[epoch]) if epoch in curve else "" for epoch in epochs
            ]
            table.append((*row["cells"], *cells))
        title = f"Exact validation NLL in {rows[0]['unit']} while training (mean over the seeds):"
        return f"\n\n{title}\n\n{grid(table)}"


def learning(row: dict) -> dict[int, float]:
    """{epoch: validation NLL}, the mean over the seeds, at the epochs that all of them have."""
    curves = [dict(run.get("validation", [])) for run in row["runs"]]
    epochs = sorted(set.intersection(*map(set, curves)))
    return {
        epoch: statistics.fmean(curve[epoch] for curve in curves) for epoch in epochs
    }


def _epochs(row: dict) -> str:
    """The epochs of the runs that did not diverge, or, if all did, of these."""
    epochs = sorted({run["epochs"] for run in finished(row) or row["runs"]})
    return "–".join(f"{count:,}" for count in dict.fromkeys((epochs[0], epochs[-1])))


def _paper(row: dict) -> float | None:
    """The paper's figure, if it has one."""
    return None if isinstance(row["paper"], str) else row["paper"]


def _paper_epochs(row: dict) -> int | None:
    """The paper's epochs, if it gives them."""
    return row["paper_epochs"] if row.get("paper_epochs_given", True) else None


def compared(row: dict) -> tuple[str, ...]:
    """The cells of a row beside its labels: ours, seeds, epochs, the paper's, difference."""
    paper = row["paper"]
    if _paper(row) is not None:
        paper = _number(row, paper, row["paper_spread"])
    values = [run["value"] for run in finished(row)]
    runs = row["runs"]
    ours = [_mean(row, values)] if values else []
    lost_runs = []
    for run in runs:
        seed = f"seed {run['seed']}"
        if "value" not in run:
            message = f"diverged at step {run['diverged_at'] or 'unknown'}"
            if runs[1:]:
                message += f" ({seed})"
            ours.append(message + _monitors(run["before"]))
        elif run.get("lost"):
            message = f"best at epoch {run['best_epoch']}, lost from step {run['lost']['step']} on"
            if runs[1:]:
                message = f"{seed}: {message}"
            lost_runs.append(message + _monitors(run["lost"]["before"]))
    epochs = _paper_epochs(row)
    return (
        "; ".join([" and ".join(ours), *lost_runs]),
        ", ".join(str(run["seed"]) for run in runs),
        f"{_epochs(row)} / {f'{epochs:,}' if epochs else NOT_GIVEN}",
        paper,
        _difference(row, values),
    )


def _mean(row: dict, values: list[float]) -> str:
    """The mean over the seeds, and with several their deviation."""
    spread = statistics.stdev(values) if values[1:] else None
    return _number(row, statistics.fmean(values), spread)


def _difference(row: dict, values: list[float]) -> str:
    """Ours minus the paper's if they compare, or else the reason."""
    if row["paper"] == DIVERGED and all(
        "value" not in run or run.get("lost") for run in row["runs"]
    ):
        return "diverges here as well"
    if not values:
        return ""
    difference = ""
    paper = _paper(row)
    if paper is not None:
        difference = _number(row, statistics.fmean(values) - paper, sign="+")
    if min(run["epochs"] for run in finished(row)) < (_paper_epochs(row) or 0):
        difference += SHORTER
    return difference


def _monitors(before: dict) -> str:
    """The monitors at the last evaluation before a run was lost, if there are any."""
    if "rho" not in before:
        return ""
    return f", after epoch {before['epoch']}: ρ ≥ {before['rho']:.3g}"


def _number(row: dict, mean: float, spread: float | None = None, sign: str = "") -> str:
    form = f".{1 if row['unit'] == 'nats' else 3}f"
    return f"{mean:{sign}{form}}" + ("" if spread is None else f" ± {spread:{form}}")


# What the gradient of log|det J| comes from, as options.
_GRADIENTS = {
    "forward": {"objective": "forward"},
    "mixture": {"objective": "mixture"},
    "exact": {"gradient": "exact"},
}
# Coordinates and initial biases that are not named like the option's value.
_COORDINATES = {"zero-biases": {"coordinates": "plain", "bias_init": "zero"}}
# Model, coordinates, gradient (and the images of a step, if not the preset's), schedule and
# epochs: learning rates.
_ARMS = """
fc zero-biases mixture constant 20: 0.00025 0.0005 0.001
fc zero-biases forward cosine 20: 0.001 0.002 0.004
fc zero-biases forward cosine 120: 0.001
fc plain mixture cosine 20: 0.0005 0.001 0.002
fc plain mixture cosine 120: 0.001
fc plain forward constant 20: 0.00025 0.0005 0.001
fc plain forward constant 120: 0.00025
fc plain forward cosine 20: 0.001 0.002 0.004 0.008
fc plain forward cosine 60: 0.002
fc plain forward cosine 120: 0.002
fc plain exact cosine 20: 0.001 0.002 0.004 0.008
fc plain exact cosine 60: 0.002
fc plain exact cosine 120: 0.002
fc scaled forward cosine 20: 0.001 0.002 0.004 0.008
fc scaled forward cosine 60: 0.004
fc scaled forward cosine 120: 0.004
fc scaled exact cosine 20: 0.001 0.002 0.004
fc scaled exact cosine 120: 0.002
fc white mixture cosine 20: 0.001 0.002 0.004
fc white mixture cosine 120: 0.002
fc white forward constant 20: 0.0005 0.001 0.002
fc white forward constant 120: 0.0005
fc white forward cosine 20: 0.002 0.004 0.006 0.008
fc white forward cosine 60: 0.004 0.006
fc white forward cosine 120: 0.004
fc white forward cosine 300: 0.004
fc white forward-50 cosine 20: 0.003 0.004
fc white exact cosine 20: 0.001 0.002 0.004
fc white exact cosine 60: 0.002
fc white exact cosine 120: 0.002
conv plain mixture constant 10: 0.0025 0.005 0.01
conv plain mixture cosine 10: 0.005 0.01 0.02
conv plain forward constant 10: 0.0025 0.005 0.01
conv plain forward constant 150: 0.005
conv plain forward cosine 10: 0.005 0.01 0.02
conv plain forward cosine 60: 0.005 0.01
conv plain forward cosine 150: 0.005
conv plain forward cosine 300: 0.005
conv plain forward-50 cosine 10: 0.005
conv plain forward-50 cosine 150: 0.005
conv plain exact cosine 10: 0.01 0.02 0.04
conv plain exact cosine 150: 0.01
conv white mixture constant 10: 0.0025 0.005 0.01
conv white mixture cosine 10: 0.005 0.01 0.02
conv white forward constant 10: 0.0025 0.005 0.01
conv white forward constant 150: 0.0025
conv white forward cosine 10: 0.005 0.01 0.02 0.04
conv white forward cosine 18: 0.01
conv white forward cosine 60: 0.005 0.01 0.02
conv white forward cosine 150: 0.01
conv white forward-50 cosine 10: 0.01
conv white forward-25 cosine 10: 0.005 0.01 0.02
conv white forward-25 cosine 150: 0.005 0.01
conv white exact cosine 10: 0.005 0.01 0.02
conv white exact cosine 60: 0.01
conv white exact cosine 150: 0.01
conv white exact-25 cosine 10: 0.01
"""


def _parts() -> Iterator[Row]:
    """The recipe, with some of its parts as they are without it."""
    for line in _ARMS.strip().splitlines():
        arm, rates = line.split(": ")
        model, coordinates, gradient, schedule, epochs = arm.split()
        kind, _, batch = gradient.partition("-")
        options = {"model": model, "recipe": "white", "lr_schedule": schedule}
        options |= _COORDINATES.get(coordinates, {"coordinates": coordinates})
        options |= _GRADIENTS[kind]
        if batch:
            options["batch_size"] = int(batch)
        for rate in rates.split():
            labels = (model, coordinates, gradient, schedule, rate, epochs)
            yield Row(
                "-".join(labels),
                labels,
                options | {"lr": float(rate)},
                NOT_GIVEN,
                int(epochs),
                ours=int(epochs),
                epochs_given=False,
            )


class Ablation(LikelihoodTable):
    """The parts of the recipe, each combination at several learning rates."""

    def __init__(self):
        title = "Parts of --recipe white: test NLL in nats on MNIST"
        super().__init__(Table(title, (), tuple(_parts())))

    def show(self, record: dict) -> str:
        cells = defaultdict(list)
        for row in record["rows"]:
            *arm, rate, epochs = row["cells"]
            values = [run["value"] for run in finished(row)]
            outcomes = [_mean(row, values)] if values else []
            if len(values) < len(row["runs"]):
                outcomes.append("diverged")
            if any(run.get("lost") for run in row["runs"]):
                outcomes.append("lost")
            cells[" ".join(arm)].append(f"{epochs}/{rate}: {', '.join(outcomes)}")
        table = [("model, coordinates, gradient, schedule", "epochs/rate: NLL")]
        table += [(arm, "<br>".join(nats)) for arm, nats in cells.items()]
        return grid(table)

    def draw(self, record: dict, path: Path) -> None:
        """Two panels for each model, over epochs and over their minutes by Table 3: of each arm
        with a falling rate, 100 images a step and several lengths, the NLL at each length's best
        rate."""
        arms = defaultdict(dict)
        for row in record["rows"]:
            model, coordinates, gradient, schedule, _, epochs = row["cells"]
            if schedule == "cosine" and gradient in _GRADIENTS and finished(row):
                nats = statistics.fmean(run["value"] for run in finished(row))
                best = arms[model, gradient, f"{coordinates}, {gradient}"]
                best[int(epochs)] = min(nats, best.get(int(epochs), nats))
        records = results.committed()
        panels = defaultdict(dict)
        for (model, gradient, name), line in arms.items():
            rule = _GRADIENTS[gradient].get("gradient", "self-normalizing")
            minutes = _MINUTES * hours.milliseconds(records, model, rule)
            for unit, scale in (("epochs", 1), ("minutes", minutes)):
                points = [(scale * epochs, nats) for epochs, nats in line.items()]
                if points[1:]:
                    panels[model, unit][name] = sorted(points)
        if panels:
            pictures.save_lengths(path, panels)
