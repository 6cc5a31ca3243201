"""The benchmark, the comparison of checkouts, and the hour on a GPU: what each of them comes to."""

import contextlib
import io
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import benchmark
import compare_checkouts
import numpy as np
import pytest
import reproduce
from benchmarks import models, timing
from benchmarks.steps import make_trainer, operations
from compare_checkouts import CONFIGURATIONS, compare_runs
from gpu.standin import run_alone
from PIL import Image
from reproduction.rows import TABLES
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from support.arrays import normal
from support.operation_cases import OVERRIDES
from support.trainers import SMALL_GLOW

import snfnp.cli.train
from snfnp.ops import get_ops

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
SHAPE = (8, 8, 1)
COUNT = 24
BATCH = 6


def small_trainer(model, gradient="self-normalizing", **settings):
    settings = {"batch_size": BATCH, "warmup_epochs": 0} | settings
    return make_trainer(get_ops("numpy"), model, gradient, SHAPE, COUNT, **settings)


@pytest.mark.parametrize(
    "gradient,products", [("self-normalizing", 6), ("relative", 4), ("exact", 3)]
)
def test_operations_of_the_fully_connected_step(gradient, products):
    flow = small_trainer("fc", gradient=gradient).flow
    assert operations(flow, BATCH, gradient) == 2 * products * 2 * BATCH * 64**2


def test_operations_of_the_glow_step():
    """Per level six products of 1×1, and a coupling's network three times; the split is one more;
    images are (4, 4, 4) and then (2, 2, 8)."""

    def network(channels, width=8):
        return 9 * channels // 2 * width + width**2 + 9 * width * channels

    glow = 16 * (6 * 4**2 + 2 * 3 * network(4)) + 4 * (6 * 8**2 + 3 * network(8))
    assert (
        operations(small_trainer("glow", **SMALL_GLOW).flow, BATCH) == 2 * BATCH * glow
    )


def test_a_table_shows_three_digits_or_all_before_the_point():
    rows = [{"a": "x", "ms": 0.12345, "n": 7}, {"a": "long", "ms": 12345.6, "n": None}]
    assert timing.table(rows) == "a         ms  n\nx      0.123  7\nlong  12,346  -"


def test_a_floor_is_products_at_their_rate_alone_and_adams_bytes_at_that_of_a_copy():
    times = {"both": 2.5, "copy": 0.5, "step": 3.0}
    timings = {name: timing.Timing(ms, 9.0, 9.0) for name, ms in times.items()}
    whole, half = (
        models.floor(timings, (100, 20, 30), products * 2 * 100.0 * 20 * 30)
        for products in (12, 6)
    )
    assert whole == {"products ms": 2.0, "Adam ms": 0.5}
    assert half == {"products ms": 1.0, "Adam ms": 0.5}


def test_the_floor_of_a_convolutional_step_is_products_splines_and_bytes(monkeypatch):
    """As many operations as `operations` counts; gradients of splines alone; 12 passes over the
    batch of 100 · 64 values for each of 9 layers, beside Adam's, up to one copy."""
    trainer = small_trainer("conv")
    moved = []
    monkeypatch.setattr(
        models, "parallel_copy", lambda: lambda *arrays: moved.extend(arrays)
    )
    calls = models.layer_calls(trainer)

    trainer.gradient.fill(np.nan)
    calls["splines ms"]()
    for name, grads in trainer.grads.items():
        for gradient in grads.values():
            assert np.isfinite(gradient).all() == ("spline" in name)

    work = []

    def product(x, k):
        work.append(2 * x[..., 0].size * k.size)

    conv = trainer.ops.conv
    monkeypatch.setattr(conv, "correlate", product)
    monkeypatch.setattr(conv, "weight_grad", lambda _, x, k, add: product(x, k))
    calls["products ms"]()
    assert sum(work) == operations(trainer.flow, models.BATCH)

    calls["bytes ms"]()
    adam = 28 * trainer.flow.layout.count
    passes = 9 * 12 * models.BATCH * 64 * 4
    assert 0 <= adam + passes - sum(array.nbytes for array in moved) < 2 * 100 * 64 * 4


def test_the_benchmark_prints_and_writes_its_figures(tmp_path, monkeypatch, capsys):
    """Each call of a few is timed: once is enough, for small images. The products of fc's floor
    have their size: smaller ones may take less time than the copy that is subtracted."""
    file = tmp_path / "figures.json"
    monkeypatch.setattr(
        models, "measure", lambda calls, repeats: timing.measure(calls, 1, warmup=0)
    )
    monkeypatch.setattr(models, "make_trainer", partial(make_trainer, shape=SHAPE))
    options = ["--quick", "--backend", "numpy", "--json", str(file)]
    benchmark.main(["fc", "conv", *options])
    out = capsys.readouterr().out
    results = json.loads(file.read_text())
    for name in ("fc", "conv"):
        assert {row["step"] for row in results[name]} == models.PARTS[name].cases.keys()
    for row in results["fc"] + results["conv"]:
        *floors, ratio = list(row.values())[4:]
        assert 0 < row["min ms"] <= row["median ms"] and min(floors) > 0
        assert ratio == pytest.approx(row["min ms"] / sum(floors))
    adam = {row["step"]: row["Adam ms"] for row in results["fc"] if row["threads"] == 1}
    assert adam["exact"] == pytest.approx(adam["self-normalizing"] / 2, rel=0.01)
    assert "Adam ms" in out and f"backend: {results['machine']['backend']}" in out


@pytest.fixture
def results(finished, tmp_path):
    """Two results of the comparison, both of one run: the run, a report on it and a picture."""
    for folder in (tmp_path / "this", tmp_path / "other"):
        shutil.copytree(finished, folder / "run")
        (folder / "evaluate.txt").write_text(
            "mean log-likelihood    nats\nlog p(x)  -1,200.125\n"
        )
        Image.fromarray(np.full((8, 8), 200, np.uint8)).save(folder / "run/samples.png")
    return tmp_path / "this", tmp_path / "other"


def text(name, pattern, replacement):
    """A change of one place in a text file."""

    def change(folder):
        before = (folder / name).read_text()
        after = re.sub(pattern, replacement, before, count=1)
        assert after != before
        (folder / name).write_text(after)

    return change


def checkpoint(name, of):
    """A change of an array of the last checkpoint, a new array, or an entry of the header."""

    def change(folder):
        path = folder / "run/last.safetensors"
        with safe_open(path, framework="numpy") as file:
            arrays = load_file(path)
            header = file.metadata()
        values = header if name in header else arrays
        values[name] = of(values.get(name))
        save_file(arrays, path, header)

    return change


def picture(*shape):
    array = np.full(shape, 201, np.uint8)
    return lambda folder: Image.fromarray(array).save(folder / "run/samples.png")


def differing(results):
    return {name: each for name, each in compare_runs(*results).items() if each}


def test_equal_results_are_equal_at_any_speed(results):
    names = compare_runs(*results)
    for kind in ("parameter", "adam_m", "adam_v", "step", "record"):
        assert any(kind in name for name in names), kind
    assert {"evaluate.txt", "samples.png"} < names.keys()
    assert differing(results) == {}
    text("run/metrics.jsonl", r'"seconds": [^,]+', '"seconds": 9.5')(results[0])
    text("run/summary.json", r'"training_seconds": [^,]+', '"training_seconds": 9.5')(
        results[0]
    )
    assert differing(results) == {}


def test_equal_is_equal_bit_for_bit():
    one = np.ones(3, np.float32)
    assert compare_checkouts.difference(np.nextafter(one, np.float32(2)), one) == 2**-23
    assert compare_checkouts.difference(np.zeros(3), -np.zeros(3)) == math.ulp(0.0)


LAST = "last.safetensors"


@pytest.mark.parametrize(
    "change, name, expected",
    [
        (
            checkpoint("parameter.dense1.W", lambda W: W * 1.5),
            f"{LAST} parameter.dense1.W",
            0.5,
        ),
        (
            checkpoint("state.control.rows", lambda _: np.ones(2)),
            f"{LAST} state.control.rows",
            math.inf,
        ),
        (
            checkpoint("adam_v.dense1.b", lambda v: v.astype(np.float64)),
            f"{LAST} adam_v.dense1.b",
            math.inf,
        ),
        (checkpoint("step", lambda _: "18"), f"{LAST} step, λ, seed", 0.2),
        (
            checkpoint("record", lambda r: r.replace('"seed": 0', '"seed": 1')),
            f"{LAST} step, λ, seed",
            1 / 15,
        ),
        (
            text("run/metrics.jsonl", '"lam": 1.0', '"lam": 1.5'),
            "record 1 lam",
            0.5,
        ),
        (
            text("run/summary.json", '(test_nll_nats": )[^,]+', r"\1NaN"),
            "record 4 test_nll_nats",
            math.inf,
        ),
        (text("evaluate.txt", "-1,200.125", "-1,200.126"), "evaluate.txt", 8.3e-7),
        (text("evaluate.txt", "$", "and 2.5 more"), "evaluate.txt", math.inf),
        (picture(8, 8), "samples.png", 1 / 200),
        (picture(8, 9), "samples.png", math.inf),
    ],
)
def test_each_difference_is_found_by_its_name(results, change, name, expected):
    change(results[0])
    assert differing(results) == {name: pytest.approx(expected, rel=0.01)}


def test_an_evaluation_that_is_missing_is_a_difference(results):
    text("run/metrics.jsonl", "{.*\n$", "")(results[0])
    assert differing(results)["record 3 epoch"] == math.inf


def test_every_preset_and_gradient_can_be_chosen():
    from snfnp.cli import train
    from snfnp.models import PRESETS
    from snfnp.training.options import TrainConfig

    # but for "resume"
    assert len(set(CONFIGURATIONS.values())) == len(CONFIGURATIONS) - 2
    assert compare_checkouts.choose("*") == list(CONFIGURATIONS)
    assert compare_checkouts.choose("glow-res*,fc") == ["fc", "glow-resume"]
    for name, preset in PRESETS.items():
        own = [
            options
            for options in CONFIGURATIONS.values()
            if f"--model {name} " in options
        ]
        assert own, name
        for gradient in () if "glow" in name else preset.gradients[1:]:
            assert any(f"--gradient {gradient}" in options for options in own), (
                name,
                gradient,
            )
    for options in CONFIGURATIONS.values():  # none is refused
        given = vars(train._parser(None, {}).parse_args(options.split()))
        TrainConfig(**given).resolve(
            6000, (2,) if given["model"] == "vector" else (28, 28, 1)
        )


def test_a_row_is_printed_and_a_difference_named(results, monkeypatch, capsys):
    """The comparison of one configuration, whose trainings are copies of runs."""

    def train(checkout, name, backend, folder):
        shutil.copytree(checkout, folder)

    this, other = results
    checkpoint("parameter.dense1.W", lambda W: W * 1.5)(this)
    monkeypatch.setattr(compare_checkouts, "_train", train)
    compare = compare_checkouts._compare
    assert compare("fc", "numpy", (other, other))
    assert not compare("fc", "numpy", (this, other))
    out = capsys.readouterr().out
    assert "    5.0e-01 in last.safetensors parameter.dense1.W\n" in out

    def fails(*arguments):
        raise compare_checkouts.FailedError("error: no such option")

    monkeypatch.setattr(compare_checkouts, "_train", fails)
    assert not compare("fc", "numpy", results)
    assert "failed: error: no such option" in capsys.readouterr().out


def test_a_checkout_is_equal_to_itself(capsys, monkeypatch):
    """The configuration that takes the least time, on few images."""
    few = {"train": 17, "validation": 50, "test": 50}
    monkeypatch.setattr(compare_checkouts, "_EVERY", few)
    options = ["--only", "glow-2l-4k", "--backend", "numpy"]
    assert compare_checkouts.main([str(ROOT), *options]) == 0
    assert capsys.readouterr().out.endswith("1 of 1 bit-equal\n")


SCRIPT = ROOT / "scripts/gpu_hour.sh"
TEXT = SCRIPT.read_text("utf-8")
STEPS = re.findall(
    r"^    (\w+) ([\w-]+) (.*)$", TEXT[TEXT.index("\nsteps() {") :], re.M
)

linux = pytest.mark.skipif(sys.platform != "linux", reason="GNU's timeout")


def test_a_step_gives_options_that_its_script_has():
    """A wrong option would cost the step its place in the hour."""
    mains = {"train": snfnp.cli.train, "reproduce": reproduce, "benchmark": benchmark}
    for script, main in mains.items():
        said = io.StringIO()
        with contextlib.redirect_stdout(said), pytest.raises(SystemExit):
            main.main(["--help-all" if main is snfnp.cli.train else "--help"])
        options = set(re.findall(r"--[\w-]+", said.getvalue()))
        steps = [
            step for step in STEPS if script == step[0] or f" {script} " in step[2]
        ]
        assert steps
        for _, name, words in steps:
            assert set(re.findall(r"--[\w-]+", words)) <= options, name


def test_a_step_names_tests_and_rows_that_there_are():
    files = re.findall(r"tests/gpu/\w+\.py", TEXT)
    assert len(files) == 4 and all((ROOT / file).exists() for file in files)
    text = "".join((ROOT / file).read_text("utf-8") for file in files)
    for words in re.search('-k "(.*)"', TEXT)[1].split(" or "):
        assert words in text + " ".join(OVERRIDES), words
    rows = {row.name for table in TABLES.values() for row in table.rows}
    assert set(re.findall(r"--rows ([\w-]+)", TEXT)) <= rows
    names = [name for _, name, _ in STEPS]
    first = "plain no-graph same device-quick launches graphs white memcheck "
    assert len(names) == len(set(names)) == 21 and " ".join(names).startswith(first)


@pytest.fixture
def hour(tmp_path):
    """hour(steps, seconds): the exit status, and what was printed."""

    def run(steps, seconds=100):
        pipes = dict.fromkeys(("stdout", "stderr"), subprocess.PIPE)
        process = started(tmp_path, steps, seconds, text=True, **pipes)
        out, err = process.communicate()
        assert not err
        return process.returncode, out

    return run


@linux
def test_a_step_is_done_once_and_its_line_has_its_figure(hour, tmp_path):
    steps = f"""
        step a 20 ".+" bash -c "echo no such thing; exit 1"
        step b 20 "min .*" bash -c "echo x >> {tmp_path}/b; echo took 3 ms, min 2 ms; echo end"
        step c 20 ".+" echo the step cannot be recorded as a CUDA graph
        step d 9 ".+" no-such-program"""
    status, said = hour(steps)
    assert status == 1 and said.endswith("nothing is left\n")
    for line in (
        "failed: a: no such thing (",
        "passed: b: min 2 ms (",
        "failed: c: the step cannot be recorded as a CUDA graph (",
        "failed: d: timeout: ",
    ):
        assert line in said
    assert said.startswith(
        "4 steps, of at most 69 s in all; this call starts what fits into 100 s\n"
    )
    status, said = hour(steps)
    assert (
        status == 1
        and said.startswith("0 steps, of at most 0 s")
        and len(said.split("\n")) == 4
    )
    assert (tmp_path / "b").read_text() == "x\n"
    report = (tmp_path / "report.txt").read_text()
    assert all(
        line in report
        for line in ("failed: a: no such thing", "== b", "took 3 ms, min 2 ms")
    )
    assert "commit " in report and "numpy " in report


@linux
def test_what_is_stopped_or_does_not_fit_is_not_done(hour, tmp_path):
    slow = f"echo x >> {tmp_path}/a; [ $(wc -l < {tmp_path}/a) -gt 1 ] || sleep 60"
    steps = f"step a 2 '.+' bash -c '{slow}; echo end'\nstep long 15 '.+' echo long"
    status, said = hour(steps, 10)
    assert status == 3 and said.endswith(
        "stopped at its limit: a\nleft: a long: run it again\n"
    )
    status, said = hour(steps)
    assert status == 0 and "passed: a: end" in said and "passed: long: long" in said


def wait_until(there, seconds=60):
    until = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < until
        time.sleep(0.02)


def started(tmp_path, steps, *seconds, **pipes):
    """The script with these steps, as a process."""
    (tmp_path / "steps.sh").write_text(f"steps() {{\n{steps}\n}}\n")
    own = {"GPU_HOUR_STEPS": str(tmp_path / "steps.sh"), "PYTHON": sys.executable}
    command = ["bash", str(SCRIPT), str(tmp_path), *map(str, seconds)]
    return subprocess.Popen(command, env=os.environ | own, **pipes)


@linux
def test_what_stops_the_script_stops_its_step_which_is_not_done(tmp_path):
    code = f"echo $$ > {tmp_path}/a; sleep 60"
    process = started(tmp_path, f"step a 80 '.+' bash -c '{code}'")
    wait_until(lambda: (tmp_path / "a").exists() and (tmp_path / "a").read_text())
    process.terminate()
    assert process.wait(20) == 128 + signal.SIGTERM
    wait_until(lambda: not Path("/proc", (tmp_path / "a").read_text().strip()).exists())
    assert (tmp_path / "results.txt").read_text() == ""


ON_THE_CPU = """
script() { step "$1" "$2" "$3" "$python" "scripts/$4.py" "${@:5}" --backend numpy; }
"""


@linux
def test_a_training_that_was_stopped_goes_on(hour, tmp_path):
    """The function of the script, with a training of a few seconds: stopped by a signal, as at its
    limit, after its first checkpoint."""
    rows = normal(500, 2)
    np.save(tmp_path / "rows.npy", rows)
    size = "--model vector --depth 1 --batch-size 20 --epochs 40 --eval-every 20"
    step = f"train rows 90 --data {tmp_path}/rows.npy {size} --checkpoint-every 20"
    process = started(tmp_path, f"{ON_THE_CPU}\n{step}")
    folder = tmp_path / "runs/rows"
    wait_until((folder / "last.safetensors").exists, 120)
    process.terminate()
    assert process.wait(30) == 128 + signal.SIGTERM
    assert (tmp_path / "results.txt").read_text() == ""
    assert not (folder / "summary.json").exists()
    status, said = hour(f"{ON_THE_CPU}\n{step}")
    assert status == 0 and "passed: rows: exact test NLL" in said
    assert re.search("[Rr]esum", (tmp_path / "rows.txt").read_text())


@linux
def test_a_sanitizer_that_starts_no_program_is_said_to(hour, tmp_path, monkeypatch):
    """One that does is given the tool and the kernels."""
    tools = tmp_path / "tools"
    tools.mkdir()
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    tool = tools / "compute-sanitizer"
    for starts in (False, True):
        run = 'case $1 in --tool) echo "ERROR SUMMARY: 0 errors ($2)";; *) exec "$@";; esac'
        tool.write_text(
            f"#!/bin/sh\n{run if starts else 'echo version 12.9; exit 255'}\n"
        )
        tool.chmod(0o755)
        status, said = hour("sanitise memcheck 30")
        found = "passed: memcheck: ERROR SUMMARY: 0 errors (memcheck)"
        failed = "failed: memcheck: this compute-sanitizer starts no program"
        assert (found if starts else failed) in said and status == (0 if starts else 1)
        (tmp_path / "results.txt").write_text("")


@pytest.mark.device
def test_the_kernels_for_the_sanitizer_run_on_the_stand_in():
    out = run_alone("from gpu import sanitised; sanitised.main(3)")
    assert out.endswith("3 kernels are as defined\n")
