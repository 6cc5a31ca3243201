"""All parameters of a flow in one flat buffer, with named views into it.

The same layout serves the gradients and Adam's moments: Adam is then one pass, the gradient norm
one reduction, a checkpoint one block. Products write straight into the gradient's views.
Derivation: derivations/06-adam.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

Shapes = dict[str, dict[str, tuple[int, ...]]]  # {layer: {name: shape}}
_ALIGN = 16  # elements: every view starts on a 64-byte boundary in single precision


@dataclass(frozen=True)
class Entry:
    """One parameter: which layer's, its name, its shape, and its start in the buffer."""

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
    """The places of parameters in a flat buffer. `size` counts the padding, `count` does not. What
    an optimiser moves comes first, up to `split`; what rules find by themselves lies behind it, up
    to `fixed`; then come numbers that no step changes, which `count` leaves out."""

    entries: tuple[Entry, ...] = field(repr=False)
    layers: tuple[str, ...] = field(repr=False)
    size: int
    split: int
    fixed: int

    @classmethod
    def of(cls, shapes: Shapes, updates: dict | None = None, fixed: tuple = ()) -> Layout:
        """The layout of parameters of these shapes, {layer: {name: shape}}.

        updates: {layer: names} of those that no optimiser moves (`Rule.updates`); fixed: the layers
        whose numbers no step changes.
        """
        updates = updates or {}
        keys = [(layer, name) for layer, named in shapes.items() for name in named]
        part = {(k, name): 2 if k in fixed else name in updates.get(k, ()) for k, name in keys}
        entries, start, ends = [], 0, [0, 0, 0]
        for layer, name in sorted(keys, key=part.__getitem__):
            entries.append(Entry(layer, name, tuple(shapes[layer][name]), start))
            start = -(-entries[-1].stop // _ALIGN) * _ALIGN
            ends[part[layer, name] :] = [start] * (3 - part[layer, name])
        split, end, size = ends
        return cls(tuple(entries), tuple(shapes), size, split, end)

    @property
    def optimised(self) -> Layout:
        """The first part of it: what the optimiser moves, and has moments of."""
        entries = tuple(entry for entry in self.entries if entry.start < self.split)
        return Layout(entries, self.layers, self.split, self.split, self.split)

    @property
    def updated(self) -> Layout:
        """The second part, at the same places: what rules find by themselves."""
        entries = tuple(e for e in self.entries if self.split <= e.start < self.fixed)
        return Layout(entries, self.layers, self.fixed, self.split, self.fixed)

    @property
    def count(self) -> int:
        """The number of parameters that are learned."""
        return sum(e.stop - e.start for e in self.entries if e.start < self.fixed)

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
