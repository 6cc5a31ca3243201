"""The command that trains a flow or resumes a run: its options, training, and pictures."""

import argparse
from dataclasses import is_dataclass
from typing import Any

import numpy as np

from snfnp import threads
from snfnp.cli.shared import VALUES, Parser, warnings_in_lines
from snfnp.errors import UsageError, flag_of, in_flags, printable
from snfnp.images import evenly_spread
from snfnp.training.loop import train_session
from snfnp.training.options import TrainConfig
from snfnp.training.options.config import OPTIONS, help_of
from snfnp.training.options.user_models import imported
from snfnp.training.progress import compilations_shown, gradient_of
from snfnp.training.runs.folder import RunFolder
from snfnp.training.runs.load import load_run
from snfnp.training.session import Session, resumed, started

AUTO = "auto"  # a value of --resume
# What --help lists; --help-all has all options.
EVERYDAY = (
    "model",
    "gradient",
    "recipe",
    "epochs",
    "lr",
    "batch_size",
    "data",
    "data_dir",
    "out",
    "seed",
    "backend",
)
_ALL = "--help-all"
_SAMPLES = 64  # images in samples.png, fewer if they are large
_FEW = 200  # validation rows: pictures of a table with fewer show all of its rows


def main(argv: list[str], prog: str | None = None, **defaults: Any) -> None:
    """Parse, train, draw. defaults: a script's own defaults of options."""
    everything = _ALL in argv
    options = vars(_parser(prog, defaults, everything).parse_args(argv))
    path = options.pop("path", None)
    if path is not None:
        if "data" in options:
            raise UsageError(f"{path} and `data={options['data']}`: give one of them")
        options["data"] = path
    cores = threads.cores()
    if options.get("threads", 1) > cores:
        raise UsageError(
            f"`threads` is {options['threads']}, and there are {cores} cores here: choose {cores} "
            "or fewer"
        )
    resume = options.pop("resume", None)
    rollback = options.pop("rollback", False)
    if resume == AUTO and rollback:
        raise UsageError(
            "`rollback` with `resume=auto` would go back each time: choose one"
        )
    if (resume or rollback) and "out" not in options:
        raise UsageError("`resume` and `rollback` need `out`: name the run's folder")
    if resume == AUTO and not RunFolder(options["out"]).has_checkpoint():
        resume = None
    if "model" in options:
        options["model"] = imported(options["model"])
    if resume or rollback:
        # the same command never shortens a run
        if resume == AUTO and "epochs" in options:
            epochs = RunFolder(options["out"]).config().epochs
            options["epochs"] = max(options["epochs"], epochs or 0)
        run = resumed(options.pop("out"), options, rollback)
    else:
        run = started(TrainConfig(**{**defaults, **options}))
    with run as session:
        dataset = session.dataset
        animation = None
        if dataset.train.shape[1:] == (2,):
            # Matplotlib takes a second to import
            from snfnp.training.plots import Animation

            points = dataset.validation
            if len(points) < _FEW:
                points = np.concatenate((dataset.train, points, dataset.test))
            animation = Animation(points)
        train_session(session, _show, callbacks=(animation,) if animation else ())
        # sampling compiles the kernels of inverses
        with compilations_shown(session.ops, _show), warnings_in_lines():
            _draw(session, animation)


def _show(line: str) -> None:
    print("\n".join(map(printable, in_flags(line).split("\n"))))


def _parser(
    prog: str | None, defaults: dict[str, Any], everything: bool = False
) -> Parser:
    """A parser with every option of TrainConfig, and --resume. Options that are not given are
    absent from the result; `defaults` of a script are shown by the help. everything: the help
    lists all options, not only the everyday ones."""
    parser = Parser(
        prog=prog,
        description="Train a self-normalizing flow (Keller et al. 2021) or a baseline. Writes a "
        "run folder with the configuration, metrics, checkpoints, curves and samples. A table gets "
        "one flow; snfnp.FlowDensity averages five for each level of noise, and mixtures.",
        argument_default=argparse.SUPPRESS,
        usage="%(prog)s [-h] [OPTION …] [PATH]",
        allow_abbrev=False,
    )
    parser.add_argument(
        "path", metavar="PATH", nargs="?", help="your data, as --data PATH"
    )
    parser.add_argument(_ALL, action="help", help="explain all options, in groups")
    everyday = parser.add_argument_group("Everyday options")
    start = parser.add_argument_group("Start")
    # A dataclass takes the fields of its last base first. `Settings` is a base, and no group.
    for base in filter(is_dataclass, reversed(TrainConfig.__bases__)):
        group = parser.add_argument_group(
            str(base.__doc__).partition("\n")[0].rstrip(".")
        )
        for name in base.__annotations__:
            option = OPTIONS[name]
            text = in_flags(help_of(option, defaults.get(name, option.default)))
            is_shown = everything or name in EVERYDAY
            settings: dict[str, Any] = {
                "help": text.replace("%", "%%") if is_shown else argparse.SUPPRESS
            }
            if option.kind is bool:
                settings["action"] = argparse.BooleanOptionalAction
            elif option.choices:
                settings["choices"] = option.choices
            else:
                metavar = VALUES.get(option.kind, "VALUE")
                settings |= {"type": option.kind, "metavar": metavar}
            parent = everyday if name in EVERYDAY else group
            parent.add_argument(flag_of(name), dest=name, **settings)
    start.add_argument(
        "--resume",
        nargs="?",
        const=True,
        choices=(AUTO,),
        help="resume the run in --out from its last checkpoint (--epochs extends it); auto: start "
        "it if there is no checkpoint, so that the same command can be submitted repeatedly",
    )
    start.add_argument(
        "--rollback",
        action="store_true",
        help="resume the run in --out from its best checkpoint, with the settings recorded there "
        "or others given now, such as a smaller --lr",
    )
    return parser


def _draw(session: Session, animation: Any) -> None:
    """Draw curves.png, samples.png at the best epoch, and of data with two columns training.gif."""
    from snfnp.training import curves, plots

    folder = session.folder
    config = session.config
    gradient = gradient_of(config, session.flow)
    run_name = f"{config.data_name}, {config.model_name}, {gradient}"
    records = folder.read_metrics()
    pictures = []
    # The curves come first, since sampling fails if an inverse does.
    if records:  # none if the file was deleted
        curves.save_curves(folder.curves, records, run_name)
        pictures.append(folder.curves)
    run = load_run(folder.path, ops=session.ops, flow=config.model)
    inverses = ["learned", "exact"] if run.flow.has_learned_inverse else ["exact"]
    steps = config.steps_per_epoch(len(session.dataset.train))
    title = f"{run_name}, epoch {run.checkpoint.step // steps} of {config.epochs}"
    if animation:
        view = plots.View.of(run.likelihood, animation.data, inverses, config.seed)
        plots.save_view(folder.samples, view, title, run.columns)
        pictures.append(folder.samples)
    elif run.flow.preprocess.of_images:
        titles = {"learned": "learned inverse (one pass)", "exact": "exact inverse"}
        # so many that a square picture of them has at most plots.LONGEST pixels a side
        count = min(_SAMPLES, max(1, plots.LONGEST // max(run.image_shape[:2])) ** 2)
        panels = {
            titles[name]: run.likelihood.sample(
                count, config.seed, exact=name == "exact"
            )
            for name in inverses
        }
        panels["test images"] = evenly_spread(session.dataset.test, count)
        plots.save_samples(
            folder.samples, panels, f"Samples, the same latents: {title}"
        )
        pictures.append(folder.samples)
    if animation and animation.frames:  # none if the run was finished before
        plots.save_animation(folder.animation, animation.frames)
        pictures.append(folder.animation)
    print(printable(f"pictures: {', '.join(map(str, pictures))}"))
