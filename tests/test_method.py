"""What is made of the pages: the program and the notebooks of page 00, notebooks, figures."""

import ast
import json
import re
import runpy
from xml.etree import ElementTree

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
from drawings import FIGURES, training
from drawings.style import save
from method import MEASURED, NOTEBOOKS, PAGE, files, kept, notebook
from numpy.testing import assert_allclose
from pages import DERIVATIONS, ROOT

from snfnp.context import BackwardContext
from snfnp.flow import Flow
from snfnp.layers import Linear, SmoothLeakyReLU
from snfnp.maps import Dense
from snfnp.ops import get_ops
from snfnp.parameters import Layout
from snfnp.rules import SelfNormalizing
from snfnp.step.update import Adam

matplotlib.use("Agg")
PROGRAM = PAGE.with_suffix(".py")
MADE = files()
STEPS = 40
RATE = 0.02
LAM = 0.7
TOLERANCE = {"rtol": 1e-12, "atol": 1e-12}


@pytest.fixture(scope="module")
def method():
    return runpy.run_path(str(PROGRAM))


@pytest.mark.parametrize("path", MADE, ids=lambda path: path.name)
def test_what_is_made_of_the_pages_is_the_pages_as_they_stand(path):
    text = path.read_text("utf-8")
    assert text == MADE[path], "run python derivations/site/method.py"


def test_the_program_is_short_and_imports_nothing_of_the_package():
    text = PROGRAM.read_text("utf-8")
    assert len(text.splitlines()) <= 160
    imports = [
        n
        for n in ast.walk(ast.parse(text))
        if isinstance(n, ast.Import | ast.ImportFrom)
    ]
    names = "argparse gzip os sys Path numpy matplotlib.pyplot"
    assert {alias.name for node in imports for alias in node.names} == {*names.split()}


def test_the_figures_of_the_digits_in_the_prose_are_stored_or_checked():
    page = PAGE.read_text(encoding="utf-8")
    rows = json.loads(MEASURED.read_text(encoding="utf-8"))["rows"]
    stored = {f"{row['log_p']:.1f}" for row in rows}
    prose = re.sub(r"(?ms)^```.*?^```$", "", page)
    in_prose = {f"-{nats}" for nats in re.findall(r"−(\d{3}\.\d)", prose)}
    assert in_prose == stored | set(re.findall(r"(?m)^-\d{3}\.\d$", page))
    assert not re.search(r"−\d{3}(?!\d*\.\d)", prose)
    first, last = rows[0]["degrees"]
    assert round(np.mean(first)) == 4 and max(last) < 1


def by_the_program(method, size, lam):
    """The batches of every step, the parameters before each, and the flow at the end."""
    rng = np.random.default_rng(0)
    batches = []
    before = []
    flow = [
        method["Dense"](size, rng, 0.1),
        method["Bend"](),
        method["Dense"](size, rng, 0.1),
    ]

    def draw(rng):
        before.append(
            [getattr(layer, name).copy() for layer in flow[::2] for name in "WRb"]
        )
        batches.append(rng.standard_normal((30, size)) ** 3)
        return batches[-1]

    # watch() is looked at every (STEPS // 50)-th step: none of these
    method["train"](flow, draw, max(STEPS, 50), RATE, rng, lam)
    return flow, batches, before


def by_the_package(batches, start, size, lam):
    """The parameters before every step, of the package's layers, rule and Adam."""
    ops = get_ops("numpy")
    dense = Linear(Dense(size), SelfNormalizing())
    layers = (
        ("dense1", dense),
        ("activation1", SmoothLeakyReLU(0.3)),
        ("dense2", dense),
    )
    flow = Flow((size,), layers)
    layout = Layout.of(flow.parameter_shapes())
    names = [(layer, name) for layer in ("dense1", "dense2") for name in "WRb"]
    p = layout.pack(flow.init(0), np.float64)
    params = layout.views(p)
    gradient = np.zeros_like(p)
    for (layer, name), value in zip(names, start, strict=True):
        params[layer][name][...] = value
    m = np.zeros_like(p)
    v = np.zeros_like(p)
    before = []
    for step, x in enumerate(batches, start=1):
        before.append([params[layer][name].copy() for layer, name in names])
        latents, _, caches = flow.forward(ops, params, x)
        ctx = BackwardContext.of(ops, np.full(len(x), 1 / len(x)), lam)
        dz = flow.latent_gradients(latents)
        flow.backward(ctx, params, caches, dz, layout.views(gradient))
        rate = RATE * (1 - step / len(batches))
        Adam().update(ops, gradient, lr=rate, step=step, out=(p, m, v))
    return flow, params, before


@pytest.mark.parametrize("size", [2, 7])
def test_every_step_is_the_packages(method, size):
    flow, batches, ours = by_the_program(method, size, LAM)
    theirs_flow, params, theirs = by_the_package(batches, ours[0], size, LAM)
    for mine, other in zip(ours, theirs, strict=True):
        for a, b in zip(mine, other, strict=True):
            assert_allclose(a, b, **TOLERANCE)
    assert (
        max(np.abs(a - b).max() for a, b in zip(ours[0], ours[-1], strict=True)) > 0.1
    )

    ops = get_ops("numpy")
    x = batches[0]
    z = x
    for layer in flow:
        z = layer.forward(z)
    (expected,), _, _ = theirs_flow.forward(ops, params, x)
    assert_allclose(z, expected, **TOLERANCE)
    for layer in reversed(flow):
        z = layer.inverse(z)
    back = theirs_flow.inverse(ops, params, (expected,))
    assert_allclose(z, back, rtol=1e-12, atol=1e-11)


def test_the_notebook_runs_from_its_first_cell_to_its_last(monkeypatch):
    """With 50 steps in the place of thousands."""
    names = {"__name__": "__main__"}
    drawn = []
    monkeypatch.setattr(
        "matplotlib.figure.Figure.savefig", lambda self, name: drawn.append(name)
    )
    monkeypatch.chdir(PAGE.parent)  # a notebook has no __file__
    assert cells(PAGE, "markdown")
    for text in texts(PAGE, "code"):
        exec(re.sub(r"\b(2000|1000), (0.02|3e-3), rng", r"50, \2, rng", text), names)
    assert drawn == ["method-plane.png", "method-digits.png"]


# What is made small and how, the figures that are shown, and what holds at the end.
SMALL_DIGITS = """sample = snfnp.load_dataset("mnist-sample")
digits = snfnp.Dataset("digits", sample.train[:1000], sample.validation[:99], sample.test[:99])"""
RUNS = {
    "1-plane": (
        {"epochs=EPOCHS": 'epochs=1, backend="numpy"', "-5, 5, 501": "-5, 5, 101"},
        1,
        lambda names: (
            abs(names["whole"] - 1) < 0.01 and names["picture"].stat().st_size > 1000
        ),
    ),
    "2-mnist": (
        {
            "digits = snfnp.load_dataset(DATA)": SMALL_DIGITS,
            "epochs=EPOCHS": 'epochs=1, backend="numpy"',
            '("mnist-conv")': '("mnist-conv", backend="numpy")',
        },
        2,
        lambda names: (
            0 < names["evaluation"].bits_per_dimension < 8 and len(names["exact"]) == 64
        ),
    ),
    "3-table": (
        {
            "ROWS, EPOCHS = 3000, None": "ROWS, EPOCHS = 600, 1",
            "epochs=EPOCHS": 'epochs=10, noise=0.0, members=1, activation="smooth-leaky-relu"',
        },
        1,
        lambda names: (
            names["found"] > 0.5 and np.allclose(names["back"], names["held_out"])
        ),
    ),
}


def cells(page, kind):
    """The cells of a notebook of a kind."""
    found = json.loads(page.with_suffix(".ipynb").read_text("utf-8"))["cells"]
    return [cell for cell in found if cell["cell_type"] == kind]


def texts(page, kind):
    return ["".join(cell["source"]) for cell in cells(page, kind)]


@pytest.mark.slow
@pytest.mark.parametrize("page", NOTEBOOKS, ids=lambda page: page.stem)
def test_a_notebook_runs_and_has_the_outputs_of_its_code(
    page, monkeypatch, tmp_path, capsys
):
    """A cell has a text if it prints, and a picture if it draws; its last value is left out."""
    if page.stem == "3-table":
        pytest.importorskip("sklearn")
    changes, figures, holds = RUNS[page.stem]
    names = {"__name__": "__main__"}
    shown = []
    assert all(large in "".join(texts(page, "code")) for large in changes)
    monkeypatch.setattr(plt, "show", lambda: shown.append(plt.close("all")))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for cell in cells(page, "code"):
        before = len(shown)
        capsys.readouterr()
        source = "".join(cell["source"])
        for large, small in changes.items():
            source = source.replace(large, small)
        exec(source, names)
        outputs = [o for o in cell["outputs"] if o["output_type"] != "execute_result"]
        pictures = [o for o in outputs if "image/png" in o.get("data", ())]
        assert len(pictures) == len(shown) - before
        assert bool(capsys.readouterr().out) == any(
            o["output_type"] == "stream" for o in outputs
        )
    assert len(shown) == figures and holds(names)
    whole = page.with_suffix(".ipynb").read_text("utf-8")
    assert len(whole) < 300_000
    assert not re.search(r"/(tmp|home|root|Users)/", whole), "a path of one machine"


def test_outputs_go_when_the_code_changes(tmp_path):
    path = tmp_path / "one.ipynb"
    outputs = [[{"output_type": "stream", "name": "stdout", "text": "1"}], []]
    path.write_text(
        notebook(["# A", "print(1)\n", "", "2\n"], outputs), encoding="utf-8"
    )
    assert kept(path, ["print(1)\n", "2\n"]) == outputs
    assert kept(path, ["print(2)\n", "2\n"]) is None
    assert kept(tmp_path / "none.ipynb", []) is None


FOLDER = DERIVATIONS / "figures"
MOVING = "plane-training"
IMAGE = re.compile(r"!\[([^\]]*)\]\(([^)\s]+)\)")
PAGES = [
    ROOT / "README.md",
    ROOT / "snfnp/architecture.md",
    *sorted(DERIVATIONS.glob("*.md")),
]


def test_the_folder_has_what_the_scripts_draw_and_no_other_vector_graphics():
    """Those of reproduce.py are tested in tests/test_reproduce_page.py."""
    found = {
        path.stem
        for path in FOLDER.glob("*.svg")
        if not path.stem.startswith("reproduced-")
    }
    assert found == set(FIGURES)


def test_every_figure_is_on_a_page():
    shown = set()
    for page in PAGES:
        for _, target in IMAGE.findall(page.read_text("utf-8")):
            assert (page.parent / target).is_file(), f"{page.name}: {target}"
            shown.add((page.parent / target).resolve())
    assert shown == {path.resolve() for path in FOLDER.iterdir()}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_figure_has_a_text_in_its_place_and_a_caption(page):
    lines = page.read_text("utf-8").splitlines()
    for index, line in enumerate(lines):
        for words, target in IMAGE.findall(line):
            assert len(words) > 10, target
            assert lines[index + 2].startswith("*"), f"{target}: no caption"


@pytest.mark.slow
@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_drawn_and_has_no_background(name, tmp_path, monkeypatch):
    """With a hundred steps in the place of thousands, where page 00's program is trained."""
    trained = training._trained
    monkeypatch.setattr(
        training, "_trained", lambda *of: trained(*of[:3], 100, *of[4:])
    )
    path = save(FIGURES[name](), tmp_path / f"{name}.svg")
    root = ElementTree.parse(path).getroot()
    assert root.tag.endswith("svg")
    first = next(e for e in root.iter() if e.get("id") == "patch_1")
    assert "fill: none" in "".join(e.get("style", "") for e in first.iter())
    assert path.stat().st_size < (210_000 if name == MOVING else 150_000)
    assert "#000000" not in path.read_text("utf-8"), "black is not seen on a dark page"


def test_what_moves_does_so_with_the_same_strokes_and_ends_as_what_stands_still():
    """A browser can only animate between paths of the same kinds of strokes."""
    root = ElementTree.parse(FOLDER / f"{MOVING}.svg").getroot()
    moving = [e for e in root.iter() if e.find("{*}animate") is not None]
    assert len(moving) == 3
    for path in moving:
        about = path.find("{*}animate")
        frames, times = (about.get(name).split(";") for name in ("values", "keyTimes"))
        assert frames[0] == frames[-1] == frames[-2] == path.get("d") != frames[1]
        assert len({re.sub(r"[\d.-]+", "", frame) for frame in frames}) == 1
        at = [float(time) for time in times]
        assert (
            len(at) == len(frames)
            and (at[0], at[-1]) == (0, 1)
            and at == sorted(set(at))
        )
        assert about.get("repeatCount").isdigit(), "it has to come to rest"
