"""Run folders of strangers: no code of theirs runs, and what is forged opens or is one line."""

import copy
import importlib
import json
import shutil
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from numpy.random import default_rng
from support import trainers
from support.arrays import pixels
from support.messages import one_line
from support.runs import config_json, estimator_checkpoint, forge, write_module
from support.trainers import DATA, ROWS

import snfnp
from snfnp.cli import angle, compare, evaluate, sample, train
from snfnp.errors import SnfnpError, UsageError
from snfnp.training.options.descriptions import first_difference
from snfnp.training.runs.checkpoint import load_checkpoint, save_checkpoint
from snfnp.training.runs.folder import RunFolder

pytestmark = pytest.mark.usefixtures("here")

QUICK = trainers.QUICK | {"epochs": 2, "report": None}
STRANGE = """
from pathlib import Path
import snfnp
from snfnp.layers import Linear, SmoothLeakyReLU
from snfnp.maps import Dense

Path(__file__).with_name("it-ran").touch()
SLOPE = 0.5

class Own(Linear):
    pass

def build(shape):
    dense = Dense(shape[0])
    layers = (("a", Own(dense)), ("b", SmoothLeakyReLU(SLOPE)), ("c", Linear(dense)))
    return snfnp.Flow(shape, layers)
"""


@pytest.fixture
def strange(tmp_path, monkeypatch):
    """A module that can be imported, is not, and leaves a file once it runs."""
    write_module(tmp_path, "strange", STRANGE, monkeypatch)
    return tmp_path / "code" / "it-ran"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    tmp_path = tmp_path_factory.mktemp("trained")
    np.save(tmp_path / "rows.npy", ROWS)
    data = snfnp.load_dataset(str(tmp_path / "rows.npy"))
    how = {key: value for key, value in QUICK.items() if key != "report"}
    config = snfnp.TrainConfig(
        model="fc", data=str(tmp_path / "rows.npy"), out=tmp_path / "run", **how
    )
    snfnp.train(config, data, report=None)
    return tmp_path


@pytest.fixture
def run(trained, tmp_path):
    """A run's folder, and the data beside it."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    return tmp_path / "run"


COMMANDS = {
    "evaluate": lambda run, *given: evaluate.main([run, *given]),
    "angle": lambda run, *given: angle.main([run, *given]),
    "sample": lambda run, *given: sample.main([run, "--count", "4", *given]),
    "compare": lambda run, *_: compare.main([run, run]),
    "train": lambda run, *given: train.main(
        ["--resume", "--out", run, "--epochs", "3", *given]
    ),
    "rollback": lambda run, *given: train.main(["--rollback", "--out", run, *given]),
}
PYTHON = {"load_run": snfnp.load_run, "resume": partial(snfnp.resume, report=None)}
GIVEN = ("--model", "strange:build")


def undone(strange):
    """The module is as if it had not been imported."""
    strange.unlink(missing_ok=True)
    sys.modules.pop("strange", None)


@pytest.mark.parametrize("name", [*COMMANDS, *PYTHON])
@pytest.mark.parametrize(
    "model", ["strange:build", '{"class": "strange:Own", "of": [1, {}]}']
)
def test_opening_a_folder_runs_no_code(name, model, run, strange):
    """Not even of a module that is imported; `compare` needs no flow."""
    model = model.replace("{}", '{"class": "snfnp.maps.dense:Dense", "features": 2}')
    said = (
        "strange:build is code of your own"
        if model == "strange:build"
        else "has strange:Own"
    )
    forge(run, model=model)
    for imported in (False, True):
        module = importlib.import_module("strange") if imported else None
        strange.unlink(missing_ok=True)
        if imported:
            module.build = module.Own = lambda *_: pytest.fail("it was called")
        with (
            nullcontext() if name == "compare" else one_line(UsageError, said, "flow=")
        ):
            (COMMANDS | PYTHON)[name](str(run))
        assert not strange.exists() and ("strange" in sys.modules) == imported


@pytest.fixture
def own(run, strange, tmp_path, undrawn):
    """A run of a model of one's own, which was typed."""
    short = ["--epochs", "1", "--warmup-epochs", "0.5", "--backend", "numpy"]
    train.main([f"{run}/../rows.npy", *GIVEN, "--out", str(tmp_path / "own"), *short])
    assert strange.exists(), "the user typed it"
    undone(strange)
    return tmp_path / "own"


@pytest.mark.parametrize("name", [*COMMANDS, *PYTHON])
def test_code_that_is_given_opens_a_run(name, own, strange):
    if name in COMMANDS:
        COMMANDS[name](str(own), *GIVEN)
        assert strange.exists() == (name != "compare")
        return
    if name == "resume":  # the command that was submitted again
        train.main(["--resume", "auto", *GIVEN, "--out", str(own)])
    build = importlib.import_module("strange").build
    for flow in (build, build((2,)), lambda shape: build(shape)):
        PYTHON[name](own, flow=flow)


def test_a_module_that_was_renamed_is_given_anew(own, strange, monkeypatch):
    build = importlib.import_module("strange").build
    step = snfnp.load_run(own, flow=build).checkpoint.step
    strange.with_name("strange.py").rename(strange.with_name("renamed.py"))
    undone(strange)
    importlib.invalidate_caches()
    given = ("--model", "renamed:build")
    for name in ("evaluate", "train", "rollback", "evaluate"):
        COMMANDS[name](str(own), *given)
    history = RunFolder.open(own)[1]["history"]
    assert history[0]["changed"]["model"] == ["strange:build", "renamed:build"]
    renamed = sys.modules["renamed"]
    again = snfnp.load_run(own, "last", flow=renamed.build)
    assert again.flow.layers[0][1].__class__.__module__ == "renamed"
    assert step < again.checkpoint.step
    monkeypatch.setattr(renamed, "Own", snfnp.layers.Linear)
    changed = "(layers.a.class was strange:Own, is snfnp.layers.linear:Linear)"
    with one_line(UsageError, changed):
        COMMANDS["evaluate"](str(own), *given)


def test_a_module_is_renamed_for_all_of_its_classes():
    both = (
        json.loads(f'{{"f": {{"class": "{m[0]}:A"}}, "g": {{"class": "{m[1]}:B"}}}}')
        for m in ("mm", "no")
    )
    assert first_difference(*both) == "g.class was m:B, is o:B"


HARMFUL = [
    *(
        "builtins:input",
        "os:system",
        "subprocess:Popen",
        "this:d",
        "snfnp.models:import_module",
    ),
    *("snfnp.layers:np.load", "snfnp.flow:Flow.__init__", "x" * 999),
    '{"class": "subprocess:Popen", "args": "id"}',
    '{"class": "snfnp.flow:Flow.init"}',
    '{"class": "snfnp.training.runs.folder:RunFolder", "path": "x"}',
    '{"class": "snfnp.layers.elementwise:dataclass"}',
    '{"class": ["a"]}',
    "{}",
    "[" * 99_999,
    '{"class":' * 9_999,
]
LINEAR = '{"class": "snfnp.layers:Linear", "map": {"class": "snfnp.maps:Dense", "features": %s}}'
FLOW = '{"class": "snfnp.flow:Flow", "shape": [2], "layers": %s}'
MISFITS = [
    *("snfnp.flow:Flow", "numpy:full", FLOW % 3, FLOW % "[3]", FLOW % '[["a"]]'),
    *(
        FLOW % f'[["a", {LINEAR % size}]]'
        for size in ("1000000000", "-1", "null", '"x"', "1e9")
    ),
    FLOW % '[["a", {"class": "snfnp.layers:Linear", "map": 3}]]',
]


LAYER = '{"class": "snfnp.layers:SmoothLeakyReLU", "alpha": 0.3}'
MANY = ", ".join(f'["{number}", {LAYER}]' for number in range(20_000))
KEYS = {str(number): number for number in range(10**5)}


def without_data(record):
    del record["config"]["data"]


LARGE = {
    "no data": (without_data, "written by another version (the configuration has no"),
    "layers": (
        lambda record: record["config"].update(model=FLOW % f"[{MANY}]"),
        "the flow cannot be built (ValueError: more than 10,000 layers, maps and rules)",
    ),
    "described layers": (
        lambda record: record["model"]["flow"].update(layers=json.loads(f"[{MANY}]")),
        "its model has changed since it was trained (layer[0] was 0, is dense1)",
    ),
    "axes": (
        lambda record: record["config"].update(
            model=FLOW.replace("[2]", str([1] * 10**5)) % f'[["a", {LAYER}]]'
        ),
        "the flow",
    ),
    "options": (
        lambda record: record["config"].update(KEYS),
        "(there is no option ",
    ),
    "fields": (
        lambda record: record["model"]["flow"].update(KEYS),
        "its model has changed since it was trained (0 was 0, is absent)",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", LARGE)
def test_a_forged_config_of_any_size_is_one_line_in_seconds(case, run):
    """What is quadratic in the number of layers would take ten times as long."""
    change, said = LARGE[case]
    record = config_json(run)
    change(record)
    forge(run, record)
    start = time.process_time()
    for act in (snfnp.load_run, partial(snfnp.resume, report=None)):
        with one_line(SnfnpError, said) as caught:
            act(run)
        assert len(str(caught.value)) < 2100
    assert time.process_time() - start < 5


@pytest.mark.parametrize("model", HARMFUL + MISFITS, ids=lambda model: model[:40])
def test_no_other_callable_is_called(model, run, monkeypatch):
    """And a flow whose parts do not fit is one line."""
    for name in ("os.system", "subprocess.Popen", "builtins.input"):
        monkeypatch.setattr(
            name, lambda *given, **more: pytest.fail(f"called with {given}")
        )
    forge(run, model=model)
    monkeypatch.setattr(sys, "stdout", None)  # "import this" prints
    with one_line(SnfnpError):
        snfnp.load_run(run)


@pytest.fixture(scope="module")
def density(tmp_path_factory):
    """The file of an estimator."""
    path = tmp_path_factory.mktemp("density") / "density"
    quick = {"activation": "smooth-leaky-relu", "epochs": 1, "random_state": 0}
    snfnp.FlowDensity(1, members=2, noise=0.0, **quick).fit(ROWS).save(path)
    return path


def test_opening_a_header_or_an_estimators_file_runs_no_code(
    run, density, strange, tmp_path
):
    """The damaged files have right checksums, since anybody can compute those."""
    best = run / "best.safetensors"
    saved = load_checkpoint(best, snfnp.load_run(run).layout)
    saved.record["config"]["model"] = "strange:build"
    save_checkpoint(best, saved)
    assert snfnp.load_run(run).config.model == "fc"
    saved = estimator_checkpoint(density)
    saved.record["config"]["model"] = "strange:build"
    save_checkpoint(tmp_path / "density", saved)
    with one_line(SnfnpError, "is damaged (its model)"):
        snfnp.FlowDensity.load(tmp_path / "density")
    assert not strange.exists() and "strange" not in sys.modules


def fitted(path, flow):
    return snfnp.fit(DATA, flow=flow, out=path, **QUICK)


@pytest.mark.parametrize("registered", [False, True])
def test_code_that_changed_is_noticed_when_its_run_is_opened(
    registered, tmp_path, strange, monkeypatch
):
    module = importlib.import_module("strange")
    path = tmp_path / "run"
    if registered:
        monkeypatch.setitem(snfnp.PRESETS, "changing", None)
        del snfnp.PRESETS["changing"]
        snfnp.register("changing", lambda shape: module.build(shape))
    fitted(path, "changing" if registered else module.build)

    def refused(difference):
        given = {} if registered else {"flow": module.build}
        changed = f"its model has changed since it was trained ({difference})"
        for act in (snfnp.load_run, partial(snfnp.resume, dataset=DATA, report=None)):
            with one_line(UsageError, path, changed, "restore the code"):
                act(path, **given)

    module.SLOPE = 0.9
    refused("layers.b.alpha was 0.5, is 0.9")
    module.SLOPE = 0.5
    whole = module.build((2,))
    a, b, c = whole.layers
    swapped = "layers.a.class was strange:Own, is snfnp.layers.linear:Linear"
    for layers, difference in (
        ((c, b, a), "layer[0] was a, is c"),
        ((("a", c[1]), b, ("c", a[1])), swapped),
        ((a, b), "layer[2] was c, is absent"),
        ((a, b, c, ("d", b[1])), "layer[3] was absent, is d"),
    ):
        other = replace(whole, layers=layers)
        monkeypatch.setattr(module, "build", lambda shape, other=other: other)
        refused(difference)
    monkeypatch.setattr(module, "build", lambda shape: whole)
    assert fitted("again", module.build).flow.layers[1][1].alpha == 0.5
    record = config_json(path)
    for earlier in ({}, {"flow": {"shape": [2], "layers": {}}}):
        forge(path, record={**record, "model": earlier})
        said = "has no description of its flow"
        with one_line(UsageError, path, said, "train it again"):
            snfnp.load_run(path, flow=module.build)


def test_a_default_of_this_package_that_changed_is_noticed(run):
    """A field that the description lacks was added since: its default is what was trained."""
    record = config_json(run)
    first = record["model"]["flow"]["layers"][0][1]
    assert first["class"] == "snfnp.layers.linear:Linear"
    first["gain"] = 0.02  # as if this had been the default
    forge(run, record)
    with one_line(
        UsageError, "(layers.dense1.gain was 0.02, is 0.01): restore the code"
    ):
        snfnp.load_run(run)
    del first["gain"]
    forge(run, record)
    snfnp.load_run(run)
    # trained with another value than its default, which is "paper"
    del first["init_kind"]
    first["gain"] = 0.01
    first["map"]["class"] = "snfnp.maps.conv:Dense"
    forge(run, record)
    with one_line(
        UsageError, "(layers.dense1.map.class was snfnp.maps.conv:Dense, is snfnp.maps"
    ):
        snfnp.load_run(run)


def test_a_record_speaks_of_rows_and_has_each_thing_once(run):
    record = config_json(run)
    config = record["config"]
    data = record["data"]
    assert "rows" in data
    assert "images" not in data
    assert "preprocess" not in record["model"]["flow"]
    absent = "levels width kernel bins jvp_probes noise_vectors tolerance"
    assert not {*absent.split()} & config.keys()
    assert {"lr", "lam", "objective", "patience"} <= config.keys()


GONE = "gone"  # no value: the entry is removed
ODD = (
    *(GONE, None, True, 0, 1, -1, 10**400, -(2**63), 0.5, -0.0, 1e308, 5e-324),
    *(
        "",
        "x",
        "0",
        "a\x1b[31m\n",
        "é" * 9999,
        [],
        [[]],
        {},
        {"class": None},
        [None],
        [1e300] * 2,
    ),
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Finished runs of rows, and of images with a controller of λ."""
    root = tmp_path_factory.mktemp("runs")
    how = {
        "backend": "numpy",
        "batch_size": 20,
        "epochs": 1,
        "warmup_epochs": 0.5,
        "report": None,
    }
    small = {"model": "vector", "depth": 1, "activation": "smooth-leaky-relu"}
    snfnp.fit(DATA, out=root / "rows", **small, **how)
    grey = pixels(140, 4, 4, seed=1)
    images = snfnp.Dataset("mine", grey[40:], grey[:20], grey[20:40])
    controlled = {"lambda_control": "geco", "patience": 2}
    snfnp.fit(images, out=root / "images", model="fc", **controlled, **how)
    return {root / "rows": DATA, root / "images": images}


def places(value, path=()):
    """The places of everything in JSON."""
    for name, each in value.items() if isinstance(value, dict) else enumerate(value):
        yield (*path, name)
        if isinstance(each, (dict, list)):
            yield from places(each, (*path, name))


def forged(record, rng):
    """A copy with one or two odd values, and what they are."""
    record = copy.deepcopy(record)
    said = []
    for _ in range(rng.integers(1, 3)):
        known = list(places(record))
        *path, name = known[rng.integers(len(known))]
        inside = record
        odd = copy.deepcopy(ODD[rng.integers(len(ODD))])
        for step in path:
            inside = inside[step]
        if odd == GONE:
            del inside[name]
        else:
            inside[name] = odd
        said.append((*path, name, odd))
    return record, said


def opens_or_is_one_line(act, said):
    """Whether it opens."""
    try:
        act()
        return True
    except SnfnpError as error:
        message = str(error)
        assert message.isprintable() and len(message) < 1500, (said, message)
    except Exception as error:
        raise AssertionError(f"{said}: {type(error).__name__}: {error}") from error
    return False


def used(path, data):
    run = snfnp.load_run(path)
    assert repr(run) and run.lam and run.image_shape == data.train.shape[1:]
    # -inf is right for rows that are very far from the mean
    assert not np.isnan(run.likelihood.log_prob(data.test[:2])).any()


SLOW = pytest.mark.slow


@pytest.mark.parametrize("seed", [0, *(pytest.param(n, marks=SLOW) for n in (1, 2))])
def test_a_forged_config_opens_and_goes_on_or_is_one_line(seed, runs, tmp_path):
    rng = default_rng(seed)
    opened = 0
    for path, data in runs.items():
        run = shutil.copytree(path, tmp_path / path.name)
        record = config_json(run)
        for index in range(60):
            other, said = forged(record, rng)
            forge(run, other)
            opened += opens_or_is_one_line(partial(used, run, data), said)
            opens_or_is_one_line(partial(compare.open_runs, [run]), said)
            if index < 8:
                again = shutil.copytree(run, tmp_path / f"{path.name}-{index}")
                resume = partial(snfnp.resume, again, dataset=data, report=None)
                opens_or_is_one_line(resume, said)
    assert 0 < opened < 120


def test_a_forged_header_opens_or_is_one_line(runs, tmp_path):
    rng = default_rng(200)
    for path, data in runs.items():
        run = shutil.copytree(path, tmp_path / path.name)
        saved = load_checkpoint(run / "best.safetensors", snfnp.load_run(run).layout)
        record = saved.record
        for _ in range(80):
            saved.record, said = forged(record, rng)
            for name in ("best", "last"):
                save_checkpoint(run / f"{name}.safetensors", saved)
            opens_or_is_one_line(partial(used, run, data), said)
            opens_or_is_one_line(RunFolder(run).read_metrics, said)


def test_a_forged_estimator_loads_or_is_one_line(density, tmp_path):
    rng = default_rng(300)
    path = tmp_path / "density"
    saved = estimator_checkpoint(density)
    record = saved.record

    def load():
        with np.errstate(all="ignore"):
            assert not np.isnan(snfnp.FlowDensity.load(path).score_samples(ROWS)).any()

    for _ in range(120):
        saved.record, said = forged(record, rng)
        save_checkpoint(path, saved)
        opens_or_is_one_line(load, said)


def test_records_and_names_of_files_are_shown_and_not_sent_to_a_terminal(
    runs, tmp_path, capsys
):
    path = next(iter(runs))
    name = "a\x1b[31m\nb"
    record = config_json(path)
    record["data"]["source"] = record["config"]["data"] = "x\x1b]0;title\x07\n"
    run = shutil.copytree(path, tmp_path / name)
    forge(run, record)
    np.save(tmp_path / f"{name}.npy", ROWS + 1)
    compare.main([str(run), str(run), "--plot", str(tmp_path / f"{name}.png")])
    scores = ["--split", "all", "--scores", str(tmp_path / f"{name}-scores.csv")]
    evaluate.main([str(run), "--data", str(tmp_path / f"{name}.npy"), *scores])
    evaluate.main([str(run), "--data", "moons"])
    sample.main([str(run), "--count", "4", "--out", str(tmp_path / f"{name}.csv")])
    said = capsys.readouterr().out
    assert "\\x1b]0;title" in said
    assert said.count("a\\x1b[31m\\nb") >= 5 and said.replace("\n", "").isprintable()
