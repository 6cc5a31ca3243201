"""The scripts as a user runs them: in a process of their own, on the sample that ships."""

import json
import os
import re
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def environment(tmp_path_factory):
    """No network, no user's cache: the sample is what is left."""
    empty = tmp_path_factory.mktemp("cache")
    kept = {k: v for k, v in os.environ.items() if k != "SNFNP_DATA_DIR"}
    return {**kept, "SNFNP_OFFLINE": "1", "XDG_CACHE_HOME": str(empty)}


def start(environment, name, *arguments):
    command = [sys.executable, str(ROOT / "scripts" / name), *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL}
    return subprocess.Popen(command, env=environment, text=True, **pipes)


def run(environment, name, *arguments, status=0):
    process = start(environment, name, *arguments)
    out, err = process.communicate(timeout=240)
    assert process.returncode == status and "Traceback" not in err, f"{out}\n{err}"
    return out, err


# Runs each of the commands on standard input as if it were alone, and tells what came of it.
ONE_AFTER_ANOTHER = """
import contextlib, io, json, runpy, sys

results = []
for path, *arguments in json.load(sys.stdin):
    sys.argv, status = [path, *arguments], 0
    with contextlib.redirect_stdout(io.StringIO()) as out:
        with contextlib.redirect_stderr(io.StringIO()) as err:
            try:
                runpy.run_path(path, run_name="__main__")
            except SystemExit as end:
                status = end.code or 0
    results.append((status, out.getvalue(), err.getvalue()))
print(json.dumps(results))
"""


def run_all(environment, *commands):
    """(exit status, output, errors) of each (script, arguments …): all of them in one process, for
    those that would take longest to start."""
    folder = ROOT / "scripts"
    done = subprocess.run(
        [sys.executable, "-c", ONE_AFTER_ANOTHER],
        input=json.dumps([[*map(str, (folder / name, *words))] for name, *words in commands]),
        env={**environment, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def outputs(environment, *commands):
    """What commands print that succeed."""
    results = run_all(environment, *commands)
    for status, out, err in results:
        assert status == 0 and "Traceback" not in err, f"{out}\n{err}"
    return [out for _, out, _ in results]


@pytest.fixture(scope="session")
def finished(environment, tmp_path_factory):
    """A finished run of two epochs, and what it printed."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    out, err = run(environment, "train_mnist.py", "--epochs", 2, "--out", folder)
    return Path(re.search("run folder (.*)", out).group(1)), out, err


def test_training_tells_what_it_does(finished):
    folder, out, err = finished
    assert err.count("sample") >= 1 and "--data-dir" in err  # the loud line
    for epoch in (1, 2):
        assert re.search(rf"epoch +{epoch}/2  exact validation NLL +[\d.]+ nats = [\d.]+ bits", out)
    assert re.search(r"best epoch 2: .* exact test NLL [\d.]+ nats = [\d.]+ bits/dim", out)
    assert "surrogate" in out and str(folder) in out


def test_the_run_folder_is_complete(finished):
    folder, _, _ = finished
    names = ["best.safetensors", "config.json", "curves.png", "last.safetensors", "metrics.jsonl"]
    names += ["samples.png", "summary.json"]
    assert sorted(file.name for file in folder.iterdir()) == names
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["best_epoch"] == 2 and summary["test_nll_nats"] > 0
    record = json.loads((folder / "config.json").read_text())
    assert record["data"]["is_sample"] is True
    assert record["data"]["images"] == [5000, 1000, 1000]
    for picture in ("samples.png", "curves.png"):
        content = (folder / picture).read_bytes()
        assert content.startswith(b"\x89PNG")
        width, height = struct.unpack(">II", content[16:24])
        assert width > 400 and height > 300


def test_evaluate_prints_a_ledger_that_adds_up(environment, finished):
    folder, trained, _ = finished
    of_validation = ("--seed", 1, "--split", "validation")
    out, other = outputs(
        environment, ("evaluate.py", folder), ("evaluate.py", folder, *of_validation)
    )
    rows = dict(re.findall(r"^(\w[\w() ]*?) {2,}(-?[\d.]+) +-?[\d.]+$", out, re.M))
    total = float(rows.pop("log p(x)"))
    assert {"base density", "scale", "logit", "dense1", "activation1", "dense2"} <= set(rows)
    assert abs(sum(map(float, rows.values())) - total) < 0.001 * len(rows)  # printed to 0.001
    assert "dequantisation seed 0" in out
    test_nll = re.search(r"exact test NLL ([\d.]+) nats", trained).group(1)
    assert abs(-total - float(test_nll)) < 0.006
    assert "dequantisation seed 1" in other and "1,000 validation images" in other


def test_the_packages_commands_are_the_scripts(environment, finished, tmp_path):
    """As a wheel has them: `python -m snfnp`, from another folder than the checkout."""
    folder, _, _ = finished
    picture = tmp_path / "samples.png"
    commands = [("evaluate", folder), ("angle", folder, "--images", 50)]
    commands.append(("sample", folder, "--count", 4, "--out", picture))
    found = outputs(environment, *((f"{name}.py", *words) for name, *words in commands))
    drawn = picture.read_bytes()
    picture.unlink()
    for words, out in zip(commands, found, strict=True):
        command = [sys.executable, "-m", "snfnp", *map(str, words)]
        how = {"env": environment, "capture_output": True, "text": True, "timeout": 240}
        done = subprocess.run(command, cwd=tmp_path, **how)
        assert (done.returncode, done.stdout) == (0, out), done.stderr
    assert picture.read_bytes() == drawn


def test_angle_prints_one_row_per_learned_layer(environment, finished):
    out, _ = run(environment, "angle.py", finished[0], "--images", 200)
    rows = re.findall(r"^(dense\d) +([\d.]+)° +([\d.]+)° +([\d.e+-]+) +([\d.e+-]+)$", out, re.M)
    assert [row[0] for row in rows] == ["dense1", "dense2"]
    assert all(0 < float(angle) < 45 for row in rows for angle in row[1:3])


def test_sample_writes_a_picture(environment, finished, tmp_path):
    folder, _, _ = finished
    pictures, commands = [tmp_path / f"{index}.png" for index in range(3)], []
    ways = (("learned", 1.0), ("exact", 1.0), ("learned", 0.5))
    for picture, (inverse, temperature) in zip(pictures, ways, strict=True):
        options = ("--inverse", inverse, "--temperature", temperature, "--out", picture)
        commands.append(("sample.py", folder, *options))
    outputs(environment, *commands)
    contents = {picture.read_bytes() for picture in pictures}
    assert len(contents) == 3
    assert all(content.startswith(b"\x89PNG") for content in contents)


def test_ctrl_c_writes_a_checkpoint_and_says_how_to_resume(environment, tmp_path):
    """On an output that cannot show λ, which must not stop it either."""
    folder, plain = tmp_path / "run", {**environment, "PYTHONIOENCODING": "ascii"}
    process = start(plain, "train_mnist.py", "--epochs", 50, "--out", folder)
    deadline, metrics = time.monotonic() + 120, folder / "metrics.jsonl"
    while not (metrics.exists() and metrics.read_text()):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in err
    assert f"--resume --out {folder}" in out and "lambda = 1" in out
    assert (folder / "last.safetensors").exists()


def test_bad_input_is_one_line_and_a_status(environment, finished, tmp_path):
    folder, broken, train = finished[0], tmp_path / "broken", "train_mnist.py"
    broken.mkdir()
    for name in ("train", "t10k"):
        (broken / f"{name}-images-idx3-ubyte").write_bytes(b"\0\0\x08\x03" + bytes(30))
    cases = [
        (train, ["--out", str(folder)], 2, "exists"),
        (train, ["--data-dir", str(tmp_path / "no")], 2, str(tmp_path / "no")),
        (train, ["--data-dir", str(broken)], 1, str(broken)),
        (train, ["--epochs", "two"], 2, "invalid int value: 'two'"),
        ("evaluate.py", [str(tmp_path)], 2, "is no run folder"),
        ("benchmark.py", ["nonsense"], 2, "no benchmark is called nonsense"),
    ]
    results = run_all(environment, *((name, *words) for name, words, *_ in cases))
    for (name, arguments, expected, message), (status, _, err) in zip(cases, results, strict=True):
        assert status == expected and "Traceback" not in err, f"{name} {arguments}: {err}"
        lines = [line for line in err.splitlines() if "error: " in line]
        assert len(lines) == 1 and message in lines[0], f"{name} {arguments}: {err}"
        assert len(err.splitlines()) <= 2, err  # training may say first which images it has


def test_an_exact_run_has_no_learned_inverse(environment, tmp_path):
    folder = tmp_path / "run"
    few_steps = ("--epochs", 1, "--batch-size", 1000)
    run(environment, "train_mnist.py", *few_steps, "--gradient", "exact", "--out", folder)
    both = run_all(environment, ("sample.py", folder), ("angle.py", folder))
    (first, _, of_sample), (second, out, of_angle) = both
    assert (first, second, out) == (2, 2, "")
    assert "learned no inverse" in of_sample and "--inverse exact" in of_sample
    assert "without learned inverses" in of_angle


def test_a_small_glow_on_colour_images_of_ones_own(environment, tmp_path):
    folder, data = tmp_path / "run", tmp_path / "colours.npy"
    np.save(data, np.random.default_rng(0).integers(0, 256, (300, 32, 32, 3), np.uint8))
    size = ("--depth", 1, "--width", 8, "--epochs", 1, "--augment", "--recompute")
    own = ("--backend", "numpy", "--out", folder)  # which has no kernels to compile
    train = ("train_cifar10.py", "--data", data, *size, *own)
    out, _ = run(environment, *train)
    assert "glow 3L-1K width 8" in out
    ledger, _ = run(environment, "evaluate.py", folder)
    assert "split1 base density" in ledger and "split2 base density" in ledger
    record = json.loads((folder / "config.json").read_text())
    assert record["data"]["shape"] == [32, 32, 3] and record["config"]["augment"] is True
    other = ("train_imagenet32.py", "--data-dir", tmp_path, "--out", "x")
    _, err = run(environment, *other, status=2)
    assert len(err.strip().splitlines()) == 1 and "imagenet32" in err.lower()


SCRIPTS = sorted(
    path.name for path in (ROOT / "scripts").glob("*.py") if "run_script(" in path.read_text()
)


def test_help_explains_every_option(environment):
    results = run_all(environment, *((name, "--help") for name in SCRIPTS))
    fewest = {"benchmark.py": 3, "check_gradients.py": 3, "compare_runs.py": 2}
    for name, (status, out, err) in zip(SCRIPTS, results, strict=True):
        assert status == 0 and not err, f"{name}: {err}"
        options = re.findall(r"^  (--[\w-]+)", out, re.M)
        assert len(options) >= fewest.get(name, 4), name
        for text in re.split(r"^  (?=--)", out, flags=re.M)[1:]:  # names and values, then words
            assert re.match(r"(--[\w-]+(, )?)+( [A-Z_]+| \{[^}]*\})?\s+\S", text), text
        if name.startswith("train_"):
            expected = """--gradient --objective --backend --epochs --batch-size --lr --lambda
            --warmup-epochs --clip-norm --seed --shuffle --init --data-dir --out --resume
            --eval-every --dtype --data --graph --tf32"""
            assert set(expected.split()) <= set(options)
