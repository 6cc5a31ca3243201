"""What one backward pass carries from layer to layer, and what it collects on the way.

Derivation: derivations/03-self-normalizing.md.
"""

from __future__ import annotations

from functools import cached_property


class BackwardContext:
    """The step that a backward pass belongs to.

    ops: the backend; dldj (N,): ∂𝓛/∂ldj of each sample, 1/N each in training; lam: λ of Eq. 3, a
    number or an array of shape () on the device. Layers add to `reconstruction`: it ends as
    Σ_k ‖g_k(f_k(h_k)) − h_k‖², averaged over the batch, of the layers that learn their inverse
    (the bracket of Eq. 3 without its λ), and stays 0.0 where no layer does.
    """

    def __init__(self, ops, dldj, lam=0.0):
        self.ops, self.dldj, self.lam = ops, dldj, lam
        self.reconstruction = 0.0

    @cached_property
    def volume(self):
        """Σ_n ∂𝓛/∂ldj_n in double precision, of shape (): the weight of a log-determinant that is
        the same for every sample. 1 in training."""
        return self.dldj.sum(dtype="float64")

    @cached_property
    def error_factor(self):
        """−2λ/N, the factor of every gradient of the reconstruction errors in Eq. 3."""
        return self.lam * (-2 / len(self.dldj))
