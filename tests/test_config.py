"""The configuration: its options, what a resumed run may change, refused settings."""

import ast
import dataclasses
import inspect
import math
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
from support.arrays import normal
from support.messages import cases, one_line
from support.trainers import (
    MODELS_AND_GRADIENTS,
    small_config,
    small_dataset,
)

import snfnp
from snfnp.cli import train as command
from snfnp.errors import UsageError, flag_of, in_flags
from snfnp.models import PRESETS
from snfnp.training.options import OPTIONS, TrainConfig
from snfnp.training.options.config import help_of
from snfnp.training.options.groups import interval
from snfnp.training.options.keywords import Changes, Options
from snfnp.training.options.relations import RELATIONS
from snfnp.training.session import started, train

SHAPE = (8, 8, 1)


@pytest.mark.parametrize("model, gradient", MODELS_AND_GRADIENTS)
def test_what_is_resolved_stays_as_it_is(model, gradient):
    resolved = TrainConfig(model=model, gradient=gradient).resolve(1000)
    assert resolved.resolve(1000) == resolved
    assert TrainConfig.from_dict(resolved.as_dict()).resolve(1000) == resolved


@pytest.mark.parametrize("model, gradient", MODELS_AND_GRADIENTS)
def test_presets_have_the_properties_that_they_state(model, gradient):
    preset = PRESETS[model]
    size = {"depth": 1, "width": 8}
    size = {name: value for name, value in size.items() if name in preset.size}
    config = TrainConfig(model=model, gradient=gradient, **size).resolve(1000)
    flow = config.build_flow(SHAPE)
    cheap = [layer.cheap_exact_inverse for _, layer in flow.layers]
    assert preset.has_recomputable_layers == any(cheap)
    if config.rule.learns_inverse:
        larger = dataclasses.replace(config, inverse_kernel=5).build_flow(SHAPE)
        matters = larger.parameter_shapes() != flow.parameter_shapes()
        assert matters == preset.has_inverse_kernel


def test_help_is_made_from_the_presets_and_the_rules():
    help_texts = {
        name: help_of(option, option.default) for name, option in OPTIONS.items()
    }
    for name, preset in PRESETS.items():
        assert f"{name}: {preset.summary}" in help_texts["model"]
    assert "(default: 0.001 [fc: 0.0001; vector: 0.01]; with" in help_texts["lr"]
    assert "none [glow-3l-32k, glow-3l-48k: 10000]" in help_texts["clip_norm"]
    assert "in the paper fc: 6000, conv: 1000, glow: 250" in help_texts["epochs"]
    for name, relation in RELATIONS.items():
        assert all(need.words in help_texts[name] for need in relation.needs)


MAY_CHANGE = """epochs eval_every data_dir backend graph recompute out lr lam clip_norm
checkpoint_every track_angle lr_schedule final_lr_fraction validation test patience eval_dtype
threads"""


@pytest.mark.parametrize("name", OPTIONS)
def test_a_resumed_run_may_change_what_says_so(name):
    """Any other change would make it another run."""
    started = TrainConfig(backend="cupy").resolve(1000)
    others = {int: 7, float: 0.125, bool: not getattr(started, name)}
    choices = {*OPTIONS[name].choices} - {getattr(started, name)}
    others |= {Path: Path("elsewhere"), str: min(choices, default="7")}
    given = {name: others[OPTIONS[name].kind]}
    if name in MAY_CHANGE.split():
        assert getattr(started.resumed(given, Path("run")), name) == given[name]
    else:
        with pytest.raises(
            UsageError, match=f"run was started with {name} = .*: it cannot"
        ):
            started.resumed(given, Path("run"))


def test_the_forward_objective_has_the_lambda_of_its_preset():
    objectives = ("mixture", "forward")
    of = {"fc": (1, 0.1), "conv": (1, 1), "glow": (100, 100), "glow-2l-4k": (100, 10)}
    for model, expected in of.items():
        configs = [
            TrainConfig(model=model, objective=each).resolve(1000)
            for each in objectives
        ]
        assert tuple(config.lam for config in configs) == expected


@pytest.mark.parametrize("model", PRESETS)
def test_a_short_run_rises_in_a_quarter_or_if_the_rate_falls_in_half_of_it(model):
    def warmup(epochs, **options):
        config = TrainConfig(model=model, epochs=epochs, **options)
        return config.resolve(50_000).warmup_epochs

    recipe = {"recipe": "white"}
    assert (warmup(1, **recipe), warmup(100, **recipe)) == (0.5, 1)
    preset = PRESETS[model]
    share = 0.5 if model == "vector" else 0.25
    assert warmup(1) == (share if preset.warmup_epochs else 0)
    assert warmup(40) == warmup(1000) == preset.warmup_epochs
    assert warmup(1, **recipe, warmup_epochs=0.75) == 0.75
    assert warmup(4, warmup_epochs=5, lr_schedule="constant") == 5


PACES = [  # model, training images, channels, epochs: lr, warm-up and clipping of the recipe
    ("conv", 960, 3, 1, (0.00212, 0.5, 1000)),
    ("conv", 960, 3, 24, (0.00975, 12, 1000)),
    ("conv", 960, 3, 120, (0.00577, 55.6, 1000)),
    ("conv", 50_000, 3, 20, (0.00577, 1, 1000)),
    ("conv", 960, 1, 24, (0.01, 12, 1000)),
    ("conv", 960, 1, 555, (0.01, 55.6, 1000)),
    ("conv", 960, 1, 556, (0.01, 55.6, None)),
    ("fc", 960, 3, 24, (0.00186, 12, 1000)),
    ("glow-2l-4k", 960, 3, 6, (0.0104, 3, 1000)),
]


@pytest.mark.parametrize("model, images, channels, epochs, expected", PACES)
def test_the_recipe_has_the_rate_for_its_steps(
    model, images, channels, epochs, expected
):
    def chosen(**options):
        options |= {"model": model, "recipe": "white", "epochs": epochs}
        config = TrainConfig(**options).resolve(images, (16, 16, channels))
        return config.lr, config.warmup_epochs, config.clip_norm

    assert chosen() == expected
    lr, warmup, clip = expected
    clip_of_preset = PRESETS[model].white.get("clip_norm")
    assert chosen(lr=0.1) == (0.1, warmup, clip_of_preset)
    assert chosen(warmup_epochs=0.25) == (lr, 0.25, clip)
    assert chosen(clip_norm=7.0) == (lr, warmup, 7)


LONG = {"fc": 10, "conv": 10, "emerging": 10, "conv-exponential": 10, "glow-2l-4k": 40}


@pytest.mark.parametrize("model", LONG)
@pytest.mark.parametrize("gradient", ["exact", None])
def test_long_runs_on_mnist_have_the_recipe_as_it_was(model, gradient):
    """Those of results.json, without `epochs`, and longer ones: as their presets say."""
    white = PRESETS[model].white
    for epochs in (None, LONG[model], 20, 60, 150, 300):
        for shape in ((), (28, 28, 1)):
            options = {"model": model, "gradient": gradient, "recipe": "white"}
            config = TrainConfig(**options, epochs=epochs).resolve(50_000, shape)
            wanted = (white["lr"], white["warmup_epochs"], white.get("clip_norm"))
            assert (config.lr, config.warmup_epochs, config.clip_norm) == wanted


def test_what_has_no_rate_in_the_recipe_keeps_that_of_its_preset():
    """Rows, and Glow in the paper's sizes."""
    for model, shape in (("vector", (8,)), ("glow", (16, 16, 3))):
        options = {"model": model, "recipe": "white", "epochs": 6}
        found = TrainConfig(**options).resolve(960, shape)
        preset = TrainConfig(model=model, epochs=6).resolve(960, shape)
        assert (found.lr, found.clip_norm) == (preset.lr, None)
        assert found.warmup_epochs == 1


def test_a_resumed_run_keeps_the_rate_of_its_first_steps():
    """A rate for more steps would not be the one that began; without them it is the same run."""
    options = {"model": "conv", "recipe": "white", "backend": "numpy"}
    started = TrainConfig(**options, epochs=6).resolve(960, (16, 16, 3))
    saved = TrainConfig.from_dict(started.as_dict())
    for epochs in (6, 24, 600):
        config = saved.resumed({"epochs": epochs}, Path("run"))
        assert config.resolve(960, (16, 16, 3)) == dataclasses.replace(
            started, epochs=epochs
        )
    former = TrainConfig.from_dict(started.as_dict() | {"lr": 1e-2, "clip_norm": None})
    assert former.resolve(960, (16, 16, 3)).clip_norm is None


def test_a_clip_norm_that_was_asked_for_is_kept():
    """The preset's is for the self-normalizing gradient alone; a person may want it elsewhere."""
    glow = {"model": "glow-3l-32k", "gradient": "exact"}
    assert TrainConfig(**glow).resolve(1000).clip_norm is None
    assert TrainConfig(**glow, clip_norm=10_000).resolve(1000).clip_norm == 10_000


def test_checkpoints_are_steps_or_minutes_apart():
    for text, steps, seconds in (("500", 500, math.inf), ("0.5m", math.inf, 30)):
        TrainConfig(checkpoint_every=text).resolve(1000)
        assert interval(text) == (steps, seconds)
    for text in ("0", "0m", "m", "", "-1", "5h", "1e3", "nan", "5 m", "٣"):
        with pytest.raises(
            UsageError, match="`checkpoint_every` is .*: it must be steps, as 500"
        ):
            TrainConfig(checkpoint_every=text).resolve(1000)


WRONG = {
    int: ["3", 1.5, True, [1]],
    float: ["0.1", math.nan, math.inf, 10**400, False],
    bool: [0, "yes"],
    str: [3, ["fc"], {}],
    Path: [3, []],
}


def wrong_values(name):
    """Values that an option may not have, by its kind and its choices."""
    option = OPTIONS[name]
    yield from WRONG[option.kind]
    if option.default is not None:
        yield None
    if option.choices:
        yield "other"
    if option.kind is float:
        yield 1e300


@pytest.mark.parametrize("name", OPTIONS)
def test_a_value_that_a_run_cannot_have_is_refused_before_its_first_step_and_in_its_file(
    name,
):
    """One rule for training and opening: what is trained can be opened."""
    saved = TrainConfig().resolve(1000).as_dict()
    for value in wrong_values(name):
        with pytest.raises(UsageError, match=f"`{name}` is .*: it must be "):
            TrainConfig.from_dict({**saved, name: value})
        with one_line(UsageError, match=f"`{name}` is .*: it must be "):
            TrainConfig(**{name: value}).resolve(1000)


def test_paths_are_taken_wherever_text_is(tmp_path):
    rows = normal(60, 2)
    parts = {}
    for name in ("data", "validation", "test"):
        parts[name] = tmp_path / f"{name}.npy"
        np.save(parts[name], rows)
    texts = {name: str(path) for name, path in parts.items()}
    assert TrainConfig(**parts) == TrainConfig(**texts)
    path = parts.pop("data")
    quick = {"epochs": 1, "backend": "numpy"}
    run = snfnp.fit(rows, **parts, **quick, out=tmp_path / "run", report=None)
    snfnp.resume(run.folder.path, data=path, epochs=2, **parts, report=None)
    assert run.folder.config().data == texts["data"]


def test_numbers_of_numpy_are_plain_ones():
    """As in a sweep over an array; np.float64 is a float, but its repr differs."""
    kinds = {"epochs": np.int64, "lr": np.float32, "lam": np.float64, "model": np.str_}
    given = {"epochs": 3, "lr": 0.5, "lam": 0.25, "model": "conv", "recompute": True}
    kinds["recompute"] = np.bool_
    found = TrainConfig(
        **{name: kind(given[name]) for name, kind in kinds.items()}
    ).resolve(1000)
    assert found == TrainConfig(**given).resolve(1000)
    assert all(
        type(getattr(found, name)) is type(value) for name, value in given.items()
    )
    assert found.resumed({"epochs": np.int64(4)}, Path("run")).epochs == 4
    with pytest.raises(UsageError, match="`epochs` is 2.5: it must be a whole number"):
        TrainConfig(epochs=np.float32(2.5)).resolve(1000)


@pytest.mark.parametrize("changes", [{"clip_norm": math.inf}, {"epochs": 2.5}])
def test_what_changed_after_it_was_resolved_is_checked_before_the_first_step(
    tmp_path, changes
):
    """Otherwise it would be trained to the end and could never be opened again."""
    config = small_config(backend="numpy", out=tmp_path / "run")
    with one_line(UsageError, match="`.*` is .*: it must be "):
        train(dataclasses.replace(config, **changes), small_dataset())
    assert not (tmp_path / "run").exists()


def test_a_configuration_is_a_flat_dataclass():
    """Editors and type checkers see every option as a field and as a keyword."""
    config = TrainConfig(model="conv", lr=0.5)
    assert [entry.name for entry in dataclasses.fields(TrainConfig)] == list(OPTIONS)
    assert list(inspect.signature(TrainConfig).parameters) == list(OPTIONS)
    assert pickle.loads(pickle.dumps(config)) == config
    assert set(RELATIONS) <= set(OPTIONS)
    with one_line(
        UsageError,
        "there is no option colour (did you mean columns?): see snfnp.TrainConfig",
    ):
        TrainConfig(colour=3)


SYNONYMS = cases("""
learning_rate | lr
num_epochs | epochs
batch | batch_size
device | backend
output | out
epocs | epochs
""")


@pytest.mark.parametrize("word, meant", SYNONYMS.items())
def test_words_of_other_libraries_lead_to_options(tmp_path, word, meant):
    hint = f"there is no option {word} (did you mean {meant}?)"
    calls = (
        lambda: TrainConfig(**{word: 3}),
        lambda: snfnp.fit(np.zeros((9, 2)), **{word: 3}),
        lambda: TrainConfig().resumed({word: 3}, tmp_path),
    )
    for call in calls:
        with one_line(UsageError, hint):
            call()
    flag = "--" + word.replace("_", "-")
    of_option = flag_of(meant)
    with one_line(
        UsageError, f"unrecognized arguments: {flag}", f"(did you mean {of_option}?)"
    ):
        command.main([flag, "3"])


def test_the_command_line_has_flags_for_the_parameters_in_messages():
    found = "`batch_size` is 0: see `lam`, `graph=False`, `exact=True` and `model=conv or fc`"
    flags = "--batch-size is 0: see --lambda, --no-graph, --inverse exact and --model conv or fc"
    assert in_flags(found) == flags
    assert len({flag_of(name) for name in OPTIONS}) == len(OPTIONS)


@pytest.mark.parametrize("model", ["vector", "glow-2l-4k"])
def test_a_builder_gets_the_size_of_its_preset_with_the_options_in_it(
    model, monkeypatch
):
    found = []
    preset = PRESETS[model]

    def build(choices, shape):
        found.append({name: getattr(choices, name) for name in preset.size})
        return preset.build(choices, shape)

    monkeypatch.setitem(PRESETS, model, dataclasses.replace(preset, build=build))
    TrainConfig(model=model, depth=2).resolve(3000, SHAPE).build_flow(SHAPE)
    assert found == [preset.size | {"depth": 2}]


def test_messages_of_the_library_name_no_flags():
    """The command line turns the parameters that they name into its flags."""
    known = "--data-dir or SNFNP_DATA_DIR"  # a warning of a command
    found = []
    for path in (Path(__file__).parents[1] / "snfnp").rglob("*.py"):
        source = path.read_text(encoding="utf-8")
        tree = ast.parse(source if "--" in source else "")
        texts = {node for node in ast.walk(tree) if isinstance(node, ast.Constant)}
        # docstrings
        texts -= {node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for text in (node.value for node in texts if isinstance(node.value, str)):
            if re.search(r"(^|\W)--[a-z]", text) and known not in text:
                found.append((path.parent.name, text))
    assert {folder for folder, _ in found} <= {"cli", "processes"}, found


# " … " stands between parts of a message
REFUSED = cases("""
--lambda -1.0 | `lam` is -1.0: it must be 0 or more
--lr 0.0 | `lr` is 0.0: it must be positive
--model cnn | `model=cnn` is unknown: choose one of fc,
--batch-size 0 | `batch_size` is 0
--seed -1 | `seed` is -1
--model glow --depth 1000000000 | `depth` is 1000000000: it must be from 1 to 1000
--model glow --levels 1000000000 | `levels` is 1000000000: it must be from 1 to 1000
--gradient exact --lambda 2.0 | `lam` only has an effect with
--gradient exact --objective forward | `objective` only has an effect with
--inverse-kernel 7 | `inverse_kernel` only has an effect with `model=conv`
--model conv --inverse-kernel 4 | `inverse_kernel` is 4: it must be odd
--model conv --gradient exact --inverse-kernel 5 | `gradient=self-normalizing`
--model conv --init authors | `init=authors` only has an effect with `model=fc` or
--model glow --init authors | elsewhere it is the same as paper
--no-graph | `graph=False` only has an effect with `backend=cupy`: leave it out
--tf32 | `tf32` only has an effect with `backend=cupy`: leave it out
--backend cupy --tf32 --dtype float64 | effect with `dtype=float32`
--gradient exact --track-angle 2 | `track_angle` only has an effect with
--track-angle 0 | `track_angle` is 0: it must be at least 1
--model glow --bias-init data | `bias_init` only has an effect with `model=fc or c
--width 3 | `width` only has an effect with `model=glow
--model glow --kernel 4 | `kernel` is 4: it must be odd
--model conv --gradient relative | `model=conv` cannot be trained with
--no-shuffle --no-graph --jvp-probes 2 | with a positive `jvp_weight`: leave
--gradient exact --lambda-control geco | `gradient=self-normalizing`: leave it out
--gradient relative --lambda-control geco | `gradient=self-normalizing`
--tolerance 0.1 | `tolerance` only has an effect … `lambda_control=geco`: leave
--lambda-smoothing 0.5 | with `lambda_control=geco`: leave
--lambda-control geco --tolerance -1.0 | `tolerance` is -1.0: it must be 0 or more
--lambda-control geco --lambda-rate 0.0 | `lambda_rate` is 0.0: it must be positive
--lambda-control geco --lambda-smoothing 1.0 | it must be at least 0 and less than 1
--lambda-control geco --constraint absolute | absolute` needs `tolerance`
--lambda-control geco --lambda 0.0 | `lam` is 0, where geco starts: it must be positive
--lambda-control geco --lambda 100000.0 | `lam` is 100000, where geco … 10000 at most
--model fc --final-lr-fraction 0.1 | only has an effect with `lr_schedule=cos
--coordinates white --gradient relative | `coordinates` only has an effect with a `gradient`
--recipe white --gradient relative | `recipe` only has an effect with a `gradient` other
--model vector --coordinates white | `coordinates` only has … `model=fc, conv
--model vector --gradient exact --recipe white | `recipe` only … or `gradient=self-norm
--model vector --activation smooth-leaky-relu --bins 3 | `bins` only … `activation=spline`
--objective variational --lambda 0.0 | `lam` is 0: `objective=variational` has noise
--objective variational --noise-vectors 0 | `noise_vectors` is 0: it must be at least 1
--objective variational --lambda-control geco | `lambda_control` only … `objective=mixt
--objective variational --gradient exact | `objective` only … `gradient=self-norm
--objective mixture --noise-vectors 4 | `noise_vectors` only has an effect with
--jvp-weight -1.0 | `jvp_weight` is -1.0: it must be 0 or more
--jvp-weight 0.2 --jvp-probes 0 | `jvp_probes` is 0: it must be at least 1
--jvp-probes 2 | `jvp_probes` only has an effect with a positive `jvp_weight`
--jvp-weight 0.2 --gradient exact | only has an effect with `gradient=self-norm
--jvp-weight 0.2 --objective variational | `jvp_weight` … mixture or forward
--model fc --recompute | `recompute` only has an effect with
""")


@pytest.mark.parametrize("options", REFUSED)
def test_options_without_effect_are_refused_before_data_are_read(options):
    with one_line(UsageError, *REFUSED[options].split(" … ")):
        command.main(["no/such.npy", *options.split()])


def test_without_a_model_an_option_of_either_kind_of_data_waits_for_them(tmp_path):
    """Splines are for rows; a kernel's size is for neither default model."""
    with (
        one_line(UsageError, "does not exist"),
        started(TrainConfig(bins=3, data="no/such.npy")),
    ):
        pass
    given = TrainConfig(kernel=3, data="no/such.npy")
    with one_line(UsageError, "`kernel` only has an effect with"), started(given):
        pass
    # of rows
    given = TrainConfig(bins=3, activation="smooth-leaky-relu", data="no/such.csv")
    with (
        one_line(UsageError, "`bins` only has an effect with `activation=spline`"),
        started(given),
    ):
        pass


def test_the_keywords_of_fit_and_resume_are_the_options():
    """With the types that they have in `TrainConfig`."""
    types = {field.name: field.type for field in dataclasses.fields(TrainConfig)}
    assert Changes.__annotations__ == types
    parameters = set(inspect.signature(snfnp.fit).parameters)
    assert set(Options.__annotations__) == set(types) - parameters


def test_paths_of_data_are_valid_in_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tmp_path.joinpath("mnist").mkdir()
    located = TrainConfig(data_dir="mnist").located()
    assert (located.data, located.data_dir) == ("mnist", tmp_path / "mnist")
