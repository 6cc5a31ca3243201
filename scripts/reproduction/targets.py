"""Everything that `reproduce.py` can make: the paper's tables and figures, by name.

A target has a `title`, the `suffix` of its picture, and

* `names(scale)`: of its rows that can be wanted alone (`--rows`);
* `plan(setting)`: the runs that it needs, of those whose images are there;
* `collect(setting, results)`: its record in results.json, from the results by the runs' folders;
* `show(record)`: its table in Markdown;
* `draw(record, path, setting)`: its picture, in the style of the derivations' figures;
* `shows_paper`: whether the picture has the paper's figures beside ours;
* `made_of_runs`: whether the picture needs the runs, or is made of the record alone;
* `parts`: the name of the list in its record whose parts can come from several commands and
  machines (`reproduction.joining`), None where they cannot; with one, `identity(part)`, which is
  that of one of the `identities()`, in the order in which they are shown.
"""

from __future__ import annotations

from reproduction.figure2 import Figure2
from reproduction.figure3 import Figure3
from reproduction.figure4 import Figure4
from reproduction.figure5 import Figure5
from reproduction.likelihoods import LikelihoodTable
from reproduction.table3 import Table3
from reproduction.tables import TABLES

_TABLES = {name: LikelihoodTable(table) for name, table in TABLES.items()} | {"table3": Table3()}
TARGETS = dict(sorted(_TABLES.items())) | {
    "figure2": Figure2(),
    "figure3": Figure3(),
    "figure4": Figure4(),
    "figure5": Figure5(),
}
