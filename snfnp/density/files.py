"""A fitted estimator in a file: numbers and text alone, as a checkpoint."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from snfnp.density.ensemble import Fit
from snfnp.density.mixture import Mixture
from snfnp.density.training import Candidate
from snfnp.errors import CheckpointError, UsageError
from snfnp.files import readable
from snfnp.parameters import Layout
from snfnp.training.options import TrainConfig
from snfnp.training.runs.checkpoint import (
    Checkpoint,
    load_checkpoint,
    record_of,
    save_checkpoint,
)

# of a mean in units of its spread, and of a mixture's numbers: beyond any fit's
_LARGEST = 2.0**80


def save(density: Any, path: Path) -> None:
    """Write atomically. Raises SnfnpError for a path that cannot be written."""
    fit = density._fitted
    if path.exists() and not path.is_file():
        raise UsageError(f"{path} is no regular file: give another path")
    arrays = {}
    candidates = []
    best = replace(fit.best, members=fit.best.members[:1])
    for index, (candidate, weight) in enumerate([*fit.kept, (best, None)]):
        candidates.append(
            [candidate.name, weight, candidate.step, len(candidate.members)]
        )
        for number, member in enumerate(candidate.members):
            named = vars(member) if isinstance(member, Mixture) else {"flat": member}
            arrays[f"{index}.{number}"] = named
    shapes = {
        key: {name: array.shape for name, array in named.items()}
        for key, named in arrays.items()
    }
    params = density.get_params() | {"random_state": None}
    for name, value in params.items():
        if isinstance(value, np.generic):
            params[name] = value.item()  # a number that JSON has
    record = {
        "class": type(density).__name__,
        "params": params,
        "config": fit.config.as_dict(),
        "moments": fit.preprocess.moments,
        "names": list(getattr(density, "feature_names_in_", ())) or None,
        "candidates": candidates,
        "shapes": shapes,
    }
    layout = Layout.of(shapes, fixed=tuple(shapes))
    none = np.zeros(0)
    p = layout.pack(arrays, np.float64)
    checkpoint = Checkpoint(layout, p, none, none, density.n_iter_, record)
    save_checkpoint(path, checkpoint, "free some space, or give another path")


@np.errstate(all="ignore")
def load(cls: type, path: Path) -> Any:
    """The estimator. Raises CheckpointError for any other file."""
    record = record_of(path)
    if record.get("class") != cls.__name__:
        raise CheckpointError(
            f"{path} holds no {cls.__name__}: give a file that it saved"
        )
    with readable(path, "use another file", CheckpointError, "is damaged"):
        shapes = record["shapes"]
        layout = Layout.of(shapes, fixed=tuple(shapes))
        views = layout.views(load_checkpoint(path, layout).p)
        density = cls(**record["params"])
        config = TrainConfig.from_dict(record["config"])
        moments = np.array(record["moments"])
        _require(config.model == "vector" and len(moments) in (2, 7), "its model")
        mean, spread = moments[:2]
        variance = spread**2
        usual = (spread > 0) & (variance > 0) & (variance < np.inf)
        usual &= np.abs(mean) < _LARGEST * spread
        _require(np.isfinite(moments).all() and usual.all(), "its moments")
        flow = config.build_flow(mean.shape, moments)
        kept = []
        for index, (name, weight, step, count) in enumerate(record["candidates"]):
            members = [
                _member(views[f"{index}.{number}"], flow.layout.size, len(mean))
                for number in range(count)
            ]
            kept.append((Candidate(str(name), members=members, step=step), weight))
        best, _ = kept.pop()
        weights = [float(weight) for _, weight in kept]
        _require(min(weights) > 0 and abs(sum(weights) - 1) < 1e-9, "its weights")
        names = record["names"]
        if names is not None:
            names = np.array([str(name) for name in names], object)
        density._keep(Fit(config, flow, kept, best), names)
    return density


def _member(
    arrays: dict[str, np.ndarray], size: int, columns: int
) -> np.ndarray | Mixture:
    """The parameters of a flow, or a mixture."""
    if set(arrays) == {"flat"} and arrays["flat"].shape == (size,):
        return arrays["flat"]
    mixture = Mixture(**arrays)
    components = len(mixture.weights)
    fits = mixture.means.shape == (components, columns)
    fits &= mixture.roots.shape == (components, columns, columns)
    sound = (mixture.weights > 0).all() and abs(mixture.weights.sum() - 1) < 1e-9
    sound &= max(np.abs(mixture.means).max(), np.abs(mixture.roots).max()) < _LARGEST
    sound &= (np.diagonal(mixture.roots, 0, 1, 2) > 1 / _LARGEST).all()
    _require(fits and sound, "a mixture in it")
    return mixture


def _require(sound: Any, part: str) -> None:
    if not sound:
        raise ValueError(part)
