"""The flat parameter buffer and its named views."""

import numpy as np
import pytest

from snfnp.parameters import Layout


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


def test_keys_name_layer_and_parameter(params):
    keys = [entry.key for entry in Layout.of(shapes(params)).entries]
    assert keys == ["first.W", "first.b", "second.W", "second.s"]
