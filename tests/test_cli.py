"""What the scripts share, in this process: options of the GPU, running out of memory."""

import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from snfnp import ops
from snfnp.cli import COMMANDS, main, run_script, train
from snfnp.data import Dataset
from snfnp.errors import DivergedError, SnfnpError, UsageError
from snfnp.ops.backends import DEFINITIONS, assemble
from snfnp.ops.gpu import requirements
from snfnp.ops.host import HostDevice, MemoryShortfall
from snfnp.parameters import Layout
from snfnp.training import session
from snfnp.training.memory import within_memory
from snfnp.training.options import TrainConfig
from snfnp.training.runs.description import describe_run
from snfnp.training.runs.folder import RunFolder

ROOT = Path(__file__).resolve().parents[1]


# ---------------------------------------------------------------- --graph, --tf32 and --overlap


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"graph": False}, "--no-graph only has an effect with --backend cupy: leave it out"),
        ({"tf32": True}, "--tf32 only has an effect with --backend cupy: leave it out"),
        (
            {"backend": "cupy", "tf32": True, "dtype": "float64"},
            "--tf32 only has an effect with --dtype float32: leave it out",
        ),
    ],
)
def test_what_only_the_gpu_knows_is_refused_elsewhere(changes, message):
    with pytest.raises(UsageError) as caught:
        TrainConfig(**changes).resolve(1000)
    assert str(caught.value) == message


def test_the_gpu_replays_a_graph_in_full_precision_unless_told_otherwise():
    plain = TrainConfig(backend="cupy").resolve(1000)
    assert (plain.graph, plain.tf32, plain.overlap) == (True, False, False)
    told = TrainConfig(backend="cupy", graph=False, tf32=True, overlap=True).resolve(1000)
    assert TrainConfig.from_dict(json.loads(json.dumps(told.as_dict()))) == told


def test_a_configuration_of_before_these_options_is_read():
    saved = TrainConfig().as_dict()
    del saved["graph"], saved["tf32"], saved["overlap"]
    assert TrainConfig.from_dict(saved) == TrainConfig()


def test_tf32_and_overlap_reach_the_backend(monkeypatch):
    asked = []

    def gpu(tf32, world, overlap):
        asked.append((tf32, world, overlap))
        return HostDevice("cupy")

    monkeypatch.setitem(sys.modules, "snfnp.ops.gpu.device", SimpleNamespace(Gpu=gpu))
    monkeypatch.setattr(ops, "overrides", lambda kind: ops.DEFINITIONS)
    ops.get_ops("cupy", tf32=True)
    ops.get_ops("cupy", overlap=True)
    assert asked == [(True, ops.SINGLE_PROCESS, False), (False, ops.SINGLE_PROCESS, True)]
    assert ops.get_ops("numpy", tf32=True, overlap=True).name == "numpy"


@pytest.mark.parametrize(
    "options, asked",
    [([], "False False"), (["--tf32"], "True False"), (["--overlap"], "False True")],
)
def test_training_asks_for_its_backend_with_its_options(monkeypatch, options, asked):
    def refuse(backend, tf32, world, overlap):
        assert world is ops.SINGLE_PROCESS
        raise SnfnpError(f"{backend} {tf32} {overlap}")

    monkeypatch.setattr(session, "get_ops", refuse)
    with pytest.raises(SnfnpError) as caught:
        train.main(["--backend", "cupy", *options])
    assert str(caught.value) == f"cupy {asked}"


def test_config_json_records_the_device_and_its_options():
    """What a backend says of its device is passed on as it is."""

    class Described(HostDevice):
        def describe(self):
            return {"name": "a card", "tf32": True}

    config = TrainConfig(backend="cupy", tf32=True, graph=False).resolve(1000)
    flow = config.build_flow((4, 4, 1))
    images = np.zeros((3, 4, 4, 1), np.uint8)
    dataset = Dataset("mnist", images, images, images, "zeros", False)
    layout = Layout.of(flow.parameter_shapes())
    described = assemble(Described("numpy"), DEFINITIONS)
    record = describe_run(config, flow, layout, dataset, described)
    assert record["device"] == {"name": "a card", "tf32": True}
    assert (record["config"]["tf32"], record["config"]["graph"]) == (True, False)


def resumed(folder, given, **started):
    """What --resume makes of a run that was started with some settings."""
    config = TrainConfig(**started)
    (folder / "config.json").write_text(json.dumps({"config": config.as_dict()}))
    return RunFolder(folder).resumed_config(given)


def test_a_resumed_run_may_change_backend_graph_and_overlap(tmp_path):
    assert resumed(tmp_path, {"graph": False}, backend="cupy").graph is False
    assert resumed(tmp_path, {"graph": True}, backend="cupy", graph=False).graph is True
    assert resumed(tmp_path, {}, backend="cupy", graph=False).graph is False
    moved = resumed(tmp_path, {"backend": "numba"}, backend="cupy", graph=False).resolve(1000)
    assert (moved.backend, moved.graph) == ("numba", True)
    kept = resumed(tmp_path, {"backend": "cupy"}, backend="numba")
    assert (kept.backend, kept.graph) == ("cupy", True)
    moved = resumed(tmp_path, {"backend": "numba"}, backend="cupy", overlap=True).resolve(1000)
    assert (moved.backend, moved.overlap) == ("numba", False)
    asked = resumed(tmp_path, {"backend": "numba", "graph": False}, backend="cupy")
    with pytest.raises(UsageError, match="--no-graph only has an effect with"):
        asked.resolve(1000)


@pytest.mark.parametrize(
    "given, started, message",
    [
        ({"tf32": True}, {}, "was started with tf32 = False: it cannot go on with True"),
        ({"tf32": False}, {"tf32": True}, "was started with tf32 = True: it cannot go on with"),
        (
            {"backend": "numba"},
            {"tf32": True},
            "was started with --tf32, which --backend numba does not have: leave --backend out",
        ),
    ],
)
def test_a_resumed_run_keeps_its_precision(tmp_path, given, started, message):
    with pytest.raises(UsageError, match=message):
        resumed(tmp_path, given, backend="cupy", **started)
    assert resumed(tmp_path, {}, backend="cupy", tf32=True).tf32 is True


# ---------------------------------------------------------------- out of memory


class Full(HostDevice):
    """A device that tells how much a MemoryError was about: its arguments."""

    def shortfall(self, error):
        return (
            MemoryShortfall("the card is full", *error.args) if type(error) is MemoryError else None
        )


FULL = assemble(Full("numpy"), DEFINITIONS)


def advice(*amounts, option="--batch-size", count=64, **settings):
    with (
        pytest.raises(SnfnpError) as caught,
        within_memory(FULL, option, count, **settings),
    ):
        raise MemoryError(*amounts)
    assert caught.value.exit_status == 1
    return str(caught.value)


def test_a_number_that_fits_is_named():
    expected = (
        "out of memory: the card is full: try --batch-size {} or smaller (estimated in "
        "proportion: what 64 had taken when it failed)"
    )
    assert advice(250, 100) == expected.format(16)
    assert advice(250, 100, fixed=lambda: 50) == expected.format(16)
    assert advice(250, 100, fixed=lambda: 70) == expected.format(8)
    assert advice(250, 100, also=", or --recompute") == expected.format(16) + ", or --recompute"


def test_where_nothing_fits_or_nothing_is_known_no_number_is_made_up():
    assert advice(250, 100, fixed=lambda: 101).endswith(
        "not even --batch-size 1 would fit here: use a device with more memory"
    )
    assert advice(option="--count", count=9).endswith("full: choose a smaller --count than 9")


def test_other_errors_pass_and_cost_nothing():
    def fixed():
        raise AssertionError("asked for although nothing failed")

    for error in (DivergedError("NaN"), ValueError("shape"), KeyboardInterrupt()):
        with (
            pytest.raises(type(error)) as caught,
            within_memory(FULL, "--batch-size", 8, fixed),
        ):
            raise error
        assert caught.value is error
    with within_memory(FULL, "--batch-size", 8, fixed):
        pass


@pytest.mark.parametrize(
    "model, more, also",
    [("fc", (), ""), ("conv", (), ", or --recompute"), ("conv", ("--recompute",), "")],
)
def test_training_counts_its_buffers_and_ends_in_one_line(
    monkeypatch, capsys, tmp_path, model, more, also
):
    """A device with room for p, g, m and v and for 30 images: of 100, 25 fit."""
    config = TrainConfig(model=model).resolve(100)
    fixed = 4 * 4 * Layout.of(config.build_flow((28, 28, 1)).parameter_shapes()).size
    image = 1000

    def run_out(*arguments, **settings):
        raise MemoryError(fixed + 100 * image, fixed + 30 * image)

    monkeypatch.setattr(session, "train", run_out)
    monkeypatch.setattr(session, "get_ops", lambda backend, **settings: FULL)
    images = np.zeros((100, 28, 28, 1), np.uint8)
    dataset = SimpleNamespace(train=images, validation=images, test=images)
    monkeypatch.setattr(session, "load_dataset", lambda *arguments: dataset)
    options = ["--model", model, "--batch-size", "100", *more, "--out", str(tmp_path / "run")]
    monkeypatch.setattr("sys.argv", ["train.py", *options])
    with pytest.raises(SystemExit) as caught:
        run_script(train.main)
    assert caught.value.code == 1
    out, err = capsys.readouterr()
    assert err == (
        "error: out of memory: the card is full: try --batch-size 25 or smaller (estimated in "
        f"proportion: what 100 had taken when it failed){also}\n"
    )


@pytest.mark.parametrize("text, told", [("Unable.", "Unable"), ("", "nothing more is known")])
def test_memory_that_runs_out_elsewhere_is_one_line_too(capsys, text, told):
    def run_out(argv):
        raise MemoryError(text)

    with pytest.raises(SystemExit) as caught:
        run_script(run_out)
    assert caught.value.code == 1
    assert capsys.readouterr().err == (
        f"error: out of memory ({told}): ask for less at once, or see which other program has it\n"
    )


# ---------------------------------------------------------------- python -m snfnp


def command_line(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "snfnp", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT.parent,
    )


@pytest.mark.parametrize("arguments", [(), ("--help",)])
def test_without_a_command_all_are_listed(arguments):
    done = command_line(*arguments)
    assert done.returncode == 0
    for name, summary in COMMANDS.items():
        assert re.search(rf"^  {name} +{summary}$", done.stdout, re.M)


def test_an_unknown_command_is_one_line():
    done = command_line("trian")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: no command is called trian: choose from train, ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_there_and_says_how_it_was_called(name, capsys):
    with pytest.raises(SystemExit) as caught:
        main([name, "--help"])
    assert caught.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: python -m snfnp {name} [-h]")


def test_every_module_of_a_command_is_listed():
    modules = {path.stem for path in (ROOT / "snfnp" / "cli").glob("*.py")}
    assert modules - {"__init__", "processes", "shared", "terminal"} == set(COMMANDS)


# ---------------------------------------------------------------- packaging


def test_every_file_of_the_kernels_is_packed():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    patterns = settings["tool"]["setuptools"]["package-data"]["snfnp.ops"]
    folder = ROOT / "snfnp" / "ops"
    files = [path for path in folder.rglob("*") if path.is_file() and path.parent.name[0] != "_"]
    others = [path for path in files if path.suffix != ".py"]
    assert others
    packed = {path for pattern in patterns for path in folder.glob(pattern)}
    assert set(others) <= packed


def test_the_source_distribution_has_what_its_tests_need():
    """Everything at the top of the checkout, but for what concerns the checkout alone."""
    lines = (ROOT / "MANIFEST.in").read_text().splitlines()
    words = [line.split() for line in lines]
    packed = {name for first, *names in words if first in ("graft", "include") for name in names}
    assert [name for name in packed if not (ROOT / name).exists()] == []
    assert {"tests", "derivations", "scripts", "requirements.txt"} <= packed
    always = {"snfnp", "README.md", "LICENSE", "pyproject.toml", "MANIFEST.in"}
    if (ROOT / ".git").exists() and shutil.which("git"):
        listed = subprocess.run(
            ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
        )
        tops = {name.split("/")[0] for name in listed.stdout.split("\0") if name}
        assert tops - {".ci", ".gitignore"} <= packed | always


def test_the_extras_are_the_wheels_that_the_advice_names():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras = settings["project"]["optional-dependencies"]
    for major in requirements._DRIVERS:
        (requirement,) = extras[f"cuda{major}"]
        first, second = requirements._OLDEST_CUPY
        assert requirement == f"cupy-cuda{major}x[ctk]>={first}.{second},<{first + 1}"
        (nccl,) = extras[f"nccl{major}"]
        assert nccl.startswith(f"nvidia-nccl-cu{major}>=")
