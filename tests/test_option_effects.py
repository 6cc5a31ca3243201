"""Every option of a training changes a run, or is refused in one line."""

import functools
import itertools
import json

import numpy as np
import pytest
from support.messages import assert_one_line

from snfnp import threads
from snfnp.cli import train
from snfnp.errors import SnfnpError, flag_of
from snfnp.training.checkpointer import Checkpointer
from snfnp.training.options import OPTIONS
from snfnp.training.runs.load import load_run

GPU_ONLY = (
    "needs a GPU: tests/gpu sees its effect, and tests/test_cli.py that it reaches the device"
)
EXEMPT = {"out": "every run here has another"} | dict.fromkeys(("graph", "tf32"), GPU_ONLY)
START = {"backend": "numpy", "batch_size": 12, "epochs": 2, "warmup_epochs": 0, "lr": 0.01}
GLOW = {"model": "glow", "depth": 1, "width": 4}
GECO = {"lambda_control": "geco", "tolerance": 1e-3}
TABLE = {"data": "rows.csv", "model": "vector"}
# {option: (what else the two runs have, its value in the second)}, beside the next of its choices.
CHANGES = {
    "model": ({}, "conv"),
    "levels": (GLOW, 1),
    "depth": (GLOW, 2),
    "width": (GLOW, 8),
    "kernel": (GLOW, 3),
    "activation": ({"model": "vector"}, "smooth-leaky-relu"),
    "bins": ({"model": "vector"}, 3),
    "inverse_kernel": ({"model": "conv"}, 5),
    "bias_init": ({}, "data"),
    "gradient": ({}, "exact"),
    "objective": ({}, "forward"),
    "sigma": ({"objective": "variational"}, 0.1),
    "noise_vectors": ({"objective": "variational"}, 2),
    "relative_bias": ({"gradient": "relative"}, "full"),
    "jvp_weight": ({}, 0.5),
    "jvp_probes": ({"jvp_weight": 0.5}, 2),
    "lam": ({}, 3.0),
    "constraint": (GECO, "absolute"),
    "tolerance": (GECO, 0.1),
    "lambda_rate": (GECO, 0.5),
    "lambda_smoothing": (GECO, 0.5),
    "lambda_min": (GECO, 0.5),
    "lambda_max": (GECO | {"tolerance": 0.0}, 1.0001),
    "batch_size": ({}, 24),
    "lr": ({}, 0.02),
    "warmup_epochs": ({}, 1),
    "coordinates": ({"model": "conv"}, "white"),
    "lr_schedule": ({}, "cosine"),
    "final_lr_fraction": ({"lr_schedule": "cosine"}, 0.5),
    "clip_norm": ({}, 0.1),
    "data": ({}, "others.npy"),
    "validation": ({}, "0.3"),
    "test": ({}, "0.3"),
    "header": (TABLE, True),
    "columns": (TABLE, "0,2"),
    "drop_incomplete": (TABLE | {"data": "gaps.csv", "drop_incomplete": True}, False),
    "preprocess": ({}, "scale"),
    "ties": (TABLE, "keep"),
    "noise": ({}, 0.1),
    "data_dir": ({}, "nowhere"),
    "augment": ({}, True),
    "seed": ({}, 1),
    "epochs": ({}, 3),
    "eval_every": ({}, 2),
    "checkpoint_every": ({}, "1"),
    "track_angle": ({}, 1),
    "patience": ({"epochs": 4}, 1),
    "threads": ({}, 2),
    "backend": ({}, "cupy"),
    "recompute": ({"model": "conv"}, True),
}


def change(name):
    if name in CHANGES:
        return CHANGES[name]
    option = OPTIONS[name]
    if option.kind is bool:
        return {}, not option.default
    return {}, option.choices[option.choices.index(option.default) - 1]


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    """A function (options) -> everything that a run with them leaves but their record, or the line
    with which they are refused."""
    folder, rng = tmp_path_factory.mktemp("effects"), np.random.default_rng(0)
    for name in ("images", "others"):
        np.save(folder / f"{name}.npy", rng.integers(0, 256, (60, 8, 8, 1)).astype(np.uint8))
    table = rng.normal(size=(60, 3)).round(3)
    table[:, 2] = table[:, 2].round(1)
    table = table.astype(str)
    for name, cell in (("rows", table[9, 1]), ("gaps", "")):
        table[9, 1] = cell
        (folder / f"{name}.csv").write_text("\n".join(map(",".join, table)) + "\n")
    counts, saves, save, numbers = {"threads": 4}, [], Checkpointer.save, itertools.count()

    @functools.cache
    def run(options):
        argv, out = [], folder / f"run-{next(numbers)}"
        for name, value in options:
            if isinstance(value, bool):
                argv.append(flag_of(name if value else f"no_{name}"))
            else:
                argv += [flag_of(name), str(value)]
        saves.clear()
        counts["threads"] = 4
        try:
            train.main([*argv, "--out", str(out)])
        except SnfnpError as error:
            assert_one_line(error)
            return str(error)
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        metrics = [{k: v for k, v in line.items() if "second" not in k} for line in lines]
        files = sorted(path.name.partition("tfevents")[1] or path.name for path in out.iterdir())
        parameters = load_run(out, "last").checkpoint.p.tobytes()
        return str((metrics, files)), parameters, tuple(saves)

    def noted(checkpoints, *paths, **settings):
        saves.append(counts["threads"])
        return save(checkpoints, *paths, **settings)

    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        patched.setenv("SNFNP_OFFLINE", "1")
        patched.setattr(train, "_draw", lambda *_: None)
        patched.setattr(Checkpointer, "save", noted)
        pool = (lambda: counts["threads"], functools.partial(counts.__setitem__, "threads"))
        patched.setattr(threads, "_pools", lambda: [pool])
        for name in ("share_cores",):
            patched.setattr(threads, name, lambda *_: "")
        yield run


def given(**options):
    return tuple((START | {"data": "images.npy"} | options).items())


def test_a_run_with_the_same_options_is_the_same(result):
    """What follows would pass for an option without effect otherwise."""
    assert result.__wrapped__(given()) == result(given())


@pytest.mark.parametrize("name", [name for name in OPTIONS if name not in EXEMPT])
def test_every_option_changes_a_run(name, result):
    more, value = change(name)
    one, other = result(given(**more)), result(given(**more | {name: value}))
    assert one != other and not (isinstance(one, str) and isinstance(other, str))
