"""All parameters of a flow in one flat buffer, with named views into it.

The same layout serves the gradients and Adam's moments: Adam is then one pass, the gradient norm
one reduction, a checkpoint one block. Products write straight into the gradient's views.

Derivation: derivations/06-adam.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

_ALIGN = 16  # elements: every view starts on a 64-byte boundary in single precision


@dataclass(frozen=True)
class Entry:
    """One parameter: which layer's, its name, its shape, and where it starts in the buffer."""

    layer: str
    name: str
    shape: tuple[int, ...]
    start: int

    @property
    def stop(self) -> int:
        return self.start + math.prod(self.shape)

    @property
    def key(self) -> str:
        return f"{self.layer}.{self.name}"


@dataclass(frozen=True)
class Layout:
    """Where each parameter lies. `size` counts the padding, `count` does not."""

    entries: tuple[Entry, ...]
    layers: tuple[str, ...]
    size: int

    @classmethod
    def of(cls, shapes: dict[str, dict[str, tuple[int, ...]]]) -> Layout:
        """The layout of parameters of these shapes, {layer: {name: shape}}."""
        entries, start = [], 0
        for layer, named in shapes.items():
            for name, shape in named.items():
                entries.append(Entry(layer, name, tuple(shape), start))
                start = -(-entries[-1].stop // _ALIGN) * _ALIGN
        return cls(tuple(entries), tuple(shapes), start)

    @property
    def count(self) -> int:
        """The number of parameters."""
        return sum(e.stop - e.start for e in self.entries)

    def views(self, flat) -> dict:
        """{layer: {name: view}} into a flat array (size,) of any backend."""
        views = {layer: {} for layer in self.layers}
        for e in self.entries:
            views[e.layer][e.name] = flat[e.start : e.stop].reshape(e.shape)
        return views

    def pack(self, initial: dict[str, dict[str, np.ndarray]], dtype) -> np.ndarray:
        """Host parameters {layer: {name: array}} as one flat host array; padding is zero."""
        flat = np.zeros(self.size, dtype)
        for layer, params in self.views(flat).items():
            for name, view in params.items():
                view[...] = initial[layer][name]
        return flat
