"""Checking rules that go beyond the paper's main gradients: Eq. 31, and the one with noise. Every
matrix is written out.

Derivations: derivations/19-jacobian-vector-products.md and 20-variational.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from snfnp.beyond.rules import JacobianPenalty, Variational, draw_probes
from snfnp.flow import layer_key
from snfnp.gradcheck import layers
from snfnp.gradcheck.case import KEY, Case, Report, as_matrix
from snfnp.gradcheck.catalogue import Check, catalogue
from snfnp.gradcheck.linear import check_rule
from snfnp.layers import Linear
from snfnp.maps import Conv2d, Dense
from snfnp.ops import RandomKey
from snfnp.ops.group import flat

_NOISE_KEY = RandomKey(0, 16)


def penalised_scalar(layer, shape, ops, params, x, dz, dldj, lam) -> Callable:
    """`stop_gradient_objective` − (μ/n) Σ ‖T(R) T(W) ν − ν‖² of the probes ν that the rule draws at
    `KEY`; the arguments are the same."""
    rule = layer.rule
    f, g = layer.maps
    plain = layers.stop_gradient_objective(layer, shape, ops, params, x, dz, dldj, lam)
    like = ops.xp.empty((1, *shape))
    nu = flat(ops.to_host(draw_probes(ops, layer_key(KEY, 0), rule.probes, like)))

    def scalar(x_, p) -> float:
        w = as_matrix(f, ops, p["W"], shape)
        r = as_matrix(g, ops, p["R"], shape)
        penalty = rule.weight / len(nu) * np.sum((nu @ w.T @ r.T - nu) ** 2)
        return plain(x_, p) - float(penalty)

    return scalar


@dataclass(frozen=True)
class _Noisy(Linear):
    """A linear layer that is always in training: its rule adds the noise of `_NOISE_KEY`."""

    def forward(self, ops, p, x):
        z, ldj, cache = super().forward(ops, p, x)
        given = {"f": self.map, "p": p, "z": z, "cache": cache}
        return self.rule.perturb(ops, **given, key=_NOISE_KEY), ldj, cache


def check_variational(
    rule, linear_map, shape, *, inverse_map=None, inverted=False, batch=5, **settings
) -> Report:
    """Check the gradients of a layer whose rule adds noise, for the noise that it drew. Raises
    GradientError.

    Every sample's noise is followed by itself: with x̃ = x + σε and random covectors δ of z,
    v = Σ ∂𝓛/∂ldj,

        ⟨δ, T(W) x̃ + b⟩ + v · l(W) − Σ ‖T(R) T(W) x − x‖² / (2σ²N) − Σ ‖T(R) T(W) ν‖² / (2P)

    is differentiated numerically with respect to x̃, W, R and b. l(W) is ⟨T(W), T(R̄)ᵀ⟩ with R̄ held
    as it is; inverted: R = W⁻¹ (a dense map, or a 1×1 kernel), and l(W) is log|det T(W)|, so that
    nothing is left of the approximation. Also that z is T(W) x̃ + b. inverse_map: R's if it is not
    W's; settings: ops, seed, rtol, dtype as in `check_layer`. O(D³).
    """
    layer = _Noisy(linear_map, rule, inverse_map=inverse_map)
    case = Case(layer, shape, batch=batch, lam=rule.lam, noise=0.3, **settings)
    if inverted:
        case.params["R"] = np.linalg.inv(case.params["W"])
    f, g = layer.maps
    ops = case.ops
    params = case.params
    rows = flat(case.x)
    z, _, cache = layer.forward(ops, *case.put([params, case.x], case.dtype))
    nu = flat(ops.to_host(cache["noise"][0])).astype(np.float64)
    # every sample's noise is its own, with the other sign for odd ones
    samples = np.arange(batch)
    signs = rule.sigma * (-1.0) ** samples
    noisy = rows + signs[:, None] * nu[samples // 2 % len(nu)]
    r_bar = case.matrix(g, params["R"])

    def linear(p, rows):
        """T(W) x + b for the rows x."""
        bias = np.broadcast_to(p["b"], layer.output_shape(case.shape)).reshape(-1)
        return rows @ case.matrix(f, p["W"]).T + bias

    def scalar(name, value) -> float:
        p = {**params, name: value}
        w = case.matrix(f, p["W"])
        r = case.matrix(g, p["R"])
        z = linear(p, value if name == "x" else noisy)
        log_det = np.linalg.slogdet(w)[1] if inverted else np.sum(w * r_bar.T)
        error = rows @ (r @ w).T - rows
        moved = nu @ (r @ w).T
        return float(
            np.sum(flat(case.c[0]) * z)
            + np.sum(case.a) * log_det
            - np.sum(error * error) / (2 * rule.sigma**2 * batch)
            - np.sum(moved * moved) / (2 * len(nu))
        )

    case.compare("z", flat(ops.to_host(z)), linear(params, noisy), linear(params, rows))
    grads = case.gradients()
    for name, point in {"x": noisy, **params}.items():
        case.measure(
            name, partial(scalar, name), point, grads[name].reshape(point.shape)
        )
    return case.report


def beyond() -> list[Check]:
    """Examples of what goes beyond the paper, like those of `snfnp.gradcheck.catalogue`."""
    dense = (Dense(5), (5,))
    conv = (Conv2d((3, 3), 2), (3, 4, 2))
    larger = Conv2d((5, 5), 2)
    pointwise = (Conv2d((1, 1), 3), (2, 3, 3))
    to_larger = {"inverse_map": larger}
    penalty = JacobianPenalty(weight=0.4, probes=2)
    noise = Variational(0.6, vectors=2)
    penalised = [
        ("dense, Eq. 31", Linear(dense[0], penalty), dense[1]),
        ("conv 3x3, Eq. 31", Linear(conv[0], penalty), conv[1]),
        (
            "conv 3x3, Eq. 31, inverse 5x5",
            Linear(conv[0], penalty, **to_larger),
            conv[1],
        ),
    ]
    noisy = [
        ("dense", dense, {}),
        ("dense, R = W⁻¹", dense, {"inverted": True}),
        ("conv 1x1, R = W⁻¹", pointwise, {"inverted": True}),
        ("conv 3x3", (conv[0], (4, 3, 2)), {}),
        ("conv 3x3, inverse 5x5", conv, to_larger),
    ]
    check_penalised = partial(layers.check_layer, scalar=penalised_scalar)
    return [
        *(
            Check("layer", name, partial(check_penalised, *of))
            for name, *of in penalised
        ),
        *(
            Check(
                "rule",
                f"self-normalizing, Eq. 31, {name}",
                partial(check_rule, penalty, *of),
            )
            for name, of in (("dense", dense), ("conv 1x1", pointwise))
        ),
        *(
            Check(
                "rule",
                f"variational, {name}",
                partial(check_variational, noise, *of, **more),
            )
            for name, of, more in noisy
        ),
    ]


ALL_CHECKS = [*catalogue(), *beyond()]
