"""Self Normalizing Flows (Keller et al., ICML 2021) in NumPy, Numba and CuPy, gradients by hand.

    run = snfnp.fit(rows)                   # rows (N, D), or images
    run = snfnp.load_run("runs/…")          # a finished run: flow, params, likelihood, …
    run.likelihood.sample(16, seed=0)

    data = snfnp.load_dataset("mnist")
    config = snfnp.TrainConfig(model="conv", epochs=5, out="runs/mine")
    snfnp.train(config, data)
    snfnp.resume("runs/mine", epochs=10)

    snfnp.FlowDensity().fit(X).score_samples(X)    # rows X (N, D), as in scikit-learn

    snfnp.check_layer(layer, shape=(6,))    # a layer of your own, by finite differences

`__all__` has the other names. `__init__.pyi` says where each is defined; its module is loaded when
the name is first used. Import ``snfnp`` before NumPy if you can: the package settles how BLAS
threads wait (see ``snfnp.threads``), and OpenBLAS reads that only once, when it is loaded.
"""

import os
import sys

# `python -m snfnp` puts the current folder first on the path, and it may be a stranger's: it is
# taken off before anything but os and sys, which Python loads before, is imported. argv[0] is "-m"
# while Python looks for a program.
if sys.argv[:1] == ["-m"] and sys.orig_argv[-len(sys.argv)] in ("snfnp", "-msnfnp"):
    try:  # contextlib would be another import
        if sys.path[0] == os.getcwd() and not sys.flags.safe_path:
            del sys.path[0]
    except FileNotFoundError:  # the current folder is gone, and so is no danger
        pass

import re
from importlib import import_module
from pathlib import Path

from snfnp import threads

threads.configure_blas()

__version__ = "0.2.0"

_STUB = Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8")
_MODULES = {
    name: module
    for module, name in re.findall(r"^from (\S+) import (\w+) as", _STUB, re.M)
}
__all__ = [
    *(name for name, module in _MODULES.items() if module != "snfnp"),
    "__version__",
]


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if _MODULES[name] == "snfnp":  # a folder
        return import_module(f"snfnp.{name}")
    value = globals()[name] = getattr(import_module(_MODULES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted([*_MODULES, "__version__"])
