"""A run's folder: configuration, metrics as JSON lines, checkpoints and pictures.

config.json              every choice, versions, data source, device, threads; under "history" what
                         was changed by `--resume`, and at which step; with a SHA-256 of it all
metrics.jsonl            one line per exact evaluation
last.safetensors         the checkpoint from which `--resume` continues
best.safetensors         the best validation epoch, which `load_run` opens
summary.json             the best epoch and its test likelihood, once the run is done
samples.png, curves.png, and of data with two columns training.gif
run.lock                 the process that trains in the folder, while one does
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from snfnp import files
from snfnp.data import PUBLISHED, SPLITS, Dataset
from snfnp.data.sets import SAMPLE
from snfnp.errors import SnfnpError, UsageError, printable
from snfnp.training.options import TrainConfig
from snfnp.training.options.user_models import title_of
from snfnp.training.runs.checkpoint import is_evaluation, load_checkpoint


class RunFolder:
    """Paths and files of one run. `with run.lock:` keeps other programs from training in it."""

    def __init__(self, path: Path):
        self.path = Path(path)

    lock = property(lambda self: files.folder_lock(self.path / "run.lock"))
    config_file = property(lambda self: self.path / "config.json")
    metrics_file = property(lambda self: self.path / "metrics.jsonl")
    last = property(lambda self: self.path / "last.safetensors")
    best = property(lambda self: self.path / "best.safetensors")
    summary_file = property(lambda self: self.path / "summary.json")
    samples = property(lambda self: self.path / "samples.png")
    curves = property(lambda self: self.path / "curves.png")
    animation = property(lambda self: self.path / "training.gif")

    @classmethod
    def create(cls, path: Path) -> RunFolder:
        """A new folder, or one in which a run wrote no checkpoint yet. Raises UsageError if it
        cannot be made, or a run is in it."""
        run = cls(path)
        with files.explained(f"make {path}", "choose another folder (`out`)", UsageError):
            run.path.mkdir(parents=True, exist_ok=True)
            run.check_unused()
        return run

    def check_unused(self) -> None:
        """Raises UsageError if the folder holds more than a failed start leaves."""
        failed = {"config.json", "run.lock"}
        for name in {file.name for file in self.path.iterdir()} - failed:
            if not name.endswith(files.PARTIAL):
                advice = "choose another folder (`out`), or go on with that run (`resume`)"
                raise UsageError(f"{self.path} exists and holds {name}: {advice}")

    def has_checkpoint(self) -> bool:
        """Say whether there is one to go on from."""
        return os.path.exists(self.last) or os.path.exists(self.best)

    def remove_partial(self) -> None:
        """Remove what killed runs left half written; only with the lock."""
        for path in (self.config_file, self.metrics_file, self.last, self.best, self.summary_file):
            for partial in self.path.glob(f"{path.name}.*{files.PARTIAL}"):
                files.remove(partial)

    @classmethod
    def open(cls, path: Path) -> tuple[RunFolder, dict]:
        """An existing run and the contents of its config.json."""
        run = cls(path)
        inside = os.path.isfile(path) and cls(run.path.parent).config_file.exists()
        advice = f"give its folder, {run.path.parent}" if inside else "check the path"
        missing = f"{path} is no run folder (it has no config.json): {advice}"
        content = files.read_bytes(run.config_file, UsageError, missing)
        try:
            record = files.parse_json(content)
            if record.get("sha256") != _digest(record):
                raise ValueError("its checksum differs")
            if not isinstance(record.get("history", []), list):
                raise ValueError("history is no list")
            config = TrainConfig.from_dict(record.get("config"))
            if config.model is None or "data" not in record["config"]:
                raise ValueError("the configuration has no model or no data")
        except (ValueError, UsageError) as error:
            found = f"{run.config_file} is damaged, or of another version ({str(error)[:100]})"
            advice = "restore it (options are changed by resuming, not in the file)"
            raise SnfnpError(f"{found}: {advice}") from None
        return run, record

    def config(self) -> TrainConfig:
        """The options that a config.json records."""
        return TrainConfig.from_dict(self.open(self.path)[1]["config"])

    def data(self, record: dict) -> tuple[list[int], tuple[int, ...]]:
        """The data by a config.json: samples per split, and their shape, (H, W, C) or (D,)."""
        data: Any = record.get("data")
        found: Any = data if isinstance(data, dict) else {}
        images, shape = found.get("rows", found.get("images")), found.get("shape")
        for numbers, lengths in ((images, (3,)), (shape, (1, 3))):
            whole = isinstance(numbers, list) and len(numbers) in lengths
            if not (whole and all(type(n) is int and 0 < n < 2**31 for n in numbers)):
                raise SnfnpError(f"{self.config_file} is damaged (its data): restore it")
        return images, tuple(shape)

    def moments(self, record: dict) -> np.ndarray | None:
        """The arguments of `Standardise` by a config.json, (2, D), or with ties (7, D), which are
        (5, D) from older versions; None: it has images."""
        _, (columns, *images) = self.data(record)
        if images:
            return None
        with suppress(ValueError, TypeError, OverflowError):
            found = np.array(record["data"].get("moments"), np.float64)
            fits = found.shape in ((2, columns), (5, columns), (7, columns))
            fits = fits and np.isfinite(found).all()
            if fits and (found[1] > 0).all():
                return found
        raise SnfnpError(f"{self.config_file} is damaged (its data): restore it")

    def data_name(self, record: dict, data_dir: Path | None) -> str:
        """The name by which `load_dataset` finds the images of a config.json again: the sample of
        MNIST if the run was trained on it, but in a folder `data_dir`, which has no sample, MNIST.
        """
        name, data = record["config"]["data"], record.get("data")
        if data_dir is not None:
            return "mnist" if name == "mnist-sample" else name
        return "mnist-sample" if isinstance(data, dict) and data.get("source") == SAMPLE else name

    def check_same_data(
        self, record: dict, dataset: Dataset, splits=SPLITS, allowed=False
    ) -> str | None:
        """Raises UsageError if `splits` of a data set are not those of a config.json, by shape and
        SHA-256; if others are `allowed`, for another shape alone. Returns a line to show if they
        are others."""
        (counts, shape), data = self.data(record), record["data"]
        found = [len(getattr(dataset, split)) for split in SPLITS], dataset.train.shape[1:]
        known, places = data.get("sha256"), [SPLITS.index(split) for split in splits]
        known = known if isinstance(known, dict) else {}
        same = found[1] == shape and all(counts[place] == found[0][place] for place in places)
        if same and all(known.get(split) == dataset.fingerprint(split) for split in splits):
            return None
        given = record["config"].get("data")
        name, option = data.get("name", given), "`data_dir`" if given in PUBLISHED else "`data`"
        noun = "images" if len(shape) == 3 else "rows"
        line = f"{self.path} was trained on {counts} {noun} (train, validation, test) of shape "
        line += f"{shape}, {name} from {data.get('source')}, found others: {found[0]} of shape "
        line += f"{found[1]}, {dataset.name} from {dataset.source}"
        if allowed and found[1] == shape:
            return printable(line)
        others = "" if splits == SPLITS else ", or others of its shape to look at,"
        raise UsageError(f"{line}: give the same data{others} with {option} (dataset= in Python)")

    def resumed_config(self, changes: dict, rollback: bool = False) -> TrainConfig:
        """The configuration of the resumed run, with `changes`; after a rollback, with the
        optimiser's settings of the best checkpoint, if any. Raises UsageError if that would not be
        the same run."""
        _, record = self.open(self.path)
        config = TrainConfig.from_dict(record["config"])
        if rollback and self.best.exists():
            given = config.with_model(changes.get("model"))
            flow = given.build_flow(self.data(record)[1], self.moments(record))
            best = load_checkpoint(self.best, flow.layout, record)
            config = config.with_optimiser_of(best.record["config"])
        return config.resumed(changes, self.path)

    def write_config(self, record: dict) -> None:
        files.write_json(self.config_file, {**record, "sha256": _digest(record)})

    def remove_summary(self) -> None:
        """Remove the summary of a resumed run."""
        with files.explained(f"remove {self.summary_file}", "remove it"):
            self.summary_file.unlink(missing_ok=True)

    def append_metrics(self, record: dict) -> None:
        """Add a line; flushed, so that a crash keeps it. The file of a snapshot by hard links stays
        as it is."""
        if self.metrics_file.is_file() and self.metrics_file.lstat().st_nlink > 1:
            files.write_atomically(self.metrics_file, self.metrics_file.read_bytes())
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
        with (
            files.explained(f"write {self.metrics_file}", "let it be a file, with room to grow"),
            open(files.open_regular(self.metrics_file, flags), "ab") as file,
        ):
            file.write(_line(record))

    def cut_metrics(self, step: int) -> list[dict]:
        """Remove evaluations after the step from which the run is resumed; returns the others."""
        kept = [record for record in self.read_metrics() if record["step"] <= step]
        content = b"".join(map(_line, kept))
        if self.metrics_file.exists() and self.metrics_file.stat().st_size != len(content):
            files.write_atomically(self.metrics_file, content)
        return kept

    def read_metrics(self) -> list[dict]:
        """All evaluations; none if there is no file. Raises SnfnpError if it is damaged."""
        if not self.metrics_file.exists():
            return []
        content = files.read_bytes(self.metrics_file, SnfnpError, f"{self.metrics_file} is gone")
        *lines, _ = content.split(b"\n")  # a crash may have cut the last one off
        records = []
        for number, line in enumerate(lines, start=1):
            try:
                records.append(files.parse_json(line))
                if not is_evaluation(records[-1]):
                    raise ValueError("no evaluation")
            except ValueError as error:
                found = f"{self.metrics_file} is damaged (line {number}: {str(error)[:80]})"
                raise SnfnpError(f"{found}: restore it, or delete it to go on without") from None
        return records


def default_folder(config: TrainConfig) -> Path:
    """The folder that a new run makes: `--out`, or one named after its options and the time."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    name = f"{config.data_name}-{title_of(config.model)}-{config.gradient}-{stamp}"
    return config.out or Path("runs") / re.sub(r"[^\w.-]+", "-", name)


def _line(record: dict) -> bytes:
    return json.dumps(record, allow_nan=False).encode() + b"\n"


def _digest(record: dict) -> str:
    """The SHA-256 of a record, without that itself."""
    rest = {name: value for name, value in record.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
