"""Data sets: MNIST, Fashion-MNIST, CIFAR-10, ImageNet32, 2-D toy densities, the user's own."""

import os
from collections.abc import Callable
from functools import partial

from snfnp.data import sets, toy, user_data
from snfnp.data.dataset import SPLITS, Dataset, require_dataset
from snfnp.data.published import print_to_stderr
from snfnp.errors import UsageError, suggestion

# {name: a function (data_dir or None, report) -> Dataset}
PUBLISHED: dict[str, Callable[..., Dataset]] = {
    published.name: published.load
    for published in (sets.MNIST, sets.FASHION_MNIST, sets.CIFAR, sets.IMAGENET32)
}
LOADERS: dict[str, Callable[..., Dataset]] = {
    **PUBLISHED,
    "mnist-sample": sets.sample,
    **{name: partial(toy.load, name) for name in toy.DENSITIES},
}
DATA_SETS = tuple(LOADERS)

__all__ = ["DATA_SETS", "PUBLISHED", "SPLITS", "Dataset", "load_dataset", "require_dataset"]


def load_dataset(
    name: str | os.PathLike[str] = "mnist",
    data_dir: str | os.PathLike[str] | None = None,
    *,
    report: Callable[[str], None] = print_to_stderr,
    validation: str | None = None,
    test: str | None = None,
    seed: int = 0,
    **table,
) -> Dataset:
    """Load a published data set, or the images or rows at a path.

    The files of a published set come from `data_dir` (its subfolder `name`, or the folder itself);
    else from the folder in the environment variable SNFNP_DATA_DIR, likewise; else from the user's
    cache, which downloads missing files unless SNFNP_OFFLINE is set. If there is no MNIST, the
    sample that the package ships takes its place.

    Args:
        name: one of DATA_SETS, or the path of a .npy, .npz or .csv file or a folder of images.
        data_dir: the folder with a published set's files.
        report: gets a line if the sample replaces the full data, or if images are left out.
        validation, test: for a path without such splits, other paths or the fractions that are held
            out (a tenth each).
        seed: of the random choice of the samples that are held out.
        table: options for a .csv file: header, columns, drop_incomplete (`snfnp.data.table`).

    Returns:
        The data in three splits.

    Raises:
        UsageError: `name` is neither, a file is damaged, or a folder lacks files.
        SnfnpError: the files were found nowhere.
    """
    name = os.fspath(name) if isinstance(name, os.PathLike) else name
    if not isinstance(name, str):
        found = f"load_dataset takes a name or a path, and got a {type(name).__name__}"
        raise UsageError(f"{found}: give arrays to snfnp.fit or snfnp.Dataset")
    if name in LOADERS:
        return LOADERS[name](data_dir, report)
    if os.path.lexists(name):
        if data_dir is not None:
            found = f"`data_dir={data_dir}` is for published data sets, and {name} is a path"
            raise UsageError(f"{found}: leave it out")
        return user_data.load(name, validation, test, seed, report, **table)
    if os.path.splitext(name)[1] or os.path.basename(name) != name:
        raise UsageError(f"no such file: {name}: give the path of your data (`data`)")
    found = f"{name!r} is neither a data set nor a path{suggestion(name, LOADERS)}"
    names = ", ".join(DATA_SETS)
    raise UsageError(f"{found}: use one of {names}, or the path of your data (`data`)")
