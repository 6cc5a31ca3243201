"""A fitted estimator in a file: numbers and text alone, as a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from snfnp.density.mixture import Mixture
from snfnp.density.training import Candidate
from snfnp.errors import CheckpointError, UsageError
from snfnp.files import readable
from snfnp.parameters import Layout
from snfnp.training.options import TrainConfig
from snfnp.training.runs.checkpoint import Checkpoint, load_checkpoint, record_of, save_checkpoint

_LARGEST = 2.0**80  # of a mean in units of its spread, and of a mixture's numbers: beyond any fit's


def save(density: Any, path: Path) -> None:
    """Write atomically. Raises SnfnpError for a path that cannot be written."""
    if path.exists() and not path.is_file():
        raise UsageError(f"{path} is no regular file: give another path")
    config, kept, best, moments = density._fit
    shapes, arrays, described = {}, {}, []
    for place, (candidate, weight) in enumerate([*kept, (best, None)]):
        members = candidate.members if weight is not None else candidate.members[:1]
        described.append([candidate.name, weight, candidate.step, len(members)])
        for number, member in enumerate(members):
            named = _named(member)
            shapes[f"{place}.{number}"] = {name: each.shape for name, each in named.items()}
            arrays[f"{place}.{number}"] = named
    layout = Layout.of(shapes, fixed=tuple(shapes))
    names = getattr(density, "feature_names_in_", None)
    params = density.get_params() | {"random_state": None}
    # NumPy's numbers as Python's, which JSON has
    plain = {k: each.item() if isinstance(each, np.generic) else each for k, each in params.items()}
    record = {
        "class": type(density).__name__,
        "params": plain,
        "config": config.as_dict(),
        "moments": np.array(moments).tolist(),
        "names": None if names is None else list(names),
        "candidates": described,
        "shapes": {layer: {k: list(v) for k, v in each.items()} for layer, each in shapes.items()},
    }
    none = np.zeros(0)
    how = (layout, layout.pack(arrays, np.float64), none, none)
    advice = "free some space, or give another path"
    save_checkpoint(path, Checkpoint(*how, best.step, record), advice)


@np.errstate(all="ignore")
def load(cls: type, path: Path) -> Any:
    """The estimator. Raises CheckpointError for any other file."""
    record = record_of(path)
    if record.get("class") != cls.__name__:
        raise CheckpointError(f"{path} holds no {cls.__name__}: give a file that it saved")
    with readable(path, "use another file", CheckpointError, "is damaged"):
        shapes = {k: {n: tuple(s) for n, s in v.items()} for k, v in record["shapes"].items()}
        layout = Layout.of(shapes, fixed=tuple(shapes))
        views = layout.views(load_checkpoint(path, layout).p)
        density = cls(**record["params"])
        config, moments = TrainConfig.from_dict(record["config"]), np.array(record["moments"])
        sound = config.model == "vector" and len(moments) in (2, 5, 7)
        sound = sound and np.isfinite(moments).all()
        mean, spread = moments[:2]
        usual = (spread > 0) & (spread**2 > 0) & (spread**2 < np.inf)
        if not (sound and (usual & (np.abs(mean) < _LARGEST * spread)).all()):
            raise ValueError("its model or moments")
        size = config.build_flow(moments.shape[1:], moments).layout.size
        kept = []
        for place, (name, weight, step, count) in enumerate(record["candidates"]):
            members = [_member(views[f"{place}.{k}"], size, moments.shape[1]) for k in range(count)]
            kept.append((Candidate(str(name), np.empty(0), members, step), weight))
        best, weights = kept.pop()[0], [float(weight) for _, weight in kept]
        if not (min(weights) > 0 and abs(sum(weights) - 1) < 1e-9):
            raise ValueError("its weights")
        if record["names"] is not None:
            density.feature_names_in_ = np.array([str(each) for each in record["names"]], object)
        density._keep(config, moments, kept, best)
    return density


def _named(member: Any) -> dict[str, np.ndarray]:
    return vars(member) if isinstance(member, Mixture) else {"flat": member}


def _member(arrays: dict[str, np.ndarray], size: int, columns: int) -> Any:
    if set(arrays) == {"flat"} and arrays["flat"].shape == (size,):
        return arrays["flat"]
    mixture = Mixture(**arrays)
    weights, means, roots = vars(mixture).values()
    fits = means.shape == (len(weights), columns) and roots.shape == (*means.shape, columns)
    sound = (weights > 0).all() and abs(weights.sum() - 1) < 1e-9
    largest = max(np.abs(means).max(), np.abs(roots).max())
    sound = sound and largest < _LARGEST
    if not (fits and sound and (np.diagonal(roots, 0, 1, 2) > 1 / _LARGEST).all()):
        raise ValueError("a mixture in it")
    return mixture
