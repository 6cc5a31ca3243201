"""Options that several commands share, and their checks."""

import argparse
import csv
import io
import math
import os
import re
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from snfnp.data import (
    SPLITS,
    load_dataset,
    load_whole,
    print_to_stderr,
    refuse_options,
)
from snfnp.data.table import is_table
from snfnp.errors import UsageError, printable, suggestion, within_memory
from snfnp.files import explained, write_atomically
from snfnp.images import fault
from snfnp.ops import BACKENDS, Ops
from snfnp.training.options.user_models import imported
from snfnp.training.progress import compilations_shown
from snfnp.training.runs.load import PRETRAINED, LoadedRun, load_run

# what help calls the values of a type
VALUES = {int: "N", float: "NUMBER", Path: "PATH"}


class Parser(argparse.ArgumentParser):
    """A parser whose errors are `UsageError`; if its help cannot be written, that is an error."""

    def number(
        self,
        flag: str,
        help: str,
        default: float | None = None,
        least: float = 1,
        most: float = math.inf,
        kind: type[int] | type[float] = int,
    ) -> None:
        """Add an option of a number from `least` to `most`."""

        def parsed(text):
            value = kind(text)
            if least <= value <= most and value < math.inf:
                return value
            name = flag.removeprefix("--").replace("-", "_")
            limits = f"at least {least}"
            if most < math.inf:
                limits = f"from {least} to {most:,}"
            finite = " and finite" if kind is float else ""
            raise UsageError(
                f"`{name}` is {str(value)[:40]}: it must be {limits}{finite}"
            )

        parsed.__name__ = kind.__name__  # for argparse's message
        if default is not None:
            help += f" (default: {default})"
        self.add_argument(
            flag, default=default, help=help, type=parsed, metavar=VALUES[kind]
        )

    def seed(self, help: str) -> None:
        """Add --seed, a key of random numbers."""
        self.number("--seed", help, 0, 0, 2**63 - 1)

    def print_help(self, file: Any = None) -> None:
        # argparse's own method ignores errors of writing
        print(self.format_help(), end="", file=file)

    def error(self, message: str) -> NoReturn:
        hint = ""
        if unknown := re.match(r"unrecognized arguments: (?:.*? )?(--[\w-]+)", message):
            hint = suggestion(unknown[1], self._option_string_actions)
        elif choice := re.search(
            r"invalid choice: '(.*?)' \(choose from (.*)\)", message
        ):
            hint = suggestion(choice[1], re.split(r"[', ]+", choice[2]))
        raise UsageError(f"{message[:300]}{hint}: see {self.prog} --help")


def run_parser(prog: str | None, description: str | None, data: bool = True) -> Parser:
    """A parser for commands that read a finished run: it has the options of `open_run`, and with
    `data` those of `images_of`."""
    parser = Parser(prog=prog, description=description)
    parser.add_argument(
        "run",
        type=Path,
        help="run folder, or mnist-conv: weights that ship with the package",
    )
    parser.add_argument(
        "--checkpoint",
        choices=("best", "last"),
        default="best",
        help="the best validation epoch, or the last step (default: best)",
    )
    parser.add_argument("--backend", choices=BACKENDS, help="default: the run's")
    parser.add_argument(
        "--model",
        metavar="VALUE",
        help="module:function that builds the run's model, if it is code of your own",
    )
    if data:
        parser.add_argument(
            "--data",
            metavar="DATA",
            help="name or path of the data (default: the run's)",
        )
        parser.add_argument(
            "--data-dir",
            type=Path,
            metavar="PATH",
            help="folder with the files of a published data set",
        )
        parser.add_argument(
            "--drop-incomplete",
            action="store_true",
            help="leave out rows that have gaps, of a table (default: as the run)",
        )
    return parser


def open_run(args: argparse.Namespace) -> LoadedRun:
    """The run that the options of `run_parser` name: a folder, or else weights by their name."""
    shipped = PRETRAINED / args.run
    path = shipped if shipped.exists() and not args.run.exists() else args.run
    return load_run(path, args.checkpoint, args.backend, flow=imported(args.model))


@contextmanager
def busy(ops: Ops, parameter: str, count: int) -> Iterator[None]:
    """`within_memory`, with lines on standard error while kernels are compiled."""
    with (
        within_memory(ops, parameter, count),
        compilations_shown(ops, print_to_stderr),
    ):
        yield


@contextmanager
def warnings_in_lines() -> Iterator[None]:
    """Print each warning once, in a line, at the end."""
    with warnings.catch_warnings(record=True, action="always") as caught:
        yield
    for line in dict.fromkeys(printable(warning.message) for warning in caught):
        print_to_stderr(line)


def images_of(
    run: LoadedRun, args: argparse.Namespace, split: str
) -> tuple[np.ndarray, str]:
    """A split of the data that a run was trained on, and its source.

    Raises UsageError for other data. Those of the same shape are allowed if --data-dir or --data
    names them, or if the run is pretrained: a line on standard output says that they are others."""
    # the run's folder has the run's data
    folder = args.data_dir or (
        run.config.data_dir if args.data in (None, run.config.data) else None
    )
    name = args.data or run.folder.data_name(run.record, folder)
    table_options = _table_options(run, args, name)
    options = run.config.splits_of(name)
    if is_table(name) and (args.data or args.drop_incomplete):
        options |= table_options  # another table is read as the run's was
    for part in SPLITS if args.data else ():
        path = options.get(part) or ""
        if os.path.isabs(path) and not os.path.exists(path):
            options[part] = None  # moved with the run's data, or gone
    dataset = load_dataset(name, folder, **options)
    files = [part for part in SPLITS if os.path.exists(options.get(part) or "")]
    # of other data, not the run's in another place, the splits are their own
    if (
        args.data
        and files
        and run.folder.check_same_data(run.record, dataset, ("train",), True)
    ):
        options |= dict.fromkeys(files)
        dataset = load_dataset(name, folder, **options)
    allowed = bool(args.data_dir or args.data or run.is_pretrained)
    if line := run.folder.check_same_data(run.record, dataset, (split,), allowed):
        print(line)
    return getattr(dataset, split), dataset.source


def whole_data(run: LoadedRun, args: argparse.Namespace) -> np.ndarray:
    """All of the data that --data names, or their test split if they have one. Raises UsageError if
    they are not samples such as the run was trained on."""
    samples = load_whole(
        args.data, args.data_dir, **_table_options(run, args, args.data)
    )
    if problem := fault(samples, run.image_shape, run.flow.preprocess.levels):
        raise UsageError(f"{args.data}: {problem}")
    return samples


def _table_options(
    run: LoadedRun, args: argparse.Namespace, name: str
) -> dict[str, Any]:
    """Options to read the table `name` as the run's table: the columns that the run was trained on,
    by name if they have names. Raises UsageError if --drop-incomplete is given for other data."""
    if not is_table(name):
        refuse_options(name, "tables", drop_incomplete=args.drop_incomplete)
    config = run.config
    return {
        "header": config.header,
        "columns": run.columns or config.columns,
        "drop_incomplete": config.drop_incomplete or args.drop_incomplete,
    }


def check_file(path: Path, name: str, suffixes: tuple[str, ...] = ()) -> None:
    """Refuse a path to which no file can be written, or whose suffix is not one of `suffixes`."""
    if suffixes and path.suffix.lower() not in suffixes:
        raise UsageError(
            f"`{name}` is {path}: its name must end in {' or '.join(suffixes)}"
        )
    if os.path.isdir(path):
        raise UsageError(
            f"`{name}` is {path}, which is a folder: give the name of a file"
        )
    with explained(f"write {path}", f"choose another `{name}`", UsageError):
        with suppress(FileNotFoundError):
            path.lstat()  # fails if the name is too long
        tempfile.TemporaryFile(dir=path.parent).close()


def write_csv(path: Path, columns: Iterable, rows: Iterable) -> None:
    """Write a table atomically, under the names of its columns if it has any."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    if columns:
        writer.writerow(columns)
    writer.writerows(rows)
    write_atomically(path, text.getvalue().encode())
