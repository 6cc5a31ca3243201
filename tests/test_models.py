"""The presets of the tables: where they start, their structure, the memory of a step."""

import sys
from functools import partial

import numpy as np
import pytest
from support.messages import one_line
from support.processes import python
from support.trainers import MODELS_AND_GRADIENTS
from support.trainers import make_trainer as trainer_on

from snfnp import layers
from snfnp.errors import UsageError
from snfnp.models import PRESETS, Choices
from snfnp.ops import RandomKey, get_ops
from snfnp.parameters import Layout
from snfnp.rules import Exact

make_trainer = partial(trainer_on, get_ops("numpy"))


@pytest.mark.parametrize("init", ["paper", "identity"])
@pytest.mark.parametrize("model, gradient", MODELS_AND_GRADIENTS)
def test_a_new_model_reconstructs_its_input(model, gradient, init):
    trainer = make_trainer(model, gradient, init=init, dtype="float64")
    flow = trainer.flow
    ops = trainer.ops
    x = 4 * ops.random.uniform(RandomKey(5, 0), (3, *flow.shape), np.float64)
    latents, _, _ = flow.forward(ops, trainer.params, x)
    back = flow.inverse(ops, trainer.params, latents, exact=True)
    assert np.abs(back - x).max() < 1e-9
    if trainer.flow.has_learned_inverse and init == "identity":
        learned = flow.inverse(ops, trainer.params, latents)
        assert np.abs(learned - x).max() < 1e-9


@pytest.mark.parametrize(
    "model, init, changes, centre, noisy",
    [
        ("fc", "paper", {}, "identity", True),
        ("fc", "authors", {}, "identity", False),
        ("fc", "identity", {}, "identity", False),
        ("conv", "paper", {}, "identity", True),
        ("conv", "identity", {}, "identity", False),
        ("glow-2l-4k", "paper", {}, "orthogonal", False),
        ("glow-2l-4k", "paper", {"kernel": 5}, "orthogonal", True),
        ("glow-2l-4k", "authors", {"kernel": 5}, "identity", True),
        ("glow-2l-4k", "identity", {"kernel": 5}, "identity", False),
    ],
)
def test_where_weights_start(model, init, changes, centre, noisy):
    """At the centre tap the identity or a rotation; noise of gain 0.01, far below 0.1, or none."""
    trainer = make_trainer(
        model, "self-normalizing", init=init, dtype="float64", **changes
    )
    learning = [p["W"] for p in trainer.params.values() if "R" in p]
    assert learning
    for w in learning:
        taps = w.reshape(-1, *w.shape[-2:])
        eye = np.eye(w.shape[-1])
        tap = taps[len(taps) // 2]
        assert np.abs(tap.T @ tap - eye).max() < (0.1 if noisy else 1e-12)
        assert (np.abs(tap - eye).max() < 0.1) == (centre == "identity")
        beside = np.delete(taps, len(taps) // 2, axis=0)
        rest = beside if w.ndim == 4 else tap[eye == 0]
        assert bool(np.any(rest)) == noisy
        assert np.abs(rest).max(initial=0.0) < 0.1


def test_the_convolutional_flow_is_the_papers():
    flow = PRESETS["conv"].build(Choices(), (28, 28, 1))
    kinds = [type(layer) for _, layer in flow.layers]
    known = (layers.Linear, layers.RationalQuadraticSpline, layers.Squeeze)
    assert [kinds.count(kind) for kind in known] == [9, 8, 2]
    shape = flow.shape
    seen = []
    names = []
    for name, layer in flow.layers:
        if isinstance(layer, layers.Linear):
            assert layer.bias and layer.map.kernel == (3, 3)
            seen.append(shape)
            names.append(name)
        shape = layer.output_shape(shape)
    assert seen == [(28, 28, 1)] * 3 + [(14, 14, 4)] * 3 + [(7, 7, 16)] * 3
    assert names == [
        f"conv{block}.{index}" for block in (1, 2, 3) for index in (1, 2, 3)
    ]
    # three kernels of 9 C² and three biases per block, twice the kernels for R; 14 per spline pixel
    kernels = sum(3 * 2 * 9 * c * c + 3 * c for c in (1, 4, 16))
    assert Layout.of(flow.parameter_shapes()).count == kernels + 8 * 784 * 14


def test_the_flow_for_rows_has_an_elementwise_map_before_every_dense_layer():
    """The first one is followed by whitening; none comes after the last dense layer."""
    flow = dict(PRESETS["vector"].build(Choices(depth=2, bins=3), (4,)).layers)
    names = "activation0 whiten dense1 activation1 dense2 activation2 dense3"
    assert [*flow] == names.split()
    spline = layers.RationalQuadraticSpline(3, bound=4.0)
    assert all(flow[f"activation{index}"] == spline for index in range(3))
    starts = [flow[f"dense{index}"].init_kind for index in (1, 2, 3)]
    assert starts == ["identity", "orthogonal", "orthogonal"]


def test_the_glow_of_table_1():
    preset = PRESETS["glow"]
    flow = preset.build(Choices(rule=Exact(), **preset.size), (28, 28, 1))
    kinds = [type(layer).__name__ for _, layer in flow.layers]
    assert kinds[:4] == ["Squeeze", "ActNorm", "Linear", "AffineCoupling"]
    counts = {
        "Squeeze": 2,
        "ActNorm": 32,
        "Linear": 32,
        "AffineCoupling": 33,
        "Split": 1,
    }
    assert {kind: kinds.count(kind) for kind in counts} == counts
    assert kinds[1 + 3 * 16 :][:2] == ["AffineCoupling", "Split"]
    assert flow.latent_shapes == {"latent1": (14, 14, 2), "z": (7, 7, 8)}
    mixing = [layer for _, layer in flow.layers if isinstance(layer, layers.Linear)]
    assert not any(layer.bias for layer in mixing)  # Glow's own has none
    learned = preset.build(Choices(**preset.size), (28, 28, 1))
    assert all(
        layer.bias for _, layer in learned.layers if isinstance(layer, layers.Linear)
    )


@pytest.mark.parametrize("side", [6, 9, 30])
def test_image_sizes_that_do_not_survive_two_squeezes(side):
    with one_line(UsageError, "even"):
        PRESETS["conv"].build(Choices(), (side, side, 1)).init(0)


_PEAK = """
import numpy as np
import snfnp
from snfnp.ops import get_ops
from snfnp.training.options import TrainConfig
from snfnp.step.batches import Repeated
from snfnp.step.trainer import Trainer

def memory(entry):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) / 1024 for line in file if line.startswith(entry))

def step(side, batch):
    config = TrainConfig(model="conv", batch_size=batch).resolve(50_000)
    trainer = Trainer(get_ops(), config.build_flow((side, side, 1)), config, 500)
    images = np.zeros((batch, side, side, 1), np.uint8)
    trainer.training_step(Repeated(images))

step(8, 2)  # compiles or loads every kernel: that is the interpreter's part
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # resets the peak to the current use
before = memory("VmRSS")
step(28, 100)
print(memory("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
def test_a_convolutional_step_stays_under_300_megabytes():
    done = python(_PEAK)
    # a dense T(w) of 784 × 784 alone would be 2.5 MB for each of 18 kernels: far from the bound,
    # so the lower one holds the patches of a batch, which are larger
    assert 5 < float(done.stdout) < 300
