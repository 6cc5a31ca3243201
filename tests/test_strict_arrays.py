"""What strict arrays (`support.strict_arrays`) refuse and count, and that NumPy accepts it all."""

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

EPS = float(np.finfo(np.float64).eps)

# Each with a namespace, an array of it, and a host array of the same values.
MIXES = {
    "np.exp(array)": (lambda xp, a, h: np.exp(a), "np.exp met a device array"),
    "np.add.reduce(array)": (lambda xp, a, h: np.add.reduce(a), "np.add met a device array"),
    "np.concatenate": (lambda xp, a, h: np.concatenate([h, a]), "np.concatenate met a device"),
    "np.asarray(array)": (lambda xp, a, h: np.asarray(a), "NumPy met a device array"),
    "np.array([0-d array])": (lambda xp, a, h: np.array([a.sum()]), "NumPy met a device array"),
    "array + host": (lambda xp, a, h: a + h, r"\+ met a host array"),
    "host + array": (lambda xp, a, h: h + a, "np.add met a device array"),
    "array += host": (lambda xp, a, h: a.__iadd__(h), r"\+= met a host array"),
    "host += array": (lambda xp, a, h: h.copy().__iadd__(a), "np.add met a device array"),
    "host @ array": (lambda xp, a, h: h @ a, "np.matmul met a device array"),
    "array @ host": (lambda xp, a, h: a @ h, "@ met a host array"),
    "array < host": (lambda xp, a, h: a < h, "< met a host array"),
    "array * 0-d host": (lambda xp, a, h: a * np.array(2.0), r"\* met a host array"),
    "array + list": (lambda xp, a, h: a + [1.0, 2.0, 3.0], r"\+ met a list"),
    "xp.exp(host)": (lambda xp, a, h: xp.exp(h), "xp.exp met a host array"),
    "xp.sum(list)": (lambda xp, a, h: xp.sum([0.5, 1.0]), "xp.sum met a list of host numbers"),
    "xp.stack([array, host])": (lambda xp, a, h: xp.stack([a, h]), "xp.stack met a host array"),
    "xp.where(…, host)": (lambda xp, a, h: xp.where(a > 0, a, h), "xp.where met a host array"),
    "xp.linalg.inv(host)": (lambda xp, a, h: xp.linalg.inv(h), "xp.linalg.inv met a host array"),
    "host out": (lambda xp, a, h: xp.add(a, a, out=h.copy()), "xp.add met a host array"),
    "host out of a method": (
        lambda xp, a, h: a.sum(axis=0, out=h[0].copy()),
        "array.sum met a host array",
    ),
    "device out": (lambda xp, a, h: np.add(h, h, out=a), "np.add met a device array"),
    "host index": (lambda xp, a, h: a[np.array([0, 1])], "indexing met a host array"),
    "list index": (lambda xp, a, h: a[[0, 1]], "indexing met a list"),
    "host mask": (lambda xp, a, h: a[h > 0], "indexing met a host array"),
    "device index": (lambda xp, a, h: h[xp.arange(2)], "NumPy met a device array"),
    "host into array": (lambda xp, a, h: a.__setitem__(..., h), "an assignment met a host array"),
    "list into array": (lambda xp, a, h: a.__setitem__(0, [1, 2, 3]), "an assignment met a list"),
    "array into host": (
        lambda xp, a, h: h.copy().__setitem__(..., a),
        "NumPy met a device array",
    ),
    "sum where": (lambda xp, a, h: xp.sum(a, where=a > 0), "xp.sum of CuPy takes no where="),
    "max initial": (lambda xp, a, h: a.max(initial=0.0), "array.max of CuPy takes no initial="),
}
# The other errors: names that CuPy lacks, and what a device does in an order of its own.
ERRORS = {
    "xp.vecdot": (lambda xp, a, h: xp.vecdot(a, a), AttributeError, "CuPy has no vecdot"),
    "xp.errstate": (lambda xp, a, h: xp.errstate(), AttributeError, "CuPy has no errstate"),
    "xp.linalg.trace": (
        lambda xp, a, h: xp.linalg.trace(a),
        AttributeError,
        r"CuPy has no linalg\.trace",
    ),
    "xp.random": (lambda xp, a, h: xp.random, AttributeError, "xp.random is not for operations"),
    "array.tobytes": (lambda xp, a, h: a.tobytes(), AttributeError, "has no tobytes"),
    "range": (lambda xp, a, h: range(xp.argmax(a)), TypeError, "as an integer"),
    "an index twice": (
        lambda xp, a, h: a.__setitem__((0, xp.zeros(2, int)), 1.0),
        ValueError,
        "an index twice",
    ),
    "adding at an index twice": (
        lambda xp, a, h: _add_at(a, (xp.zeros(2, int), slice(None))),
        ValueError,
        "an index twice",
    ),
}
# What waits or copies: right outside of a step, and counted.
WAITS = {
    "float": (lambda xp, a, h: float(a.sum()), r"float\(\) makes the host wait"),
    "int": (lambda xp, a, h: int(a.sum()), r"int\(\) makes the host wait"),
    "bool": (lambda xp, a, h: bool(a.any()), r"bool\(\) makes the host wait"),
    "if": (lambda xp, a, h: 1 if a.sum() > 0 else 2, r"bool\(\) makes the host wait"),
    "math": (lambda xp, a, h: math.sqrt(a.sum()), r"float\(\) makes the host wait"),
    "item": (lambda xp, a, h: a.sum().item(), r"item\(\) makes the host wait"),
    "iteration": (lambda xp, a, h: [*a[0]], "iteration over values makes the host wait"),
    "unpacking": (lambda xp, a, h: _three(*a[0]), "iteration over values makes the host wait"),
    "mask": (lambda xp, a, h: a[a > 0], "indexing by a mask makes the host wait"),
    "masked store": (
        lambda xp, a, h: a.__setitem__(a > 1.5, 0.0),
        "indexing by a mask makes the host wait",
    ),
    "nonzero": (lambda xp, a, h: xp.nonzero(a), "xp.nonzero makes the host wait"),
}
UPLOADS = {
    "asarray": lambda xp, a, h: xp.asarray(h),
    "array": lambda xp, a, h: xp.array(h),
    "array of a list": lambda xp, a, h: xp.array([1.0, 2.0]),
}
PRODUCTS = {
    "@": lambda xp, a, h: a @ a,
    "xp.matmul": lambda xp, a, h: xp.matmul(a, a),
    "xp.einsum": lambda xp, a, h: xp.einsum("nd,nd->n", a, a),
    "xp.vdot": lambda xp, a, h: xp.vdot(a, a),
    "array.dot": lambda xp, a, h: a.dot(a),
    "xp.linalg.inv": lambda xp, a, h: xp.linalg.inv(a),
    "xp.linalg.slogdet": lambda xp, a, h: xp.linalg.slogdet(a),
}


def _three(one, two, three):
    return one


def _add_at(a, key):
    a[key] += 1


def values():
    return np.random.default_rng(0).uniform(1, 2, (3, 3))


def with_numpy(case):
    case(np, values(), values())


def with_strict(case):
    case(strict_arrays.xp, strict_arrays.xp.asarray(values()), values())


@pytest.mark.parametrize("what", MIXES)
def test_mixes_are_refused_where_numpy_accepts_them(what):
    case, message = MIXES[what]
    with_numpy(case)
    with pytest.raises(TypeError, match=message):
        with_strict(case)


@pytest.mark.parametrize("what", ERRORS)
def test_what_a_device_cannot_do_is_refused(what):
    case, error, message = ERRORS[what]
    with_numpy(case)
    with pytest.raises(error, match=message):
        with_strict(case)


@pytest.mark.parametrize("what", WAITS)
def test_what_waits_is_counted_and_refused_in_a_step(what):
    case, message = WAITS[what]
    with_numpy(case)
    waits = traffic.waits
    with_strict(case)
    assert traffic.waits > waits
    a = strict_arrays.xp.asarray(values())
    with pytest.raises(NotInAStep, match=message), no_waiting():
        case(strict_arrays.xp, a, values())


@pytest.mark.parametrize("what", UPLOADS)
def test_what_copies_is_counted_and_refused_in_a_step(what):
    with_numpy(UPLOADS[what])
    a, uploads = strict_arrays.xp.asarray(values()), traffic.uploads
    UPLOADS[what](strict_arrays.xp, a, values())
    assert traffic.uploads == uploads + 1
    with pytest.raises(NotInAStep, match="copies from the host"), no_waiting():
        UPLOADS[what](strict_arrays.xp, a, values())


@pytest.mark.parametrize("what", PRODUCTS)
def test_what_cannot_be_captured_is_refused_in_a_step(what):
    with_numpy(PRODUCTS[what])
    with_strict(PRODUCTS[what])
    a = strict_arrays.xp.asarray(values())
    with pytest.raises(NotInAStep, match="cannot be captured"), no_waiting():
        PRODUCTS[what](strict_arrays.xp, a, values())
    with no_waiting(), own_handle():
        PRODUCTS[what](strict_arrays.xp, a, values())


def test_to_the_host_is_a_wait():
    a, waits = strict_arrays.xp.asarray(values()), traffic.waits
    np.testing.assert_array_equal(strict_arrays.xp.asnumpy(a), values())
    assert traffic.waits == waits + 1
    with pytest.raises(NotInAStep, match=r"get\(\) makes the host wait"), no_waiting():
        strict_arrays.xp.asnumpy(a)


def test_what_a_step_may_do():
    """Scalars of both kinds, 0-d arrays, views, rows one by one: none of it waits."""
    xp, h = strict_arrays.xp, values()
    a, index = xp.asarray(h), xp.asarray(np.array([2, 0]))
    with no_waiting():
        total = a.sum()
        scaled = np.float64(2) * a + 1 - a / total
        rows = list(a)
        taken = a[index, 1]
        a[0, 0] = 5.0
        a[1, 1:] = xp.where(a[1, 1:] > 1.5, total, 0.0)
        a[0] *= 2
        first = a[0, 0]
        first[...] = 7.0
    assert total.shape == () and isinstance(total, xp.ndarray)
    np.testing.assert_allclose(scaled.get(), 2 * h + 1 - h / h.sum(), rtol=8 * EPS)
    np.testing.assert_array_equal(taken.get(), h[[2, 0], 1])
    expected = h.copy()
    expected[0, 0] = 5.0
    expected[1, 1:] = np.where(h[1, 1:] > 1.5, h.sum(), 0.0)
    expected[0] *= 2
    expected[0, 0] = 7.0
    np.testing.assert_array_equal(a.get(), expected)
    np.testing.assert_array_equal(rows[0].get(), expected[0])


def test_empty_arrays_hold_poison():
    xp = strict_arrays.xp
    assert np.isnan(xp.empty((2, 3), np.float32).get()).all()
    assert np.isnan(xp.empty_like(xp.zeros(3)).get()).all()
    assert (xp.empty(3, np.int64).get() != 0).all()


def test_a_singular_matrix_goes_unnoticed():
    singular = strict_arrays.xp.zeros((2, 2))
    assert np.isnan(strict_arrays.xp.linalg.inv(singular).get()).all()
    assert np.isnan(
        strict_arrays.xp.linalg.solve(singular, strict_arrays.xp.ones((2, 3))).get()
    ).all()


# In a process of its own: in this one CuPy must not be imported before a stand-in for its driver.
ASK_CUPY = """
import inspect, json, sys
from operator import attrgetter
import cupy

def has(name):
    try:
        attrgetter(name)(cupy)
    except AttributeError:
        return False
    return True

def takes(name, keyword):
    return keyword in inspect.signature(attrgetter(name)(cupy)).parameters

names, pairs = json.load(sys.stdin)
lacking = [name for name in names if not has(name)]
print(json.dumps([lacking, [pair for pair in pairs if takes(*pair)]]))
"""


@pytest.mark.skipif(importlib.util.find_spec("cupy") is None, reason="CuPy is not installed")
def test_what_cupy_lacks_is_what_is_refused():
    names = {
        f"{prefix}{name}"
        for prefix, module in (("", np), ("linalg.", np.linalg))
        for name, value in vars(module).items()
        if not name.startswith("_") and callable(value)
    }
    pairs = [
        *(("sum", "where"), ("sum", "initial"), ("std", "correction")),
        *(("zeros", "device"), ("zeros", "like")),
    ]
    assert {keyword for _, keyword in pairs} == strict_arrays.LACKING_KEYWORDS
    done = subprocess.run(
        [sys.executable, "-c", ASK_CUPY],
        input=json.dumps([sorted(names), pairs]),
        capture_output=True,
        text=True,
        check=True,
    )
    lacking, taken = json.loads(done.stdout)
    assert set(lacking) == names & strict_arrays.LACKING
    assert taken == []
