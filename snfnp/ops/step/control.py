"""Controllers of λ: settings and state; see derivations/20-lambda-controllers.md."""

from dataclasses import dataclass
from enum import IntEnum

import numpy as np

LARGEST_EXPONENT = 700.0  # e to the 709 is the largest that double precision holds


class Row(IntEnum):
    """The rows of a controller's state (rows, L), float64, a column for each of L layers;
    `kernels.cu` has the same numbers.

    LAM: the λ that the next step uses; AVERAGE: ξ, the average of C − κ; CONSTRAINT: C of the last
    step; CONSTRAINT_SUM, COUNTED: its sum over the steps since that was cleared, and their number;
    STARTED: 0 until there is an average.
    """

    LAM = 0
    AVERAGE = 1
    CONSTRAINT = 2
    CONSTRAINT_SUM = 3
    COUNTED = 4
    STARTED = 5


ROWS = len(Row)


@dataclass(frozen=True)
class Controller:
    """Settings by which λ follows the constraint C ≤ κ; `Step.control` has the formulas.

    relative: C is E/‖h‖² instead of E; tolerance: κ; rate: η; smoothing: α; lowest, highest: λ
    stays between them.
    """

    relative: bool
    tolerance: float
    rate: float
    smoothing: float = 0.0
    lowest: float = 0.0
    highest: float = np.inf

    def new_state(self, layers: int, lam: float) -> np.ndarray:
        """The state (rows, L) before the first step, on the host."""
        state = np.zeros((ROWS, layers))
        state[Row.LAM] = lam
        return state
