"""Data to model: MNIST, Fashion-MNIST, CIFAR-10, ImageNet32, 2-D toy densities, the user's own."""

import os
from collections.abc import Callable
from functools import partial

from snfnp.data import cifar, imagenet, mnist, toy, user_data
from snfnp.data.dataset import SPLITS, Dataset, require_dataset
from snfnp.data.published import print_to_stderr
from snfnp.errors import UsageError, suggestion

# {name: a function (data_dir or None, report) -> Dataset}
PUBLISHED: dict[str, Callable[..., Dataset]] = {
    **{name: spec.load for name, spec in mnist.SPECS.items()},
    "cifar-10": cifar.CIFAR.load,
    "imagenet32": imagenet.IMAGENET32.load,
}
LOADERS: dict[str, Callable[..., Dataset]] = {
    **PUBLISHED,
    "mnist-sample": mnist.sample,
    **{name: partial(toy.load, name) for name in toy.DENSITIES},
}
DATA_SETS = tuple(LOADERS)

__all__ = ["DATA_SETS", "PUBLISHED", "SPLITS", "Dataset", "load_dataset", "require_dataset"]


def load_dataset(
    name: str = "mnist",
    data_dir: str | os.PathLike[str] | None = None,
    *,
    report: Callable[[str], None] = print_to_stderr,
    validation: str | None = None,
    test: str | None = None,
    seed: int = 0,
) -> Dataset:
    """Load the images of a data set, one of DATA_SETS, from the first place that has them; or the
    images or rows at a path, of which validation, test and seed make splits (`user_data.load`).

    The places, in order: `data_dir`; else the folder in the environment variable SNFNP_DATA_DIR;
    else the user's cache; else a download into that cache (not if the environment variable
    SNFNP_OFFLINE is set to anything but "0"); else, for MNIST, the sample that the package ships.
    A given folder is the only place that is searched: its subfolder `name` first, then the folder
    itself. Files, checks and splits: `mnist.MnistSpec`, `cifar.Cifar`, `imagenet.ImageNet32` (never
    downloaded), `mnist.sample`, `toy.load`.

    `report` is called with one line if a sample takes the place of the full data, and before work
    that takes minutes. Raises UsageError if `name` is not known, or the given folder does not exist
    or lacks the files; SnfnpError if a file is damaged or holds something else, or nothing was
    found anywhere.
    """
    if name in LOADERS:
        return LOADERS[name](data_dir, report)
    if os.path.exists(name):
        if data_dir is not None:
            found = f"`data_dir={data_dir}` is for published data sets, and {name} is a path"
            raise UsageError(f"{found}: leave it out")
        return user_data.load(name, validation, test, seed)
    if os.path.splitext(name)[1] or os.path.basename(name) != name:
        raise UsageError(f"no such file: {name}: give the path of your data (`data`)")
    found = f"{name!r} is neither a data set nor a path{suggestion(name, LOADERS)}"
    names = ", ".join(DATA_SETS)
    raise UsageError(f"{found}: use one of {names}, or the path of your data (`data`)")
