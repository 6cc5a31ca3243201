"""Everything that `reproduce.py` can make: the paper's tables and figures, by name."""

from reproduction.ablation import Ablation
from reproduction.figures import Figure2, Figure3, Figure5
from reproduction.likelihoods import LikelihoodTable
from reproduction.rows import TABLES
from reproduction.target import Target
from reproduction.times import Figure4, Table3

TARGETS: dict[str, Target] = {name: LikelihoodTable(table) for name, table in TABLES.items()}
TARGETS |= {"table3": Table3(), "figure2": Figure2(), "figure3": Figure3(), "figure4": Figure4()}
TARGETS |= {"figure5": Figure5(), "white-parts": Ablation()}
TARGETS = dict(sorted(TARGETS.items(), key=lambda item: (item[0][0] == "f", item[0])))
