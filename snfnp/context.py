"""The arguments of a layer's backward pass, and what layers with a learned inverse return beside δ.

Derivation: derivations/05-self-normalizing.md.
"""

from dataclasses import dataclass

from snfnp.ops import Array, Ops, RandomKey, Scalar


@dataclass(frozen=True)
class BackwardContext:
    """The step that a backward pass belongs to, as one layer sees it.

    Attributes:
        ops: the backend.
        dldj: (N,), ∂𝓛/∂ldj of each sample, 1/N in training.
        log_det_weight: v = Σ ∂𝓛/∂ldj over the batch, a float64 scalar: the weight of a
            log-determinant that is the same for every sample.
        error_factor: −2λ/N with the layer's λ, the factor of every gradient of its reconstruction
            error in Eq. 3: a number, or an array of shape () on the device.
        key: the key of the layer's random numbers in this step, one for all samples; without a key
            (None) no rule draws any.
    """

    ops: Ops
    dldj: Array
    log_det_weight: Scalar
    error_factor: Scalar
    key: RandomKey | None

    @classmethod
    def of(
        cls, ops: Ops, dldj: Array, lam: Scalar = 0.0, key: RandomKey | None = None
    ) -> "BackwardContext":
        """The context outside of a training step; lam: λ of Eq. 3."""
        error_factor = lam * (-2 / max(len(dldj), 1))
        weight = dldj.sum(dtype="float64")
        return cls(ops, dldj, weight, error_factor, key)


@dataclass
class Measured:
    """Measurements of a backward pass on a layer that learns its inverse.

    Attributes:
        error: E = ‖g(f(h)) − h‖², the layer's summand in Eq. 3 without λ: averaged over the batch,
            in double precision.
        input: h, (N, ...).
        jacobian_error: ‖J_g J_f ν − ν‖² (Eq. 31), averaged over the probes; None if the rule does
            not compute it.
    """

    error: Scalar
    input: Array
    jacobian_error: Scalar | None = None
