"""Everything that `reproduce.py` can make: the paper's tables and figures, by name.

A target has a `title` and

* `plan(setting)`: the runs that it needs, of those whose images are there;
* `collect(setting, results)`: its record in results.json, from the results by the runs' folders;
* `show(record)`: its table in Markdown;
* `draw(record, path, setting)`: its picture.
"""

from __future__ import annotations

from reproduction.likelihoods import LikelihoodTable
from reproduction.tables import TABLES

TARGETS = {name: LikelihoodTable(table) for name, table in TABLES.items()}
SUFFIX = ".svg"  # of the pictures
