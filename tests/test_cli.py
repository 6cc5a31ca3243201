"""What the scripts share, in this process: options of the GPU, running out of memory."""

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from numpy.random import default_rng
from support.arrays import normal, pixels
from support.messages import cases, one_line
from support.processes import program, python
from support.runs import SHORT

import snfnp
from snfnp import ops, threads
from snfnp.cli import COMMANDS, main, run_script, train
from snfnp.data import Dataset
from snfnp.errors import DivergedError, SnfnpError, UsageError, flag_of, within_memory
from snfnp.ops import DEFINITIONS, assemble
from snfnp.ops.gpu import requirements
from snfnp.ops.host import HostDevice
from snfnp.training import loop, session
from snfnp.training.options import TrainConfig
from snfnp.training.options.config import OPTIONS
from snfnp.training.runs.folder import RunFolder

ROOT = Path(__file__).resolve().parents[1]
NUMBA = {"backend": "numba"}
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_the_gpu_replays_a_graph_in_full_precision_unless_told_otherwise():
    plain = TrainConfig(backend="cupy").resolve(1000)
    assert (plain.graph, plain.tf32) == (True, False)
    told = TrainConfig(backend="cupy", graph=False, tf32=True).resolve(1000)
    assert TrainConfig.from_dict(json.loads(json.dumps(told.as_dict()))) == told
    saved = TrainConfig(backend="numpy").as_dict()
    assert not {"graph", "tf32"} & saved.keys()  # they have no effect on a CPU
    assert TrainConfig.from_dict(saved) == TrainConfig(backend="numpy")


@pytest.mark.parametrize("options, asked", [([], "False"), (["--tf32"], "True")])
def test_tf32_reaches_the_device(monkeypatch, options, asked):
    def gpu(tf32):
        raise SnfnpError(str(tf32))

    monkeypatch.setitem(sys.modules, "snfnp.ops.gpu.device", SimpleNamespace(Gpu=gpu))
    with pytest.raises(SnfnpError) as caught:
        train.main(["--backend", "cupy", *options])
    assert str(caught.value) == asked
    assert ops.get_ops("numpy", tf32=True).name == "numpy"


def resumed(folder, given, **started):
    """What --resume makes of a run that was started with some settings."""
    config = TrainConfig(**{"backend": "cupy", **started})
    RunFolder(folder).write_config({"config": config.filled().as_dict()})
    return RunFolder(folder).resumed_config(given)


@pytest.mark.parametrize(
    "given, started, found",
    [
        ({"graph": False}, {}, {"graph": False}),
        ({"graph": True}, {"graph": False}, {"graph": True}),
        ({}, {"graph": False}, {"graph": False}),
        (NUMBA, {"graph": False}, NUMBA | {"graph": True}),
        ({"backend": "cupy"}, NUMBA, {"backend": "cupy", "graph": True}),
        ({}, {"tf32": True}, {"tf32": True}),
        (
            {"eval_dtype": "float32"},
            {"tf32": True},
            "`tf32` would round the products of",
        ),
        (NUMBA | {"graph": False}, {}, "`graph=False` only has an effect with"),
        (
            NUMBA,
            {"tf32": True},
            "`tf32`, which needs `backend=cupy`: keep that",
        ),
        (
            {"data": "a.npy"},
            NUMBA | {"data": "a.csv", "header": True},
            "`header`, which needs `data=PATH` of a table",
        ),
    ],
)
def test_a_resumed_run_may_change_its_backend_and_keeps_its_precision(
    tmp_path, given, started, found
):
    if isinstance(found, str):
        with pytest.raises(UsageError, match=found):
            resumed(tmp_path, given, **started).resolve(1000)
    else:
        config = resumed(tmp_path, given, **started).resolve(1000)
        assert {name: getattr(config, name) for name in found} == found


class Full(HostDevice):
    """A device that has no memory left."""

    def shortfall(self, error):
        if type(error) is MemoryError:
            return "the card is full"


FULL = assemble(Full("numpy"), DEFINITIONS)


def test_other_errors_than_of_memory_pass():
    for error in (DivergedError("NaN"), ValueError("shape"), KeyboardInterrupt()):
        with pytest.raises(type(error)) as caught, within_memory(FULL, "batch_size", 8):
            raise error
        assert caught.value is error


@pytest.mark.parametrize(
    "model, more, also",
    [("fc", (), ""), ("conv", (), ", or --recompute"), ("conv", ("--recompute",), "")],
)
def test_training_that_runs_out_of_memory_ends_in_one_line(
    monkeypatch, capsys, tmp_path, model, more, also
):
    def run_out(*arguments, **settings):
        raise MemoryError

    monkeypatch.setattr(loop, "Trainer", run_out)
    monkeypatch.setattr(session, "get_ops", lambda backend, **settings: FULL)
    images = np.zeros((100, 28, 28, 1), np.uint8)
    dataset = Dataset("mnist", images, images, images, "zeros", False)
    monkeypatch.setattr(session, "load_dataset", lambda *arguments: dataset)
    words = f"train.py --batch-size 100 --model {model} --out {tmp_path}/run"
    monkeypatch.setattr("sys.argv", [*words.split(), *more])
    with pytest.raises(SystemExit) as caught:
        run_script(train.main)
    assert caught.value.code == 1
    advice = f"choose a smaller --batch-size than 100{also}"
    assert (
        capsys.readouterr().err == f"error: out of memory: the card is full: {advice}\n"
    )


@pytest.mark.parametrize(
    "text, told", [("Unable.", "Unable"), ("", "nothing more is known")]
)
def test_memory_that_runs_out_elsewhere_is_one_line_too(capsys, text, told):
    def run_out(argv):
        raise MemoryError(text)

    with pytest.raises(SystemExit) as caught:
        run_script(run_out)
    assert caught.value.code == 1
    assert capsys.readouterr().err == (
        f"error: out of memory ({told}): ask for less at once, or see which other program has it\n"
    )


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_without_a_command_all_are_listed(arguments, capsys):
    main(arguments)
    out = capsys.readouterr().out
    for name, summary in COMMANDS.items():
        assert re.search(rf"(?m)^  {name} +{summary}$", out)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with data, runs of rows and of images, and what is neither."""
    rng = default_rng(0)
    folder = tmp_path_factory.mktemp("place")
    for name in ("folder.png", "empty", "new"):
        (folder / name).mkdir()
    (folder / "broken.py").write_text("1 / 0")
    for name in ("rows", "others"):
        np.save(folder / f"{name}.npy", rng.normal(size=(200, 3)))
    np.save(folder / "grey.npy", pixels(60, 4, 6))
    np.save(folder / "two.npy", np.ones((4, 2)))
    np.save(folder / "nan.npy", [[0.0, 1.0, 2.0], [3.0, np.nan, 4.0]])
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        patched.setattr(train, "_draw", lambda *_: None)
        for name in ("rows", "others", "grey"):
            train.main([f"{name}.npy", *QUICK, "--out", name])
    shutil.copy(folder / "rows" / "config.json", folder / "new")
    return folder


QUICK = SHORT.replace("--epochs 2", "--epochs 1").split()
WRONG = cases("""
qqq | no command is called qqq: choose from train, evaluate, sample, angle,
trian | no command is called trian (did you mean train?): choose from train,
train --qqq | unrecognized arguments: --qqq: see python -m snfnp train --help
train --epoch 2 | unrecognized arguments: --epoch (did you mean --epochs?): see
train x --batchsize=2 | --batchsize=2 (did you mean --batch-size?): see python
train --model qqq | `model=qqq` is unknown: choose one of fc, vector, conv,
train --model con | `model=con` is unknown (did you mean conv?): choose one of
check --layer splines | no layer, rule or map has 'splines' in its name (did you
check --layer foo | one of these: actnorm; anticausal conv; bias; causal conv;
train --backend cuda | 'cupy') (did you mean cupy?): see python -m snfnp train
check --dtype int | argument --dtype: invalid choice: 'int' (choose from
evaluate | the following arguments are required: run: see python -m snfnp eval
evaluate rows --split valid | 'all') (did you mean validation?): see python -m
evaluate rows --split all | `split=all` is for other data: name them with `data`
evaluate rows --batch-size -2 | `batch_size` is -2: it must be at least 1
evaluate rows --scores a.txt | `scores` is a.txt: its name must end in .c
evaluate rows --split all --data no.csv | no.csv does not exist: check it, or give the path
evaluate rows --split all --data mons | mons does not exist (did you mean moons
evaluate rows --split all --data two.npy --data-dir x | `data_dir` is for pub
evaluate rows --split all --data grey.npy | grey.npy: shape (60, 4, 6, 1) is
evaluate rows --split all --data two.npy | two.npy: shape (4, 2) is not (N, 3)
evaluate rows --split all --data nan.npy | nan.npy (train): nan in row 1, colu
evaluate rows --data moons --drop-incomplete | is for tables, and moons is none
evaluate rows --model broken:x | cannot be imported (ZeroDivisionError
evaluate rows --model missing:x | cannot be imported (ModuleNotFoundError
evaluate rows --model json:x | cannot be imported (AttributeError
evaluate rows --model os:sep | os:sep is of type str: let it be build(shape)
evaluate rows --model os:system | system takes command: let it be build(shape)
evaluate rows --model {"class":"a:b"} | flow
sample empty | empty is no run folder (it has no config.json): check the path
sample rows --seed -1 | `seed` is -1: it must be from 0 to 9,223,372,036,854,775,807
sample rows --seed 1e23 | argument --seed: invalid int value: '1e23': see python
sample rows --temperature inf | `temperature` is inf: it must be at least 0 and
sample rows --temperature -1 | `temperature` is -1.0: it must be at least 0 and
sample rows --count 0 | `count` is 0: it must be at least 1
sample no --out no/a.png | cannot write no/a.png (No such file or directory):
sample no --out x.txt | `out` is x.txt: its name must end in .png or .pdf or
sample no --out folder.png | `out` is folder.png, which is a folder: give the
sample grey --count 100000000 | would be a picture of 69,999 x 49,999 pixels
compare empty | empty is no run folder (it has no config.json): check the path
compare new | has no evaluation yet
compare rows grey | grey was trained on other data than rows: their likelihoods
compare rows others | others was trained on other data than rows: their likeli
compare rows --plot a.txt | `plot` is a.txt: its name must end in .png or
train  | `data` is
train --data= | `data` is : it must be a name or a path
train mnits | 'mnits' is neither a data set nor a path (did you mean mnist?): use
train rows.npy --data mnist | rows.npy and `data=mnist`: give one of them
train rows.npy --data-dir x | `data_dir` only has an effect with `data=mnist or
train rows.npy --test 1.5 | `test` is 1.5: give a fraction between 0 and 1, or
train rows.npy --test there.npy | there.npy does not exist: check it, or give the path
train rows.npy --test moons | moons does not exist: check it, or give the path
train rows.npy --test 0.995 | would be left to train on: give more, or smaller fractions
train rows.npy --model conv | `model=conv` needs images, found rows of 3 number
train rows.npy --augment | `augment` needs images, found rows of 3 numbers: lea
train rows.npy --preprocess logit | is not for rows of numbers: leave it out
train rows.npy --batch-size 500 | but there are only 160 training rows: choose
train grey.npy --batch-size 101 | but there are only 48 training images: choose
train grey.npy --ties keep | `ties` needs rows of numbers, found images: leave
train grey.npy --preprocess none | `preprocess=none` is not for images: leave
train grey.npy --test rows.npy | shape (200, 3) beside (54, 4, 6, 1) of train
train grey.npy --model glow --levels 4 | a squeeze needs an even height and
train grey.npy --lr-schedule cosine --epochs 3 --warmup-epochs 3 | (3), and `epochs` is 3
train --data mnist-sample --test 0.1 | `test` only has an effect with `data=P
train rows.npy --epochs 0 | `epochs` is 0: it must be at least 1
train --resume later | argument --resume: invalid choice: 'later' (choose from
train --resume | `resume` and `rollback` need `out`: name the run's folder
train --resume auto | `resume` and `rollback` need `out`: name the run's folder
train --rollback | `resume` and `rollback` need `out`: name the run's folder
train --rollback --resume auto --out rows | would go back each time: choose one
train rows.npy --resume auto --out two.npy/a | cannot make two.npy/a (Not a dir
""")


WRONG |= {
    "evaluate rows --data mnist-sample": "rows was trained on [160, 20, 20] rows (train, "
    "validation, test) of shape (3,), rows from ",
    f"evaluate rows --model {'[' * 50_000}": "flow",
    f"sample rows --seed {10**23}": f"`seed` is {10**23}: it must be from 0 to 9,223,372",
    f"sample rows --count -{'9' * 2000}": "`count` is -999999999",
    f"sample no --out {'x' * 300}.png": "x.png (File name too long): choose another ",
    "train --threads 10000": f"there are {threads.cores()} cores here: choose ",
    f"train rows.npy --resume auto --out {'a' * 256}": "(File name too long): choose",
    f"train rows.npy --resume auto --out {'a' * 5000}": "cannot make aaaa",
}


@pytest.mark.parametrize("line", WRONG, ids=lambda line: line[:60])
def test_what_cannot_be_done_is_one_line_and_leaves_nothing(
    line, place, monkeypatch, capsys
):
    monkeypatch.chdir(place)
    monkeypatch.setenv("SNFNP_OFFLINE", "1")
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # of broken.py
    before = sorted(place.rglob("*"))
    with one_line(UsageError, WRONG[line]):
        main(line.split(" "))
    assert capsys.readouterr().out == "" and sorted(place.rglob("*")) == before


def test_help_has_the_everyday_options_and_help_all_has_all(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    others = {"--help-all", "--resume", "--rollback"}
    everyday = set(map(flag_of, train.EVERYDAY)) | others
    for word, expected in (
        ("--help", everyday),
        ("--help-all", others | set(map(flag_of, OPTIONS))),
    ):
        with pytest.raises(SystemExit):
            main(["train", word])
        out = capsys.readouterr().out
        listed = re.findall(r"(?m)^  (--[\w-]+)", out)
        assert sorted(listed) == sorted(expected)
        assert not re.search(r"--[\w-]+ (INT|FLOAT|STR|[A-Z]+_[A-Z]+)\b", out)
        assert out.count("\n") <= 2 * 50 or word == "--help-all"


def test_the_version_and_the_name_of_the_console_command(capsys, monkeypatch):
    module, _, name = SETTINGS["project"]["scripts"]["snfnp"].partition(":")
    console = getattr(importlib.import_module(module), name)
    for argv, said in (
        (["--version"], f"snfnp {snfnp.__version__}\n"),
        ([], "usage: snfnp COM"),
    ):
        monkeypatch.setattr(sys, "argv", ["/somewhere/bin/snfnp", *argv])
        console()
        assert capsys.readouterr().out.startswith(said)


def test_every_module_of_a_command_is_listed():
    modules = {path.stem for path in (ROOT / "snfnp" / "cli").glob("*.py")}
    assert modules - {"__init__", "shared"} == set(COMMANDS)


def test_every_file_of_the_kernels_is_packed():
    patterns = SETTINGS["tool"]["setuptools"]["package-data"]["snfnp.ops"]
    folder = ROOT / "snfnp" / "ops"
    files = [
        path
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    ]
    others = {path for path in files if path.suffix != ".py"}
    assert others and others <= {
        path for each in patterns for path in folder.glob(each)
    }


def test_the_source_distribution_has_what_its_tests_need():
    """Everything at the top of the checkout, but for what concerns the checkout alone."""
    words = [line.split() for line in (ROOT / "MANIFEST.in").read_text().splitlines()]
    packed = {
        name
        for first, *names in words
        if first in ("graft", "include")
        for name in names
    }
    assert [name for name in packed if not (ROOT / name).exists()] == []
    assert {"tests", "derivations", "scripts", "requirements.txt"} <= packed
    always = {"snfnp", "README.md", "LICENSE", "pyproject.toml", "MANIFEST.in"}
    if (ROOT / ".git").exists() and shutil.which("git"):
        listed = subprocess.check_output(["git", "ls-files", "-z"], cwd=ROOT, text=True)
        tops = {name.split("/")[0] for name in listed.split("\0") if name}
        assert (
            tops - {".ci", ".github", ".gitignore", ".pre-commit-config.yaml"}
            <= packed | always
        )


def test_messages_name_packages_and_pages_keep_the_checkout_editable():
    """An installed wheel has no folder for `.[extra]`; a plain extra would replace the checkout by
    a copy of it, whose scripts then ignore every edit."""
    for path in (ROOT / "snfnp").rglob("*.py"):
        assert '".[' not in path.read_text("utf-8"), path
    pages = [
        *ROOT.glob("*.*"),
        *ROOT.glob("scripts/*.md"),
        *ROOT.glob("derivations/**/*.md"),
    ]
    for path in (each for each in pages if each.suffix in (".md", ".txt")):
        assert not re.search(r'pip install "?\.', path.read_text("utf-8")), path


def test_the_names_of_the_package_are_those_of_its_stub():
    """Folders among them, and nothing is loaded before it is asked for."""
    assert "__init__.pyi" in SETTINGS["tool"]["setuptools"]["package-data"]["snfnp"]
    names = [name for name, place in snfnp._MODULES.items() if place == "snfnp"]
    code = "import sys, snfnp; assert 'numpy' not in sys.modules; "
    code += "sys.modules['sklearn'] = None; snfnp.layers.ActNorm(); snfnp.FlowDensity; "
    code += f"print(*(getattr(snfnp, name).__name__ for name in {names})); snfnp.room"
    done = python(code, cwd=ROOT)
    assert done.stdout.split() == [f"snfnp.{name}" for name in names]
    assert "layers" in names
    assert "module 'snfnp' has no attribute 'room'" in done.stderr
    assert all(getattr(snfnp, name) for name in snfnp.__all__)


def test_the_extras_are_the_wheels_that_the_advice_names():
    extras = SETTINGS["project"]["optional-dependencies"]
    first, second = requirements._OLDEST_CUPY
    for major in requirements._DRIVERS:
        (cupy,) = extras[f"cuda{major}"]
        assert cupy == f"cupy-cuda{major}x[ctk]>={first}.{second},<{first + 1}"
        assert f'install "{cupy}"' in requirements.install(major)


CONSOLE = "import sys; sys.path.pop(0); from snfnp.cli import run_script; run_script()"
COMMAND = {"installed": ["-c", CONSOLE], "python -m": ["-m", "snfnp"]}
OWN_MODEL = """
import snfnp
from snfnp.layers import Linear
from snfnp.maps import Dense

def build(shape):
    return snfnp.Flow(shape, (("dense", Linear(Dense(*shape))),))
"""


@pytest.mark.slow
@pytest.mark.parametrize("way", COMMAND)
def test_a_command_finds_a_model_in_the_current_folder(way, tmp_path):
    (tmp_path / "my_flows.py").write_text(OWN_MODEL)
    np.save(tmp_path / "rows.npy", normal(60, 3))
    words = ["train", "rows.npy", *QUICK, "--out", "run", "--model", "my_flows:build"]
    done = program(*COMMAND[way], *words, cwd=tmp_path, PYTHONPATH=str(ROOT))
    assert done.returncode == 0 and "my_flows:build: " in done.stdout, done.stderr


OTHERS = """numpy scipy numba llvmlite tqdm safetensors threadpoolctl PIL matplotlib pooch cupy
sklearn joblib yaml cffi pandas polars torch IPython ipywidgets packaging colorama"""
NOTED = """
import sys
name, path = __name__, sys.path[:]
open({!r}, "a").write(name + " ")
sys.path[:] = [place for place in path if place not in ("", {!r})]
del sys.modules[name]
sys.modules[name] = __import__(name)  # the other one
sys.path[:] = path
"""


@pytest.mark.parametrize(
    "way", [*COMMAND, pytest.param("script", marks=pytest.mark.slow)]
)
def test_a_command_in_a_strangers_folder_runs_none_of_its_files(way, tmp_path, undrawn):
    """One for each module that Python has, and others; but what Python imports for any program."""
    rows, run, here, ran = (
        tmp_path / name for name in ("rows.npy", "run", "here", "ran")
    )
    np.save(rows, normal(60, 3))
    here.mkdir()
    for name in {*sys.stdlib_module_names, *OTHERS.split()} - {"__main__"}:
        (here / f"{name}.py").write_text(NOTED.format(str(ran), str(here)))
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "__main__.py").touch()

    def noted(*words):
        ran.write_text("")
        done = program(*words, cwd=here, PYTHONPATH=f"{ROOT}{os.pathsep}{tmp_path}")
        assert done.returncode == 0, done.stderr
        return set(ran.read_text().split())

    assert "plistlib" in noted("-c", "import plistlib")
    expected = noted("-m", "empty") if way == "python -m" else set()
    options = [str(rows), *QUICK, "--out", str(run)]
    if way == "script":
        words = [ROOT / "scripts" / "train_mnist.py", *options, "--model", "fc"]
    else:
        train.main(options)
        words = [*COMMAND[way], "evaluate", run]
    assert noted(*words) == expected and len(expected) < 4


@pytest.mark.slow
def test_without_a_current_folder_a_command_says_what_it_needs(tmp_path, undrawn):
    np.save(tmp_path / "rows.npy", normal(60, 3))
    run = str(tmp_path / "run")
    train.main([str(tmp_path / "rows.npy"), *QUICK, "--out", run])
    code = "import os, sys; os.mkdir('gone'); os.chdir('gone'); os.rmdir('../gone');"
    code += "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    for words, said in (
        ("", "NLL"),
        ("--model my_flows:build", "needs my_flows:build, which cannot be imported"),
    ):
        whole = ["-m", "snfnp", "evaluate", run, *words.split()]
        done = python(code, *whole, cwd=tmp_path, PYTHONPATH=str(ROOT))
        assert said in done.stdout + done.stderr and "Traceback" not in done.stderr
