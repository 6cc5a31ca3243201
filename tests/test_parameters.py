"""The flat parameter buffer and its named views."""

import numpy as np
import pytest

from snfnp.parameters import Layout

ALIGNMENT = 64  # bytes: a cache line, and the width of the widest vector registers


def initial(rng):
    return {
        "first": {"W": rng.standard_normal((5, 5)), "b": rng.standard_normal(5)},
        "activation": {},
        "second": {"W": rng.standard_normal((3, 3, 2, 1)), "s": rng.standard_normal(())},
    }


def shapes(params):
    return {layer: {name: a.shape for name, a in named.items()} for layer, named in params.items()}


@pytest.fixture
def params():
    return initial(np.random.default_rng(0))


def test_pack_then_views_gives_the_parameters_back(params):
    layout = Layout.of(shapes(params))
    views = layout.views(layout.pack(params, np.float64))
    assert list(views) == list(params)
    for layer, named in params.items():
        assert list(views[layer]) == list(named)
        for name, array in named.items():
            np.testing.assert_array_equal(views[layer][name], array)


def test_pack_rounds_to_the_dtype_asked_for(params):
    flat = Layout.of(shapes(params)).pack(params, np.float32)
    assert flat.dtype == np.float32
    view = Layout.of(shapes(params)).views(flat)["first"]["W"]
    np.testing.assert_array_equal(view, params["first"]["W"].astype(np.float32))


def test_views_share_memory_with_the_buffer_and_not_with_each_other(params):
    layout = Layout.of(shapes(params))
    flat = np.zeros(layout.size)
    for named in layout.views(flat).values():
        for view in named.values():
            view += 1
    # each element belongs to exactly one view; what no view covers is padding
    assert set(np.unique(flat)) == {0.0, 1.0}
    assert flat.sum() == layout.count


def test_every_view_starts_on_a_cache_line(params):
    layout = Layout.of(shapes(params))
    assert [e.start * 4 % ALIGNMENT for e in layout.entries] == [0] * len(layout.entries)
    assert layout.size * 4 % ALIGNMENT == 0


def test_count_is_the_number_of_parameters_without_padding(params):
    layout = Layout.of(shapes(params))
    assert layout.count == sum(a.size for named in params.values() for a in named.values())
    assert layout.count < layout.size


def test_padding_is_zero(params):
    layout = Layout.of(shapes(params))
    flat = layout.pack(params, np.float64)
    for named in layout.views(flat).values():
        for view in named.values():
            view[...] = 0
    np.testing.assert_array_equal(flat, np.zeros(layout.size))


def test_keys_name_layer_and_parameter(params):
    keys = [entry.key for entry in Layout.of(shapes(params)).entries]
    assert keys == ["first.W", "first.b", "second.W", "second.s"]


def test_a_flow_without_parameters_has_an_empty_buffer():
    layout = Layout.of({"activation": {}})
    assert (layout.size, layout.count) == (0, 0)
    assert layout.views(layout.pack({"activation": {}}, np.float32)) == {"activation": {}}
