"""Statements that strict arrays (`support.strict_arrays`) refuse or count, and NumPy accepts.

Each statement runs with a namespace xp, an array `a` of it, and `h`, the same on the host.
"""

from __future__ import annotations

import importlib.util
import json
import math
import subprocess
import sys

import numpy as np
import pytest
from support import strict_arrays
from support.strict_arrays import NotInAStep, no_waiting, own_handle, traffic

REFUSED = {
    "np.exp(a)": "np.exp met a device array",
    "np.add.reduce(a)": "np.add met a device array",
    "np.concatenate([h, a])": "np.concatenate met a device",
    "np.asarray(a)": "NumPy met a device array",
    "np.array([a.sum()])": "NumPy met a device array",
    "a + h": "add met a host array",
    "h + a": "np.add met a device array",
    "a += h": "add met a host array",
    "h += a": "np.add met a device array",
    "h @ a": "np.matmul met a device array",
    "a @ h": "matmul met a host array",
    "a < h": "lt met a host array",
    "a * np.array(2.0)": "mul met a host array",
    "a + [1.0, 2.0, 3.0]": "add met a list",
    "xp.exp(h)": "xp.exp met a host array",
    "xp.sum([0.5, 1.0])": "xp.sum met a list of host numbers",
    "xp.stack([a, h])": "xp.stack met a host array",
    "xp.where(a > 0, a, h)": "xp.where met a host array",
    "xp.linalg.inv(h)": "xp.linalg.inv met a host array",
    "xp.add(a, a, out=h)": "xp.add met a host array",
    "a.sum(axis=0, out=h[0])": "array.sum met a host array",
    "np.add(h, h, out=a)": "np.add met a device array",
    "a[np.array([0, 1])]": "indexing met a host array",
    "a[[0, 1]]": "indexing met a list",
    "a[h > 0]": "indexing met a host array",
    "h[xp.arange(2)]": "NumPy met a device array",
    "a[...] = h": "an assignment met a host array",
    "a[0] = [1, 2, 3]": "an assignment met a list",
    "h[...] = a": "NumPy met a device array",
    "xp.sum(a, where=a > 0)": "xp.sum of CuPy takes no where=",
    "a.max(initial=0.0)": "array.max of CuPy takes no initial=",
    "xp.vecdot(a, a)": "CuPy has no vecdot",
    "xp.linalg.trace(a)": r"CuPy has no linalg\.trace",
    "xp.random": "xp.random is not for operations",
    "a.tobytes()": "has no tobytes",
    "range(xp.argmax(a))": "as an integer",
    "a[0, xp.zeros(2, int)] = 1.0": "an index twice",
    "a[xp.zeros(2, int), :] += 1": "an index twice",
}
# Right outside of a step, where it is counted.
NOT_IN_A_STEP = {
    "float(a.sum())": r"float\(\) makes the host wait",
    "int(a.sum())": r"int\(\) makes the host wait",
    "1 if a.sum() > 0 else 2": r"bool\(\) makes the host wait",
    "math.sqrt(a.sum())": r"float\(\) makes the host wait",
    "a.sum().item()": r"item\(\) makes the host wait",
    "x, y, z = a[0]": "iteration over values makes the host wait",
    "a[a > 0]": "indexing by a mask makes the host wait",
    "a[a > 1.5] = 0.0": "indexing by a mask makes the host wait",
    "xp.nonzero(a)": "xp.nonzero makes the host wait",
    "xp.asarray(h)": "copies from the host",
    "xp.array([1.0, 2.0])": "copies from the host",
}
PRODUCTS = (
    *("a @ a", "xp.matmul(a, a)", "xp.vdot(a, a)", "a.dot(a)", "xp.linalg.inv(a)"),
    *("xp.einsum('nd,nd->n', a, a)", "xp.linalg.slogdet(a)"),
)


def run(statement, xp, a=None):
    h = np.random.default_rng(0).uniform(1, 2, (3, 3))
    a = xp.asarray(h.copy()) if a is None else a
    exec(statement, {"np": np, "math": math, "xp": xp, "a": a, "h": h})


def strict():
    return strict_arrays.xp.asarray(np.random.default_rng(0).uniform(1, 2, (3, 3)))


@pytest.mark.parametrize("statement", REFUSED)
def test_what_a_device_refuses_and_numpy_accepts(statement):
    run(statement, np)
    with pytest.raises((TypeError, AttributeError, ValueError), match=REFUSED[statement]):
        run(statement, strict_arrays.xp)


@pytest.mark.parametrize("statement", [*NOT_IN_A_STEP, *PRODUCTS])
def test_what_waits_or_copies_or_cannot_be_captured_is_refused_in_a_step(statement):
    run(statement, np)
    a = strict()
    before = traffic.waits + traffic.uploads
    run(statement, strict_arrays.xp, a)
    counted = traffic.waits + traffic.uploads - before
    assert bool(counted) == (statement in NOT_IN_A_STEP)
    message = NOT_IN_A_STEP.get(statement, "cannot be captured")
    with pytest.raises(NotInAStep, match=message), no_waiting():
        run(statement, strict_arrays.xp, a)
    if statement in PRODUCTS:
        with no_waiting(), own_handle():
            run(statement, strict_arrays.xp, a)


def test_what_a_step_may_do():
    """Scalars of both kinds, 0-d arrays, views, rows one by one: none of it waits."""
    xp, a = strict_arrays.xp, strict()
    h, index = a.get(), xp.asarray(np.array([2, 0]))
    with no_waiting():
        total = a.sum()
        scaled = np.float64(2) * a + 1 - a / total
        rows, taken = list(a), a[index, 1]
        a[0, 0] = 5.0
        a[1, 1:] = xp.where(a[1, 1:] > 1.5, total, 0.0)
        a[0] *= 2
    assert total.shape == () and isinstance(total, xp.ndarray)
    np.testing.assert_allclose(scaled.get(), 2 * h + 1 - h / h.sum(), rtol=4e-15)
    np.testing.assert_array_equal(taken.get(), h[[2, 0], 1])
    h[1, 1:] = np.where(h[1, 1:] > 1.5, h.sum(), 0.0)
    h[0, 0] = 5.0
    h[0] *= 2
    np.testing.assert_array_equal(a.get(), h)
    np.testing.assert_array_equal(rows[0].get(), h[0])


def test_what_is_not_defined_is_poison():
    xp = strict_arrays.xp
    assert np.isnan(xp.empty((2, 3), np.float32).get()).all()
    assert np.isnan(xp.empty_like(xp.zeros(3)).get()).all()
    assert (xp.empty(3, np.int64).get() != 0).all()
    singular = xp.zeros((2, 2))
    assert np.isnan(xp.linalg.inv(singular).get()).all()
    assert np.isnan(xp.linalg.solve(singular, xp.ones((2, 3))).get()).all()


# In a process of its own: in this one CuPy must not be imported before a stand-in for its driver.
ASK_CUPY = """
import json, sys
from operator import attrgetter
import cupy
for name in json.loads(sys.argv[1]):
    try:
        print(attrgetter(name)(cupy))
    except AttributeError:
        pass
"""


@pytest.mark.skipif(importlib.util.find_spec("cupy") is None, reason="CuPy is not installed")
def test_what_is_refused_for_its_name_cupy_lacks():
    command = [sys.executable, "-c", ASK_CUPY, json.dumps([*strict_arrays.LACKING])]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == ""
