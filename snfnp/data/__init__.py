"""Images to model: MNIST, Fashion-MNIST, CIFAR-10, ImageNet32, photograph patches."""

import os
from collections.abc import Callable

from snfnp.data import cifar, imagenet, mnist, patches
from snfnp.data.files import Dataset, print_to_stderr
from snfnp.errors import UsageError

_LOADERS = {
    **dict.fromkeys(mnist.SPECS, mnist.load),
    cifar.NAME: cifar.load,
    imagenet.NAME: imagenet.load,
    patches.NAME: patches.load,
}
DATA_SETS = tuple(_LOADERS)

__all__ = ["DATA_SETS", "Dataset", "load_dataset"]


def load_dataset(
    name: str = "mnist",
    data_dir: str | os.PathLike[str] | None = None,
    *,
    report: Callable[[str], None] = print_to_stderr,
) -> Dataset:
    """Load the images of a data set from the first place that has them.

    The places, in order: `data_dir`; else the folder in the environment variable SNFNP_DATA_DIR;
    else the user's cache; else a download into that cache (not if the environment variable
    SNFNP_OFFLINE is set to anything but "0"); else, for MNIST, the sample that the package ships.
    A given folder is the only place that is searched: its subfolder `name` first, then the folder
    itself. Which files are looked for, how they are checked and split: `mnist.load`, `cifar.load`,
    `imagenet.load` (never downloaded), `patches.load` (always from the scikit-image package).

    Args:
        name: one of DATA_SETS.
        data_dir: a folder with the published files, or None.
        report: called with one line where a stand-in replaces the full data, or before work that
            takes minutes.

    Returns:
        The images in three splits, and in words where they came from.

    Raises:
        UsageError: `name` is not known, or the given folder does not exist or lacks the files.
        SnfnpError: a file is damaged or holds something else, or nothing was found anywhere.
    """
    if name not in _LOADERS:
        raise UsageError(f"unknown data set {name!r}; use one of: {', '.join(DATA_SETS)}")
    return _LOADERS[name](name, data_dir, report)
