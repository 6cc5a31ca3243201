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

import hashlib
import json
import os
import re
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np

from snfnp.data import PUBLISHED, SPLITS, Dataset
from snfnp.data.sets import SAMPLE
from snfnp.errors import CheckpointError, SnfnpError, UsageError, printable
from snfnp.files import (
    PARTIAL,
    Json,
    explained,
    folder_lock,
    open_regular,
    parse_json,
    read_bytes,
    readable,
    remove,
    write_atomically,
    write_json,
)
from snfnp.training.options import TrainConfig
from snfnp.training.options.user_models import title_of
from snfnp.training.runs.checkpoint import is_evaluation, record_of


class RunFolder:
    """Paths and files of one run."""

    def __init__(self, path: Path):
        self.path = Path(path)
        self.config_file = self.path / "config.json"
        self.metrics_file = self.path / "metrics.jsonl"
        self.last = self.path / "last.safetensors"
        self.best = self.path / "best.safetensors"
        self.summary_file = self.path / "summary.json"
        self.samples = self.path / "samples.png"
        self.curves = self.path / "curves.png"
        self.animation = self.path / "training.gif"

    @property
    def lock(self) -> AbstractContextManager:
        """A context in which no other program trains in the folder."""
        return folder_lock(self.path / "run.lock")

    @classmethod
    def create(cls, path: Path) -> "RunFolder":
        """A new folder, or one in which a run wrote no checkpoint yet. Raises UsageError if it
        cannot be made, or a run is in it."""
        run = cls(path)
        with explained(f"make {path}", "choose another folder (`out`)", UsageError):
            run.path.mkdir(parents=True, exist_ok=True)
            run.check_unused()
        return run

    def check_unused(self) -> None:
        """Raises UsageError if the folder holds more than a failed start leaves."""
        for name in os.listdir(self.path):
            if name == "config.json":
                self.open(self.path)  # raises if it is not a run's
            elif name != "run.lock" and not name.endswith(PARTIAL):
                raise UsageError(
                    f"{self.path} exists and holds {name}: choose another folder (`out`), or go on "
                    "with that run (`resume`)"
                )

    def has_checkpoint(self) -> bool:
        """Say whether there is one to go on from."""
        return os.path.exists(self.last) or os.path.exists(self.best)

    def remove_partial(self) -> None:
        """Remove what killed runs left half written; only with the lock."""
        for partial in self.path.glob(f"*.[0-9]*-????????{PARTIAL}"):
            remove(partial)

    @classmethod
    def open(cls, path: Path) -> tuple["RunFolder", Json]:
        """An existing run and the contents of its config.json."""
        run = cls(path)
        inside = os.path.isfile(path) and cls(run.path.parent).config_file.exists()
        advice = f"give its folder, {run.path.parent}" if inside else "check the path"
        missing = f"{path} is no run folder (it has no config.json): {advice}"
        content = read_bytes(run.config_file, UsageError, missing)
        try:
            record = parse_json(content)
            if record.get("sha256") != _digest(record):
                raise ValueError("its checksum differs")
            if not isinstance(record.get("history", []), list):
                raise ValueError("history is no list")
            config = TrainConfig.from_dict(record.get("config"))
            if config.model is None or "data" not in record["config"]:
                raise ValueError("the configuration has no model or no data")
        except (ValueError, UsageError) as error:
            raise SnfnpError(
                f"{run.config_file} was edited, damaged, or written by another version "
                f"({str(error)[:100]}): restore it; to change options, resume with them"
            ) from None
        return run, record

    def config(self) -> TrainConfig:
        """The options that a config.json records."""
        return TrainConfig.from_dict(self.open(self.path)[1]["config"])

    def data(self, record: Json) -> Json:
        """The data by a config.json, with three entries more: counts, the samples per split; shape,
        (H, W, C) or (D,); moments, the arguments of `Standardise`, (2, D), or (5, D) or (7, D) with
        ties, or None for images. Raises SnfnpError if it is damaged."""
        with readable(self.config_file, "restore it", SnfnpError, "is damaged"):
            data = record["data"]
            counts = data.get("rows", data.get("images"))
            shape = data["shape"]
            moments = None
            sound = _are_counts(counts, 3) and _are_counts(shape, 1, 3)
            if sound and len(shape) == 1:
                moments = np.array(data["moments"], np.float64)
                sound = (
                    moments.shape in [(count, *shape) for count in (2, 5, 7)]
                    and np.isfinite(moments).all()
                    # rows are divided by the spreads
                    and (moments[1] > np.finfo(float).tiny).all()
                )
            if not (sound and isinstance(data["sha256"], dict)):
                raise ValueError("its data")
        return {**data, "counts": counts, "shape": tuple(shape), "moments": moments}

    def data_name(self, record: Json, data_dir: Path | None) -> str:
        """The name by which `load_dataset` finds the images of a config.json again: the sample of
        MNIST if the run was trained on it, but in a folder `data_dir`, which has no sample, MNIST.
        """
        name = record["config"]["data"]
        if data_dir is not None:
            return "mnist" if name == "mnist-sample" else name
        return "mnist-sample" if self.data(record).get("source") == SAMPLE else name

    def check_same_data(
        self,
        record: Json,
        dataset: Dataset,
        splits: tuple[str, ...] = SPLITS,
        allowed: bool = False,
    ) -> str | None:
        """Compare `splits` of a data set with those of a config.json, by shape and SHA-256.

        Args:
            allowed: other data of the same shape are.

        Returns:
            A line to show if they are others, or None.

        Raises:
            UsageError: they are others, and not allowed.
        """
        data = self.data(record)
        shape = data["shape"]
        other_shape = dataset.train.shape[1:]
        digests = {split: dataset.fingerprint(split) for split in splits}
        if shape == other_shape and digests.items() <= data["sha256"].items():
            return None
        name = record["config"]["data"]
        option = "`data_dir`" if name in PUBLISHED else "`data`"
        noun = "images" if len(shape) == 3 else "rows"
        sizes = [len(getattr(dataset, split)) for split in SPLITS]
        line = (
            f"{self.path} was trained on {data['counts']} {noun} (train, validation, test) of "
            f"shape {shape}, {data.get('name', name)} from {data.get('source')}, but these are "
            f"{sizes} of shape {other_shape}, {dataset.name} from {dataset.source}"
        )
        if allowed and other_shape == shape:
            return printable(line)
        others = (
            "" if splits == SPLITS else ", or other data of that shape to evaluate,"
        )
        raise UsageError(
            f"{line}: give the original data{others} with {option} (dataset= in Python)"
        )

    def resumed_config(self, changes: Json, rollback: bool = False) -> TrainConfig:
        """The configuration of the resumed run, with `changes`; after a rollback, with the
        optimiser's settings of the best checkpoint, if any. Raises UsageError if that would not be
        the same run."""
        config = self.config()
        if rollback and self.best.exists():
            saved = record_of(self.best).get("config")
            # before its checksum is looked at
            with readable(self.best, "use another file", CheckpointError, "is damaged"):
                config = config.with_optimiser_of(saved)
        return config.resumed(changes, self.path)

    def write_config(self, record: Json) -> None:
        write_json(self.config_file, {**record, "sha256": _digest(record)})

    def remove_summary(self) -> None:
        """Remove the summary of a resumed run."""
        with explained(f"remove {self.summary_file}", "remove it"):
            self.summary_file.unlink(missing_ok=True)

    def append_metrics(self, record: Json) -> None:
        """Add a line; flushed, so that a crash keeps it. The file of a snapshot by hard links stays
        as it is."""
        if self.metrics_file.is_file() and self.metrics_file.lstat().st_nlink > 1:
            write_atomically(self.metrics_file, self.metrics_file.read_bytes())
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
        with (
            explained(
                f"write {self.metrics_file}", "let it be a file, with room to grow"
            ),
            open(open_regular(self.metrics_file, flags), "ab") as file,
        ):
            file.write(_line(record))

    def cut_metrics(self, step: int) -> list[Json]:
        """Remove evaluations after the step from which the run is resumed; returns the others."""
        kept = [record for record in self.read_metrics() if record["step"] <= step]
        content = b"".join(map(_line, kept))
        if self.metrics_file.exists() and self.metrics_file.stat().st_size != len(
            content
        ):
            write_atomically(self.metrics_file, content)
        return kept

    def read_metrics(self) -> list[Json]:
        """All evaluations; none if there is no file. Raises SnfnpError if it is damaged."""
        if not self.metrics_file.exists():
            return []
        content = read_bytes(
            self.metrics_file, SnfnpError, f"{self.metrics_file} is gone"
        )
        *lines, _ = content.split(b"\n")  # a crash may have cut the last one off
        records = []
        for number, line in enumerate(lines, start=1):
            try:
                records.append(parse_json(line))
                if not is_evaluation(records[-1]):
                    raise ValueError("no evaluation")
            except ValueError as error:
                raise SnfnpError(
                    f"{self.metrics_file} is damaged (line {number}: {str(error)[:80]}): restore "
                    "it, or delete it to go on without"
                ) from None
        return records


def default_folder(config: TrainConfig) -> Path:
    """The folder that a new run makes: `--out`, or one named after its options and the time."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    name = f"{config.data_name}-{title_of(config.model)}-{config.gradient}-{stamp}"
    return config.out or Path("runs") / re.sub(r"[^\w.-]+", "-", name)


def _are_counts(numbers: Any, *lengths: int) -> bool:
    """Say whether this is a list of so many positive whole numbers."""
    is_list = isinstance(numbers, list) and len(numbers) in lengths
    return is_list and all(type(n) is int and 0 < n < 2**31 for n in numbers)


def _line(record: Json) -> bytes:
    return json.dumps(record, allow_nan=False).encode() + b"\n"


def _digest(record: Json) -> str:
    """The SHA-256 of a record, without that itself."""
    rest = {name: value for name, value in record.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
