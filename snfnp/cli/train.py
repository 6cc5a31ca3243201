"""Train a flow, or go on with a run: options from the configuration, training, pictures."""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from snfnp.cli.shared import within_memory
from snfnp.data import load_dataset
from snfnp.errors import UsageError
from snfnp.ops import get_ops
from snfnp.parameters import Layout
from snfnp.training.config import TrainConfig
from snfnp.training.load import load_run
from snfnp.training.loop import train
from snfnp.training.options import flag_of, options_of
from snfnp.training.run import RunFolder

_SAMPLES = 64
_KINDS = {"int": int, "float": float, "str": str, "Path": Path}


def main(
    argv: list[str],
    prog: str | None = None,
    what: str = "a self-normalizing flow (Keller et al. 2021) or one of its baselines on MNIST",
    **defaults,
) -> None:
    """Parse, check, train, draw.

    what: is trained, for --help; defaults: the options that a script starts from differently.
    """
    given = vars(_parser(prog, what, defaults).parse_args(argv))
    resume = given.pop("resume", False)
    if resume:
        run, config, record = resumed(given)
    else:
        config = TrainConfig(**{**defaults, **given})
    ops = get_ops(config.backend, tf32=config.tf32)
    dataset = load_dataset(config.data, config.data_dir)
    config = config.resolve(len(dataset.train))
    if resume:
        splits = (dataset.train, dataset.validation, dataset.test)
        found, expected = [len(split) for split in splits], record["data"]["images"]
        if found != expected:
            raise UsageError(
                f"{run.path} was trained on {expected} images (train, validation, test), found "
                f"{found}: give the same data with --data-dir"
            )
    else:
        if config.out is None:
            name = (
                f"{config.data}-{config.model}-{config.gradient}-{time.strftime('%Y%m%d-%H%M%S')}"
            )
            config = replace(config, out=Path("runs") / name)
        run = RunFolder.create(config.out)
    also = " in a new run" if resume else ""
    if config.preset.has_recomputable_layers and not config.recompute:
        also += ", or --recompute"

    def held() -> int:
        """Bytes of the parameters, their gradients and Adam's two moments."""
        layout = Layout.of(config.build_flow(dataset.train.shape[1:]).parameter_shapes())
        return 4 * layout.size * np.dtype(config.dtype).itemsize

    with within_memory(ops, "--batch-size", config.batch_size, held, also):
        train(config, dataset, ops, run, resume)
    _draw(run, config, ops)


def _parser(prog: str | None, what: str, defaults: dict) -> argparse.ArgumentParser:
    """A parser with every option of TrainConfig, and --resume.

    Options that are not given are absent from the result: defaults live in TrainConfig, and what
    a script sets otherwise in `defaults`, which the help texts show.
    """
    parser = argparse.ArgumentParser(
        prog=prog,
        description=f"Train {what}. Writes a run folder with the configuration, metrics, "
        "checkpoints, samples and curves.",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    for entry, about in options_of(TrainConfig):
        help_text, default = about.help, defaults.get(entry.name, entry.default)
        if default is not None and default is not True:
            help_text += f" (default: {default})"
        kind = entry.type.removesuffix(" | None")
        if kind == "bool":
            settings = {"action": argparse.BooleanOptionalAction}
        elif about.choices:
            settings = {"choices": about.choices}
        else:
            settings = {"type": _KINDS[kind], "metavar": kind.upper()}
        help_text = help_text.replace("%", "%%")
        parser.add_argument(flag_of(entry), dest=entry.name, help=help_text, **settings)
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on with the run in --out from its last checkpoint (with --epochs to train longer)",
    )
    return parser


def resumed(given: dict) -> tuple[RunFolder, TrainConfig, dict]:
    """The run in --out, the configuration with which it goes on, and its config.json."""
    if "out" not in given:
        raise UsageError("--resume needs --out: name the run's folder")
    run, record = RunFolder.open(given["out"])
    return run, TrainConfig.from_dict(record["config"]).resumed(given, run.path), record


def _draw(folder: RunFolder, config: TrainConfig, ops) -> None:
    """curves.png, and samples.png at the best epoch."""
    from snfnp.training import plots

    records = folder.read_metrics()
    title = (
        f"{config.data}, {config.model_name}, {config.gradient} gradient, "
        f"{records[-1]['epoch']} epochs"
    )
    plots.save_curves(folder.curves, records, title)  # first: it cannot fail on a bad inverse
    run = load_run(folder.path, ops=ops)
    inverses = {"learned inverse (one pass)": False} if run.flow.has_learned_inverse else {}
    panels = {
        name: run.likelihood.sample(_SAMPLES, config.seed, exact=exact).reshape(
            -1, *run.image_shape
        )
        for name, exact in {**inverses, "exact inverse": True}.items()
    }
    plots.save_samples(folder.samples, panels, f"Samples, the same latents: {title}")
    print(f"pictures: {folder.samples}, {folder.curves}")
