"""Train a flow, or go on with a run: options from the configuration, training, pictures."""

from __future__ import annotations

import argparse
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np

from snfnp.cli import processes
from snfnp.cli.shared import Parser, within_memory
from snfnp.data import Dataset, load_dataset
from snfnp.errors import SnfnpError, UsageError
from snfnp.ops import Communicator, get_ops
from snfnp.parameters import Layout
from snfnp.training import board
from snfnp.training.checkpoint import load_checkpoint
from snfnp.training.config import TrainConfig
from snfnp.training.load import load_run
from snfnp.training.loop import train
from snfnp.training.options import flag_of, options_of
from snfnp.training.run import RunFolder

AUTO = "auto"  # a value of --resume
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
    with processes.together() as world:
        given = vars(_parser(prog, what, defaults).parse_args(argv))
        count = given.pop("processes", 1)
        processes.start(count, argv, world)
        world.require_same({"--" + name.replace("_", "-"): value for name, value in given.items()})
        _train(given, defaults, world)


def _train(given: dict, defaults: dict, world: Communicator) -> None:
    """Rank 0 decides what there is to do, and keeps the folder; all ranks train."""
    resume, rollback = given.pop("resume", None), given.pop("rollback", False)
    if resume == AUTO:
        if rollback:
            raise UsageError("--rollback with --resume auto would go back each time: choose one")
        resume = world.on_rank_zero(lambda: _started(given))
    goes_on = resume or rollback
    with ExitStack() as held:
        run = None

        def opened() -> tuple[TrainConfig, dict]:
            nonlocal run
            run, *_ = resumed(given)
            held.enter_context(run.lock)
            return resumed(given, rollback, resume == AUTO)[1:]  # it stays so from here

        if goes_on:
            config, record = world.on_rank_zero(opened)
        else:
            config = TrainConfig(**{**defaults, **given})
        ops = get_ops(config.backend, tf32=config.tf32, world=world, overlap=config.overlap)
        dataset = _load(config, world)
        config = config.resolve(len(dataset.train))
        config.check_processes(world.size)
        if config.tensorboard:
            board.require()  # before there is a folder

        def layout() -> Layout:
            return config.build_flow(dataset.train.shape[1:]).layout

        def created() -> Path:
            nonlocal run
            started = time.strftime("%Y%m%d-%H%M%S")
            name = f"{config.data}-{config.model}-{config.gradient}-{started}"
            run = RunFolder.create(config.out or Path("runs") / name)
            held.enter_context(run.lock)
            return run.path

        if not goes_on:
            layout()  # what a model refuses, it refuses before there is a folder
            config = replace(config, out=world.on_rank_zero(created))
        run = run or RunFolder(config.out)
        if goes_on:
            _refuse_other_images(dataset, *run.data(record), run)
        also = " in a new run" if goes_on else ""
        if config.preset.has_recomputable_layers and not config.recompute:
            also += ", or --recompute"

        def fixed() -> int:
            """Bytes of the parameters, their gradients and Adam's two moments."""
            return 4 * layout().size * np.dtype(config.dtype).itemsize

        with within_memory(ops, "--batch-size", config.batch_size, fixed, also):
            train(config, dataset, ops, run, "best" if rollback else bool(resume), world=world)
        if world.rank == 0:
            _draw(run, config, ops)


def _load(config: TrainConfig, world: Communicator) -> Dataset:
    """The images; on each machine one process is first, which may have to download them."""
    dataset = error = None
    with processes.quiet(world):
        if world.local_rank == 0:
            try:
                dataset = load_dataset(config.data, config.data_dir)
            except SnfnpError as found:
                error = found
        for failed in filter(None, world.gather(error)):
            raise failed
        return dataset or load_dataset(config.data, config.data_dir)


def _refuse_other_images(dataset: Dataset, counts: list[int], shape: tuple, run: RunFolder) -> None:
    found = [len(split) for split in (dataset.train, dataset.validation, dataset.test)]
    for what, here, then in (
        ("images (train, validation, test)", found, counts),
        ("images of shape", tuple(dataset.train.shape[1:]), shape),
    ):
        if here != then:
            raise UsageError(
                f"{run.path} was trained on {then} {what}, found {here}: give the same data with "
                "--data-dir"
            )


def _parser(prog: str | None, what: str, defaults: dict) -> Parser:
    """A parser with every option of TrainConfig, and --resume.

    Options that are not given are absent from the result: defaults live in TrainConfig, and what
    a script sets otherwise in `defaults`, which the help texts show.
    """
    parser = Parser(
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
        processes.OPTION,
        type=int,
        metavar="N",
        help="train in so many processes, each with its share of every batch: on GPUs, one for "
        'each (starts this command with mpiexec; needs pip install ".[mpi]")',
    )
    parser.add_argument(
        "--resume",
        nargs="?",
        const=True,
        choices=(AUTO,),
        help="go on with the run in --out from its last checkpoint (with --epochs to train "
        "longer); auto: start it where there is nothing to go on with, so that one command can be "
        "submitted again and again",
    )
    parser.add_argument(
        "--rollback",
        action="store_true",
        help="go back to the best checkpoint of the run in --out, with its λ and other settings "
        "(and --lr to train on more carefully), and on from there",
    )
    return parser


def resumed(
    given: dict, rollback: bool = False, auto: bool = False
) -> tuple[RunFolder, TrainConfig, dict]:
    """The run in --out, the configuration with which it goes on, and its config.json.

    rollback: with the optimiser's settings of the best checkpoint, where there is one; auto:
    fewer epochs than the run was extended to since are not asked for.
    """
    if "out" not in given:
        raise UsageError("--resume and --rollback need --out: name the run's folder")
    run, record = RunFolder.open(given["out"])
    config = TrainConfig.from_dict(record["config"])
    if rollback and run.best.exists():
        layout = config.build_flow(run.data(record)[1]).layout
        config = config.as_at(load_checkpoint(run.best, layout, record).record["config"])
    if auto and "epochs" in given:
        given = {**given, "epochs": max(given["epochs"], config.epochs or 0)}
    return run, config.resumed(given, run.path), record


def _started(given: dict) -> str | bool:
    """Whether --resume auto has something to go on with."""
    if "out" not in given:
        raise UsageError("--resume auto needs --out: name the run's folder")
    run = RunFolder(given["out"])
    return AUTO if run.last.exists() or run.best.exists() else False


def _draw(folder: RunFolder, config: TrainConfig, ops) -> None:
    """curves.png, and samples.png at the best epoch."""
    from snfnp.training import curves, plots

    records = folder.read_metrics()
    title = (
        f"{config.data}, {config.model_name}, {config.gradient} gradient, {config.epochs} epochs"
    )
    if records:  # they may have been lost
        curves.save_curves(folder.curves, records, title)  # first: samples may need a good inverse
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
