"""What holds for any shape, layout, knot or point: cases that hypothesis draws."""

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.explicit import convolve, convolve_weight_grad

from snfnp.ops import get_ops
from snfnp.parameters import Layout

SEEDS = st.integers(0, 2**32 - 1)
ODD = st.sampled_from([1, 3, 5, 7])
NUMPY = get_ops("numpy")
# `ops`, which every case of a test shares, holds no state.
SHARED = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


def cases(count: int):
    """A decorator: this many cases, drawn alike on every machine and in every run."""
    how = {"derandomize": True, "deadline": None, "suppress_health_check": SHARED}
    return settings(max_examples=count, **how)


def close(found, expected, rtol=1e-11):
    """Relative to the largest value: rounding errors of sums are of that size."""
    assert np.shape(found) == np.shape(expected)
    largest = float(np.max(np.abs(expected), initial=0.0))
    np.testing.assert_allclose(found, expected, rtol=0, atol=rtol * max(1.0, largest))


@st.composite
def laid_out(draw, *shape):
    """Normal numbers of a shape: contiguous, reversed, a part of a larger array, or transposed."""
    rng = np.random.default_rng(draw(SEEDS))
    kind = draw(st.sampled_from(["contiguous", "reversed", "strided", "transposed"]))
    if kind == "strided":
        return rng.standard_normal((*shape[:-1], 2 * shape[-1]))[..., ::2]
    if kind == "transposed":
        return rng.standard_normal(shape[::-1]).transpose()
    array = rng.standard_normal(shape)
    return array[..., ::-1] if kind == "reversed" else array


@st.composite
def convolutions(draw):
    """Images, deltas of the outputs, and a kernel of odd sizes or of even ones."""
    even = st.sampled_from([(2, 2), (2, 3), (3, 2), (4, 2)])
    kernel = draw(st.one_of(st.tuples(ODD, ODD), even))
    samples, height, width = (draw(st.integers(1, most)) for most in (11, 6, 6))
    inputs = draw(st.sampled_from([1, 2, 3, 4, 5, 6, 16, 40]))
    outputs = draw(st.sampled_from([1, 2, 3, 4, 5, 6, 7, 9, 12]))
    x = draw(laid_out(samples, height, width, inputs))
    delta = draw(laid_out(samples, height, width, outputs))
    return x, delta, draw(laid_out(*kernel, inputs, outputs))


@cases(80)
@given(convolutions(), st.booleans())
def test_a_convolution_of_any_shape_is_its_definition(ops, case, add):
    x, delta, k = case
    close(ops.conv.correlate(x, k), convolve(x, k))
    out = np.ones(k.shape) if add else np.full(k.shape, np.nan)
    ops.conv.weight_grad(delta, x, out, add)
    close(out, add + convolve_weight_grad(delta, x, k.shape))


@cases(50)
@given(
    st.dictionaries(
        st.sampled_from("abcde"),
        st.dictionaries(
            st.sampled_from("WRbx"), st.lists(st.integers(0, 4), max_size=3).map(tuple), max_size=4
        ),
        max_size=4,
    )
)
def test_parameters_of_any_shapes_survive_packing(shapes):
    layout, count = Layout.of(shapes), 0
    numbers = {layer: {} for layer in shapes}
    for layer, named in shapes.items():
        for name, shape in named.items():
            size = int(np.prod(shape))
            numbers[layer][name] = np.arange(count, count + size, dtype=float).reshape(shape) + 1
            count += size
    assert layout.count == count
    keys = {f"{layer}.{name}" for layer, named in shapes.items() for name in named}
    assert {entry.key for entry in layout.entries} == keys
    flat = layout.pack(numbers, np.float64)
    single = layout.pack(numbers, np.float32)  # whole numbers: nothing is rounded
    assert single.dtype == np.float32 and np.array_equal(single, flat)
    assert flat.size == layout.size and flat.sum() == count * (count + 1) / 2  # padding is 0
    for layer, named in layout.views(flat).items():
        assert list(named) == list(shapes[layer])
        for name, view in named.items():
            np.testing.assert_array_equal(view, numbers[layer][name])
            assert np.shares_memory(view, flat) or view.size == 0
    assert all(entry.start % 16 == 0 for entry in layout.entries)  # 64 bytes in single precision
