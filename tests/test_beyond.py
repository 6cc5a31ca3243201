"""Without `snfnp.beyond` everything else works, and what it offers is refused in a line."""

import subprocess
import sys

import pytest

WITHOUT = """
import sys
sys.path.append("tests")
sys.modules["snfnp.beyond"] = None  # importing it now fails as if the folder were gone
import numpy as np
import snfnp
from support.trainers import run_training, small_dataset
from pathlib import Path

for model in sys.argv[2:]:
    settings = {"model": model, "epochs": 2, "backend": "numpy"}
    run, summary = run_training(Path(sys.argv[1], model), small_dataset(side=8), **settings)
    assert np.isfinite(summary["test_nll_nats"])
    opened = snfnp.load_run(run.path)
    exact = not opened.flow.has_learned_inverse
    assert len(opened.likelihood.sample(2, exact=exact)) == 2
print("done")
"""
MODELS = ("fc", "vector", "conv", "emerging", "conv-exponential")


def python(code, *arguments):
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def test_plain_runs_train_and_sample_without_it(tmp_path):
    done = python(WITHOUT, tmp_path, *MODELS)
    assert done.stdout.endswith("done\n"), done.stderr


@pytest.mark.parametrize("option", ["--jvp-weight 0.2", "--objective variational --sigma 0.1"])
def test_what_it_offers_is_refused_in_a_line(option, tmp_path):
    code = "import sys; sys.modules['snfnp.beyond'] = None; from snfnp import cli; cli.run_script()"
    options = f"--data mnist-sample --backend numpy {option} --out".split()
    done = python(code, "train", *options, tmp_path / "run")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: snfnp.beyond.") and "is not installed" in line
