"""Every option has an effect on a run, and in no preset has an option none."""

import functools
import itertools

import numpy as np
import pytest
from support.arrays import normal, pixels
from support.messages import assert_one_line
from support.runs import around
from support.trainers import SMALL_MODELS, without_time

from snfnp.cli import train as command
from snfnp.errors import SnfnpError, UsageError, flag_of
from snfnp.models import PRESETS
from snfnp.ops import get_ops
from snfnp.step.batches import Batches
from snfnp.step.trainer import Trainer
from snfnp.training.checkpointer import Checkpointer
from snfnp.training.options import OPTIONS, TrainConfig
from snfnp.training.runs.folder import RunFolder
from snfnp.training.runs.load import load_run

# ---------------------------------------------------------------- every option has an effect

# every run here has another `out`; tests/test_threads.py has threads; the effects of the others are
# seen in tests/gpu, their way there in tests/test_cli.py
EXEMPT = ("out", "threads", "graph", "tf32")

START = "--backend numpy --batch-size 12 --epochs 2 --warmup-epochs 0 --lr 0.01"
GLOW = "--model glow --depth 1 --width 4"
CONTROLLED = "--lambda-control geco --tolerance 0.0"  # λ rises at once
TABLE = "--data rows.csv --model vector"
# What the second of two runs has, and what both have.
CHANGED = f"""
--model conv
--levels 1 | {GLOW}
--depth 2 | {GLOW}
--width 8 | {GLOW}
--kernel 3 | {GLOW}
--activation smooth-leaky-relu | --model vector
--bins 3 | --model vector
--inverse-kernel 5 | --model conv
--bias-init data
--gradient exact
--objective forward
--noise-vectors 2 | --objective variational
--jvp-weight 0.5
--jvp-probes 2 | --jvp-weight 0.5
--lambda 3.0
--constraint absolute | {CONTROLLED}
--tolerance 0.1 | {CONTROLLED}
--lambda-rate 0.5 | {CONTROLLED}
--lambda-smoothing 0.5 | {CONTROLLED}
--batch-size 24
--lr 0.02
--warmup-epochs 1
--coordinates white | --model conv
--lr-schedule cosine
--final-lr-fraction 0.5 | --lr-schedule cosine
--clip-norm 0.1
--data others.npy
--validation 0.3
--test 0.3
--header | {TABLE}
--columns 0,2 | {TABLE}
--no-drop-incomplete | --data gaps.csv --model vector --drop-incomplete
--preprocess none | {TABLE}
--ties keep | {TABLE}
--noise 0.1
--data-dir nowhere
--augment | {GLOW}
--seed 1
--epochs 3
--eval-every 2
--checkpoint-every 1
--track-angle 1
--patience 1 | --epochs 4
--backend cupy
--recompute | {GLOW}
"""


def parsed(words):
    """The options that are typed."""
    return vars(command._parser(None, {}).parse_args(words.split()))


CHANGES = {}
for line in CHANGED.strip().splitlines():
    changed, _, needed = line.partition(" | ")
    CHANGES[next(iter(parsed(changed)))] = changed, needed


def change(name):
    """(what is typed to change an option, what it needs): the next of its choices if not above."""
    option = OPTIONS[name]
    if name in CHANGES:
        return CHANGES[name]
    if option.kind is bool:
        return flag_of(f"no_{name}" if option.default else name), ""
    value = option.choices[option.choices.index(option.default) - 1]
    return f"{flag_of(name)} {value}", ""


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    """A function (what is typed) -> everything that a run leaves but its record, or the line with
    which it is refused."""
    folder = tmp_path_factory.mktemp("effects")
    for seed, name in enumerate(("images", "others")):
        np.save(folder / f"{name}.npy", pixels(60, 8, 8, 1, seed=seed))
    table = normal(60, 3).round(3)
    table[:, 2] = table[:, 2].round(1)
    table = table.astype(str)
    for name, cell in (("rows", table[9, 1]), ("gaps", "")):
        table[9, 1] = cell
        (folder / f"{name}.csv").write_text("\n".join(map(",".join, table)) + "\n")
    saves = []
    numbers = itertools.count()

    @functools.cache
    def run(words):
        out = folder / f"run-{next(numbers)}"
        saves.clear()
        try:
            command.main(f"{START} --data images.npy {words} --out {out}".split())
        except SnfnpError as error:
            assert_one_line(error)
            return str(error)
        metrics = without_time(RunFolder(out).read_metrics())
        files = sorted(path.name for path in out.iterdir())
        parameters = load_run(out, "last").checkpoint.p.tobytes()
        return str((metrics, files)), parameters, tuple(saves)

    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        patched.setenv("SNFNP_OFFLINE", "1")
        patched.setattr(command, "_draw", lambda *_: None)
        around(patched, Checkpointer, "save", lambda *_: saves.append("a checkpoint"))
        yield run


def test_a_run_with_the_same_options_is_the_same(result):
    """Otherwise the tests below could not tell an option's effect from chance."""
    assert result.__wrapped__("") == result("")


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in OPTIONS if name not in EXEMPT])
def test_every_option_changes_a_run(name, result):
    changed, needed = change(name)
    one = result(needed)
    other = result(f"{needed} {changed}")
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
    rows = options["model"] == "vector"
    data = normal(24, 3) if rows else pixels(24, *TINY)
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


@pytest.mark.slow
@pytest.mark.parametrize("model, gradient", SMALL_MODELS)
def test_an_option_changes_the_steps_of_a_model_or_is_refused(model, gradient):
    usual = parsed(START) | {
        name: SIZES[name] for name in SIZES if name in PRESETS[model].size
    }
    usual |= {"model": model, "gradient": gradient}
    for name in OF_STEPS:
        changed, needed = map(parsed, change(name))
        needed = {key: value for key, value in needed.items() if key not in usual}
        for value in {changed[name], *OPTIONS[name].choices}:
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
