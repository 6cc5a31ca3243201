"""Backward passes as the tests take them, and the memory that a call takes.

Parameters are off special points, and buffers full of NaN.
"""

from __future__ import annotations

import tracemalloc
from dataclasses import dataclass

import numpy as np

from snfnp.context import BackwardContext
from snfnp.layers import Whiten
from snfnp.parameters import Layout


def moved(params, rng, scale=0.1):
    """Parameters {name: array} or {layer: {name: array}}, each moved by normal noise."""
    if isinstance(params, dict):
        return {name: moved(value, rng, scale) for name, value in params.items()}
    return params + scale * rng.standard_normal(params.shape)


def invert(params):
    """Put R = W⁻¹ into {layer: {name: array}}, wherever there is an R."""
    for named in params.values():
        if "R" in named:
            named["R"] = np.linalg.inv(named["W"])


def random_parameters(flow, exact_inverse=False):
    """(layout, flat buffer): initial parameters, moved by noise; R = W⁻¹ where `exact_inverse`."""
    params = moved(flow.init(0), np.random.default_rng(0), 0.05)
    if exact_inverse:
        invert(params)
    return flow.layout, flow.layout.pack(params, np.float64)


def layer_backward(ops, layer, p, cache, dz, *dlatent, dldj=None, lam=0.0, **more):
    """δ_x, {name: gradient} and what was measured (or None) in one layer's backward pass.

    dlatent: δ of the latent, where one leaves at the layer; dldj: default 1/N, as in training;
    more: of the context.
    """
    dldj = np.full(len(dz), 1 / len(dz), dz.dtype) if dldj is None else dldj
    learned = {} if isinstance(layer, Whiten) else p
    grads = {name: np.full_like(value, np.nan) for name, value in learned.items()}
    ctx = BackwardContext.of(ops, dldj, lam, **more)
    # a copy of the dict: an array that backward puts in a buffer's place is discarded
    result = layer.backward(ctx, p, cache, dz, dict(grads), *dlatent)
    dx, measured = result if layer.learns_inverse else (result, None)
    return dx, grads, measured


@dataclass(frozen=True)
class FlowPass:
    """A forward and a backward pass of a flow: its results, the gradients of the mean over the
    batch, in `flat` and in views of it, and what layers measured."""

    latents: tuple
    ldj: np.ndarray
    dx: np.ndarray
    grads: dict
    flat: np.ndarray
    measured: dict


def flow_backward(ops, flow, params, x, lam=0.0, recompute=False) -> FlowPass:
    """The gradients of the training objective (Eq. 3) of a batch x."""
    latents, ldj, caches = flow.forward(ops, params, x, recompute)
    layout = Layout.of(flow.parameter_shapes())
    flat = np.zeros(layout.size, x.dtype)
    grads = layout.views(flat)
    for named in grads.values():
        for gradient in named.values():
            gradient[...] = np.nan
    ctx = BackwardContext.of(ops, np.full(len(x), 1 / len(x), x.dtype), lam)
    dx, measured = flow.backward(
        ctx, params, caches, flow.latent_gradients(latents), grads
    )
    return FlowPass(latents, ldj, dx, grads, flat, measured)


def peak(call) -> int:
    """Bytes at the height of a second call: the first one compiles and fills caches."""
    call()
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
