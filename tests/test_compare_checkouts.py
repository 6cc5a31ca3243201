"""What `scripts/compare_checkouts.py` calls equal: its comparisons, on results made up here."""

import json
import math
import shutil

import compare_checkouts
import numpy as np
import pytest
from PIL import Image
from run_differences import COLUMNS, compare_records, compare_runs, compare_texts, difference
from safetensors.numpy import save_file

SMALLEST = math.ulp(0.0)


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


def worst(tmp_path, loose=False, **changed):
    """{column: largest difference} of a changed result, of the columns that differ at all."""
    this, other = result(tmp_path / "this", **changed), result(tmp_path / "other")
    found = compare_runs(this, other, loose)
    assert tuple(found) == COLUMNS and all(found.values())  # something is compared in each
    return {name: max(values.values()) for name, values in found.items() if any(values.values())}


def arrays(role, array, name="dense.W"):
    identity = {f"{each}.dense.W": np.eye(3) for each in ("parameter", "adam_m", "adam_v")}
    return identity | {f"{role}.{name}": array}


def test_equal_results_are_equal_whatever_the_clock_says(tmp_path):
    assert worst(tmp_path) == {}
    shutil.rmtree(tmp_path / "this"), shutil.rmtree(tmp_path / "other")
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
        ({"arrays": arrays("parameter", np.zeros(1), "dense.b")}, "parameters", math.inf),
        ({"header": {"step": "5", "lam": "1.0", "seed": "0"}}, "metrics", 0.25),
        ({"metrics": [{"epoch": 1, "surrogate": -7.0}]}, "metrics", 1.0),
        ({"metrics": []}, "metrics", math.inf),
        ({"summary": {"test_nll_nats": math.nan}}, "metrics", math.inf),
        ({"evaluate": "mean log-likelihood    nats\nlog p(x)  -1,200.126\n"}, "reports", 8.3e-7),
        ({"evaluate": "mean likelihood    nats\nlog p(x)  -1,200.125\n"}, "reports", math.inf),
        ({"picture": np.full((8, 8), 201, np.uint8)}, "samples", 1 / 200),
        ({"picture": np.full((8, 9), 200, np.uint8)}, "samples", math.inf),
    ],
)
def test_whatever_changes_is_found_in_its_column(tmp_path, changed, column, expected):
    assert worst(tmp_path, **changed) == {column: pytest.approx(expected, rel=0.01)}


def test_with_a_tolerance_the_last_printed_digit_may_round_otherwise(tmp_path):
    changed = {
        "evaluate": "mean log-likelihood    nats\nlog p(x)  -1,200.126\n",
        "picture": np.full((8, 8), 201, np.uint8),
    }
    assert worst(tmp_path, loose=True, **changed) == {}
    shutil.rmtree(tmp_path / "this"), shutil.rmtree(tmp_path / "other")
    changed = {
        "evaluate": "mean log-likelihood    nats\nlog p(x)  -1,200.128\n",
        "picture": np.full((8, 8), 202, np.uint8),
    }
    assert worst(tmp_path, loose=True, **changed).keys() == {"reports", "samples"}


def test_difference():
    a = np.array([1.0, -4.0, np.nan, np.inf])
    assert difference(a, a.copy()) == 0
    assert difference(np.array([1.0, -3.0]), np.array([1.0, -4.0])) == 0.25
    assert difference(np.array([0.0]), np.array([-0.0])) == SMALLEST
    assert difference(np.array([np.nan, 1.0]), np.array([np.nan, 2.0])) == math.inf
    assert difference(np.array([np.inf]), np.array([1.0])) == math.inf
    assert difference(np.array([1e-300]), np.array([0.0])) == math.inf
    assert difference(np.zeros((2, 0)), np.zeros((2, 0))) == 0
    assert difference(np.array("abc"), np.array("abd")) == math.inf
    assert difference(np.array(1.0), np.array(None)) == math.inf


def test_records_and_texts_that_lack_something():
    assert compare_records({"0 a": 1, "0 b": 2}, {"0 a": 1}) == {"0 a": 0, "0 b": math.inf}
    assert compare_records({"1 lam": None}, {"1 lam": None}) == {"1 lam": 0}
    assert compare_records({"0 seconds": 1}, {"0 seconds": 2}) == {}
    found = compare_texts("a 1.5\n", "a 1.5\nb 2\n")
    assert list(found.values()) == [0, math.inf]
    assert list(compare_texts("x 2.0e-03 y 3\n", "x 1.0e-03 y 3\n").values()) == [1.0]


def test_configurations_have_names_of_their_own_and_can_be_chosen():
    names = [entry.name for entry in compare_checkouts.CONFIGURATIONS]
    assert len(set(names)) == len(names)
    assert len(set(map(repr, compare_checkouts.CONFIGURATIONS))) == len(names)
    assert compare_checkouts.choose("*") == list(compare_checkouts.CONFIGURATIONS)
    assert [entry.name for entry in compare_checkouts.choose("glow-res*,fc")] == [
        "fc",
        "glow-resume",
    ]


def test_every_preset_and_gradient_is_among_them():
    from snfnp.models import PRESETS

    options = " ".join(f"{entry.options} " for entry in compare_checkouts.CONFIGURATIONS)
    for name, preset in PRESETS.items():
        own = [
            e.options
            for e in compare_checkouts.CONFIGURATIONS
            if f"--model {name} " in e.options + " "
        ]
        assert own, name
        if preset.size is None:
            for gradient in preset.gradients[1:]:
                assert any(f"--gradient {gradient}" in entry for entry in own), (name, gradient)
    assert "--gradient exact " in options


def test_a_row_is_printed_and_a_difference_named(tmp_path, monkeypatch, capsys):
    """The comparison of one configuration, with runs that are made up."""
    entry = compare_checkouts.choose("fc")[0]

    def train(checkout, entry, backend, folder, begun=None):
        result(folder, arrays=arrays("parameter", np.eye(3) + (0.5 if checkout == "this" else 0)))

    monkeypatch.setattr(compare_checkouts, "_train", train)
    compare = compare_checkouts._compare
    assert compare(entry, "numpy", ("other", "other"), 0.0, tmp_path / "keep")
    assert (tmp_path / "keep" / "fc-numpy" / "done").exists()
    monkeypatch.setattr(compare_checkouts, "_train", lambda c, *args: train("this", *args))
    assert not compare(entry, "numpy", ("this", "other"), 0.0, tmp_path / "keep")
    assert compare(entry, "numpy", ("this", "other"), 0.5, tmp_path / "keep")
    out = capsys.readouterr().out
    assert "parameters: 5.0e-01 in best.safetensors parameter.dense.W" in out

    def fails(*arguments):
        raise compare_checkouts.FailedError("error: no such option")

    monkeypatch.setattr(compare_checkouts, "_train", fails)
    assert not compare(entry, "numpy", ("this", "other"), 0.0, None)
    assert "failed: error: no such option" in capsys.readouterr().out
