"""The description of a run in config.json: everything that a repetition of it needs to know."""

import platform
from contextlib import suppress
from importlib import metadata

import snfnp
from snfnp import threads
from snfnp.data import SPLITS
from snfnp.layers import ActNorm, Whiten
from snfnp.training.options import TrainConfig

_PACKAGES = ("numpy", "scipy", "numba", "llvmlite", "safetensors")


def describe_run(config: TrainConfig, flow, dataset, ops, processes: int = 1) -> dict:
    """The contents of config.json."""
    initialisation = f"{config.init}, NumPy default_rng({config.seed}); R = flip(W)"
    zero, first = config.chosen("bias_init") == "zero", "from the first batch"
    initialisation += "; b = 0" if zero else f"; b {first}"
    if any(isinstance(layer, Whiten) for _, layer in flow.layers):
        initialisation += "; whitened by all training images"
    if any(isinstance(layer, ActNorm) for _, layer in flow.layers):
        initialisation += f"; actnorm {first}"
    order = "a new order per epoch, NumPy default_rng((seed, epoch))"
    rows = dataset.noun == "rows"
    return {
        "config": config.as_dict(),
        "data": {
            "name": dataset.name,
            "source": dataset.source,
            "is_sample": dataset.is_sample,
            "images": [len(dataset.train), len(dataset.validation), len(dataset.test)],
            "shape": list(dataset.train.shape[1:]),
            **({"moments": [each.tolist() for each in dataset.moments]} if rows else {}),
            "sha256": {split: dataset.fingerprint(split) for split in SPLITS},
        },
        "model": {
            "parameters": flow.layout.count,
            "layers": {name: repr(layer) for name, layer in flow.layers},
            "preprocess": repr(flow.preprocess),
            "initialisation": initialisation,
        },
        "randomness": {
            "seed": config.seed,
            "shuffle": order if config.shuffle else "file order",
            "noise": "Philox 4x32-10 from (seed, stream, step)",
        },
        "processes": processes,
        **environment(ops),
    }


def environment(ops) -> dict:
    """The backend, device, threads, versions and platform that compute."""
    versions = {"snfnp": snfnp.__version__, "python": platform.python_version()}
    for package in _PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return {
        "backend": ops.name,
        "device": ops.device.describe(),
        "threads": threads.describe(),
        "versions": versions,
        "platform": f"{platform.platform()}, {platform.processor() or platform.machine()}",
    }
