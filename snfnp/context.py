"""Records of a backward pass: what each layer gets, and what those with a learned inverse return.

Derivation: derivations/03-self-normalizing.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from snfnp.ops import Ops, RandomKey

# Each layer draws from _STREAMS of the random generator's streams, from _FIRST_STREAM on. Those
# below are for what is drawn once for a batch (`snfnp.likelihood`).
_FIRST_STREAM, _STREAMS = 16, 16


def layer_key(key: RandomKey, place: int) -> RandomKey:
    """The start of the random numbers of the place-th layer of a flow: all samples share them,
    whichever samples of the batch the key is for (key.first)."""
    return key._replace(stream=_FIRST_STREAM + _STREAMS * place, first=0)


class Slice(NamedTuple):
    """Samples first … first + count − 1 of a batch of `total`, the index-th of `parts` slices."""

    first: int
    count: int
    total: int
    index: int = 0
    parts: int = 1


@dataclass(frozen=True)
class BackwardContext:
    """The step that a backward pass belongs to, as one layer sees it.

    ops: the backend; dldj (N,): ∂𝓛/∂ldj of each sample, 1/N each in training; volume: v, their sum
    over the whole batch, a float64 scalar, the weight of a log-determinant that is the same for
    every sample; error_factor: −2λ/N with the layer's λ, the factor of every gradient of its
    reconstruction error in Eq. 3, a number or an array of shape () on the device; key: that of the
    random numbers that the layer draws in this step, which all samples share.

    part: the slice of the batch that the pass is for. The gradients of slices add up to the
    batch's. What does not depend on samples (the terms of log-determinants, probes) is computed in
    the slice that `leads`; in the others `volume` is 0. Averages are over the slice: the training
    step weighs them.
    """

    ops: Ops
    dldj: Any
    volume: Any
    error_factor: Any
    key: RandomKey | None
    part: Slice
    leads: bool = True

    @classmethod
    def of(cls, ops, dldj, lam=0.0, key: RandomKey | None = None) -> BackwardContext:
        """The context of a whole batch, outside of a training step; lam: λ of Eq. 3."""
        count = len(dldj)
        volume, part = dldj.sum(dtype="float64"), Slice(0, count, count)
        return cls(ops, dldj, volume, lam * (-2 / max(count, 1)), key, part)

    def at(self, place: int, error_factor) -> BackwardContext:
        """The step as the place-th layer of a flow sees it, from that of the flow."""
        # one slice alone computes what depends on the parameters of a layer and on no sample
        leads = place % self.part.parts == self.part.index
        volume = self.volume if leads else 0.0
        key, own = self.key and layer_key(self.key, place), (self.ops, self.dldj, volume)
        return BackwardContext(*own, error_factor, key, self.part, leads)


@dataclass(frozen=True)
class Measured:
    """Measurements of a backward pass on a layer that learns its inverse.

    error: E = ‖g(f(h)) − h‖², averaged over the batch, in double precision (the bracket of Eq. 3
    without its λ); input: h (N, ...); jacobian_error: ‖J_g J_f ν − ν‖² (Eq. 31), averaged over the
    probes, or None if the rule does not compute it in this slice.
    """

    error: Any
    input: Any
    jacobian_error: Any = None
