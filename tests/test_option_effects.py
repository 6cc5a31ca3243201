"""Every option has an effect on a run, and in no preset has an option none."""

import functools
import itertools
import json

import numpy as np
import pytest
from numpy.random import default_rng
from support.messages import assert_one_line
from support.runs import around
from support.trainers import MODELS_AND_GRADIENTS, without_time

from snfnp.cli import train as command
from snfnp.errors import SnfnpError, UsageError, flag_of
from snfnp.models import PRESETS
from snfnp.ops import get_ops
from snfnp.step.batches import Batches
from snfnp.step.trainer import Trainer
from snfnp.training.checkpointer import Checkpointer
from snfnp.training.options import OPTIONS, TrainConfig
from snfnp.training.runs.load import load_run

# ---------------------------------------------------------------- every option has an effect

GPU_ONLY = (
    "needs a GPU: its effect is seen in tests/gpu, its way there in tests/test_cli.py"
)
EXEMPT = {
    "out": "every run here has another",
    "threads": "tests/test_threads.py has it",
}
EXEMPT |= dict.fromkeys(("graph", "tf32"), GPU_ONLY)
START = {
    "backend": "numpy",
    "batch_size": 12,
    "epochs": 2,
    "warmup_epochs": 0,
    "lr": 0.01,
}
GLOW = {"model": "glow", "depth": 1, "width": 4}
CONTROLLED = {"lambda_control": "geco", "tolerance": 0.0}  # λ rises at once
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
    "noise_vectors": ({"objective": "variational"}, 2),
    "jvp_weight": ({}, 0.5),
    "jvp_probes": ({"jvp_weight": 0.5}, 2),
    "lam": ({}, 3.0),
    "constraint": (CONTROLLED, "absolute"),
    "tolerance": (CONTROLLED, 0.1),
    "lambda_rate": (CONTROLLED, 0.5),
    "lambda_smoothing": (CONTROLLED, 0.5),
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
    "preprocess": (TABLE, "none"),
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
    folder = tmp_path_factory.mktemp("effects")
    rng = default_rng(0)
    for name in ("images", "others"):
        np.save(
            folder / f"{name}.npy", rng.integers(0, 256, (60, 8, 8, 1)).astype(np.uint8)
        )
    table = rng.normal(size=(60, 3)).round(3)
    table[:, 2] = table[:, 2].round(1)
    table = table.astype(str)
    for name, cell in (("rows", table[9, 1]), ("gaps", "")):
        table[9, 1] = cell
        (folder / f"{name}.csv").write_text("\n".join(map(",".join, table)) + "\n")
    saves = []
    numbers = itertools.count()

    @functools.cache
    def run(options):
        argv = []
        out = folder / f"run-{next(numbers)}"
        for name, value in options:
            if isinstance(value, bool):
                argv.append(flag_of(name if value else f"no_{name}"))
            else:
                argv += [flag_of(name), str(value)]
        saves.clear()
        try:
            command.main([*argv, "--out", str(out)])
        except SnfnpError as error:
            assert_one_line(error)
            return str(error)
        lines = [
            json.loads(line)
            for line in (out / "metrics.jsonl").read_text().splitlines()
        ]
        metrics = without_time(lines)
        files = sorted(path.name for path in out.iterdir())
        parameters = load_run(out, "last").checkpoint.p.tobytes()
        return str((metrics, files)), parameters, tuple(saves)

    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        patched.setenv("SNFNP_OFFLINE", "1")
        patched.setattr(command, "_draw", lambda *_: None)
        around(patched, Checkpointer, "save", lambda *_: saves.append("a checkpoint"))
        yield run


def given(**options):
    return tuple((START | {"data": "images.npy"} | options).items())


def test_a_run_with_the_same_options_is_the_same(result):
    """Otherwise the tests below could not tell an option's effect from chance."""
    assert result.__wrapped__(given()) == result(given())


@pytest.mark.parametrize("name", [name for name in OPTIONS if name not in EXEMPT])
def test_every_option_changes_a_run(name, result):
    more, value = change(name)
    one = result(given(**more))
    other = result(given(**more | {name: value}))
    assert one != other and not (isinstance(one, str) and isinstance(other, str))


# ------------------------------------------------- no preset has an option without effect

# What these change no step shows: data, files, evaluations, and what every step needs. The runs
# above show it, whatever the model is.
OF_RUNS = """model gradient data validation test header columns ties drop_incomplete data_dir epochs
eval_every checkpoint_every patience track_angle out backend threads eval_dtype graph tf32
recompute"""
OF_STEPS = [name for name in OPTIONS if name not in OF_RUNS.split()]
SIZES = {"levels": 1, "depth": 1, "width": 4}
TINY = (4, 4, 1)
USUAL = {("preprocess", "logit"), ("preprocess", "standardise")}  # what None stands for


@functools.cache
def after_four_steps(options):
    """The parameters after two epochs of two steps, and their figures; or the line with which the
    options are refused."""
    options = dict(options)
    ops = get_ops("numpy")
    rng = default_rng(0)
    rows = options["model"] == "vector"
    data = (
        rng.normal(size=(24, 3))
        if rows
        else rng.integers(0, 256, (24, *TINY), np.uint8)
    )
    try:
        config = TrainConfig(**options).resolve(len(data), data.shape[1:])
        moments = (data.mean(axis=0), data.std(axis=0)) if rows else None
        flow = config.build_flow(data.shape[1:], moments)
        batches = Batches(ops, data, config, flow.shape)
        trainer = Trainer(ops, flow, config, batches.steps_per_epoch)
    except UsageError as error:
        assert_one_line(error)
        return str(error)
    trainer.begin(batches)
    for _ in range(4):
        trainer.training_step(batches)
    return trainer.p.tobytes(), trainer.averages(), str(trainer.figures())


@pytest.mark.slow  # 13 s of a processor
@pytest.mark.parametrize("model, gradient", MODELS_AND_GRADIENTS)
def test_an_option_changes_the_steps_of_a_model_or_is_refused(model, gradient):
    usual = START | {name: SIZES[name] for name in SIZES if name in PRESETS[model].size}
    usual |= {"model": model, "gradient": gradient}
    for name in OF_STEPS:
        needed, changed = change(name)
        needed = {key: given for key, given in needed.items() if key not in usual}
        for value in {changed, *OPTIONS[name].choices}:
            for more in ({}, needed) if needed else ({},):
                one = usual | more
                other = one | {name: value}
                before = after_four_steps(tuple(one.items()))
                if isinstance(before, str) or (name, value) in USUAL:
                    continue
                # if it is a default
                if after_four_steps(tuple(other.items())) == before:
                    filled = TrainConfig(**one).filled()
                    assert value == getattr(filled, name), f"{name} with {more}"
                    assert TrainConfig(**other).filled() == filled
