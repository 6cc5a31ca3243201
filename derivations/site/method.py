"""Programs and notebooks of pages: `python derivations/site/method.py` writes all of them.

The pages are their only source. Page 00's Python blocks, one after the other, are its program; the
prose and the blocks of a page are the cells of its notebook. Nothing but the standard library is
needed.
"""

import json
import re
from pathlib import Path

from pages import DERIVATIONS, ROOT

PAGE = DERIVATIONS / "00-the-method.md"
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.md"))
# Where the project is on GitHub. It is not there yet: put owner and name here, run this program,
# and leave out what README.md says of it.
REPOSITORY = "OWNER/snfnp"
_COLAB = f"https://colab.research.google.com/github/{REPOSITORY}/blob/main/notebooks/"
_BADGE = "[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]"
_FOLDER = """import os

if not os.path.isdir("snfnp"):  # the notebook's own folder: the data is found from the one above
    os.chdir("..")"""
_INSTALL = f"""import importlib.util
import subprocess
import sys

if not importlib.util.find_spec("snfnp"):  # in Colab, for example
    address = "git+https://github.com/{REPOSITORY}"
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", address], check=True)

import snfnp"""
_BLOCK = re.compile(r"^```python\n(.*?)^```\n", flags=re.M | re.S)


def notebook(parts: list[str]) -> str:
    """Prose and code in turn as a notebook (nbformat 4.5), without outputs."""
    cells = []
    for index, part in enumerate(parts):
        text = part.strip("\n")
        cell = {"id": f"cell-{index}", "metadata": {}, "source": text.splitlines(keepends=True)}
        if index % 2:
            cell |= {"cell_type": "code", "execution_count": None, "outputs": []}
        else:
            cell |= {"cell_type": "markdown"}
        if text:
            cells.append(cell)
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    whole = {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(whole, ensure_ascii=False, indent=1) + "\n"


def files() -> dict[Path, str]:
    """What is made of the pages: {path: text}."""
    parts = _BLOCK.split(PAGE.read_text(encoding="utf-8"))
    made = {PAGE.with_suffix(".py"): "\n\n".join(parts[1::2])}
    made[PAGE.with_suffix(".ipynb")] = notebook([*parts[:-2], _FOLDER, "", *parts[-2:]])
    for page in NOTEBOOKS:
        path = page.with_suffix(".ipynb")
        first, *rest = _BLOCK.split(page.read_text(encoding="utf-8"))
        made[path] = notebook([f"{_BADGE}({_COLAB}{path.name})\n\n{first}", _INSTALL, "", *rest])
    return made


if __name__ == "__main__":
    for path, text in files().items():
        path.write_text(text, encoding="utf-8")
        print(path)
