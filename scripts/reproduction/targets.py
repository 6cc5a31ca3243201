"""Everything that `reproduce.py` can make: the paper's tables and figures, by name."""

from __future__ import annotations

from reproduction.figure4 import Figure4
from reproduction.figures import Figure2, Figure3, Figure5
from reproduction.likelihoods import LikelihoodTable
from reproduction.rows import TABLES
from reproduction.table3 import Table3
from reproduction.target import Target

TARGETS: dict[str, Target] = {
    "table1": LikelihoodTable(TABLES["table1"]),
    "table2": LikelihoodTable(TABLES["table2"]),
    "table3": Table3(),
    "table4": LikelihoodTable(TABLES["table4"]),
    "table5": LikelihoodTable(TABLES["table5"]),
    "figure2": Figure2(),
    "figure3": Figure3(),
    "figure4": Figure4(),
    "figure5": Figure5(),
}
