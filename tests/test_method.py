"""What is made of pages is theirs; page 00's program stands alone and takes the package's steps."""

import ast
import json
import re
import runpy

import matplotlib
import numpy as np
import pytest
from method import PAGE, files

from snfnp.context import BackwardContext
from snfnp.flow import Flow
from snfnp.layers import Linear, SmoothLeakyReLU
from snfnp.maps import Dense
from snfnp.ops import get_ops
from snfnp.parameters import Layout
from snfnp.rules import SelfNormalizing
from snfnp.training.adam import Adam

matplotlib.use("Agg")
PROGRAM, MADE = PAGE.with_suffix(".py"), files()
STEPS, RATE, LAM = 40, 0.02, 0.7
TOLERANCE = {"rtol": 1e-12, "atol": 1e-12}


@pytest.fixture(scope="module")
def method():
    return runpy.run_path(str(PROGRAM))


@pytest.mark.parametrize("path", MADE, ids=lambda path: path.name)
def test_what_is_made_of_the_pages_is_the_pages_as_they_stand(path):
    text = path.read_text(encoding="utf-8")
    assert text == MADE[path], "run python derivations/site/method.py"


def test_the_program_is_short_and_imports_nothing_of_the_package():
    text = PROGRAM.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 135
    imports = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Import | ast.ImportFrom)]
    names = {alias.name for node in imports for alias in node.names}
    assert names == {"gzip", "os", "sys", "Path", "numpy", "matplotlib.pyplot"}


def by_the_program(method, size, lam):
    """The batches of every step, the parameters before each, and the flow at the end."""
    rng, batches, before = np.random.default_rng(0), [], []
    flow = [method["Dense"](size, rng, 0.1), method["Bend"](), method["Dense"](size, rng, 0.1)]

    def draw(rng):
        before.append([getattr(layer, name).copy() for layer in flow[::2] for name in "WRb"])
        batches.append(rng.standard_normal((30, size)) ** 3)
        return batches[-1]

    # watch() is looked at every (STEPS // 50)-th step: none of these
    method["train"](flow, draw, max(STEPS, 50), RATE, rng, lam)
    return flow, batches, before


def by_the_package(batches, start, size, lam):
    """The parameters before every step, of the package's layers, rule and Adam."""
    ops, dense = get_ops("numpy"), Linear(Dense(size), SelfNormalizing())
    layers = (("dense1", dense), ("activation1", SmoothLeakyReLU(0.3)), ("dense2", dense))
    flow = Flow((size,), layers)
    layout = Layout.of(flow.parameter_shapes())
    names = [(layer, name) for layer in ("dense1", "dense2") for name in "WRb"]
    p = layout.pack(flow.init(0), np.float64)
    params, gradient = layout.views(p), np.zeros_like(p)
    for (layer, name), value in zip(names, start, strict=True):
        params[layer][name][...] = value
    m, v, before = np.zeros_like(p), np.zeros_like(p), []
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
            np.testing.assert_allclose(a, b, **TOLERANCE)
    assert max(np.abs(a - b).max() for a, b in zip(ours[0], ours[-1], strict=True)) > 0.1

    ops, x = get_ops("numpy"), batches[0]
    z = x
    for layer in flow:
        z = layer.forward(z)
    (expected,), _, _ = theirs_flow.forward(ops, params, x)
    np.testing.assert_allclose(z, expected, **TOLERANCE)
    for layer in reversed(flow):
        z = layer.inverse(z)
    back = theirs_flow.inverse(ops, params, (expected,))
    np.testing.assert_allclose(z, back, rtol=1e-12, atol=1e-11)


@pytest.mark.parametrize("wrong", ["lam", "rate"])
def test_other_steps_are_told_from_the_packages(method, wrong, monkeypatch):
    _, batches, ours = by_the_program(method, 2, LAM * (1.001 if wrong == "lam" else 1))
    if wrong == "rate":
        monkeypatch.setattr("test_method.RATE", RATE * 1.001)
    _, _, theirs = by_the_package(batches, ours[0], 2, LAM)
    worst = max(np.abs(a - b).max() for a, b in zip(ours[-1], theirs[-1], strict=True))
    assert worst > 1e-6


def test_the_notebook_runs_from_its_first_cell_to_its_last(monkeypatch):
    """With 50 steps in the place of thousands."""
    cells = json.loads(PAGE.with_suffix(".ipynb").read_text(encoding="utf-8"))["cells"]
    assert {cell["cell_type"] for cell in cells} == {"code", "markdown"}
    names, drawn = {"__name__": "__main__"}, []
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda self, name: drawn.append(name))
    monkeypatch.chdir(PAGE.parent)  # a notebook has no __file__
    for cell in cells:
        if cell["cell_type"] == "code":
            text = "".join(cell["source"])
            exec(re.sub(r"\b(2000|1000), (0.02|3e-3), rng", r"50, \2, rng", text), names)
    assert drawn == ["method-plane.png", "method-digits.png"]
