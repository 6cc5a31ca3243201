"""Run folders of strangers: no code of theirs runs, and what is forged opens or is one line."""

import copy
import importlib
import json
import shutil
import sys

import numpy as np
import pytest
from support.messages import one_line
from support.runs import estimator_checkpoint, forge

import snfnp
from snfnp.cli import angle, compare, evaluate, sample, score, train
from snfnp.errors import SnfnpError, UsageError
from snfnp.training.runs.checkpoint import load_checkpoint, save_checkpoint
from snfnp.training.runs.folder import RunFolder

ROWS = np.random.default_rng(0).normal((5.0, -30.0), (1.0, 4.0), (140, 2))
DATA = snfnp.Dataset("mine", ROWS[40:], ROWS[:20], ROWS[20:40])
QUICK = {"backend": "numpy", "batch_size": 20, "epochs": 2, "warmup_epochs": 1, "report": None}
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
    return snfnp.Flow(shape, (("a", Own(Dense(shape[0]))), ("b", SmoothLeakyReLU(SLOPE))))
"""


@pytest.fixture
def strange(tmp_path, monkeypatch):
    """A module that can be imported, is not, and leaves a file once it runs."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "strange.py").write_text(STRANGE, encoding="utf-8")
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.syspath_prepend(tmp_path / "code")
    monkeypatch.setitem(sys.modules, "strange", None)
    del sys.modules["strange"]
    importlib.invalidate_caches()
    return tmp_path / "code" / "it-ran"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    tmp_path = tmp_path_factory.mktemp("trained")
    np.save(tmp_path / "rows.npy", ROWS)
    data = snfnp.load_dataset(str(tmp_path / "rows.npy"))
    how = {key: value for key, value in QUICK.items() if key != "report"}
    config = snfnp.TrainConfig(model="fc", data=str(tmp_path / "rows.npy"), **how)
    snfnp.train(config, data, run=RunFolder.create(tmp_path / "run"), report=None)
    return tmp_path


@pytest.fixture
def run(trained, tmp_path):
    """A run's folder, and the data beside it."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    return tmp_path / "run"


COMMANDS = {
    "evaluate": lambda run, *trust: evaluate.main([run, *trust]),
    "angle": lambda run, *trust: angle.main([run, *trust]),
    "sample": lambda run, *trust: sample.main([run, "--count", "4", *trust]),
    "score": lambda run, *trust: score.main([run, f"{run}/../rows.npy", *trust]),
    "compare": lambda run, *trust: compare.main([run, run, *trust]),
    "train": lambda run, *trust: train.main(["--resume", "--out", run, "--epochs", "3", *trust]),
    "rollback": lambda run, *trust: train.main(["--rollback", "--out", run, *trust]),
    "load_run": lambda run, *trust: snfnp.load_run(run, trust=bool(trust)),
    "resume": lambda run, *trust: snfnp.resume(run, report=None, trust=bool(trust)),
}


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("model", ["strange:build", '{"class": "strange:Own", "of": [1, {}]}'])
def test_opening_a_folder_runs_no_code(name, model, run, strange):
    model = model.replace("{}", '{"class": "snfnp.maps.dense:Dense", "dimension": 2}')
    forge(run, model=model)
    said = "cannot be opened: its model strange:"
    with one_line(UsageError, run, said, f"would import strange from {strange.parent}/strange.py"):
        COMMANDS[name](str(run))
    assert not strange.exists() and "strange" not in sys.modules


@pytest.mark.parametrize("name", ["evaluate", "train", "load_run", "resume"])
def test_what_is_trusted_or_imported_or_typed_is_opened(name, run, strange, tmp_path, undrawn):
    short = ["--epochs", "1", "--warmup-epochs", "0.5", "--backend", "numpy"]
    out = ["--model", "strange:build", "--out", str(tmp_path / "own")]
    train.main([f"{run}/../rows.npy", *out, *short])
    assert strange.exists(), "the user typed it"
    COMMANDS[name](str(tmp_path / "own"))  # it is imported
    strange.unlink()
    del sys.modules["strange"]
    with one_line(UsageError, "would import strange"):
        COMMANDS[name](str(tmp_path / "own"))
    COMMANDS[name](str(tmp_path / "own"), "--trust")
    assert strange.exists()
    del sys.modules["strange"]
    train.main(["--resume", "auto", *out])


HARMFUL = [
    *("code:interact", "builtins:input", "builtins:exec", "os:system", "subprocess:run"),
    *("subprocess:Popen", "snfnp.layers:np.load", "snfnp.flow:Flow.__init__", "venv.__main__:x"),
    *(
        "snfnp.flow:Flow.__class__.__base__",
        "snfnp.models:import_module",
        "this:d",
        "antigravity:x",
    ),
    *("snfnp.training.session:shutil.rmtree", "snfnp.flow:Flow.init", "snfnp.flow:np", "x" * 999),
    '{"class": "subprocess:Popen", "args": "id"}',
    '{"class": "snfnp.flow:Flow.init"}',
    '{"class": "snfnp.training.runs.folder:RunFolder", "path": "x"}',
    '{"class": ["a"]}',
    "{}",
    "{",
    "[" * 99_999,
    '{"class":' * 9_999,
]


LINEAR = '{"class": "snfnp.layers:Linear", "map": {"class": "snfnp.maps:Dense", "features": %s}}'
FLOW = '{"class": "snfnp.flow:Flow", "shape": [2], "layers": %s}'
MISFITS = [
    *("snfnp.flow:Flow", "numpy:full", FLOW % 3, FLOW % "[3]", FLOW % '[["a"]]'),
    *(FLOW % f'[["a", {LINEAR % size}]]' for size in ("1000000000", "-1", "null", '"x"', "1e9")),
    FLOW % '[["a", {"class": "snfnp.layers:Linear", "map": 3}]]',
]


@pytest.mark.parametrize("model", MISFITS)
def test_a_flow_whose_parts_do_not_fit_is_one_line(model, run):
    forge(run, model=model)
    with one_line(UsageError):
        snfnp.load_run(run)


def test_a_trusted_module_that_is_not_found_is_said_so(run, tmp_path, monkeypatch):
    """Not that the folder is damaged. Without trust, the line names the file to be imported."""
    forge(run, model="elsewhere_flows:build")
    with one_line(UsageError, "cannot be opened: the run needs elsewhere_flows:build"):
        snfnp.load_run(run, trust=True)
    (tmp_path / "elsewhere_flows.py").write_text("1 / 0")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [each for each in sys.path if each])
    with one_line(UsageError, f"would import elsewhere_flows from {tmp_path}/elsewhere_flows.py"):
        snfnp.load_run(run)


@pytest.mark.parametrize("trust", [False, True])
@pytest.mark.parametrize("model", HARMFUL, ids=lambda model: model[:40])
def test_no_other_callable_is_called(model, trust, run, monkeypatch):
    """Not even of a module that is imported, or that the user trusts."""
    for name in ("os.system", "subprocess.Popen", "builtins.input", "code.interact"):
        monkeypatch.setattr(name, lambda *given, **more: pytest.fail(f"called with {given}"))
    forge(run, model=model)
    monkeypatch.setattr(sys, "stdout", None)  # "import this" prints
    with one_line(SnfnpError):
        snfnp.load_run(run, trust=trust)


def test_opening_a_header_or_an_estimators_file_runs_no_code(run, strange, tmp_path):
    """The damaged files have right checksums, since anybody can compute those."""
    layout = snfnp.load_run(run).layout
    saved = load_checkpoint(run / "best.safetensors", layout)
    saved.record["config"]["model"] = "strange:build"
    save_checkpoint(run / "best.safetensors", saved)
    with one_line(SnfnpError, "best.safetensors"):
        snfnp.load_run(run)
    path, quick = tmp_path / "density", {"layers": 1, "members": 1, "epochs": 1, "noise": 0.0}
    snfnp.FlowDensity(**quick, activation="smooth-leaky-relu", random_state=0).fit(ROWS).save(path)
    saved = estimator_checkpoint(path)
    saved.record["config"]["model"] = "strange:build"
    save_checkpoint(path, saved)
    with one_line(SnfnpError, "would import strange from"):
        snfnp.FlowDensity.load(path)
    assert not strange.exists()


def fitted(path, flow):
    return snfnp.fit(DATA, flow=flow, out=path, **QUICK)


@pytest.mark.parametrize("registered", [False, True])
def test_a_builder_that_changed_is_noticed_when_its_run_is_opened(
    registered, tmp_path, strange, monkeypatch
):
    module, path = importlib.import_module("strange"), tmp_path / "run"
    if registered:
        monkeypatch.setitem(snfnp.PRESETS, "changing", None)
        del snfnp.PRESETS["changing"]
        snfnp.register("changing", module.build)
    fitted(path, "changing" if registered else module.build)
    module.SLOPE = 0.9
    changed = "its model has changed since it was trained (layers.b.alpha was 0.5, is 0.9)"
    for act in (snfnp.load_run, lambda path: snfnp.resume(path, dataset=DATA, report=None)):
        with one_line(UsageError, path, changed, "restore the code"):
            act(path)
    module.SLOPE = 0.5
    assert snfnp.load_run(path).flow.layers[1][1].alpha == 0.5
    monkeypatch.setattr(module, "Linear", module.Own)
    renamed = type("Other", (module.Own,), {})
    monkeypatch.setattr(module, "Own", renamed)
    with one_line(UsageError, "(layers.a.class was Own, is Other)"):
        snfnp.load_run(path)
    record = json.loads((path / "config.json").read_text())
    del record["model"]["flow"]
    forge(path, record=record)
    with one_line(UsageError, path, "has no description of its flow", "train it again"):
        snfnp.load_run(path)


GONE = "gone"  # no value: the entry is removed
ODD = (
    *(GONE, None, True, 0, 1, -1, 10**400, -(2**63), 0.5, -0.0, 1e308, 5e-324),
    *("", "x", "0", "a\x1b[31m\n", "é" * 9999, [], [[]], {}, {"class": None}, [None], [1e300] * 2),
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Finished runs of rows, and of images with a controller of λ."""
    root = tmp_path_factory.mktemp("runs")
    how = {"backend": "numpy", "batch_size": 20, "epochs": 1, "warmup_epochs": 0.5, "report": None}
    small = {"model": "vector", "depth": 1, "activation": "smooth-leaky-relu"}
    snfnp.fit(DATA, out=root / "rows", **small, **how)
    pixels = np.random.default_rng(1).integers(0, 256, (140, 4, 4)).astype(np.uint8)
    images = snfnp.Dataset("mine", pixels[40:], pixels[:20], pixels[20:40])
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
    record, said = copy.deepcopy(record), []
    for _ in range(rng.integers(1, 3)):
        known = list(places(record))
        *path, name = known[rng.integers(len(known))]
        inside, odd = record, copy.deepcopy(ODD[rng.integers(len(ODD))])
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
    assert np.isfinite(run.likelihood.log_prob(data.test[:2])).all()


@pytest.mark.parametrize("seed", range(3))
def test_a_forged_config_opens_and_goes_on_or_is_one_line(seed, runs, tmp_path):
    rng, opened = np.random.default_rng(seed), 0
    for path, data in runs.items():
        run = shutil.copytree(path, tmp_path / path.name)
        record = json.loads((run / "config.json").read_text())
        for place in range(60):
            other, said = forged(record, rng)
            forge(run, other)
            opened += opens_or_is_one_line(lambda: used(run, data), said)  # noqa: B023
            opens_or_is_one_line(lambda: compare.open_runs([run]), said)  # noqa: B023
            if place < 8:
                again = shutil.copytree(run, tmp_path / f"{path.name}-{place}")
                act = lambda: snfnp.resume(again, dataset=data, report=None)  # noqa: B023, E731
                opens_or_is_one_line(act, said)
    assert 0 < opened < 120


@pytest.mark.parametrize("seed", range(2))
def test_a_forged_header_opens_or_is_one_line(seed, runs, tmp_path):
    rng = np.random.default_rng(200 + seed)
    for path, data in runs.items():
        run = shutil.copytree(path, tmp_path / path.name)
        layout = snfnp.load_run(run).layout
        saved = load_checkpoint(run / "best.safetensors", layout)
        record = saved.record
        for _ in range(40):
            saved.record, said = forged(record, rng)
            for name in ("best", "last"):
                save_checkpoint(run / f"{name}.safetensors", saved)
            opens_or_is_one_line(lambda: used(run, data), said)  # noqa: B023
            opens_or_is_one_line(RunFolder(run).read_metrics, said)


@pytest.mark.parametrize("seed", range(2))
def test_a_forged_estimator_loads_or_is_one_line(seed, tmp_path):
    rng, path = np.random.default_rng(300 + seed), tmp_path / "density"
    density = snfnp.FlowDensity(1, activation="smooth-leaky-relu", epochs=1, random_state=0)
    density.fit(ROWS).save(path)
    saved = estimator_checkpoint(path)
    record = saved.record

    def load():
        with np.errstate(all="ignore"):
            assert not np.isnan(snfnp.FlowDensity.load(path).score_samples(ROWS)).any()

    for _ in range(60):
        saved.record, said = forged(record, rng)
        save_checkpoint(path, saved)
        opens_or_is_one_line(load, said)


def test_records_and_names_of_files_are_shown_and_not_sent_to_a_terminal(runs, tmp_path, capsys):
    path, name = next(iter(runs)), "a\x1b[31m\nb"
    record = json.loads((path / "config.json").read_text())
    record["data"]["source"] = record["config"]["data"] = "x\x1b]0;title\x07\n"
    run = shutil.copytree(path, tmp_path / name)
    forge(run, record)
    np.save(tmp_path / f"{name}.npy", ROWS + 1)
    compare.main([str(run), str(run), "--plot", str(tmp_path / f"{name}.png")])
    score.main([str(run), str(tmp_path / f"{name}.npy"), "--data", "moons"])
    sample.main([str(run), "--count", "4", "--out", str(tmp_path / f"{name}.csv")])
    said = capsys.readouterr().out
    assert "\\x1b]0;title" in said
    assert said.count("a\\x1b[31m\\nb") >= 5 and said.replace("\n", "").isprintable()
