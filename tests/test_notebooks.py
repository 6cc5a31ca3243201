"""The notebooks run from their first cell to their last, in small and without Jupyter."""

import json
import sys

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
from method import NOTEBOOKS, REPOSITORY

matplotlib.use("Agg")
# What is made small and how, the figures that are shown, and what holds at the end.
RUNS = {
    "1-plane": (
        ("EPOCHS = 20", "EPOCHS = 2"),
        1,
        lambda names: abs(names["whole"] - 1) < 0.01 and names["picture"].stat().st_size > 1000,
    ),
    "2-mnist": (
        ('DATA, EPOCHS = "mnist", 20', 'DATA, EPOCHS = "mnist-sample", 1'),
        1,
        lambda names: 0 < names["found"].bits_per_dimension < 8 and len(names["exact"]) == 64,
    ),
    "3-table": (
        ("ROWS, EPOCHS = 3000, None", "ROWS, EPOCHS = 800, 2"),
        1,
        lambda names: names["found"] > 0.5 and np.allclose(names["back"], names["held_out"]),
    ),
}


def cells(page, kind):
    """The texts of a notebook's cells of a kind, which have no outputs."""
    found = json.loads(page.with_suffix(".ipynb").read_text(encoding="utf-8"))["cells"]
    assert not any(cell.get("outputs") for cell in found)
    return ["".join(cell["source"]) for cell in found if cell["cell_type"] == kind]


@pytest.mark.parametrize("page", NOTEBOOKS, ids=lambda page: page.stem)
def test_a_notebook_runs(page, monkeypatch, tmp_path):
    if page.stem == "3-table":
        pytest.importorskip("sklearn")
    (large, small), figures, holds = RUNS[page.stem]
    code, names, shown = cells(page, "code"), {"__name__": "__main__"}, []
    assert "".join(code).count(large) == 1
    monkeypatch.setattr(plt, "show", lambda: shown.append(plt.close("all")))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for text in code:
        exec(text.replace(large, small), names)
    assert len(shown) == figures and holds(names)


@pytest.mark.parametrize("page", NOTEBOOKS, ids=lambda page: page.stem)
def test_a_notebook_opens_in_colab_and_installs_there(page, monkeypatch):
    there = f"https://colab.research.google.com/github/{REPOSITORY}/blob/main/notebooks/"
    assert f"]({there}{page.stem}.ipynb)" in cells(page, "markdown")[0]
    commands = []
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("subprocess.run", lambda command, check: commands.append(command))
    exec(cells(page, "code")[0], {})
    (command,) = commands
    assert command[0] == sys.executable and command[-1].endswith(f"github.com/{REPOSITORY}")
