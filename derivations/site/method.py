"""Programs and notebooks of pages: `python derivations/site/method.py` writes all of them.

The pages are their only source. Page 00's Python blocks, one after the other, are its program; the
prose and the blocks of a page are the cells of its notebook. Nothing but the standard library is
needed. A notebook keeps its outputs as long as its code stays the same; with --run, which needs the
extra `notebooks`, the notebooks run and get theirs. With --measure page 00's flow of digits is
trained, in two minutes, for the figures in its prose, which are kept in derivations/method.json.
"""

import base64
import io
import json
import re
import runpy
import sys
from doctest import DocTestParser
from pathlib import Path

from pages import DERIVATIONS, ROOT

PAGE = DERIVATIONS / "00-the-method.md"
MEASURED = DERIVATIONS / "method.json"
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.md"))
_OPEN = '*To run it: `python -m pip install -e ".[notebooks]" && python -m jupyterlab notebooks`.*'
_FOLDER = """import os

if not os.path.isdir("snfnp"):  # the notebook's own folder: the data is found from the one above
    os.chdir("..")"""
_BLOCK = re.compile(r"^```python\n(.*?)^```\n", flags=re.M | re.S)


def notebook(parts: list[str], outputs: list[list] | None = None) -> str:
    """Prose and code in turn as a notebook (nbformat 4.5). outputs: of each cell of code."""
    cells, left = [], iter(outputs or ())
    for index, part in enumerate(parts):
        text = part.strip("\n")
        cell = {"id": f"cell-{index}", "metadata": {}, "source": text.splitlines(keepends=True)}
        if index % 2:
            cell |= {"cell_type": "code", "execution_count": None, "outputs": next(left, [])}
        else:
            cell |= {"cell_type": "markdown"}
        if text:
            cells.append(cell)
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    whole = {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}
    return _text_of(whole)


def _text_of(notebook: dict) -> str:
    return json.dumps(notebook, ensure_ascii=False, indent=1) + "\n"


def kept(path: Path, code: list[str]) -> list[list] | None:
    """The outputs of a notebook that has this code."""
    if not path.exists():
        return None
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    cells = [cell for cell in cells if cell["cell_type"] == "code"]
    same = ["".join(cell["source"]) for cell in cells] == [block.strip("\n") for block in code]
    return [cell["outputs"] for cell in cells] if same else None


def files() -> dict[Path, str]:
    """What is made of the pages: {path: text}."""
    parts = _BLOCK.split(PAGE.read_text(encoding="utf-8"))
    made = {PAGE.with_suffix(".py"): "\n\n".join(parts[1::2])}
    own, parts = PAGE.with_suffix(".ipynb"), [*parts[:-2], _FOLDER, "", *parts[-2:]]
    made[own] = notebook(parts, kept(own, parts[1::2]))
    for page in NOTEBOOKS:
        path = page.with_suffix(".ipynb")
        first, *rest = _BLOCK.split(page.read_text(encoding="utf-8"))
        parts = [f"{first.rstrip()}\n\n{_OPEN}\n", *rest]
        made[path] = notebook(parts, kept(path, parts[1::2]))
    return made


def _smaller(picture: str) -> str:
    """A PNG in base64 with 256 colours, rare ones among them, no wider than a page."""
    from PIL import Image

    image = Image.open(io.BytesIO(base64.b64decode(picture))).convert("RGB")
    image.thumbnail((1000, 1000))
    file = io.BytesIO()
    image.quantize(256, Image.Quantize.MAXCOVERAGE).save(file, "png", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def run(path: Path) -> None:
    """Run a notebook in its folder and keep what its cells print and draw, but no progress."""
    import nbformat
    from nbclient import NotebookClient

    done = nbformat.read(path, as_version=4)
    settings = {"timeout": None, "coalesce_streams": True}
    NotebookClient(done, **settings, resources={"metadata": {"path": str(path.parent)}}).execute()
    notebook = json.loads(path.read_text(encoding="utf-8"))
    for cell, ran in zip(notebook["cells"], done.cells, strict=True):
        if cell["cell_type"] == "code":
            shown = [output for output in ran.outputs if output.get("name") != "stderr"]
            for output in shown:
                if "execution_count" in output:
                    output["execution_count"] = None
                if "image/png" in output.get("data", ()):
                    output["data"]["image/png"] = _smaller(output["data"]["image/png"])
            cell["outputs"] = shown
    path.write_text(_text_of(notebook), encoding="utf-8")


def measured() -> dict:
    """What page 00's flow of digits reaches with its layer, and with that of exercise 4."""
    import numpy as np

    program = runpy.run_path(str(PAGE.with_suffix(".py")))
    for example in DocTestParser().get_examples(PAGE.read_text(encoding="utf-8")):
        if example.source.startswith("class Forward"):
            exec(example.source, program)
    images, rows = program["small_digits"](), []
    shown = images - images.mean(0) + np.random.default_rng(9).uniform(-1, 1, images.shape)
    pairs = [("Dense", lam) for lam in (1.0, 0.5, 0.3, 0.1)]
    for layer, lam in (*pairs, ("Forward", 1.0), ("Forward", 0.1)):
        rng = np.random.default_rng(0)
        dense = [program[layer](196, rng, 0.02) for _ in range(2)]
        flow = [dense[0], program["Bend"](), dense[1]]
        steps = 1000, 3e-3, rng, lam
        seen = program["train"](flow, lambda rng: program["digits"](rng, images), *steps)
        nats, (first, *_, last) = program["log_p"](flow, shown), seen[:, :, 1].tolist()
        row = {"layer": layer, "lam": lam, "log_p": nats, "degrees": [first, last]}
        rows.append(row | {"gap": seen[-1, :, 0].tolist()})
    what = "page 00's flow of digits after 1000 steps: mean log p(x) of all images with noise, "
    what += "degrees of each layer when first and last watched, and the gap at the end; seed 0"
    return {"what": what, "command": "python derivations/site/method.py --measure", "rows": rows}


if __name__ == "__main__":
    if "--measure" in sys.argv:
        MEASURED.write_text(json.dumps(measured(), indent=1) + "\n", encoding="utf-8")
    for path, text in files().items():
        path.write_text(text, encoding="utf-8")
        print(path)
    for page in (PAGE, *NOTEBOOKS) if "--run" in sys.argv else ():
        run(page.with_suffix(".ipynb"))
