"""The parts of `--recipe white` in all combinations."""

from itertools import product
from math import nan
from pathlib import Path

from drawings.style import BLUE, GREEN, laid_out, plt, save

from reproduction.likelihoods import LikelihoodTable, compared, nlls
from reproduction.rows import NOT_GIVEN, Row, Table
from reproduction.target import grid

_PARTS = {
    "coordinates": ("plain", "white"),
    "objective": ("mixture", "forward"),
    "lr_schedule": ("constant", "cosine"),
}
_MODELS = {"fc": "FC 2-Layer", "conv": "Conv. 9-Layer"}
_EPOCHS = 10


def _rows():
    for model, values in product(_MODELS, product(*_PARTS.values())):
        # the recipe, with some of its parts as they are without it
        options = {"model": model, "recipe": "white"} | dict(zip(_PARTS, values, strict=True))
        name, cells = "-".join(("ablation", model, *values)), (_MODELS[model], *values)
        how = {"ours": _EPOCHS, "epochs_given": False}
        yield Row(name, cells, options, NOT_GIVEN, _EPOCHS, **how)


class Ablation(LikelihoodTable):
    """Test likelihoods after ten epochs for every combination of the recipe's parts."""

    def __init__(self):
        title = f"Parts of --recipe white: test NLL in nats on MNIST after {_EPOCHS} epochs"
        super().__init__(Table(title, ("model", *_PARTS), tuple(_rows())))

    def show(self, record: dict) -> str:
        rows = {tuple(row["cells"]): row for row in record["rows"]}
        table = [(*_PARTS, *_MODELS.values())]
        for values in product(*_PARTS.values()):
            found = (rows.get((model, *values)) for model in _MODELS.values())
            table.append((*values, *(compared(row)[0] if row else "not run" for row in found)))
        return grid(table)

    def draw(self, record: dict, path: Path) -> None:
        figure, axes = plt.subplots(1, len(_MODELS), figsize=(9.5, 3.6), squeeze=False)
        looks = {("plain", "mixture"): (BLUE, "o", "--"), ("plain", "forward"): (BLUE, "s", "-")}
        looks |= {("white", own): (GREEN, *look[1:]) for (_, own), look in looks.items()}
        found = {tuple(row["cells"]): own[0] for row in record["rows"] if (own := nlls(row))}
        for axis, model in zip(axes[0], _MODELS.values(), strict=True):
            for which, (color, marker, line) in looks.items():
                points = [found.get((model, *which, own), nan) for own in _PARTS["lr_schedule"]]
                look = {"color": color, "marker": marker, "linestyle": line}
                axis.plot(_PARTS["lr_schedule"], points, label=", ".join(which), **look)
            axis.set(title=model, xlabel="learning rate")
            axis.margins(x=0.2)
        axes[0, 0].set_ylabel("test NLL (nats)")
        save(laid_out(figure, *axes[0]), path)
