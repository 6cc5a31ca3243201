"""What the scripts share: options from the configuration, errors as one line, pictures."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path

import numpy as np

from snfnp.checkpoint import load_checkpoint
from snfnp.config import PRESET_SETTINGS, TrainConfig
from snfnp.data import load_dataset
from snfnp.errors import SnfnpError, UsageError
from snfnp.likelihood import Likelihood
from snfnp.models import PRESETS
from snfnp.ops import BACKENDS, get_ops
from snfnp.parameters import Layout
from snfnp.runs import RunFolder

# What may differ when a run is resumed; everything else must be as it was. TF32 must: it is a
# precision of its own, as dtype is, and config.json would go on telling the old one.
_CHANGEABLE = {"epochs", "eval_every", "data_dir", "backend", "graph", "recompute", "out"}
_SAMPLES = 64


def run_script(main) -> None:
    """Run a script's main(argv) -> None; a failure is one line on stderr and an exit status.

    2 for usage, 1 for any other failure, 130 after Ctrl-C.
    """
    try:
        main(sys.argv[1:])
    except SnfnpError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_status)
    except MemoryError as error:
        found = str(error).rstrip(".") or "nothing more is known"
        advice = "ask for less at once, or see which other program has it"
        print(f"error: out of memory ({found}): {advice}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


@contextmanager
def within_memory(
    ops, option: str, count: int, fixed: Callable[[], int] = lambda: 0, also: str = ""
):
    """Inside, running out of memory is a SnfnpError that says which `option` would fit.

    option, count: what sets how many items are computed at once, and how many those are.
    fixed(): bytes that are held however many items there are; asked for in a failure only.
    also: what else would help.
    """
    try:
        yield
    except SnfnpError:
        raise
    except Exception as error:
        shortage = ops.shortage(error)
        if shortage is None:
            raise
        fits = shortage.fitting(count, fixed())
        if fits is None:
            advice = f"choose a smaller {option} than {count}"
        elif fits:
            advice = (
                f"try {option} {fits} or smaller (estimated in proportion: what {count} had taken "
                "when it failed)"
            )
        else:
            advice = f"not even {option} 1 would fit here: use a device with more memory"
        raise SnfnpError(f"out of memory: {shortage.found}: {advice}{also}") from None


def train_parser(description: str, defaults: dict) -> argparse.ArgumentParser:
    """A parser with one option per field of TrainConfig, and --resume.

    Options that are not given are absent from the result: defaults live in TrainConfig, and what
    a script sets otherwise in `defaults`, which the help texts show.
    """
    parser = argparse.ArgumentParser(
        description=description, argument_default=argparse.SUPPRESS, allow_abbrev=False
    )
    for entry in fields(TrainConfig):
        settings = dict(entry.metadata)
        flag = settings.pop("flag", "--" + entry.name.replace("_", "-"))
        help_text = settings.pop("help")
        default = defaults.get(entry.name, entry.default)
        if entry.name in PRESET_SETTINGS:
            help_text += f" (default: {_preset_values(entry.name)})"
        elif default is not None and default is not True:
            help_text += f" (default: {default})"
        kind = entry.type.removesuffix(" | None")
        if kind == "bool":
            settings["action"] = argparse.BooleanOptionalAction
        else:
            settings["type"] = {"int": int, "float": float, "str": str, "Path": Path}[kind]
            settings.setdefault("metavar", None if "choices" in settings else kind.upper())
        parser.add_argument(flag, dest=entry.name, help=help_text.replace("%", "%%"), **settings)
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on with the run in --out from its last checkpoint (with --epochs to train longer)",
    )
    return parser


def _preset_values(setting: str) -> str:
    """What the presets have for a setting, grouped: "0.0001 for fc; 0.001 for conv, glow"."""
    models: dict = {}
    for name, preset in PRESETS.items():
        value = getattr(preset, setting)
        models.setdefault("none" if value is None else f"{value:g}", []).append(name)
    if len(models) == 1:
        return next(iter(models))
    return "; ".join(f"{value} for {', '.join(names)}" for value, names in models.items())


def train_command(argv: list[str], description: str, **defaults) -> None:
    """Parse, check, train, draw: the whole of a training script.

    defaults: TrainConfig's fields that this script starts from differently.
    """
    from snfnp.train import train

    given = vars(train_parser(description, defaults).parse_args(argv))
    resume = given.pop("resume", False)
    if resume:
        run, config, record = _resumed(given)
    else:
        config, record = TrainConfig(**{**defaults, **given}), None
    ops = get_ops(config.backend, tf32=config.tf32)
    dataset = load_dataset(config.data, config.data_dir)
    config.resolve(len(dataset.train))
    if record is not None:
        found, expected = [len(s) for s in _splits(dataset)], record["data"]["images"]
        if found != expected:
            raise UsageError(
                f"{run.path} was trained on {expected} images (train, validation, test), found "
                f"{found}: give the same data with --data-dir"
            )
    else:
        if config.out is None:
            stamp = time.strftime("%Y%m%d-%H%M%S")
            config.out = Path("runs") / f"{config.data}-{config.model}-{config.gradient}-{stamp}"
        run = RunFolder.create(config.out)
    also = " in a new run" if resume else ""
    if not config.recompute and config.model != "fc":
        also += ", or --recompute"

    def held() -> int:
        """Bytes of the parameters, their gradients and Adam's two moments."""
        layout = Layout.of(config.build_flow(dataset.train.shape[1:]).init(config.seed))
        return 4 * layout.size * np.dtype(config.dtype).itemsize

    with within_memory(ops, "--batch-size", config.batch_size, held, also):
        train(config, dataset, ops, run, resume)
    draw(run, config, ops, dataset)


def draw(run: RunFolder, config: TrainConfig, ops, dataset) -> None:
    """curves.png, and samples.png at the best epoch."""
    from snfnp import plots

    records = run.read_metrics()
    title = (
        f"{config.data}, {config.model_name}, {config.gradient} gradient, "
        f"{records[-1]['epoch']} epochs"
    )
    plots.save_curves(run.curves, records, title)  # first: it cannot fail on a bad inverse
    likelihood, flow = load_likelihood(run.best, config, ops, dataset.train.shape[1:])
    shape = (-1, *dataset.train.shape[1:])
    panels = {}
    if flow.has_learned_inverse:
        panels["learned inverse (one pass)"] = likelihood.sample(_SAMPLES, config.seed).reshape(
            shape
        )
    exact = likelihood.sample(_SAMPLES, config.seed, exact=True)
    panels["exact inverse"] = exact.reshape(shape)
    plots.save_samples(run.samples, panels, f"Samples, the same latents: {title}")
    print(f"pictures: {run.samples}, {run.curves}")


def load_likelihood(checkpoint: Path, config: TrainConfig, ops, image_shape):
    """The exact likelihood at a checkpoint, and its flow."""
    flow, saved = load_flow(checkpoint, config, image_shape)
    return Likelihood(ops, flow, saved.layout, ops.asarray(saved.p)), flow


def load_flow(checkpoint: Path, config: TrainConfig, image_shape):
    """The flow that a run's configuration describes, and its `Checkpoint`."""
    flow = config.build_flow(image_shape)
    return flow, load_checkpoint(checkpoint, Layout.of(flow.init(config.seed)))


def run_parser(description: str) -> argparse.ArgumentParser:
    """A parser for scripts that read a finished run, with what `open_run` and they need."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("run", type=Path, help="a run folder of a training script")
    parser.add_argument(
        "--checkpoint",
        choices=("best", "last"),
        default="best",
        help="the best validation epoch or the last step (default: best)",
    )
    parser.add_argument("--backend", choices=BACKENDS, help="what computes (default: the run's)")
    return parser


def open_run(args) -> tuple:
    """(run, config, record, ops) for scripts that read a finished run: args.run, args.backend.

    The run's tf32 is of no concern to them: they compute in double precision.
    """
    run, record = RunFolder.open(args.run)
    config = TrainConfig.from_dict(record["config"])
    return run, config, record, get_ops(args.backend or config.backend)


def _resumed(given: dict):
    if "out" not in given:
        raise UsageError("--resume needs --out: name the run's folder")
    run, record = RunFolder.open(given["out"])
    config = TrainConfig.from_dict(record["config"])
    for name, value in given.items():
        before = getattr(config, name)
        if name not in _CHANGEABLE and value != before:
            raise UsageError(
                f"{run.path} was started with {name} = {before}: it cannot go on with {value}; "
                "leave that option out, or start a new run"
            )
        setattr(config, name, value)
    if not config.uses_gpu:
        if config.tf32:
            raise UsageError(
                f"{run.path} was started with --tf32, which --backend {config.backend} does not "
                "have: leave --backend out, or start a new run"
            )
        if "graph" not in given:
            config.graph = True  # what the run's first backend was told is nothing to this one
    return run, config, record


def _splits(dataset):
    return dataset.train, dataset.validation, dataset.test
