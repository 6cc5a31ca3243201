"""Figs. 2, 3 and 5, which are made of one run of each row: samples, angles, likelihoods."""

import statistics
from dataclasses import replace
from pathlib import Path

import numpy as np

from reproduction import pictures, provenance
from reproduction.rows import TABLES, TITLES
from reproduction.runs import Command, Run, plan
from reproduction.target import SMOKE, Target, markdown
from reproduction.times import FAMILIES
from snfnp.errors import DivergedError
from snfnp.training import plots
from snfnp.training.runs.comparison import common_epochs
from snfnp.training.runs.folder import RunFolder
from snfnp.training.runs.load import load_run


class _OneSeed(Target):
    """A figure of one run of each row, with the first seed, by default a curve each.
    hour: epochs at that scale, if not the rows'; list_name: of the runs in its record;
    measure(run): the figures of a run, beside how it was trained."""

    hour: int | None = None
    list_name = "curves"

    def plan(self, command: Command) -> list[Run]:
        planned = plan([replace(row, hour=self.hour or row.hour) for row in self.rows], command)
        return [run for run in planned if run.seed == planned[0].seed]

    def collect(self, command: Command, outcomes: dict[Path, dict]) -> dict:
        described = []
        for run in self.plan(command):
            row, outcome = run.row, outcomes[run.folder]
            own = {"name": row.name, "model": row.instead or row.cells[0], "config": row.options}
            own |= {"data": row.data, "is_sample": command.dataset(row.data).is_sample}
            own |= {"seed": run.seed, "epochs": outcome["epochs"], "paper_epochs": row.epochs}
            own |= {"made_with": provenance.of_run(run.folder)}
            own |= {key: outcome[key] for key in ("asked", "diverged_at") if key in outcome}
            described.append(own | self.measure(run))
        return self.record(command, **{self.list_name: described})

    def drawn(self, record: dict) -> dict[str, tuple[dict, list[tuple]]]:
        """{model and its epochs: its curve, and the columns of its points}, of those with any."""
        found = {}
        for own in filter(lambda curve: curve["points"], record["curves"]):
            paper = "" if own.get("paper_share", 0) is None else f" of {own['paper_epochs']:,}"
            label = f"{own['model']}, {own['epochs']:,}{paper} epochs"
            found[label] = (own, list(zip(*own["points"], strict=True)))
        return found


def _notes(record: dict, described: list[dict]) -> list[str]:
    """Notes on runs on other images than the paper's."""
    sample = "Trained on a sample of MNIST: the figures cannot be compared with the paper's."
    is_sample = any(own["is_sample"] for own in described)
    return [SMOKE] if record["scale"] == "smoke" else [sample] * is_sample


def _trained(record: dict) -> str:
    """Epochs of ours / of the paper, and a word if ours are fewer."""
    ours, paper = record["epochs"], record["paper_epochs"]
    why = "diverged there" if "diverged_at" in record else "not trained as long"
    return f"{ours:,} / {paper:,}{'' if ours >= paper else f' ({why})'}"


def thinned(points: list, most: int = 200, keep=None) -> list:
    """Thin points out to `most`, evenly spread, the first and the last among them; and `keep`."""
    if len(points) <= most:
        return list(points)
    spread = {round(i * (len(points) - 1) / (most - 1)) for i in range(most)}
    return [own for index, own in enumerate(points) if index in spread or own == keep]


_IMAGES = 64


class Figure2(_OneSeed):
    """Samples through the exact and through the learned inverse of a run of Table 1's and, if its
    images are there, of Table 2's."""

    title = "Fig. 2: samples of self-normalizing Glow through the exact and the learned inverse"
    suffix, made_of_record, list_name = ".png", False, "rows"
    rows = (TABLES["table1"].rows[-1], TABLES["table2"].rows[1])

    def collect(self, command: Command, outcomes: dict[Path, dict]) -> dict:
        self._panels: dict[str, np.ndarray] = {}
        return super().collect(command, outcomes)

    def measure(self, run: Run) -> dict:
        panels = {}
        try:
            loaded = load_run(run.folder)
            for name in ("exact", "learned"):
                images = loaded.likelihood.sample(_IMAGES, run.seed, exact=name == "exact")
                panels[name] = images.reshape(-1, *loaded.image_shape)
        except DivergedError:  # none that are finite
            return {}
        for name, images in panels.items():
            self._panels[f"{TITLES[run.row.data]}, {name} inverse"] = images
        exact, learned = (images.astype(float) for images in panels.values())
        apart = np.abs(exact - learned)
        drawn = np.maximum(exact, learned) > 1  # most of a digit's image is black
        found = {"mean_difference": float(apart.mean()), "same_pixels": float((apart <= 1).mean())}
        return found | {"same_drawn": float((apart <= 1)[drawn].mean()) if drawn.any() else None}

    def show(self, record: dict) -> str:
        heads = ["data", "model", "epochs: ours / paper", "pixels within 1 level of 256"]
        table = [[*heads, "of those not black in both", "mean difference in levels", "paper"]]
        for row in record["rows"]:
            ours = ("no finite samples", "–", "–")
            if "same_pixels" in row:
                drawn = "–" if row["same_drawn"] is None else f"{row['same_drawn']:.1%}"
                ours = (f"{row['same_pixels']:.1%}", drawn, f"{row['mean_difference']:.2f}")
            model = (TITLES[row["data"]], row["model"], _trained(row))
            table.append((*model, *ours, '"nearly exact", no figure'))
        said = f"{_IMAGES} samples, the same latents through both inverses."
        return markdown(record, table, [said, *_notes(record, record["rows"])])

    def draw(self, record: dict, path: Path) -> None:
        """Draw the runs of the last `collect`: the record has no samples."""
        if self._panels:
            plots.save_samples(path, self._panels, "Samples, the same latents")


# The caption's words for these rows of Table 1, for all of training, and that in degrees.
_SAID = {"fc-snf": ("close to 0.1", 0.1), "conv-snf": ("less than 1", 1.0)}


class Figure3(_OneSeed):
    """The angle between the learned and the exact gradient, over the epochs."""

    title = "Fig. 3: angle in degrees between the learned and the exact gradient"
    rows = tuple(row for row in TABLES["table1"].rows if row.name in _SAID)

    def measure(self, run: Run) -> dict:
        words, degrees = _SAID[run.row.name]
        points = []
        for line in RunFolder(run.folder).read_metrics():
            angles = [own["angle"] for own in line.get("layers", {}).values() if "angle" in own]
            if angles:
                mean, spread = statistics.fmean(angles), statistics.pstdev(angles)
                points.append([line["epoch"], mean, spread])
        largest = max(points, key=lambda point: point[1], default=None)
        below = [sum(mean < 1 for _, mean, _ in points), len(points)]
        found = {"paper": words, "paper_degrees": degrees}
        found |= {"points": thinned(points, 1000, largest), "largest": largest}
        return found | {"below": below}

    def show(self, record: dict) -> str:
        heads = ["model", "epochs: ours / paper", "largest", "below 1°", "at the end"]
        table = [[*heads, "paper, throughout", "difference"]]
        for curve in record["curves"]:
            *ours, difference = ("diverged", "–", "–", "")
            if curve["points"]:
                (epoch, largest, _), (_, mean, spread) = curve["largest"], curve["points"][-1]
                below = "{:,} of {:,} epochs".format(*curve["below"])
                ours = (f"{largest:.2f}° at epoch {epoch:,}", below, f"{mean:.2f}° ± {spread:.2f}°")
                difference = "other data" if curve["is_sample"] else _difference(mean, curve)
            table.append((curve["model"], _trained(curve), *ours, f"{curve['paper']}°", difference))
        said = [
            "Mean and standard deviation over the layers, as in the figure, at the end of every "
            "epoch on one batch; the figure averages over the steps of an epoch.",
            "The paper's are from the figure's caption, for all of training. Its text says that "
            "the angle decreases to less than 1° over the course of training for both models. How "
            "long they were trained for the figure is not said: its epochs are Table 1's.",
        ]
        return markdown(record, table, said + _notes(record, record["curves"]))

    def draw(self, record: dict, path: Path) -> None:
        if panels := self.drawn(record):
            pictures.save_angles(path, panels)


def _difference(mean: float, curve: dict) -> str:
    """The last angle minus the paper's, of which one is a bound, and the other has one digit."""
    if curve["paper"].startswith("less than"):
        return "less as well" if mean < curve["paper_degrees"] else "more"
    apart = round(mean, 1) - curve["paper_degrees"]
    return f"{apart:+.1f}°" if abs(apart) > 0.05 else "close to it as well"


# The paper's figure has the times of its Table 3: the share of the exact gradient's time.
_SHARES = {"fc-exact": 1.0, "fc-snf": FAMILIES[0][2].batch[0] / FAMILIES[0][0].batch[0]}
_SHOWN = 5  # epochs


class Figure5(_OneSeed):
    """The validation likelihood over time and over epochs, learned against exact gradients."""

    title = "Fig. 5: exact validation NLL in nats on MNIST, over time and over epochs"
    hour = 60
    rows = tuple(row for row in TABLES["table1"].rows if row.name in _SHARES)

    def measure(self, run: Run) -> dict:
        lines = RunFolder(run.folder).read_metrics()
        points = [[line[key] for key in plots.COMPARED] for line in lines]
        return {"paper_share": _SHARES[run.row.name], "points": thinned(points)}

    def show(self, record: dict) -> str:
        curves = record["curves"]
        known = [[point[0] for point in curve["points"]] for curve in curves if curve["points"]]
        epochs = common_epochs(known or [[]], _SHOWN)
        heads = ["model", "epochs: ours / paper", *(f"NLL at {epoch}" for epoch in epochs)]
        table = [[*heads, "s / epoch", "time / exact's: ours", "paper", "difference in time"]]
        base = next((_seconds(curve) for curve in curves if curve["paper_share"] == 1), None)
        for curve in curves:
            nll = {epoch: value for epoch, _, value in curve["points"]}
            seconds, paper = _seconds(curve), curve["paper_share"]
            share = seconds / base if seconds and base else None
            table.append([curve["model"], _trained(curve)])
            table[-1] += [f"{nll[epoch]:.1f}" if nll else "–" for epoch in epochs]
            table[-1] += [f"{seconds:.3g}" if seconds else "diverged"]
            table[-1] += [f"{share:.2f}" if share else "–", f"{paper:.2f}"]
            table[-1] += [f"{share - paper:+.2f}" if share else ""]
        said = [
            "Seconds are of training steps alone. The paper's figure has no printed likelihoods; "
            "its times are Table 3's. It says that both converge to similar optima, and that SNF "
            "takes less than half the time.",
        ]
        if len({curve["made_with"]["processor"] for curve in curves}) > 1:
            said.append("The runs are from different machines: their seconds do not compare.")
        return markdown(record, table, said + _notes(record, curves))

    def draw(self, record: dict, path: Path) -> None:
        if panels := self.drawn(record):
            named, own = plots.COMPARED, panels.items()
            lines = {name: dict(zip(named, points, strict=True)) for name, (_, points) in own}
            plots.save_comparison(path, lines, "exact validation NLL (nats)")


def _seconds(curve: dict) -> float | None:
    """The seconds of an epoch, None without any."""
    epoch, seconds, _ = curve["points"][-1] if curve["points"] else (1, None, None)
    return seconds and seconds / epoch
