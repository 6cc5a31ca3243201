"""Page 00 as a program and as a notebook: `python derivations/site/method.py` writes both.

The page is their only source: its Python blocks, one after the other, are the program; its prose
and its blocks are the notebook's cells. Nothing but the standard library is needed.
"""

import json
import re

from pages import DERIVATIONS

PAGE = DERIVATIONS / "00-the-method.md"
_FOLDER = """import os

if not os.path.isdir("snfnp"):  # the notebook's own folder: the data is found from the one above
    os.chdir("..")"""
_BLOCK = re.compile(r"^```python\n(.*?)^```\n", flags=re.M | re.S)


def program(page: str) -> str:
    """The page's Python blocks, apart from each other by two empty lines."""
    return "\n\n".join(_BLOCK.findall(page))


def notebook(page: str) -> str:
    """The page as a notebook (nbformat 4.5), without outputs: prose and code in turn."""
    cells, parts = [], _BLOCK.split(page)
    for index, part in enumerate([*parts[:-2], _FOLDER, "", *parts[-2:]]):
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


def files(page: str) -> dict[str, str]:
    """What is made of the page, by the ending of its file's name."""
    return {".py": program(page), ".ipynb": notebook(page)}


if __name__ == "__main__":
    for suffix, text in files(PAGE.read_text(encoding="utf-8")).items():
        PAGE.with_suffix(suffix).write_text(text, encoding="utf-8")
        print(PAGE.with_suffix(suffix))
