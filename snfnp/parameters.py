"""All parameters of a flow in one flat buffer, with named views into it.

The same layout serves the gradients and Adam's moments: Adam is then one pass, the gradient norm
one reduction, a checkpoint one block. Products write straight into the gradient's views.
Derivation: derivations/16-adam.md.
"""

import math
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import DTypeLike

from snfnp.errors import UsageError
from snfnp.ops import Shape

Shapes = dict[str, dict[str, Shape]]  # {layer: {name: shape}}
_ALIGN = 16  # elements: every view starts on a 64-byte boundary in single precision


def order_of(name: str, shape: Shape) -> Literal["C", "F"]:
    """The memory order of a parameter. A matrix R is kept as Rᵀ: where it stands for W⁻¹ in W's
    gradient (Eq. 10), both lie in the same order."""
    return "F" if name == "R" and len(shape) == 2 else "C"


@dataclass(frozen=True)
class Entry:
    """One parameter: its layer, name and shape, and its start in the buffer."""

    layer: str
    name: str
    shape: Shape
    start: int

    @property
    def stop(self) -> int:
        """Its end in the buffer."""
        return self.start + math.prod(self.shape)

    @property
    def key(self) -> str:
        """`layer.name`."""
        return f"{self.layer}.{self.name}"

    def view(self, flat: Any) -> Any:
        """The parameter in a flat array of any backend."""
        part = flat[self.start : self.stop]
        return part.reshape(self.shape, order=order_of(self.name, self.shape))


@dataclass(frozen=True)
class Layout:
    """The positions of parameters in a flat buffer.

    Attributes:
        entries: the parameters, first those that an optimiser updates, then the constant ones.
        layers: the names of the layers.
        size: of the buffer, padding included.
        fixed: the start of the parameters that no gradient moves.
    """

    entries: tuple[Entry, ...] = field(repr=False)
    layers: tuple[str, ...] = field(repr=False)
    size: int
    fixed: int

    @classmethod
    def of(cls, shapes: Shapes, fixed: tuple[str, ...] = ()) -> "Layout":
        """The layout of parameters of these shapes, {layer: {name: shape}}; fixed: the layers
        whose parameters no gradient moves."""
        entries = []
        start = 0
        end = 0  # where the parameters end that gradients move
        for layer in sorted(shapes, key=lambda layer: layer in fixed):
            for name, shape in shapes[layer].items():
                entries.append(Entry(layer, name, tuple(map(int, shape)), start))
                start = -(-entries[-1].stop // _ALIGN) * _ALIGN
            if layer not in fixed:
                end = start
        return cls(tuple(entries), tuple(shapes), start, end)

    @property
    def optimised(self) -> "Layout":
        """The layout of the parameters that an optimiser updates, and of its moments."""
        entries = tuple(entry for entry in self.entries if entry.stop <= self.fixed)
        return Layout(entries, self.layers, self.fixed, self.fixed)

    @property
    def count(self) -> int:
        """The number of learned parameters, without padding."""
        return sum(entry.stop - entry.start for entry in self.optimised.entries)

    def views(self, flat: Any) -> dict[str, dict[str, Any]]:
        """{layer: {name: view}} into a flat array (size,) of any backend. Raises UsageError for an
        array of another shape."""
        if flat.shape != (self.size,):
            raise UsageError(
                f"parameters of shape {flat.shape} are not of this flow: give ({self.size},)"
            )
        views = {layer: {} for layer in self.layers}
        for entry in self.entries:
            views[entry.layer][entry.name] = entry.view(flat)
        return views

    def pack(
        self, initial: dict[str, dict[str, np.ndarray]], dtype: DTypeLike
    ) -> np.ndarray:
        """Host parameters {layer: {name: array}} as one flat host array; padding is zero."""
        flat = np.zeros(self.size, dtype)
        for layer, params in self.views(flat).items():
            for name, view in params.items():
                value: Any = initial[layer].get(name)
                if np.shape(value) != view.shape:
                    raise UsageError(
                        f"layer {layer}: init makes no {name} of shape {view.shape}, which "
                        "parameter_shapes declares: make them agree"
                    )
                view[...] = value
        return flat
