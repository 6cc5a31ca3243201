"""What one backward pass carries from layer to layer, and what it collects on the way.

Derivation: derivations/03-self-normalizing.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from snfnp.ops import RandomKey

# The first of the random generator's streams that layers read, and how many each of them has.
# Those before are for what there is once in a step (`snfnp.likelihood`).
_FIRST_STREAM, _STREAMS = 16, 16


def layer_key(key: RandomKey, place: int, purpose: int = 0) -> RandomKey:
    """Where the place-th layer of a flow reads its random numbers; purpose: 0, 1, … 15.

    They are the step's, and all samples share them: no matter which samples of the batch the key
    is for (key.first), a layer reads from the start.
    """
    return key._replace(stream=_FIRST_STREAM + _STREAMS * place + purpose, first=0)


@dataclass(frozen=True)
class Collected:
    """Where a backward pass puts what the controllers of λ follow, of each layer for itself.

    rows: {layer: array (2,)}, E_k averaged over the batch, and Σ ‖h_k‖² over its samples; inputs:
    whether the latter is needed.
    """

    rows: dict
    inputs: bool


class Slice(NamedTuple):
    """Samples first … first + count − 1 of a batch of `total`, the index-th of `parts` slices."""

    first: int
    count: int
    total: int
    index: int = 0
    parts: int = 1


class BackwardContext:
    """The step that a backward pass belongs to.

    ops: the backend; dldj (N,): ∂𝓛/∂ldj of each sample, 1/N each in training; lam: λ of Eq. 3, a
    number or an array of shape () on the device, the same for all layers, or where layers have
    their own {layer: array of shape ()}. state: {layer: {name: array}}, what rules keep from step
    to step (`Rule.state_shapes`) and overwrite. key: the seed and step of the random numbers.

    The flow says in `enter` whose turn it is. Layers add to `reconstruction`: it ends as
    Σ_k ‖g_k(f_k(h_k)) − h_k‖², averaged over the batch, of the layers that learn their inverse
    (the bracket of Eq. 3 without its λ), and stays 0.0 where no layer does. collected: the errors
    go there, and `reconstruction` starts at 0.0 at every layer. `jacobian_error` grows from
    whatever it starts at (0.0) by Σ_k ‖J_g J_f ν − ν‖² (Eq. 31), averaged over the probes, of the
    layers whose rule looks at it.

    part: of which slice of the batch the pass is; None: of all of it. The gradients of slices add
    up to the batch's. What does not depend on samples (the terms of log-determinants, probes, an R
    that is found from W) is the same for all of them: the slices take it in turn, layer by layer,
    and `leads` says whether it is this one's turn. Averages "over the batch" are then over the
    slice: whoever cut the batch weighs them.

    volume: the sum of the whole batch's dldj, a float64 scalar, where the caller knows it: a device
    then need not add it up; None: computed from dldj, when a layer asks for it.
    """

    def __init__(
        self,
        ops,
        dldj,
        lam=0.0,
        state=None,
        key: RandomKey | None = None,
        collected: Collected | None = None,
        part: Slice | None = None,
        volume=None,
    ):
        self.ops, self.dldj, self._lam = ops, dldj, lam
        self._part, self._known_volume = part, volume
        self._state, self._key, self._collected = state or {}, key, collected
        self.layer, self._place = None, 0
        self._reconstruction, self._factors = 0.0, {}
        self.jacobian_error = 0.0

    def enter(self, layer: str, place: int) -> None:
        """The pass comes to a layer, the place-th of the flow."""
        self.layer, self._place = layer, place
        if self._collected is not None:
            self._reconstruction = 0.0

    @property
    def reconstruction(self):
        return self._reconstruction

    @reconstruction.setter
    def reconstruction(self, so_far) -> None:
        self._reconstruction = so_far
        if self._collected is not None:
            self._collected.rows[self.layer][0] = so_far

    def meets(self, h) -> None:
        """A layer that learns its inverse has the input h (N, ...): it says so in its backward
        pass, or a relative constraint has nothing to compare its error with."""
        if self._collected is not None and self._collected.inputs:
            self._collected.rows[self.layer][1] = self.ops.linalg.sum_squares(h)

    @cached_property
    def part(self) -> Slice:
        return self._part or Slice(0, len(self.dldj), len(self.dldj))

    @property
    def leads(self) -> bool:
        """Whether what this layer's parameters alone decide is computed in this slice."""
        return self._place % self.part.parts == self.part.index

    def of_batch(self, average):
        """An average that stands for the whole batch, as one over this slice."""
        count, total = self.part.count, self.part.total
        return average if count == total else average * (total / count)

    @property
    def volume(self):
        """Σ_n ∂𝓛/∂ldj_n in double precision, of shape (): the weight of a log-determinant that is
        the same for every sample. 1 in training; 0 in slices that do not lead."""
        return self._volume if self.leads else 0.0

    @cached_property
    def _volume(self):
        if self._known_volume is not None:
            return self._known_volume
        # the weights of the slice's samples are those of all: their sum over N is the average's
        return self.of_batch(self.dldj.sum(dtype="float64"))

    @property
    def lam(self):
        """λ of this layer."""
        return self._lam[self.layer] if isinstance(self._lam, dict) else self._lam

    @property
    def error_factor(self):
        """−2λ/N, the factor of every gradient of this layer's reconstruction error in Eq. 3."""
        if not isinstance(self._lam, dict):
            return self._shared_factor
        if self.layer not in self._factors:
            self._factors[self.layer] = self.lam * (-2 / self.part.total)
        return self._factors[self.layer]

    @cached_property
    def _shared_factor(self):
        return self._lam * (-2 / self.part.total)

    def key(self, purpose: int = 0) -> RandomKey:
        """Where this layer reads the random numbers of this step, which all samples share;
        purpose: 0, 1, … 15."""
        return layer_key(self._key, self._place, purpose)

    @property
    def state(self) -> dict:
        """What this layer's rule keeps from step to step, by name."""
        return self._state.get(self.layer, {})
