"""Forged files with right checksums: whatever they say, they open or are one line."""

import copy
import json
import shutil

import numpy as np
import pytest
from support.runs import estimator_checkpoint, forge

import snfnp
from snfnp.cli import compare, sample, score
from snfnp.errors import SnfnpError
from snfnp.training.runs import comparison
from snfnp.training.runs.checkpoint import load_checkpoint, save_checkpoint
from snfnp.training.runs.folder import RunFolder

ROWS = np.random.default_rng(0).normal((5.0, -30.0), (1.0, 4.0), (140, 2))
DATA = snfnp.Dataset("mine", ROWS[40:], ROWS[:20], ROWS[20:40])
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


@pytest.mark.parametrize("seed", range(4))
def test_a_forged_config_opens_or_is_one_line(seed, runs, tmp_path):
    rng, opened = np.random.default_rng(seed), 0
    for path, data in runs.items():
        run = shutil.copytree(path, tmp_path / path.name)
        record = json.loads((run / "config.json").read_text())
        for _ in range(60):
            other, said = forged(record, rng)
            forge(run, other)
            opened += opens_or_is_one_line(lambda: used(run, data), said)  # noqa: B023
            opens_or_is_one_line(lambda: comparison.open_runs([run]), said)  # noqa: B023
    assert 0 < opened < 120


@pytest.mark.parametrize("seed", range(2))
def test_a_run_with_a_forged_config_goes_on_or_is_one_line(seed, runs, tmp_path):
    rng = np.random.default_rng(100 + seed)
    for path, data in runs.items():
        record = json.loads((path / "config.json").read_text())
        for place in range(20):
            run = shutil.copytree(path, tmp_path / f"{path.name}-{place}")
            other, said = forged(record, rng)
            forge(run, other)
            act = lambda: snfnp.resume(run, dataset=data, report=None)  # noqa: B023, E731
            opens_or_is_one_line(act, said)


@pytest.mark.parametrize("seed", range(3))
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


@pytest.mark.parametrize("seed", range(3))
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


def test_what_a_record_says_is_shown_and_not_sent_to_a_terminal(runs, tmp_path, capsys):
    path = next(iter(runs))
    for name in ("a", "b"):
        shutil.copytree(path, tmp_path / name)
    record = json.loads((path / "config.json").read_text())
    record["data"]["source"] = record["config"]["data"] = "x\x1b]0;title\x07\n"
    forge(tmp_path / "a", record)
    np.save(tmp_path / "other.npy", ROWS + 1)
    compare.main([str(tmp_path / "a"), str(tmp_path / "a")])
    score.main([str(tmp_path / "a"), str(tmp_path / "other.npy"), "--data", "moons"])
    said = capsys.readouterr().out
    assert "\\x1b]0;title" in said and said.replace("\n", "").isprintable()


def test_names_of_files_are_shown_and_not_sent_to_a_terminal(runs, tmp_path, capsys):
    path, name = next(iter(runs)), "a\x1b[31m\nb"
    shutil.copytree(path, tmp_path / name)
    np.save(tmp_path / f"{name}.npy", ROWS + 1)
    compare.main([str(path), str(tmp_path / name), "--plot", str(tmp_path / f"{name}.png")])
    score.main([str(tmp_path / name), str(tmp_path / f"{name}.npy"), "--data", "moons"])
    sample.main([str(tmp_path / name), "--count", "4", "--out", str(tmp_path / f"{name}.csv")])
    said = capsys.readouterr().out
    assert said.count("a\\x1b[31m\\nb") >= 5 and said.replace("\n", "").isprintable()
