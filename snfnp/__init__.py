"""Self Normalizing Flows (Keller et al., ICML 2021) in NumPy and CuPy, every gradient by hand.

    run = snfnp.fit(rows)                   # a flow of an array (N, D) or of images
    run = snfnp.load_run("runs/…")          # a finished run: flow, params, likelihood, …
    run.likelihood.sample(16, seed=0)

    data = snfnp.load_dataset("mnist")
    config = snfnp.TrainConfig(model="conv", epochs=5).resolve(len(data.train))
    folder = snfnp.RunFolder.create("runs/mine")
    snfnp.train(config, data, snfnp.get_ops(config.backend), folder)
    snfnp.resume("runs/mine", epochs=10)    # and on with it

    snfnp.FlowDensity().fit(X).score_samples(X)    # rows X (N, D), as in scikit-learn

    snfnp.check_layer(layer, shape=(6,))    # a layer of your own, by finite differences

`__all__` has the other names; modules are loaded when a name is first used (editors, which do not
run this, read `__init__.pyi`). Import ``snfnp``
before NumPy if you can: the package settles how BLAS threads wait (see ``snfnp.threads``), and
OpenBLAS reads that only once, when it is loaded.
"""

from importlib import import_module

from snfnp import threads

threads.configure_blas()

__version__ = "0.1.0"

_MODULES = {
    "load_run": "training.runs.load",
    "fit": "training.session",
    "train": "training.loop",
    "resume": "training.session",
    "Record": "training.progress",
    "register": "training.options.user_models",
    "TrainConfig": "training.options",
    "RunFolder": "training.runs.folder",
    "load_dataset": "data",
    "Dataset": "data",
    "get_ops": "ops",
    "RandomKey": "ops",
    "PRESETS": "models",
    "Flow": "flow",
    "Layer": "layers",
    "Layout": "parameters",
    "Likelihood": "likelihood",
    "FlowDensity": "density",
    "check_layer": "gradcheck",
    "check_map": "gradcheck",
    "check_gradient": "gradcheck",
    "check_rule": "gradcheck",
    "SnfnpError": "errors",
}
__all__ = [*_MODULES, "__version__"]
_ROOMS = ("data", "gradcheck", "layers", "maps", "rules", "training")  # folders, for a notebook


def __getattr__(name: str):
    if name in _ROOMS:
        return import_module(f"snfnp.{name}")
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"snfnp.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, *_ROOMS])
