"""The contract of every layer (see `test_layers.py` beside this folder) on the device."""

import numpy as np
import pytest
from test_layers import EVERY_CASE, RTOL, moved_parameters

from snfnp.gradcheck import check_layer


class OnDevice:
    """A layer that takes and gives host arrays and computes with `ops`, whatever it is handed."""

    def __init__(self, layer, ops):
        self._layer, self._ops = layer, ops

    def __getattr__(self, name):
        found = getattr(self._layer, name)  # a layer may lack an inverse, or a log_det
        if name in ("inverse", "exact_inverse"):
            return lambda _, p, z: self._ops.to_host(found(self._ops, *self._put(p, z)))
        if name == "log_det":
            return lambda _, p, shape: found(self._ops, *self._put(p), shape)
        return found

    def forward(self, _, p, x):
        z, ldj, cache = self._layer.forward(self._ops, *self._put(p, x))
        return self._ops.to_host(z), self._ops.to_host(ldj) if np.ndim(ldj) else ldj, cache

    def backward(self, _, p, cache, dz, dldj, g, recon=None):
        p, dz, dldj, grads = self._put(p, dz, dldj, g)
        dx = self._layer.backward(self._ops, p, cache, dz, dldj, dict(grads), recon)
        for name, gradient in grads.items():
            g[name][...] = self._ops.to_host(gradient)
        return self._ops.to_host(dx)

    def _put(self, *arguments):
        put = self._ops.asarray
        return [
            {name: put(array) for name, array in argument.items()}
            if isinstance(argument, dict)
            else put(argument)
            for argument in arguments
        ]


@pytest.mark.parametrize("case", EVERY_CASE)
def test_contract(case, ops):
    report = check_layer(OnDevice(case.layer, ops), case.shape, rtol=RTOL, **case.settings)
    checked = {"inverse(forward(x))", "log-determinant", "x", *moved_parameters(case)}
    assert set(report.errors) == checked
