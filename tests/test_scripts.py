"""The scripts as a user runs them, and the commands that pages give."""

import json
import os
import re
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from pages import DERIVATIONS, ROOT
from PIL import Image
from support.arrays import normal
from support.processes import python
from support.runs import config_json

from snfnp.cli import COMMANDS, train
from snfnp.errors import UsageError
from snfnp.models import PRESETS
from snfnp.training.options import TrainConfig

pytestmark = pytest.mark.slow


@pytest.fixture(scope="session")
def environment(tmp_path_factory):
    """Variables: no network, no user's cache, so that the sample is what is left."""
    empty = str(tmp_path_factory.mktemp("cache"))
    return {"SNFNP_DATA_DIR": "", "SNFNP_OFFLINE": "1", "XDG_CACHE_HOME": empty}


def start(environment, name, *arguments):
    command = [sys.executable, str(ROOT / "scripts" / name), *map(str, arguments)]
    pipes = {
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
        "stdin": subprocess.DEVNULL,
    }
    return subprocess.Popen(command, env=os.environ | environment, text=True, **pipes)


# Runs each command of a list as if it were alone, and tells what came of it.
ONE_AFTER_ANOTHER = """
import contextlib, io, json, runpy, sys

results = []
for path, *arguments in json.loads(sys.argv[1]):
    sys.argv, status = [path, *arguments], 0
    with contextlib.redirect_stdout(io.StringIO()) as out:
        with contextlib.redirect_stderr(io.StringIO()) as err:
            try:
                run = runpy.run_path if path.endswith(".py") else runpy.run_module
                run(path, run_name="__main__")
            except SystemExit as end:
                status = end.code or 0
    results.append((status, out.getvalue(), err.getvalue()))
print(json.dumps(results))
"""


def run_all(environment, *commands, cwd=ROOT):
    """(exit status, output, errors) of each (script or module, arguments …): all of them in one
    process, for those that would take longest to start."""
    folder = ROOT / "scripts"
    paths = filter(None, [str(folder), os.environ.get("PYTHONPATH")])
    placed = (
        (folder / name if ".py" in name else name, *words) for name, *words in commands
    )
    told = json.dumps([[*map(str, words)] for words in placed])
    own = environment | {"PYTHONPATH": os.pathsep.join(paths)}
    done = python(ONE_AFTER_ANOTHER, told, cwd=cwd, **own)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def outputs(environment, *commands, **how):
    """What commands print that succeed."""
    results = run_all(environment, *commands, **how)
    for status, out, err in results:
        assert status == 0 and "Traceback" not in err, f"{out}\n{err}"
    return [out for _, out, _ in results]


@pytest.fixture(scope="session")
def finished(environment, tmp_path_factory):
    """A finished run of two epochs, and what it printed."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    options = ("--epochs", 2, "--batch-size", 500, "--out", folder)
    process = start(environment, "train_mnist.py", *options)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0 and "Traceback" not in err, f"{out}\n{err}"
    return Path(re.search("run folder (.*)", out).group(1)), out, err


def test_training_reports_its_progress(finished):
    folder, out, err = finished
    assert err.count("sample") >= 1 and "--data-dir" in err  # the loud line
    for epoch in (1, 2):
        assert re.search(
            rf"epoch +{epoch}/2 exact validation NLL +[\d.]+ nats = [\d.]+ bits", out
        )
    assert re.search(
        r"best epoch 2: .* exact test NLL [\d.]+ nats = [\d.]+ bits/dim", out
    )
    assert "error: Σ" in out and str(folder) in out


def test_the_run_folder_is_complete(finished):
    folder, _, _ = finished
    files = """best.safetensors config.json curves.png last.safetensors metrics.jsonl
    samples.png summary.json"""
    assert sorted(file.name for file in folder.iterdir()) == files.split()
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["best_epoch"] == 2 and summary["test_nll_nats"] > 0
    data = config_json(folder)["data"]
    assert data["is_sample"] and data["images"] == [5000, 1000, 1000]
    for picture in ("samples.png", "curves.png"):
        with Image.open(folder / picture) as image:
            assert image.format == "PNG" and image.width > 400 and image.height > 300


def test_commands_look_at_a_finished_run(environment, finished, tmp_path):
    """As installed, outside the checkout: evaluate finds what training found."""
    folder, trained, _ = finished
    commands = [
        ("snfnp", "evaluate", folder),
        ("snfnp", "angle", folder, "--images", 200),
    ]
    pictures = [tmp_path / f"{number}.png" for number in range(3)]
    ways = (("learned", 1.0), ("exact", 1.0), ("learned", 0.5))
    for picture, (inverse, temperature) in zip(pictures, ways, strict=True):
        options = f"--inverse {inverse} --temperature {temperature} --count 4 --out"
        commands.append(("snfnp", "sample", folder, *options.split(), picture))
    terms, angles, *_ = outputs(environment, *commands, cwd=tmp_path)
    total = float(re.search(r"(?m)^log p\(x\) +(-[\d.]+) ", terms)[1])
    test_nll = re.search(r"exact test NLL ([\d.]+) nats", trained)[1]
    assert abs(-total - float(test_nll)) < 0.006
    row = r"^(dense\d) +([\d.]+)° +([\d.]+)° +([\d.e+-]+) +([\d.e+-]+)$"
    rows = re.findall(row, angles, re.M)
    assert [row[0] for row in rows] == ["dense1", "dense2"]
    assert all(0 < float(angle) < 45 for row in rows for angle in row[1:3])
    contents = {picture.read_bytes() for picture in pictures}
    assert len(contents) == 3 and all(each.startswith(b"\x89PNG") for each in contents)


def test_ctrl_c_writes_a_checkpoint_and_says_how_to_resume(environment, tmp_path):
    """On an output that cannot show λ, which must not stop it either."""
    folder = tmp_path / "run"
    plain = {**environment, "PYTHONIOENCODING": "ascii"}
    options = ("--epochs", 50, "--batch-size", 500, "--out", folder)
    process = start(plain, "train_mnist.py", *options)
    deadline = time.monotonic() + 240
    metrics = folder / "metrics.jsonl"
    while not (metrics.exists() and metrics.read_text()):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in err
    assert f"--resume --out {folder}" in out and "\\u03bb = 1" in out
    assert (folder / "last.safetensors").exists()


REFUSED = """
train_mnist.py --out {run} | exists
train_mnist.py --data-dir {missing} | {missing}
train_mnist.py --data-dir {broken} | {broken}
train_mnist.py --epochs two | invalid int value: 'two'
snfnp sample {exact} | learned no inverse: use --inverse exact
snfnp angle {exact} | without learned inverses
train_imagenet32.py --data-dir {broken} --out x | of ImageNet32:
benchmark.py nonsense | no benchmark of numba is called nonsense
"""


def test_bad_input_is_one_line_and_a_status(environment, finished, tmp_path):
    names = ("missing", "broken", "exact", "rows.npy")
    paths = {name: tmp_path / name for name in names} | {"run": finished[0]}
    np.save(paths["rows.npy"], normal(60, 3))
    few_steps = "--epochs 1 --batch-size 20 --gradient exact --backend numpy --out"
    train.main([*map(str, (paths["rows.npy"], *few_steps.split(), paths["exact"]))])
    paths["broken"].mkdir()
    for name in ("train", "t10k"):
        file = paths["broken"] / f"{name}-images-idx3-ubyte"
        file.write_bytes(b"\0\0\x08\x03" + bytes(30))
    lines = [line.format(**paths).split(" | ") for line in REFUSED.strip().splitlines()]
    results = run_all(environment, *(words.split() for words, _ in lines))
    for (words, message), (status, out, err) in zip(lines, results, strict=True):
        assert status == 2 and not out and "Traceback" not in err, f"{words}: {err}"
        (line,) = (line for line in err.splitlines() if "error: " in line)
        assert message in line, f"{words}: {err}"
        # training may say first which images it has
        assert len(err.splitlines()) <= 2, err


SCRIPTS = sorted(
    path.name
    for path in (ROOT / "scripts").glob("*.py")
    if "run_script(" in path.read_text()
)


def test_help_explains_every_option(environment):
    programs = [(name,) for name in SCRIPTS] + [("snfnp", name) for name in COMMANDS]
    results = run_all(environment, *((*words, "--help") for words in programs))
    fewest = {"benchmark.py": 3, "check": 3, "compare": 1}
    for (*_, name), (status, out, err) in zip(programs, results, strict=True):
        assert status == 0 and not err, f"{name}: {err}"
        options = re.findall(r"(?m)^  (--[\w-]+)", out)
        assert len(options) >= fewest.get(name, 4), name
        # names and values, then words
        for text in re.split(r"(?m)^  (?=--)", out)[1:]:
            assert re.match(r"(--[\w-]+(, )?)+( [A-Z_]+| \{[^}]*\})?\s+\S", text), text
        if name.startswith("train"):
            expected = """--gradient --backend --epochs --batch-size --lr --seed --data-dir --out
            --resume --data --help-all"""
            assert set(expected.split()) <= set(options)


def test_a_rival_that_has_the_estimators_time_is_not_fitted_before_it(tmp_path):
    import baselines

    with pytest.raises(SystemExit, match="fit `flow` to moons first"):
        baselines.record_of("moons", 0, "NSF", tmp_path / "none.jsonl")


PAGE = DERIVATIONS / "27-the-paper-reproduced.md"
GIVEN = re.findall(r"`python (scripts/\w+\.py[^`]*)`", PAGE.read_text("utf-8"))
TRAINING = sorted(
    {command for command in GIVEN if command.startswith("scripts/train_")}
)
IMAGES = {
    "mnist": 50_000,
    "mnist-sample": 4_000,
    "cifar-10": 40_000,
    "imagenet32": 1_261_149,
}


def configuration(command, monkeypatch):
    """What a training script makes of its options, filled in and checked."""
    script, *argv = shlex.split(command)
    made = []

    def main(argv, prog=None, **defaults):
        given = vars(train._parser(prog, defaults).parse_args(argv))
        made.append(TrainConfig(**{**defaults, **given}))

    monkeypatch.setattr(train, "main", main)
    monkeypatch.setattr(sys, "argv", [script, *argv])
    runpy.run_path(str(ROOT / script), run_name="__main__")
    return made[0].resolve(IMAGES[made[0].data])


def test_every_command_of_the_pages_can_be_given(monkeypatch):
    """And those of the hour on a GPU, where a refused one would cost its place."""
    files = "README.md", "scripts/gpu.md", "scripts/gpu_hour.sh"
    text = "".join((ROOT / file).read_text("utf-8") for file in files)
    commands = re.findall(r"(?m)^    python scripts/(train_.*?)(?:  #.*)?$", text)
    options = re.findall(r"(?m)^\| `(--[^`]+)` \|", text)
    steps = re.findall(r"(?m)^    train [\w-]+ \d+ (.*)$", text)
    assert (len(commands), len(options), len(steps)) == (4, 11, 5)
    commands += [f"train_mnist.py {words}" for words in options]
    commands += [f"train_mnist.py --backend cupy {words}" for words in steps]
    for command in commands:
        configuration(f"scripts/{command}", monkeypatch)


@pytest.mark.parametrize("command", TRAINING)
def test_a_command_of_the_tables_can_be_trained(command, monkeypatch):
    config = configuration(command, monkeypatch)
    shape = (28, 28, 1) if config.data == "mnist" else (32, 32, 3)
    assert config.build_flow(shape).layers


def test_every_model_has_a_command_and_every_command_a_script(monkeypatch):
    models = {configuration(command, monkeypatch).model for command in TRAINING}
    assert models == set(PRESETS) - {"vector"}  # for rows: no table has it
    assert GIVEN and all((ROOT / command.split()[0]).is_file() for command in GIVEN)
    with pytest.raises(UsageError):  # what cannot be trained would be found
        configuration("scripts/train_mnist.py --model emerging --kernel 5", monkeypatch)


def test_the_job_for_a_cluster_is_a_script_with_options_that_exist():
    page = (ROOT / "scripts" / "runs.md").read_text("utf-8")
    (job,) = re.findall(r"(?ms)^```bash\n(.*?)^```", page)
    if shutil.which("bash"):
        subprocess.run(["bash", "-n"], input=job, text=True, check=True)
    command = job.partition("snfnp train ")[2].partition("\nstatus")[0]
    words = shlex.split(command.replace("\\\n", ""))
    given = vars(train._parser(None, {}).parse_args(words))
    assert given.pop("resume") == train.AUTO
    assert TrainConfig(**given).resolve(IMAGES["mnist"]).epochs == 1000
