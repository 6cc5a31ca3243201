"""Flows of one's own in the trainer, `snfnp.fit`, patience and callbacks."""

import dataclasses
import gc
import importlib
import math
import tempfile
from pathlib import Path

import numpy as np
import pytest
from support.arrays import pixels
from support.messages import one_line
from support.own_layer import RULES, own
from support.runs import around, assert_same_run, state, write_module
from support.trainers import DATA, QUICK, ROWS, at_step, spoil, without_time

import snfnp
from snfnp import images
from snfnp.beyond.rules import Variational
from snfnp.cli import angle, evaluate, sample
from snfnp.errors import UsageError
from snfnp.gradcheck import check_layer, check_map
from snfnp.layers import Linear, SmoothLeakyReLU
from snfnp.layers.preprocess import Standardise
from snfnp.maps import Dense
from snfnp.models import PRESETS
from snfnp.rules import Exact
from snfnp.training import progress
from snfnp.training.options import TrainConfig
from snfnp.training.options.user_models import imported, preset_of, text_of
from snfnp.training.runs.folder import RunFolder

pytestmark = pytest.mark.usefixtures("here")

MODULE = """
from dataclasses import dataclass
import snfnp
from snfnp.layers import Linear, SmoothLeakyReLU
from snfnp.maps import Dense
from snfnp.models import Preset

@dataclass(frozen=True)
class Own(Linear):
    factor: float = 2.0

def build(shape):
    return snfnp.Flow(shape, (("a", Own(Dense(shape[0]), factor=1.5)), ("b", SmoothLeakyReLU(0.3))))

def chosen(shape, choices):
    return snfnp.Flow(shape, (("a", Linear(Dense(shape[0]), choices.rule)),))

class Inside:
    builds = lambda choices, shape: build(shape)
    PRESET = Preset(builds, "mine", ("self-normalizing",), lr=0.25, takes_rows=True)

number, nothing = 3, lambda shape: None
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A module of one's own, which can be imported."""
    write_module(tmp_path, "mine", MODULE, monkeypatch)
    monkeypatch.setitem(PRESETS, "registered", None)  # what a test leaves is taken back
    del PRESETS["registered"]
    return importlib.import_module("mine")


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """The folder in which temporary ones are made."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@dataclasses.dataclass(frozen=True)
class WholeImage(Dense):
    """A dense map of whole images (N, H, W, C)."""

    def output_shape(self, shape):
        return shape

    def apply(self, ops, w, x):
        return super().apply(ops, w, x.reshape(len(x), -1)).reshape(x.shape)

    def adjoint(self, ops, w, dz):
        return super().adjoint(ops, w, dz.reshape(len(dz), -1)).reshape(dz.shape)

    def weight_grad(self, ops, delta, x, out, add=False):
        rows = (each.reshape(len(x), -1) for each in (delta, x))
        return super().weight_grad(ops, *rows, out=out, add=add)

    def solve(self, ops, w, z):
        return super().solve(ops, w, z.reshape(len(z), -1)).reshape(z.shape)


class Stretch(SmoothLeakyReLU):
    """A layer with a parameter of no axis: z = e^s (smooth leaky ReLU of x)."""

    def parameter_shapes(self, shape):
        return {"s": ()}

    def forward(self, ops, p, x):
        z, ldj, cache = super().forward(ops, p, x)
        return np.exp(p["s"]) * z, ldj, {**cache, "x": x}

    def inverse(self, ops, p, z):
        return super().inverse(ops, p, np.exp(-p["s"]) * z)

    def log_det(self, ops, p, shape):
        return float(p["s"]) * math.prod(shape)

    def backward(self, ctx, p, cache, dz, grads):
        dz = dz * np.exp(p["s"])
        y = ctx.ops.activation.smooth_leaky_relu(cache["x"], self.alpha)[0]
        grads["s"][...] = (dz * y).sum() + ctx.log_det_weight * dz[0].size
        return super().backward(ctx, p, cache, dz, grads)


def test_an_own_map_of_images_and_a_parameter_of_no_axis_train():
    """With the paper's rule, whose margin is that of rows and kernels only."""
    own = Linear(WholeImage(4)), Stretch(0.3)
    check_map(own[0].map, (2, 2, 1))
    check_layer(own[1], (2, 2, 1))
    images = pixels(60, 2, 2, 1)
    run = snfnp.fit(images, flow=flow(*own, shape=(2, 2, 1)), out="run", **QUICK)
    assert run.params["b"]["s"].shape == () and run.params["b"]["s"] != 0
    again = snfnp.load_run("run", flow=run.flow)
    assert again.params["b"]["s"] == run.params["b"]["s"]


KINDS = {
    "registered": lambda mine: snfnp.register("registered", mine.build) or "registered",
    "a function": lambda mine: mine.build,
    "no name": lambda mine: lambda shape: mine.build(shape),
    "a flow": lambda mine: mine.build((2,)),
    "a preset": lambda mine: mine.Inside.PRESET,
}


def trained(path, flow=None, report=None, callbacks=(), **changes):
    """(a run's folder, the summary) of three epochs of five steps."""
    config = snfnp.TrainConfig(**{**QUICK, "data": "mine", "out": path, **changes})
    summary = snfnp.train(config, DATA, report=report, flow=flow, callbacks=callbacks)
    return RunFolder(path), summary


def resume(path, **changes):
    return snfnp.resume(path, **{"dataset": DATA, "report": None, **changes})


@pytest.mark.parametrize("kind", KINDS)
def test_everything_that_is_done_with_a_run_is_done_with_one_of_an_own_flow(
    kind, mine, tmp_path, capsys
):
    whole = tmp_path / "whole"
    part = tmp_path / "part"
    model = KINDS[kind](mine)
    data = tmp_path / "data.npz"
    np.savez(data, train=DATA.train, validation=DATA.validation, test=DATA.test)
    trained(whole, model)
    given = {"flow": model}
    typed = ["--model", "mine:build"]
    if kind == "registered":
        given = {}
        typed = []
    run = snfnp.fit(
        DATA, flow=model, out=part, report=None, eval_every=1, **QUICK | {"epochs": 1}
    )
    assert run.flow.layers == mine.build((2,)).layers and "{" not in repr(run)
    resume(part, epochs=3, **given)
    assert_same_run(whole, part, **given)
    for command in (evaluate, angle):
        command.main([str(part), "--data", str(data), *typed])
        assert "\na " in capsys.readouterr().out
    sample.main([str(part), "--count", "4", "--out", "s.npy", *typed])
    assert np.load("s.npy").shape == (4, 2)
    resume(part, rollback=True, epochs=4, **given)
    assert RunFolder.open(part)[1]["history"][-1]["rollback"]


def test_a_builder_gets_the_choices_and_a_preset_has_settings(mine):
    snfnp.register("registered", mine.chosen, lr=0.5, steps=30)
    config = snfnp.TrainConfig(model="registered").resolve(100)
    assert (config.lr, config.epochs, config.gradient) == (0.5, 30, "self-normalizing")
    for gradient, learns in (("exact", False), ("self-normalizing", True)):
        flow = dataclasses.replace(config, gradient=gradient).build_flow(
            (2,), np.ones((2, 2))
        )
        assert bool(flow.learned_inverses()) == learns
    assert snfnp.TrainConfig(model=mine.Inside.PRESET).resolve(100).lr == 0.25
    assert (
        snfnp.TrainConfig(model=imported("mine:Inside.PRESET")).resolve(100).lr == 0.25
    )
    own = Standardise((1.0, 2.0), (1.0, 4.0))
    exact = snfnp.Flow((2,), (("a", Linear(Dense(np.int64(2)), Exact())),), own)
    folder, _ = trained("run", exact)
    run = snfnp.load_run(folder.path)
    assert run.flow == exact
    assert run.flow.preprocess == own
    assert run.config.gradient == "exact"
    arrays = dataclasses.replace(exact, preprocess=Standardise(*np.ones((2, 2))))
    trained("arrays", arrays)  # and reads it


@pytest.mark.parametrize("name", PRESETS)
def test_any_flow_is_described_by_classes_and_fields(name):
    small = {"levels": 2, "depth": 1, "width": 8}
    sizes = {k: v for k, v in small.items() if k in PRESETS[name].size}
    flow = snfnp.TrainConfig(model=name, **sizes).resolve(100).build_flow((8, 8, 1))
    again = preset_of(text_of(flow)).build(None, (8, 8, 1))
    assert again == flow and again.layers == flow.layers


LOST = {
    "registered": (
        "`model=registered` is unknown: choose one of fc, ",
        "or first import what registers it (snfnp.register), or give module:function (in Python",
    ),
    "a function": (
        "the model mine:build is code of your own, which is not imported by its name",
    ),
    "no name": (
        "the model test_own_flows:<lambda>.<locals>.<lambda> is code of your own",
    ),
    "a preset": (
        "the model mine:Inside.<lambda> is code of your own",
        "give it with `model` (in",
    ),
    "a flow": (
        "the flow has mine:Own, which is no class of this package: give the code that",
    ),
}


@pytest.mark.parametrize("kind", LOST)
def test_what_is_missing_is_named_in_a_line_and_nothing_is_lost(kind, mine, tmp_path):
    path = tmp_path / "run"
    trained(path, KINDS[kind](mine), epochs=1)
    PRESETS.pop("registered", None)
    before = {file.name: file.read_bytes() for file in path.iterdir()}
    for act in (snfnp.load_run, resume, lambda path: evaluate.main([str(path)])):
        with one_line(UsageError, *LOST[kind]):
            act(path)
    assert {file.name: file.read_bytes() for file in path.iterdir()} == before


def local():
    return lambda shape: None


@dataclasses.dataclass(frozen=True)
class Odd(SmoothLeakyReLU):
    """A layer with what JSON cannot hold."""

    table: object = None


def test_a_flow_may_hold_what_json_cannot():
    """It is then described by a digest, and the flow is given to open its run."""
    own, other = (
        flow(Linear(Dense(2)), Odd(table=np.full((2, 2), each))) for each in (0.0, 1.0)
    )
    path = trained("run", own)[0].path
    assert snfnp.load_run(path, flow=own).flow is not own
    with one_line(
        UsageError, "(layers.b.table was float64 (2, 2), SHA-256 ", "is float64 (2, 2)"
    ):
        snfnp.load_run(path, flow=other)


def flow(*layers, shape=(2,)):
    return snfnp.Flow(shape, tuple(zip("ab", layers, strict=False)))


BUILD = lambda shape: flow(Linear(Dense(2)))  # noqa: E731
WRONG = {
    "a name": (
        "mine:build",
        "the model mine:build is code of your own, which is not imported by",
    ),
    "nothing": (
        local(),
        "local.<locals>.<lambda>: the function returned NoneType; let it return",
    ),
    "fields": (
        '{"class": "snfnp.maps:Dense", "x": 1}',
        "cannot be built (ValueError: Dense has",
    ),
    "shape": (
        flow(Linear(Dense(3)), shape=(3,)),
        "for data of shape (3,), found (2,); give both",
    ),
    "no parameters": (
        flow(SmoothLeakyReLU()),
        "the flow has no parameters: give it a layer to train",
    ),
    "rule": (
        BUILD,
        "`gradient=exact` is not that of the layers of test_own_flows:<lambda>: ",
    ),
    "choices": (
        BUILD,
        "`objective=forward` has no effect on test_own_flows:<lambda>, which takes",
    ),
}
OPTIONS = {"rule": {"gradient": "exact"}, "choices": {"objective": "forward"}}


@pytest.mark.parametrize("case", WRONG)
def test_a_model_that_is_none_is_one_line_before_a_folder_is_made(case, mine):
    model, problem = WRONG[case]
    with one_line(UsageError, problem):
        snfnp.fit(ROWS, flow=model, out="run", **QUICK, **OPTIONS.get(case, {}))
    assert not Path("run").exists()


@pytest.mark.parametrize(
    "name, build, settings, problem",
    [
        (
            "fc",
            local(),
            {},
            "'fc' cannot be the name of a preset of your own: choose another",
        ),
        ("a:b", local(), {}, "'a:b' cannot be the name"),
        (
            "x",
            3,
            {},
            "x is of type int: let it be build(shape) or build(shape, choices) -> Flow",
        ),
        (
            "x",
            lambda size: None,
            {},
            "x takes size: let it be build(shape) or build(shape, choices)",
        ),
        ("x", dict, {}, "x is of type type: let it be build(shape)"),
        ("x", local(), {"speed": 3}, "a preset has no speed: see snfnp.models.Preset"),
    ],
)
def test_a_registration_that_is_none_is_one_line(name, build, settings, problem):
    before = dict(PRESETS)
    with one_line(UsageError, problem):
        snfnp.register(name, build, **settings)
    assert before == PRESETS


IMAGES = pixels(60, 4, 4, seed=1)
MISFIT = (
    "layer a: a dense map of 3 features cannot take (2,): give it rows of 3 numbers"
)


def misfit(shape):
    return snfnp.Flow(shape, (("a", Linear(Dense(3))),))


def noisy(shape):
    return snfnp.Flow(shape, (("a", Linear(Dense(2), Variational(0.1))),))


def of_half_an_image(shape):
    return snfnp.Flow((8,), (("a", Linear(Dense(8))),), image_shape=shape)


@pytest.mark.parametrize("registered", [False, True])
@pytest.mark.parametrize(
    "build, data, problem",
    [
        (misfit, ROWS, MISFIT),
        (noisy, ROWS, "has a variational rule, whose noise and λ are options"),
        (
            of_half_an_image,
            IMAGES,
            "image_shape (4, 4, 1) has 16 values, but shape (8,) has 8: gi",
        ),
    ],
)
def test_a_builder_whose_flow_does_not_fit_is_one_line_and_leaves_nothing(
    registered, build, data, problem, temporary, monkeypatch
):
    monkeypatch.setitem(PRESETS, "registered", None)
    if registered:
        snfnp.register("registered", build)
    with one_line(UsageError, problem):
        snfnp.fit(data, flow="registered" if registered else build, **QUICK)
    assert list(temporary.iterdir()) == []


FITTED = {
    "rows": (ROWS, {}, [112, 14, 14]),
    "a list": (ROWS.tolist(), {"validation": 0.25, "test": "0.25"}, [70, 35, 35]),
    "images": (IMAGES, {}, [48, 6, 6]),
    "arrays": (ROWS, {"validation": ROWS[:9], "test": 0.5}, [70, 9, 70]),
    "a dataset": (DATA, {}, [100, 20, 20]),
}


@pytest.mark.parametrize("case", FITTED)
def test_fit_takes_data_in_one_line_and_leaves_no_folder(case, temporary, capfd):
    data, held_out, counts = FITTED[case]
    run = snfnp.fit(data, **held_out, report=None, backend="numpy", epochs=4, seed=3)
    noun = "rows" if len(run.image_shape) == 1 else "images"
    assert run.record["data"][noun] == counts and len(run.folder.read_metrics()) == 4
    assert capfd.readouterr() == ("", "")
    # an eighth of few rows
    assert run.config.batch_size == (48 if case == "images" else 16)
    assert run.likelihood.sample(3).shape[1:] == run.image_shape
    if case == "rows":  # split as in a file
        np.save("array.npy", data)
        file = snfnp.load_dataset("array.npy", seed=3)
        digests = {
            split: file.fingerprint(split) for split in ("train", "validation", "test")
        }
        assert digests == run.record["data"]["sha256"]
        Path("array.npy").unlink()
    del run
    gc.collect()
    assert list(temporary.iterdir()) == []  # the temporary folder goes with the run


def test_values_of_rows_are_looked_at_where_data_enter_and_not_in_steps(monkeypatch):
    """As often where an epoch has four times as many steps."""
    looks = []
    around(monkeypatch, images, "_fault_of_rows", lambda *given: looks.append(given))
    counts = []
    for batch_size in (40, 10):
        looks.clear()
        snfnp.fit(DATA, batch_size=batch_size, backend="numpy", epochs=2, report=None)
        counts.append(len(looks))
    assert counts[0] == counts[1] > 3


ONES = dict.fromkeys(("validation", "test"), ROWS)
IS_ROWS = "the array: float64 of shape (140,) is not (N, H, W, C); give"
UNFIT = {
    "one axis": (ROWS[:, 0], {}, IS_ROWS),
    "ragged": ([[1.0], [1.0, 2.0]], {}, "the array cannot be read (setting an array"),
    "a path": (
        "x.npy",
        {},
        "fit takes data themselves: give it snfnp.load_dataset('x.n",
    ),
    "a matrix": (
        np.asmatrix(ROWS),
        {},
        "matrix instead of numbers; give an array of f",
    ),
    "masked": (np.ma.array(ROWS), ONES, "the array: MaskedArray instead of numbers"),
    "one row": (
        ROWS[:1],
        ONES,
        "the train rows of array: there is only 1 sample; give more",
    ),
    "columns": (ROWS, {"validation": ROWS[:, :1]}, "shape (140, 1) beside (126, 2)"),
    "images": (
        ROWS,
        ONES | {"test": np.zeros((9, 4, 6, 3), np.uint8)},
        "shape (9, 4, 6, 3) beside",
    ),
    "splits": (
        DATA,
        {"test": 0.1},
        "mine has its splits already: leave validation and",
    ),
    "fraction": (ROWS, {"validation": 2}, "`validation` is 2: give a fraction between"),
    "a folder": (ROWS, {"data_dir": "x"}, "`data_dir` only has an effect with `data="),
    "at once": (
        np.array("no data"),
        {"model": "fc", "width": 3},
        "`width` only has an",
    ),
}


@pytest.mark.parametrize("case", UNFIT)
def test_what_cannot_be_fitted_is_one_line_and_leaves_nothing(case, temporary):
    data, options, problem = UNFIT[case]
    with one_line(UsageError, problem):
        snfnp.fit(data, **QUICK | options)
    assert list(temporary.iterdir()) == []


def test_patience_ends_a_run_at_its_best_and_a_resumed_one_knows(monkeypatch):
    said = []
    how = {"epochs": 9, "patience": 2, "lr": 1e-9, "model": "fc"}
    with monkeypatch.context() as patched:
        at_step(patched, 11, spoil)
        folder, summary = trained("run", report=said.append, **how)
    nlls = [record["validation_nll_nats"] for record in folder.read_metrics()]
    best = int(np.argmin(nlls))
    ran = len(nlls)
    stopped = f"after epoch {ran}: no improvement in 2 evaluations (`patience`)"
    assert any(stopped in line for line in said) and ran == best + 3 < 9
    assert summary["best_epoch"] == best + 1
    assert snfnp.load_run(folder.path).checkpoint.step == 5 * (best + 1)
    again = resume(folder.path, report=said.append)
    assert stopped in said[-2] and without_time([again]) == without_time([summary])
    assert state(folder.path).step == 5 * ran
    resume(folder.path, patience=ran)
    assert state(folder.path).step > 5 * ran


def test_callbacks_get_what_metrics_hold_and_steps_between(monkeypatch):
    monkeypatch.setattr(progress, "_LINE_EVERY", 0.0)
    found = []
    folder, _ = trained("run", callbacks=[found.append, lambda record: [record]])
    evaluations = [record for record in found if record.nll is not None]
    assert [record.figures for record in evaluations] == folder.read_metrics()
    for record in evaluations:
        assert record.step == record.figures["step"] == 5 * record.epoch
        assert record.nll == record.figures["validation_nll_nats"]
        assert record.bits_per_dimension is None
    steps = [record for record in found if record.nll is None]
    assert [(each.step, each.epoch) for each in steps] == [
        (n, n // 5) for n in range(1, 16)
    ]
    assert {each.steps for each in found} == {15}
    nats = np.array([record.nll for record in evaluations])
    assert [record.best for record in evaluations] == list(
        nats == np.minimum.accumulate(nats)
    )
    with pytest.raises(dataclasses.FrozenInstanceError):
        steps[0].step = 3


@pytest.mark.parametrize("step", [7, 10])
@pytest.mark.parametrize(
    "ending", [True, np.True_, ValueError("mine"), UsageError("mine")]
)
def test_a_callback_ends_a_run_and_nothing_is_lost(step, ending, tmp_path, monkeypatch):
    """True ends it after the epoch, an error at once; the resumed run has the same end."""
    monkeypatch.setattr(progress, "_LINE_EVERY", 0.0)
    fails = isinstance(ending, Exception)
    path = tmp_path / "part"

    def callback(record):
        if record.step == step and (record.nll is None) == (step == 7):
            if fails:
                raise ending
            return ending

    how = {"callbacks": [callback], "eval_every": 3 if step == 7 else 2, "model": "fc"}
    trained("whole", eval_every=3, model="fc")
    if fails:
        with pytest.raises(type(ending), match="^mine$"):
            trained(path, **how)
        assert state(path).step == step
    else:
        _, summary = trained(path, **how)
        assert state(path).step == 10 and summary["best_epoch"] == 2
    resume(path, eval_every=3)
    np.testing.assert_array_equal(state("whole").p, state(path).p)


def test_what_fit_could_not_finish_stays_where_it_goes_on(temporary):
    with pytest.raises(ZeroDivisionError):
        fail = [lambda record: 1 / 0]
        snfnp.fit(DATA, callbacks=fail, report=None, eval_every=1, **QUICK)
    (folder,) = temporary.iterdir()
    with one_line(UsageError, "give a Dataset as dataset="):
        resume(folder, data=DATA)
    resume(folder)
    assert state(folder).step == 15


@pytest.mark.parametrize("callbacks", [len, [3], 3])
def test_callbacks_are_a_list_of_functions(callbacks):
    with one_line(UsageError, "callbacks is ", "give a list of functions"):
        snfnp.fit(DATA, callbacks=callbacks, report=None, **QUICK)


def test_a_run_names_the_rule_that_its_layers_have():
    """In its head and over its pictures, also where that is a user's own."""
    newton = own("Newton", RULES)()
    chosen = Linear(Dense(2), TrainConfig().filled().rule)
    for config, layers, words in (
        (TrainConfig(), [chosen], "self-normalizing gradient (mixture, λ = 1)"),
        (TrainConfig(gradient="exact"), [Linear(Dense(2), Exact())], "exact gradient"),
        (TrainConfig(), [Linear(Dense(2), newton)], "gradient by Newton()"),
        (
            TrainConfig(),
            [chosen, Linear(Dense(2), Exact())],
            "self-normalizing gradient (mixture, λ = 1), gradient by Exact()",
        ),
        (TrainConfig(gradient="exact"), [SmoothLeakyReLU(0.3)], "exact gradient"),
    ):
        flow = snfnp.Flow(
            (2,), tuple((f"layer{i}", layer) for i, layer in enumerate(layers))
        )
        found = progress.gradient_of(config.filled(), flow)
        assert found.replace("learns_inverse=True", "") == words
