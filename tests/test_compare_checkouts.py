"""What `scripts/compare_checkouts.py` calls equal: its comparisons, on results made up here."""

import json
import math

import compare_checkouts
import numpy as np
import pytest
from compare_checkouts import COLUMNS, CONFIGURATIONS, compare_runs, difference
from PIL import Image
from safetensors.numpy import save_file


def result(folder, **changed):
    """A result of a run as the script leaves it; `changed` replaces what is written."""
    parts = {
        "arrays": {f"{role}.dense.W": np.eye(3) for role in ("parameter", "adam_m", "adam_v")},
        "header": {"step": "4", "lam": "1.0", "seed": "0"},
        "metrics": [{"epoch": 1, "surrogate": -3.5, "seconds": 0.25}],
        "summary": {"test_nll_nats": 200.125, "training_seconds": 0.3},
        "evaluate": "mean log-likelihood    nats\nlog p(x)  -1,200.125\n",
        "picture": np.full((8, 8), 200, np.uint8),
    } | changed
    run = folder / "run"
    run.mkdir(parents=True)
    for name in ("best", "last"):
        save_file(parts["arrays"], run / f"{name}.safetensors", parts["header"])
    lines = "".join(json.dumps(record) + "\n" for record in parts["metrics"])
    (run / "metrics.jsonl").write_text(lines)
    (run / "summary.json").write_text(json.dumps(parts["summary"]))
    (folder / "evaluate.txt").write_text(parts["evaluate"])
    Image.fromarray(parts["picture"]).save(run / "samples.png")
    return folder


def worst(tmp_path, **changed):
    """{column: largest difference} of a changed result, of the columns that differ at all."""
    this, other = result(tmp_path / "this", **changed), result(tmp_path / "other")
    found = compare_runs(this, other)
    assert tuple(found) == COLUMNS and all(found.values())  # something is compared in each
    return {name: max(values.values()) for name, values in found.items() if any(values.values())}


def arrays(role, array, name="dense.W"):
    identity = {f"{each}.dense.W": np.eye(3) for each in ("parameter", "adam_m", "adam_v")}
    return identity | {f"{role}.{name}": array}


def test_equal_results_are_equal_whatever_the_clock_says(tmp_path):
    assert worst(tmp_path / "same") == {}
    slower = [{"epoch": 1, "surrogate": -3.5, "seconds": 9.5}]
    assert worst(tmp_path, metrics=slower, summary={"test_nll_nats": 200.125}) == {}


@pytest.mark.parametrize(
    "changed,column,expected",
    [
        ({"arrays": arrays("parameter", np.eye(3) * (1 + 2**-52))}, "parameters", 2**-52),
        ({"arrays": arrays("adam_m", np.eye(3) + 0.25)}, "Adam m", 0.25),
        ({"arrays": arrays("state", np.ones(2), "control.rows")}, "parameters", math.inf),
        ({"arrays": arrays("adam_v", np.eye(3, dtype=np.float32))}, "Adam v", math.inf),
        ({"arrays": arrays("adam_v", np.eye(2))}, "Adam v", math.inf),
        ({"header": {"step": "5", "lam": "1.0", "seed": "0"}}, "metrics", 0.25),
        ({"metrics": [{"epoch": 1, "surrogate": -7.0}]}, "metrics", 1.0),
        ({"metrics": []}, "metrics", math.inf),
        ({"summary": {"test_nll_nats": math.nan}}, "metrics", math.inf),
        ({"evaluate": "mean log-likelihood    nats\nlog p(x)  -1,200.126\n"}, "reports", 8.3e-7),
        ({"evaluate": "log p(x)  -1,200.125\nand 2.5 more\n"}, "reports", math.inf),
        ({"picture": np.full((8, 8), 201, np.uint8)}, "samples", 1 / 200),
        ({"picture": np.full((8, 9), 200, np.uint8)}, "samples", math.inf),
    ],
)
def test_whatever_changes_is_found_in_its_column(tmp_path, changed, column, expected):
    assert worst(tmp_path, **changed) == {column: pytest.approx(expected, rel=0.01)}


@pytest.mark.parametrize(
    "ours, theirs, expected",
    [
        ([1.0, -3.0], [1.0, -4.0], 0.25),
        ([0.0], [-0.0], math.ulp(0.0)),
        ([np.nan, 1.0], [np.nan, 2.0], math.inf),
        ([np.inf], [1.0], math.inf),
        ([1e-300], [0.0], math.inf),
        (np.zeros((2, 0)), np.zeros((2, 0)), 0),
        ("abc", "abd", math.inf),
        (1.0, None, math.inf),
    ],
)
def test_difference(ours, theirs, expected):
    theirs = np.array(theirs)
    assert difference(np.array(ours), theirs) == expected and difference(theirs, theirs) == 0


def test_every_preset_and_gradient_can_be_chosen():
    from snfnp.cli import train
    from snfnp.models import PRESETS
    from snfnp.training.options import TrainConfig

    assert len(set(CONFIGURATIONS.values())) == len(CONFIGURATIONS) - 2  # but for "resume"
    assert compare_checkouts.choose("*") == list(CONFIGURATIONS)
    assert compare_checkouts.choose("glow-res*,fc") == ["fc", "glow-resume"]
    for name, preset in PRESETS.items():
        own = [options for options in CONFIGURATIONS.values() if f"--model {name} " in options]
        assert own, name
        for gradient in () if "glow" in name else preset.gradients[1:]:
            assert any(f"--gradient {gradient}" in options for options in own), (name, gradient)
    for options in CONFIGURATIONS.values():  # none is refused
        given = vars(train._parser(None, {}).parse_args(options.split()))
        TrainConfig(**given).resolve(6000, (2,) if given["model"] == "vector" else (28, 28, 1))


def test_a_row_is_printed_and_a_difference_named(monkeypatch, capsys):
    """The comparison of one configuration, with runs that are made up."""

    def train(checkout, name, backend, folder, begun=None):
        result(folder, arrays=arrays("parameter", np.eye(3) + (0.5 if checkout == "this" else 0)))

    monkeypatch.setattr(compare_checkouts, "_train", train)
    compare = compare_checkouts._compare
    assert compare("fc", "numpy", ("other", "other"))
    assert not compare("fc", "numpy", ("this", "other"))
    out = capsys.readouterr().out
    assert "parameters: 5.0e-01 in best.safetensors parameter.dense.W" in out

    def fails(*arguments):
        raise compare_checkouts.FailedError("error: no such option")

    monkeypatch.setattr(compare_checkouts, "_train", fails)
    assert not compare("fc", "numpy", ("this", "other"))
    assert "failed: error: no such option" in capsys.readouterr().out
