"""Work that is called aside: a device may put it off to the end of the pass, and no number changes.

A device that runs it beside the rest does it at any time between the call and the end of the block.
The two ends of that span are checked here; what is written in between by one and read by the other
would differ.
"""

import numpy as np
import pytest
from support.late import PutOff
from support.trainers import BATCH, gradient_of, host, images_of, make_trainer, take_steps

from snfnp.errors import UsageError
from snfnp.ops import get_ops
from snfnp.ops.backends import DEFINITIONS, assemble
from snfnp.ops.host import HostDevice
from snfnp.training.options import TrainConfig
from snfnp.training.step import cut


@pytest.fixture
def late():
    """NumPy's operations, and what is called aside put off to the end of the pass."""
    ops, put_off = assemble(HostDevice("numpy"), DEFINITIONS), PutOff()
    ops.device.run_async, ops.device.side_stream = put_off.run_async, put_off.side_stream
    ops.device.put_off = put_off
    return ops


def after_steps(ops, model, **changes):
    trainer = take_steps(make_trainer(ops, model, **changes), range(3))
    return {name: host(trainer, name) for name in ("p", "m", "v", "gradient", "state")}


_FC = ({}, {"objective": "forward"}, {"objective": "variational"}, {"jvp_weight": 0.1})
_CONV = ({}, {"inverse_kernel": 5}, {"objective": "variational"})
_CONV += ({"lambda_control": "geco"}, {"recompute": True, "clip_norm": 1.0})
LEARNED = [("fc", changes) for changes in _FC] + [("conv", changes) for changes in _CONV]
LEARNED += [("glow-2l-4k", {}), ("glow-2l-4k", {"jvp_weight": 0.1, "recompute": True})]
ALONE = [("fc", {"gradient": "relative"}), ("conv", {"gradient": "exact"}), ("emerging", {})]


@pytest.mark.parametrize("model, changes", LEARNED + ALONE)
def test_early_or_late_the_numbers_are_the_same(late, model, changes):
    expected, found = (after_steps(ops, model, **changes) for ops in (get_ops("numpy"), late))
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)
    assert bool(late.device.put_off.done) == ((model, changes) in LEARNED)
    # whose rules learn an inverse: the option's condition asks for that
    assert TrainConfig(model=model, **changes).resolve(1000).rule.learns_inverse == (
        (model, changes) in LEARNED
    )


@pytest.mark.parametrize("model, changes", LEARNED)
def test_so_are_those_of_slices(late, model, changes):
    """One of them leads at each layer, and the others have other terms."""
    gradients = []
    for ops in (get_ops("numpy"), late):
        trainer = make_trainer(ops, model, **changes)
        images = images_of(trainer, 0)
        trainer.initialise_from_data(images)
        slices = ((images[part.first :][: part.count], part) for part in cut(BATCH, 2))
        gradients.append([gradient_of(trainer, *each) for each in slices])
    assert late.device.put_off.done
    for one, other in zip(*gradients, strict=True):
        np.testing.assert_array_equal(one, other)


def test_what_may_not_be_done_in_between_shows(late):
    """The control: something aside reads an array that is overwritten after it."""
    for ops, expected in ((get_ops("numpy"), 1.0), (late, 5.0)):
        source, target = np.ones(3), np.zeros(3)
        with ops.side_stream():
            ops.run_async(np.copyto, target, source)
            source[:] = 5
        assert (target == expected).all()


@pytest.mark.parametrize(
    "changes, needed",
    [
        ({}, "--backend cupy"),
        ({"backend": "cupy", "gradient": "exact"}, "--gradient self-normalizing"),
    ],
)
def test_where_it_has_no_effect_it_is_refused(changes, needed):
    with pytest.raises(UsageError) as caught:
        TrainConfig(model="conv", overlap=True, **changes).resolve(1000)
    assert str(caught.value).startswith("`overlap` only has an effect with ")
    assert needed in str(caught.value)
