"""Train a flow, or resume a run: options from the configuration, training, pictures."""

import argparse
from typing import Any

from snfnp import threads
from snfnp.cli.shared import VALUES, Parser, warnings_in_lines
from snfnp.errors import UsageError, flag_of, in_flags, printable
from snfnp.processes import launching
from snfnp.training import session as training
from snfnp.training.loop import train_session
from snfnp.training.options import TrainConfig
from snfnp.training.options.config import OPTIONS, help_of
from snfnp.training.options.user_models import imported
from snfnp.training.progress import compilations_shown
from snfnp.training.runs.folder import RunFolder
from snfnp.training.runs.load import load_run

AUTO = "auto"  # a value of --resume
# What --help begins with.
EVERYDAY = ("model", "gradient", "recipe", "epochs", "lr", "batch_size", "data", "data_dir", "out")
EVERYDAY += ("seed", "backend")
_SAMPLES = 64  # images in samples.png, fewer if they are large


def main(argv: list[str], prog: str | None = None, **defaults) -> None:
    """Parse, train, draw. defaults: the options that a script sets otherwise."""
    with launching.process_group() as world:
        given = vars(_parser(prog, defaults).parse_args(argv))
        if path := given.pop("path", None):
            if "data" in given:
                raise UsageError(f"{path} and `data={given['data']}`: give one of them")
            given["data"] = path
        processes = given.pop("processes", 1)
        most = len(threads.cores())
        if given.get("threads", 1) > most:
            found = f"`threads` is {given['threads']}, and there are {most} cores here"
            raise UsageError(f"{found}: choose {most} or fewer")
        world.require_same(given)
        resume, rollback = given.pop("resume", None), given.pop("rollback", False)
        if resume == AUTO and rollback:
            raise UsageError("`rollback` with `resume=auto` would go back each time: choose one")
        if (resume or rollback) and "out" not in given:
            raise UsageError("`resume` and `rollback` need `out`: name the run's folder")
        if resume == AUTO and not world.on_rank_zero(RunFolder(given["out"]).has_checkpoint):
            resume = None
        if "model" in given:
            given["model"] = imported(given["model"])
        config = shared = TrainConfig(**{**defaults, **given})
        if resuming := resume or rollback:
            shared = world.on_rank_zero(lambda: RunFolder(given["out"]).config())
            if resume == AUTO and "epochs" in given:  # the same command never shortens a run
                given["epochs"] = max(given["epochs"], shared.epochs or 0)
        shared.check_processes(max(processes, world.size))  # before any of them is started
        launching.start(processes, world)
        if resuming:
            out = given.pop("out")
            run = training.resumed(out, given, rollback, world=world)
        else:
            run = training.started(config, world=world)
        with run as session:
            points: Any = session.dataset.validation
            animation: Any = None
            if points.shape[1:] == (2,):
                from snfnp.training.plots import Animation  # Matplotlib takes a second to import

                animation = Animation(points)
            train_session(session, _show, callbacks=(animation,) if animation else ())
            if world.rank == 0:
                with compilations_shown(session.ops), warnings_in_lines():  # of an inverse
                    _draw(session.folder, session.config, session.ops, animation)


def _show(line: str) -> None:
    print("\n".join(map(printable, in_flags(line).split("\n"))))


def _parser(prog: str | None, defaults: dict) -> Parser:
    """A parser with every option of TrainConfig, and --resume. Options that are not given are
    absent from the result; `defaults` of a script are shown by the help."""
    about = "Train a self-normalizing flow (Keller et al. 2021) or a baseline. Writes a run folder "
    about += "with the configuration, metrics, checkpoints, curves and samples. For a table it is "
    about += "one flow; snfnp.FlowDensity averages five for each level of noise, and mixtures."
    how = {"usage": "%(prog)s [-h] [OPTION …] [PATH]", "allow_abbrev": False}
    parser = Parser(prog=prog, description=about, argument_default=argparse.SUPPRESS, **how)
    about = "your data, as --data PATH"
    parser.add_argument("path", metavar="PATH", nargs="?", help=about)
    everyday = parser.add_argument_group("Everyday options")
    start = parser.add_argument_group("Start")
    for kind in reversed(TrainConfig.__bases__):
        group = parser.add_argument_group(str(kind.__doc__).partition("\n")[0].rstrip("."))
        for option in map(OPTIONS.__getitem__, kind.__annotations__):
            text = in_flags(help_of(option, defaults.get(option.name, option.default)))
            text = text.replace("%", "%%")
            how: dict[str, Any] = {"type": option.kind, "metavar": VALUES.get(option.kind, "VALUE")}
            if option.kind is bool:
                how = {"action": argparse.BooleanOptionalAction}
            elif option.choices:
                how = {"choices": option.choices}
            place = everyday if option.name in EVERYDAY else group
            place.add_argument(flag_of(option.name), dest=option.name, help=text, **how)
    about = "train in N processes, each with its share of every batch; on GPUs, one process per "
    about += "GPU (runs this command by mpiexec; needs mpi4py)"
    start.add_argument(launching.OPTION, type=int, metavar="N", help=about)
    about = "resume the run in --out from its last checkpoint (--epochs extends it); auto: start "
    about += "it if there is no checkpoint, so that the same command can be submitted repeatedly"
    start.add_argument("--resume", nargs="?", const=True, choices=(AUTO,), help=about)
    about = "resume the run in --out from its best checkpoint, with the settings recorded there or "
    about += "others given now, such as a smaller --lr"
    start.add_argument("--rollback", action="store_true", help=about)
    return parser


def _draw(folder: RunFolder, config: TrainConfig, ops, animation: Any) -> None:
    """Draw curves.png, samples.png at the best epoch, and of data with two columns training.gif."""
    from snfnp.training import plots

    records = folder.read_metrics()
    how = f"{config.gradient} gradient, {config.epochs} epochs"
    title, drawn = f"{config.data_name}, {config.model_name}, {how}", []
    if records:  # none if the file was deleted; first, as sampling fails if the inverse does
        plots.save_curves(folder.curves, records, title)
        drawn.append(folder.curves)
    run = load_run(folder.path, ops=ops, flow=config.model)
    inverses = ["learned"] * run.flow.has_learned_inverse + ["exact"]
    if animation:
        view = plots.View.of(run.likelihood, animation.data, inverses, config.seed)
        plots.save_view(folder.samples, view, title, run.columns)
        drawn.append(folder.samples)
    elif run.flow.preprocess.of_images:
        names = {"learned": "learned inverse (one pass)", "exact": "exact inverse"}
        drawing, seed = run.likelihood.sample, config.seed
        count = min(_SAMPLES, max(1, plots.LONGEST // max(run.image_shape[:2])) ** 2)
        panels = {names[n]: drawing(count, seed, exact=n == "exact") for n in inverses}
        plots.save_samples(folder.samples, panels, f"Samples, the same latents: {title}")
        drawn.append(folder.samples)
    if animation and animation.frames:  # none if the run was finished before
        plots.save_animation(folder.animation, animation.frames)
        drawn.append(folder.animation)
    print(printable(f"pictures: {', '.join(map(str, drawn))}"))
