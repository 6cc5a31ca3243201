"""Figures of steps that look at layers along random directions.

Derivation: derivations/18-jacobian-vector-products.md.
"""

from __future__ import annotations

STATE = "jacobian"  # what the tally is called among what layers keep


class Tally:
    """The average of Eq. 31 over steps, in two numbers on the device: their sum and their number.

    state_shapes: among what layers keep from step to step; `attach` gives it its place.
    """

    state_shapes = {STATE: {"sum_and_count": (2,)}}

    def attach(self, states: dict) -> None:
        self._found = states[STATE]["sum_and_count"]

    @property
    def sum(self):
        """Of shape (), on the device: what a step adds its own to."""
        return self._found[0, ...]

    def add(self, total) -> None:
        """A step's sum, which began at `sum`."""
        self._found[0, ...] = total
        self._found[1, ...] += 1

    def figures(self, ops) -> dict[str, float]:
        """The average since this was last asked, for a line of metrics. Waits for the device."""
        total, count = ops.to_host(self._found).tolist()
        self._found[...] = 0
        return {"jacobian_error": total / count if count else 0.0}
