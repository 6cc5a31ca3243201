"""Jacobian-vector products of layers, and what is built on them: Eq. 31, and the probe rule."""

import numpy as np
import pytest
from support.beyond_checks import beyond, check_jvp
from support.strict_ops import strict_ops

from snfnp.beyond.differentiable import DERIVATIVES, derivatives
from snfnp.errors import UsageError
from snfnp.gradcheck import GradientError
from snfnp.gradcheck.catalogue import spline_points
from snfnp.layers import ActNorm, AffineCoupling, Linear, RationalQuadraticSpline, SmoothLeakyReLU
from snfnp.maps import Dense

JVPS = {check.name: check for check in beyond() if check.kind == "jvp"}


# ---------------------------------------------------------------- members of layers


@pytest.mark.parametrize("name", JVPS)
def test_on_strict_arrays(name):
    """The other backends: `test_everything_in_the_catalogue_passes`."""
    JVPS[name].run(ops=strict_ops())


def wrong(layer, flaw):
    """What computes with a layer's Jacobian, with one flaw."""
    right = derivatives(layer)

    class Flawed(type(right)):
        def jvp_backward(self, ops, p, cache, dx, delta, grads):
            before = {name: array.copy() for name, array in grads.items()}
            of_x, of_dx = super().jvp_backward(ops, p, cache, dx, delta, grads)
            if flaw == "off by 1%":
                of_x = 1.01 * of_x
            if flaw == "second derivatives forgotten":
                of_x = 0
            if flaw == "not transposed":
                of_dx = self.jvp(ops, p, cache, delta)
            for name, array in grads.items():
                if flaw == "gradient written over":
                    array -= before[name]
                if flaw == "gradient off by 1%":
                    array[...] += 0.01 * (array - before[name])
            return of_x, of_dx

        def jvp_solve(self, ops, p, cache, dz, transposed=False):
            solved = super().jvp_solve(ops, p, cache, dz, transposed)
            return 1.01 * solved if flaw == "solved off by 1%" else solved

    return Flawed


SPLINE = RationalQuadraticSpline(bound=4.0)


@pytest.mark.parametrize(
    "layer, flaw, message",
    [
        (SmoothLeakyReLU(), "off by 1%", "x, direction"),
        (SmoothLeakyReLU(), "second derivatives forgotten", "x, direction"),
        (SPLINE, "off by 1%", "x, direction"),
        (SPLINE, "gradient written over", "widths, direction"),
        (SPLINE, "gradient off by 1%", "widths, direction"),
        (SPLINE, "solved off by 1%", "J⁻¹"),
        (ActNorm(), "gradient off by 1%", "s, direction"),
        (Linear(Dense(6)), "not transposed", "direction, direction"),
        (Linear(Dense(6)), "gradient written over", "W, direction"),
    ],
    ids=str,
)
def test_a_wrong_one_is_found(monkeypatch, layer, flaw, message):
    monkeypatch.setitem(DERIVATIVES, type(layer), wrong(layer, flaw))
    x = spline_points(SPLINE, (2, 1, 3)) if layer is SPLINE else None
    shape = (2, 1, 3) if layer is SPLINE else (6,)
    with pytest.raises(GradientError, match=message):
        check_jvp(layer, shape, x=x)


def test_a_layer_without_says_so(ops):
    with pytest.raises(UsageError, match="^AffineCoupling has no Jacobian-vector products$"):
        derivatives(AffineCoupling(2, 4))
    with pytest.raises(UsageError, match="Linear has no inverse Jacobian-vector products"):
        derivatives(Linear(Dense(2))).jvp_solve(ops, {}, {}, np.ones((1, 2)))
