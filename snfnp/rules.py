"""What stands in for ∂ log|det T(w)| / ∂w: one rule per way of training, written once for all maps.

Every rule climbs the objective averaged over the batch (ascent). A linear layer has computed
Z0 = T(W) X in its forward pass, without the bias; it hands over δ_z = ∂L/∂z and gets
δ_x = T(W)ᵀ δ_z back, while the rule writes the weight gradients into g["W"], g["R"] and g["b"].
`volume` is Σ_n ∂L/∂ldj_n, the weight of the data-independent log-determinant (1 in training).
"""

from __future__ import annotations

from dataclasses import dataclass

from snfnp.errors import UsageError


class Reconstruction:
    """λ of Eq. 3 on the way in; the layers' reconstruction errors on the way out.

    lam: a number, or an array of shape () on the device. `total` is Σ_k ‖g_k(f_k(h_k)) − h_k‖²,
    averaged over the batch, of the layers so far that learn their inverse: the bracket of Eq. 3
    without its λ, 0.0 where no layer learned.
    """

    def __init__(self, lam):
        self.lam, self.total = lam, 0.0
        self._pulls = {}
        self._dldj = self._volume = None

    def pull(self, batch: int):
        """−2λ/N, the factor of every gradient of the errors; computed once for all layers."""
        if batch not in self._pulls:
            self._pulls[batch] = self.lam * (-2 / batch)
        return self._pulls[batch]

    def volume(self, dldj):
        """Σ_n ∂L/∂ldj_n; computed once for all layers, which are given the same array."""
        if self._dldj is not dldj:
            self._dldj, self._volume = dldj, total_volume(dldj)
        return self._volume


@dataclass(frozen=True)
class SelfNormalizing:
    """R (for convolutions flip(r) ⊙ m) where the inverse stood: Eqs. 4, 5, 8-11, 15-20. O(N D²).

    objective: "mixture" is the paper's Eq. 3, ½ log p^f + ½ log p^g − λ Σ E;
    "forward" is log p^f − λ Σ E, where R learns from its reconstruction error alone.
    """

    objective: str = "mixture"
    learns_inverse = True

    def __post_init__(self):
        if self.objective not in ("mixture", "forward"):
            raise UsageError(f"objective is {self.objective!r}: choose mixture or forward")

    def backward(self, ops, f, inverse, shape, p, x, z0, dz, volume, g, recon):
        """Six products instead of nine: the likelihood's and the reconstruction's deltas are
        merged before the weight-gradient products.

            Δ_W = c δ_z − (2λ/N) T(R)ᵀ E        G_W = Δ_W ⋆ X + c flip(R) ⊙ m
            Δ_R = −c' δ_x − (2λ/N) E            G_R = Δ_R ⋆ Z0 − c' flip(W) ⊙ m

        with E = T(R) Z0 − X, and (c, c') = (½, ½) for the mixture, (1, 0) for `forward`.
        W is a weight of the map f and R of the map `inverse`, whose kernel may be larger.
        """
        w, r = p["W"], p["R"]
        half_f, half_g = (0.5, 0.5) if self.objective == "mixture" else (1.0, 0.0)
        pull = recon.pull(len(x))

        error = inverse.apply(ops, r, z0)
        recon.total = ops.residual(error, x, recon.total)  # plus E of Eq. 3, for one layer

        # Eq. 17 (with Eq. 10): ½ (δ_z xᵀ + Rᵀ) − 2λ Rᵀ (RWx − x) xᵀ; for convolutions
        # Eqs. 14, 15 and 21, and Eq. 28 where R is of another size: `fit` takes its centre
        delta_w = inverse.adjoint(ops, r, error)
        ops.blend(delta_w, pull, dz, half_f)
        ops.scale_into(g["W"], half_f, f.flip(f.fit(r, ops.xp)), f.multiple(shape), volume)
        f.weight_grad(ops, delta_w, x, out=g["W"], add=True)

        # Eq. 20 (with Eq. 11): −½ (δ_x zᵀ + Wᵀ) − 2λ (RWx − x) zᵀ; for convolutions
        # Eqs. 16 and 22, and Eq. 29 where R is of another size: `fit` pads W with zeros.
        # z is T(W) x without the bias: g(z) = R (z − b) inverts f(x) = W x + b.
        dx = f.adjoint(ops, w, dz)
        delta_r = ops.blend(error, pull, dx, -half_g)
        flipped = inverse.flip(inverse.fit(w, ops.xp))
        ops.scale_into(g["R"], -half_g, flipped, inverse.multiple(shape), volume)
        inverse.weight_grad(ops, delta_r, z0, out=g["R"], add=True)

        _bias_gradient(ops, g, dz)  # both densities contain b: ½ + ½ = 1
        return dx


@dataclass(frozen=True)
class Exact:
    """The exact gradient of the likelihood (Eq. 2): G_W = δ_z ⋆ X + ∂log|det T(W)|/∂W. O(D³)."""

    learns_inverse = False

    def backward(self, ops, f, inverse, shape, p, x, z0, dz, volume, g, recon):
        ops.scale_into(g["W"], 1.0, f.log_det_grad(ops, p["W"], shape), 1, volume)
        f.weight_grad(ops, dz, x, out=g["W"], add=True)
        _bias_gradient(ops, g, dz)
        return f.adjoint(ops, p["W"], dz)


@dataclass(frozen=True)
class Relative:
    """The relative gradient (Gresele et al. 2020): the exact one times WᵀW, dense only. O(N D²).

    (δ xᵀ + W⁻ᵀ) WᵀW = δ (zᵀW) + W needs no inverse. What becomes of a bias depends on `bias`:
    "plain": Σ δ, and z = W x. "full": W and b as one augmented matrix, so that
    ΔW = δ (zᵀW) + W and Δb = δ (1 + bᵀz) + b with z = W x + b. "gresele": the same without
    the last "+ b", as in the authors' code.
    """

    bias: str = "plain"
    learns_inverse = False

    def __post_init__(self):
        if self.bias not in ("plain", "gresele", "full"):
            raise UsageError(
                f"bias of the relative gradient is {self.bias!r}: choose plain, gresele or full"
            )

    def backward(self, ops, f, inverse, shape, p, x, z0, dz, volume, g, recon):
        w, b = p["W"], p.get("b")
        augmented = b is not None and self.bias != "plain"
        z = z0 + b if augmented else z0
        ops.scale_into(g["W"], 1.0, w, 1, volume)
        f.weight_grad(ops, dz, f.adjoint(ops, w, z), out=g["W"], add=True)
        if augmented:
            # Σ_n δ_n (1 + bᵀ z_n)
            ops.matmul(1 + ops.matmul(b[None, :], z.T), dz, out=g["b"][None, :])
            if self.bias == "full":
                g["b"] += volume * b
        else:
            _bias_gradient(ops, g, dz)
        return f.adjoint(ops, w, dz)


Rule = SelfNormalizing | Exact | Relative


def total_volume(dldj):
    """Σ_n ∂L/∂ldj_n in double precision, a number of shape () on the device."""
    return dldj.sum(dtype="float64")


def _bias_gradient(ops, g, dz) -> None:
    """G_b = Σ δ_z over samples and pixels, where the layer has a bias."""
    if "b" in g:
        ops.channel_sum(dz, out=g["b"])
